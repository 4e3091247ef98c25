"""One broker and one Redis for all, the input in a topic, each run in a process of its own."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import orjson
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from benchmarks.peers.job import Job, State
from stream.events import Record
from tests.servers import KafkaServer, RedisServer

ROOT = Path(__file__).parents[2]
SOURCE = "clickstream"
DAYS = "clickstream-of-days"
"""As many events over four days, so that a churn horizon of one day passes within them."""


class Site(NamedTuple):
    """Where everything answers, and the folder for what runs leave behind."""

    bootstrap: str
    redis_url: str
    how: str
    directory: Path

    def topic(self, name: str) -> str:
        """A new topic of one partition."""
        with KafkaAdminClient(bootstrap_servers=self.bootstrap) as admin:
            admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})
        return name

    def feed(self, topic: str, records: Iterable[Record]) -> None:
        """Put the events into a new topic."""
        self.topic(topic)
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=20, batch_size=500_000)
        for record in records:
            producer.send(topic, record.value, record.key)
        producer.close()

    def arguments(self, job: str, name: str, source: str = SOURCE) -> list[str]:
        """What tells a run where it is, its alerts' topic and its folder made; Redis is emptied."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()
        self.topic(f"{name}.alerts")
        (self.directory / name).mkdir()
        places = {"bootstrap": self.bootstrap, "redis": self.redis_url, "source": source}
        places |= {"alerts": f"{name}.alerts", "name": name, "directory": str(self.directory / name)}
        command = [sys.executable, "-m", "benchmarks.peers.one", job]
        return command + [word for key, value in places.items() for word in (f"--{key}", value)]

    def start(self, command: list[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """A run that goes on until it is killed; its output goes to a file in the folder."""
        with (self.directory / f"log-{uuid4().hex[:8]}").open("wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def alerts(self, topic: str) -> list[bytes]:
        """What a reader of committed records finds in a topic."""
        place = TopicPartition(topic, 0)
        with KafkaConsumer(
            bootstrap_servers=self.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        ) as consumer:
            consumer.assign([place])
            end = consumer.end_offsets([place])[place]
            found: list[bytes] = []
            while consumer.position(place) < end:
                found += [record.value for batch in consumer.poll(timeout_ms=200).values() for record in batch]
            return found


class Feeding:
    """A shop that sends so many events a second, in a thread of its own; `sent` of them are on their way."""

    def __init__(self, site: Site, topic: str, shop: Sequence[Record], rate: int) -> None:
        self.sent = 0
        self._stop = False
        self._arguments = (site.bootstrap, topic, shop, rate)
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """How many events there are in all."""
        self._stop = True
        self._thread.join()
        return self.sent

    def _feed(self) -> None:
        bootstrap, topic, shop, rate = self._arguments
        producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
        began = time.monotonic()
        while not self._stop and self.sent < len(shop):
            due = min(len(shop), round((time.monotonic() - began) * rate))
            for record in shop[self.sent : due]:
                producer.send(topic, record.value, record.key)
            self.sent = due
            time.sleep(0.01)
        producer.close()


@contextmanager
def running() -> Iterator[Site]:
    """Servers of this command's own, gone with all data when it ends."""
    with (
        KafkaServer() as kafka,
        RedisServer() as store,
        tempfile.TemporaryDirectory(prefix="driftline-peers-") as folder,
    ):
        yield Site(kafka.bootstrap_servers, store.url, f"{kafka.how} · {store.how}", Path(folder))


def raised(records: Iterable[Record], every: int) -> set[tuple[str, int]]:
    """Customer and count of each alert that the job without models must raise."""
    job, states = Job(None, every), dict[str, State]()
    found = set()
    for record in records:
        body = orjson.loads(record.value or b"")
        customer = body["userId"]
        states[customer], alert = job.step(states.get(customer), body)
        if alert is not None:
            found.add((customer, alert["events"]))
    return found
