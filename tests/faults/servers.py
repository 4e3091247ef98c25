"""The pair of servers of a run: a Kafka that each worker reaches by a listener of its own, a Redis on a small disk."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import redis

from tests.faults.network import Link, Network
from tests.servers import KafkaServer, RedisServer
from tests.servers.server import free_port

WORKERS = ("w1", "w2", "w3", "w4")
DISK_MB = 64
USER, PASSWORD = "worker", "secret"
LOGIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'


class Pair:
    """Kafka, Redis, and a link from each worker to each of them. A context manager.

    Workers log in as a user who may do what no access list denies; `disk` is where Redis keeps its data, None where no
    small file system can be mounted (that needs root).
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.to_kafka: dict[str, Link] = {}
        self.to_redis: dict[str, Link] = {}

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
        ports = {name: free_port() for name in WORKERS}
        self.to_redis = {name: network.link(self.redis.port) for name in WORKERS}
        self.to_kafka = {name: network.link(ports[name]) for name in WORKERS}
        self.kafka = KafkaServer()
        plain = f"PLAINTEXT://{self.kafka.bootstrap_servers}"
        listeners = [f"{name.upper()}://127.0.0.1:{ports[name]}" for name in WORKERS]
        advertised = [f"{name.upper()}://127.0.0.1:{self.to_kafka[name].port}" for name in WORKERS]
        self.kafka.changed = {
            "listeners": ",".join([plain, *listeners, f"CONTROLLER://127.0.0.1:{self.kafka.controller_port}"]),
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
        self._stack.enter_context(self.kafka)

    @property
    def how(self) -> str:
        disk = f"its data on {DISK_MB} MB of their own" if self.disk else "no small file system: its disk is never full"
        return f"{self.kafka.how} · {self.redis.how}, {disk}"

    def settings(self, name: str) -> Mapping[str, str]:
        """What sends a worker through its own links."""
        return {
            "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{self.to_kafka[name].port}",
            "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA__SASL_MECHANISM": "PLAIN",
            "KAFKA__SASL_USERNAME": USER,
            "KAFKA__SASL_PASSWORD": PASSWORD,
            "REDIS__URL": f"redis://127.0.0.1:{self.to_redis[name].port}/0",
        }

    def mend(self) -> None:
        """Both answer, with room, and every link passes on."""
        for link in (*self.to_kafka.values(), *self.to_redis.values()):
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
        for name, server in (("kafka", self.kafka), ("redis", self.redis)):
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
