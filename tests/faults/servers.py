"""The servers of a run: a Kafka that each worker reaches by a listener of its own, a Redis on a small disk."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Self

import redis

from tests.faults.network import Link, Network
from tests.servers import KafkaCluster, KafkaServer, RedisServer, ServerUnavailable
from tests.servers.server import free_port

WORKERS = ("w1", "w2", "w3", "w4")
DISK_MB = 64
USER, PASSWORD = "worker", "secret"
LOGIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'


class Pair:
    """Kafka, Redis, and a link from each worker to each of them. A context manager.

    Kafka is one broker or a cluster of three, then with links between any two of them too. Workers log in as a user who
    may do what no access list denies; `disk` is where Redis keeps its data, None where no small file system can be
    mounted (that needs root).
    """

    def __init__(self, brokers: int = 1) -> None:
        self._stack = ExitStack()
        self.kafka = KafkaServer() if brokers == 1 else KafkaCluster()
        self.brokers = [self.kafka] if isinstance(self.kafka, KafkaServer) else self.kafka.nodes
        self.to_kafka: dict[str, list[Link]] = {}
        self.to_redis: dict[str, Link] = {}
        self.between: dict[tuple[int, int], list[Link]] = {}
        """By node ids: who connects, and to whom."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="driftline-faults-")))
        self.disk = self._stack.enter_context(_small_disk(folder / "redis"))
        self.data = self.disk or folder / "redis"
        self.redis = self._stack.enter_context(RedisServer(appendonly=True, data=self.data))
        network = self._stack.enter_context(Network())
        self.to_redis = {name: network.link(self.redis.port) for name in WORKERS}
        self.to_kafka = {name: [network.link(free_port()) for _ in self.brokers] for name in WORKERS}
        for number, broker in enumerate(self.brokers):
            self._settle(broker, {name: links[number] for name, links in self.to_kafka.items()})
        if len(self.brokers) > 1:
            self._part(network)
        self._stack.enter_context(self.kafka)

    def _settle(self, broker: KafkaServer, links: Mapping[str, Link]) -> None:
        """Give a broker a listener for each worker, behind its link."""
        plain = f"PLAINTEXT://{broker.bootstrap_servers}"
        listeners = [f"{name.upper()}://127.0.0.1:{link.target}" for name, link in links.items()]
        advertised = [f"{name.upper()}://127.0.0.1:{link.port}" for name, link in links.items()]
        broker.changed |= {
            "listeners": ",".join([plain, *listeners, f"CONTROLLER://127.0.0.1:{broker.controller_port}"]),
            "advertised.listeners": ",".join([plain, *advertised]),
            "listener.security.protocol.map": ",".join(
                ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", *(f"{name.upper()}:SASL_PLAINTEXT" for name in WORKERS)]
            ),
            "sasl.enabled.mechanisms": "PLAIN",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:ANONYMOUS",
            # Kafka 4.3.1 aborts what has timed out before it knows its topics again, writes no marker and calls it
            # done: the next commit of that writer then commits the aborted records. Its default is 10 s.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "5000",
        } | {f"listener.name.{name}.plain.sasl.jaas.config": LOGIN for name in WORKERS}

    def _part(self, network: Network) -> None:
        """Lead every connection between two brokers over a link of these two.

        Brokers advertise one name for all others, which each of them looks up in its own table of hosts.

        Raises:
            ServerUnavailable: 127.0.1.2 is no address of this machine.
        """
        ports = {node: (free_port(), broker.controller_port) for node, broker in enumerate(self.brokers, start=1)}
        voters = ",".join(f"{node}@broker{node}:{controller}" for node, (_, controller) in ports.items())
        for node, broker in enumerate(self.brokers, start=1):
            own, controller = ports[node]
            broker.hosts = {f"broker{to}": f"127.0.{node}.{to}" for to in ports} | {f"broker{node}": "127.0.0.1"}
            for setting, more in {
                "listeners": f"BROKERS://127.0.0.1:{own}",
                "advertised.listeners": f"BROKERS://broker{node}:{own},CONTROLLER://broker{node}:{controller}",
                "listener.security.protocol.map": "BROKERS:PLAINTEXT",
            }.items():
                broker.changed[setting] += f",{more}"
            broker.changed |= {"inter.broker.listener.name": "BROKERS", "controller.quorum.voters": voters}
            try:
                self.between |= {
                    (node, to): [network.link(port, f"127.0.{node}.{to}", port) for port in ports[to]]
                    for to in ports
                    if to != node
                }
            except OSError as error:
                raise ServerUnavailable(
                    f"no link between brokers: {error}", "Give the loopback 127.0.1.2 to 127.0.3.2, as Linux does."
                ) from error

    @property
    def how(self) -> str:
        disk = f"its data on {DISK_MB} MB of their own" if self.disk else "no small file system: its disk is never full"
        return f"{self.kafka.how} · {self.redis.how}, {disk}"

    def settings(self, name: str) -> Mapping[str, str]:
        """What sends a worker through its own links."""
        return {
            "KAFKA__BOOTSTRAP_SERVERS": ",".join(f"127.0.0.1:{link.port}" for link in self.to_kafka[name]),
            "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA__SASL_MECHANISM": "PLAIN",
            "KAFKA__SASL_USERNAME": USER,
            "KAFKA__SASL_PASSWORD": PASSWORD,
            "REDIS__URL": f"redis://127.0.0.1:{self.to_redis[name].port}/0",
        }

    def mend(self) -> None:
        """Both answer, with room, and every link passes on."""
        for link in chain(self.to_redis.values(), *self.to_kafka.values(), *self.between.values()):
            link.mend()
        self.make_room()
        self.redis.start()
        self.kafka.start()
        with redis.Redis.from_url(self.redis.url) as client:
            client.config_set("maxmemory", "0")

    def clear(self) -> None:
        """Forget what earlier rounds left in Redis, on its disk too."""
        with redis.Redis.from_url(self.redis.url) as client:
            client.flushall()
            with suppress(redis.ResponseError):  # one goes on already
                client.bgrewriteaof()

    def fill_the_disk(self) -> None:
        """Leave no room for Redis's data."""
        assert self.disk is not None
        with suppress(OSError), (self.disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65_536))

    def make_room(self) -> None:
        (self.data / "ballast").unlink(missing_ok=True)

    def lose_the_data(self) -> None:
        """Delete what a Redis that does not run has on its disk."""
        for path in self.data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save_logs(self, folder: Path) -> None:
        brokers = {f"kafka-{node}": broker for node, broker in enumerate(self.brokers, start=1)}
        for name, server in ({"redis": self.redis} | brokers).items():
            if server.log:
                shutil.copy(server.log, folder / f"{name}.log")


@contextmanager
def _small_disk(path: Path) -> Iterator[Path | None]:
    """A file system of its own, where one can be mounted."""
    path.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        yield None
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(path)], check=False)
    if mounted.returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)
