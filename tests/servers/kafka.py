"""Apache Kafka as one KRaft node, a container or its jars in a child process; or as a cluster of three."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

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


OF_A_CLUSTER = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
}


class KafkaServer(Server):
    """One Kafka broker; `bootstrap_servers` is where it answers.

    With `settings` of its own, or its `data` in a folder of the caller's, it is always a local process. Where `hosts`
    has names and addresses, it knows no other names.
    """

    product = "Apache Kafka"
    version = KAFKA_VERSION

    def __init__(
        self, settings: Mapping[str, str] | None = None, data: Path | None = None, port: int | None = None
    ) -> None:
        super().__init__(port)
        self.controller_port = free_port()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self.changed = dict(settings or {})
        self.hosts: Mapping[str, str] = {}
        self._data = data

    def _settings(self, host: str) -> dict[str, str]:
        return (
            SETTINGS
            | {
                "listeners": f"PLAINTEXT://{host}:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
                "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
                "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            }
            | self.changed
        )

    def _container(self) -> Container:
        if self.changed or self._data:
            raise ServerUnavailable("a Kafka with settings of its own is no container", "Put a Java on PATH.")
        env = {f"KAFKA_{name.replace('.', '_').upper()}": value for name, value in self._settings("0.0.0.0").items()}
        return Container(f"apache/kafka:{KAFKA_VERSION}", self.port, env=env | {"KAFKA_HEAP_OPTS": HEAP})

    def command(self, directory: Path) -> tuple[list[str], str]:
        """What to run, and where it comes from; the storage in `directory` is formatted for it."""
        java = find_java()
        known = directory / "hosts"
        known.write_text("".join(f"{address} {name}\n" for name, address in self.hosts.items()))
        names = [f"-Djdk.net.hosts.file={known}"] if self.hosts else []
        program = [java.executable, HEAP, *names, "-cp", f"{kafka_jars(KAFKA_VERSION)}/*"]
        properties = directory / "server.properties"
        settings = self._settings("127.0.0.1") | {"log.dirs": str(self._data or directory / "data")}
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        format_it = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)]
        run = subprocess.run([*program, *format_it], capture_output=True, text=True, check=False)
        if run.returncode:
            raise ServerUnavailable(f"Kafka cannot format its storage: {run.stderr[-500:]}", "Read the reason.")
        run_it = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "kafka.Kafka", str(properties)]
        return [*program, *run_it], f"Java {java.version} from {java.origin}"

    def _local(self, directory: Path) -> LocalProcess:
        command, origin = self.command(directory)
        return LocalProcess(command, directory / "server.log", origin)

    def answers(self) -> bool:
        if not listens(self.port):  # asked first, because the client logs every refused connection
            return False
        try:
            with KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=5_000) as admin:
                known = {str(broker["broker_id"]) for broker in admin.describe_cluster()["brokers"]}
        except KafkaError:
            return False
        return self._settings("")["node.id"] in known


class KafkaCluster:
    """Three brokers, each a controller too: whatever is written is on two of them. A context manager."""

    def __init__(self) -> None:
        self.nodes = [KafkaServer() for _ in range(3)]
        voters = ",".join(f"{i}@127.0.0.1:{node.controller_port}" for i, node in enumerate(self.nodes, start=1))
        for number, node in enumerate(self.nodes, start=1):
            node.changed = OF_A_CLUSTER | {"node.id": str(number), "controller.quorum.voters": voters}
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in self.nodes)

    def start(self) -> None:
        """Bring every broker to where it answers. Raises ServerUnavailable."""
        for node in self.nodes:
            node.start(wait=False)  # none answers before a second one is there
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """End all, and delete their data."""
        for node in self.nodes:
            node.stop()

    @property
    def how(self) -> str:
        return f"3 x {self.nodes[0].how}"

    def node(self, number: int) -> KafkaServer:
        """The broker of this node id."""
        return self.nodes[number - 1]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
