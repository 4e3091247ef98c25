"""One application on real servers: its topics, its shop, its workers in processes of their own."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from uuid import uuid4

import orjson
import pytest
import redis
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata
from pydantic import SecretStr

from stream.backends.kafka import create_topics
from stream.backends.redis import connected
from stream.settings import Settings, load
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import Shop

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
SESSION_S = 6.0
WAIT_S = 60.0
SMALL = {
    "KAFKA__SESSION_TIMEOUT_S": str(SESSION_S),
    "REDIS__TIMEOUT_S": "1",
    "TICK__MAX_EVENTS": "50",
    "TICK__MAX_SPAN_HOURS": "12",
    "TICK__IDLE_AFTER_S": "0.5",
    "ALERTS__ANOMALY_ONE_IN": "20",
    "ALERTS__ANOMALY_MIN_EVENTS": "5",
    "ALERTS__ANOMALY_COOLDOWN_HOURS": "24",
    "ALERTS__SEGMENT_MIN_ORDERS": "2",
    "ALERTS__SEGMENT_DWELL_DAYS": "0",
    "ALERTS__SEGMENT_MARGIN": "0.05",
    "ALERTS__CHURN_ENTER": "0.5",
    "MODELS__HORIZON_DAYS": "1",
    "MODELS__SEGMENTS": "3",
    "MODELS__REFERENCE_EVENTS": "200",
    "MODELS__FIRST_CUSTOMERS": "60",
    "MODELS__MIN_LABELS": "20",
    "MODELS__PUBLISH_MIN_EVENTS": "250",
    "HTTP__PORT": "0",
}
"""Models that are ready within the run, and ticks so small that there are many."""


both_clients = pytest.mark.parametrize("client", ["kafka-python", "librdkafka"], indirect=True)
"""For a test of what a client may get wrong: membership, offsets, transactions, what it tells."""


def until(condition: Callable[[], Any], what: Callable[[], str] | str, wait_s: float = WAIT_S) -> Any:
    """Wait for a condition; returns what it answered."""
    deadline = time.monotonic() + wait_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {wait_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)
    return answer


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a page of a running worker; 0 where nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except URLError:
        return 0, ""


def partition_of(key: str, partitions: int = 4) -> int:
    """Where a coordinator's topic keeps a group or a transactional id: Java's hash of the string."""
    value = 0
    for letter in key:
        value = (31 * value + ord(letter)) & 0xFFFFFFFF
    return (value & 0x7FFFFFFF) % partitions


class Running:
    """A child process with its output in files."""

    def __init__(self, command: list[str], environment: Mapping[str, str], directory: Path, name: str) -> None:
        number = len(list(directory.glob("*.out")))
        self._out, self._err = directory / f"{number}-{name}.out", directory / f"{number}-{name}.err"
        for path in (self._out, self._err):
            path.touch()
        self.process = self._spawn(command, environment)

    def _spawn(self, command: list[str], environment: Mapping[str, str]) -> Any:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def errors(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def output(self) -> bytes:
        return self._out.read_bytes()

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of progress so far."""
        return [orjson.loads(line) for line in self.output.split(b"\n")[:-1]]

    def said(self, what: str, after: int = 0) -> list[dict[str, Any]]:
        return [line for line in self.lines()[after:] if line["what"] == what]

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], Any], what: str, wait_s: float = WAIT_S) -> Any:
        """Wait for a condition while the process lives."""

        def met() -> Any:
            answer = condition()
            if not answer and not self.alive():
                pytest.fail(f"{what}: ended with {self.process.returncode} before; {self.errors[-3000:]}")
            return answer

        return until(met, lambda: f"{what}; {self.errors[-3000:]}", wait_s)

    def end(self, wait_s: float = WAIT_S) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {wait_s:g} s; {self.errors[-3000:]}")

    def stop(self, wait_s: float = 15.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end(wait_s)

    def kill(self) -> None:
        if self.alive():
            self.process.kill()
        self.process.wait()


class Site:
    """One application with topics, shop and workers of its own."""

    runs: type[Running] = Running
    """How a command becomes a process."""

    def __init__(
        self, bootstrap: str, redis_url: str, directory: Path, replication: int = 1, name: str = "", **values: str
    ) -> None:
        self.name = name or f"t{uuid4().hex[:8]}"
        self.bootstrap, self.directory = bootstrap, directory
        self.environment = {
            f"DRIFTLINE_{key}": value
            for key, value in (
                SMALL
                | {
                    "APPLICATION__NAME": self.name,
                    "APPLICATION__INSTANCE": "w1",
                    "KAFKA__BOOTSTRAP_SERVERS": bootstrap,
                    "REDIS__URL": redis_url,
                    "TOPICS__CLICKSTREAM": f"{self.name}.clicks",
                    "TOPICS__PURCHASES": f"{self.name}.buys",
                }
                | values
            ).items()
        }
        self.redis_url = redis_url
        self.shop = Shop(*self.settings.inputs, partitions=PARTITIONS)
        create_topics(self.settings, PARTITIONS, replication)
        self.running: list[Running] = []
        self.asking = oracle.asking(self.settings)

    def close(self) -> None:
        """End what still runs."""
        self.asking.close()
        for running in self.running:
            running.kill()

    @property
    def settings(self) -> Settings:
        return load(environment=self.environment)

    def set(self, **values: str) -> None:
        self.environment |= {f"DRIFTLINE_{key}": value for key, value in values.items()}

    def feed(self, until: float = 1.0) -> None:
        self.shop.feed(self.bootstrap, until)

    def send(self, topic: str, values: Sequence[tuple[int, bytes, bytes]], **producer: Any) -> None:
        """Send (partition, key, value) of each record; the shop knows nothing of them."""
        client = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=20, **producer)
        try:
            sent = [client.send(topic, value, key, partition=partition) for partition, key, value in values]
            client.flush()
            for future in sent:
                future.get(10)
        finally:
            client.close()

    def worker(self, instance: str = "w1", *arguments: str, **own: str) -> Running:
        """A worker in a process of its own; `own` are settings that only it has."""
        command = ["tests.integration.worker_process", "--app", self.name, "--instance", instance, *arguments]
        return self._start(command, instance, **own)

    def command(self, *arguments: str) -> Running:
        """`driftline …` in a process of its own."""
        return self._start(["stream", *arguments], arguments[0])

    def ask(self, *arguments: str) -> bytes:
        """The output of a command that must succeed."""
        running = self.command(*arguments)
        assert running.end() == 0, running.errors
        return running.output

    def _start(self, command: list[str], name: str, **own: str) -> Running:
        environment = self.environment | {f"DRIFTLINE_{key}": value for key, value in own.items()}
        running = self.runs(command, environment, self.directory, name)
        self.running.append(running)
        return running

    def committed(self) -> dict[tuple[str, int], int]:
        found = oracle.committed(self.settings, PARTITIONS, self.asking)
        return {place: stamp[0] if stamp else 0 for place, stamp in found.items()}

    def wait_for_the_end(self, worker: Running) -> None:
        """Until every record fed is committed."""
        worker.wait_for(lambda: self.committed() == self.shop.ends(), f"the end of the input {self.shop.ends()}")

    def finish(self, worker: Running) -> Seen:
        """The end of the input, an orderly stop, and the oracle."""
        worker.wait_for(lambda: worker.said("ready"), "ready")
        self.wait_for_the_end(worker)
        assert worker.stop() == 0, worker.errors
        return oracle.check(self.settings, self.shop)

    def expel(self, instance: str) -> None:
        """Remove a worker that has ended from its groups, instead of waiting for its session to time out."""
        member = MemberToRemove(group_instance_id=f"{self.name}-{instance}")
        with KafkaAdminClient(bootstrap_servers=self.bootstrap) as admin:
            for group in (self.name, f"{self.name}.trainer"):
                with suppress(KafkaError):
                    admin.remove_group_members(group, [member])

    def redis(self) -> "redis.Redis[bytes]":
        # As whom it was built, whoever the settings name by now.
        mine = self.settings.redis.model_copy(update={"url": SecretStr(self.redis_url)})
        client: redis.Redis[bytes] = connected(mine)
        return client

    def seq(self, task: int = 0) -> int:
        """The tick that Redis has come to."""
        with self.redis() as client:
            return int(client.hget(f"{{{self.name}:p{task}}}:m", "seq") or 0)

    def saved(self, task: int = 0) -> dict[bytes, bytes]:
        """A task's keys as they are now, once what is committed has been applied."""
        last = len(oracle.ticks_of(self.settings, task))
        until(lambda: self.seq(task) == last, f"tick {last} applied")
        with self.redis() as client:
            return {key: client.dump(key) for key in client.scan_iter(f"{{{self.name}:p{task}}}:*", count=1_000)}

    def restore(self, saved: Mapping[bytes, bytes], task: int = 0) -> None:
        """What a failover to a replica that lagged behind does to a task."""
        with self.redis() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.delete(*client.scan_iter(f"{{{self.name}:p{task}}}:*", count=1_000))
            for key, value in saved.items():
                pipeline.restore(key, 0, value)
            pipeline.execute()


def kinds(seen: Seen) -> set[str]:
    return {orjson.loads(value)["data"]["kind"] for _, value in seen.alerts}


def offsets_set(site: Site, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
    """Change the group's offsets, as soon as its last member is gone."""

    def accepted() -> bool:
        with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin, suppress(KafkaError):
            answers = admin.alter_group_offsets(site.name, offsets)
            return "NoError" in str(answers)
        return False

    site.expel("w1")
    until(accepted, "the group to be empty", 30)
