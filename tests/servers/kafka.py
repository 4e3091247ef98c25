"""Apache Kafka as one KRaft node: a container, or its jars in a child process."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from tests.servers.container import Container
from tests.servers.java import find_java, kafka_jars
from tests.servers.process import LocalProcess
from tests.servers.server import Server, ServerUnavailable, free_port, listens

KAFKA_VERSION = "4.3.1"
CLUSTER_ID = "driftline-tests-000000"
HEAP = "-Xmx512m"

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # A mistyped topic is an error and not a new topic.
    "auto.create.topics.enable": "false",
    # One node holds one replica, and few partitions of internal topics are quick to load.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    # A killed broker is let in again only when the controller has given up its former self: 9 s by default.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # Tests of rebalances and dead workers wait for the shortest times the broker allows.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


class KafkaServer(Server):
    """One Kafka broker; `bootstrap_servers` is where it answers, `settings` are its own beside those of every test."""

    product = "Apache Kafka"
    version = KAFKA_VERSION

    def __init__(self, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__()
        self._own = settings
        self._controller_port = free_port()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"

    def _settings(self, host: str) -> dict[str, str]:
        return {
            **SETTINGS,
            **self._own,
            "listeners": f"PLAINTEXT://{host}:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
        }

    def _container(self) -> Container:
        env = {f"KAFKA_{name.replace('.', '_').upper()}": value for name, value in self._settings("0.0.0.0").items()}
        return Container(f"apache/kafka:{KAFKA_VERSION}", self.port, env=env | {"KAFKA_HEAP_OPTS": HEAP})

    def _local(self, directory: Path) -> LocalProcess:
        java = find_java()
        program = [java.executable, HEAP, "-cp", f"{kafka_jars(KAFKA_VERSION)}/*"]
        properties = directory / "server.properties"
        settings = self._settings("127.0.0.1") | {"log.dirs": f"{directory}/data"}
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        format_it = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)]
        run = subprocess.run([*program, *format_it], capture_output=True, text=True, check=False)
        if run.returncode:
            raise ServerUnavailable(f"Kafka cannot format its storage: {run.stderr[-500:]}", "Read the reason.")
        return LocalProcess(
            [*program, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "kafka.Kafka", str(properties)],
            directory / "server.log",
            f"Java {java.version} from {java.origin}",
        )

    def _answers(self) -> bool:
        if not listens(self.port):  # asked first, because the client logs every refused connection
            return False
        try:
            with KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=5_000) as admin:
                return len(admin.describe_cluster()["brokers"]) == 1
        except KafkaError:
            return False
