"""A real Kafka and a real Redis on 127.0.0.1, for tests and benchmarks: no root, no packages of the system, no Docker.

Where a Docker engine answers they are containers, otherwise child processes; `DRIFTLINE_SERVERS=local` skips Docker.

    with KafkaServer() as kafka, RedisServer() as redis:
        print(kafka.bootstrap_servers, redis.url)
"""

from tests.servers.kafka import KafkaCluster, KafkaServer
from tests.servers.redis import RedisServer
from tests.servers.server import ServerUnavailable

__all__ = ["KafkaCluster", "KafkaServer", "RedisServer", "ServerUnavailable"]
