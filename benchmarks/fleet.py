"""Workers as processes, `driftline run`, on one real Kafka and one real Redis: what benchmarks of many start."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from threading import Event as Flag
from uuid import uuid4

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from stream.backends.kafka import create_topics
from stream.events import Record
from stream.settings import Settings, parse
from tests.servers.server import free_port

ROOT = Path(__file__).parents[1]
DEADLINE_S = 900
ASK_S = 0.3
"""Metrics cost the worker milliseconds to write: asked for more often they would be measured with it."""


class Fleet:
    """The workers of one application, each a process with a port of its own."""

    def __init__(self, site: tuple[str, str], partitions: int, session_s: float = 10, idle_s: float = 1) -> None:
        name = f"scale-{uuid4().hex[:8]}"
        values = {
            "application": {"name": name},
            "kafka": {"bootstrap_servers": site[0], "session_timeout_s": session_s},
            "redis": {"url": site[1]},
            "topics": {"clickstream": f"{name}.clickstream", "purchases": f"{name}.purchases"},
            "tick": {"max_span_hours": 168, "idle_after_s": idle_s},
        }
        self.settings: Settings = parse(values)
        self.partitions = partitions
        self._environment = {
            f"DRIFTLINE_{table.upper()}__{key.upper()}": str(value)
            for table, keys in values.items()
            for key, value in keys.items()
        }
        self._directory = tempfile.TemporaryDirectory()
        self.ports: dict[str, int] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        create_topics(self.settings, partitions, 1)

    def start(self, name: str) -> None:
        """Start a worker of this name, or the next process under it."""
        self.ports[name] = free_port()
        extra = {"DRIFTLINE_APPLICATION__INSTANCE": name, "DRIFTLINE_HTTP__PORT": str(self.ports[name])}
        with (Path(self._directory.name) / f"{name}.err").open("ab") as errors:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "stream", "run"],
                cwd=ROOT,
                env={**os.environ, **self._environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def end(self, name: str, *, kill: bool = False) -> None:
        """Stop a worker in order, or kill it."""
        process = self.running.pop(name)
        process.kill() if kill else process.terminate()
        process.wait(60)
        del self.ports[name]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nobody works within the block; shorter than their session, or they lose their tasks."""
        for process in self.running.values():
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self.running.values():
                process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for name in list(self.running):
            self.end(name, kill=True)
        self._directory.cleanup()

    def samples(self, name: str) -> dict[str, float]:
        """A worker's metrics, those with labels added up, as `name` and as `name/value` of their last label."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=5) as page:
                text = page.read().decode()
        except (OSError, HTTPException, KeyError):  # it starts, it ends
            return {}
        found: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value
                for value in sample.labels.values():
                    found[f"{sample.name}/{value}"] += sample.value
        return found

    def total(self, metric: str) -> float:
        return sum(self.samples(name).get(metric, 0.0) for name in list(self.ports))

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Until it holds; returns how long that took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > DEADLINE_S:
                raise TimeoutError(f"{what}: not within {DEADLINE_S} s")
            dead = [name for name, process in self.running.items() if process.poll() is not None]
            if dead:
                raise RuntimeError(f"{dead[0]} ended: {(Path(self._directory.name) / f'{dead[0]}.err').read_text()}")
            time.sleep(ASK_S)
        return time.monotonic() - began

    def wait_until_ready(self) -> float:
        """Until every task is ready."""
        return self.wait(lambda: self.total("driftline_tasks/ready") == self.partitions, "all tasks ready")

    def wait_for_events(self, count: int, metric: str = "driftline_events_total") -> float:
        """Until so many were counted, or learned, by those who run now."""
        return self.wait(lambda: self.total(metric) >= count, f"{metric} {count:,}")

    def feed(
        self, records: Iterable[Record], rate: int = 0, stop: Flag | None = None, *, together: bool = False
    ) -> int:
        """Send records, `rate` a second (0 = at once), until they end or `stop` is set; returns how many were sent.

        Orders go to their own topic, or `together` with all else.
        """
        clickstream, purchases = self.settings.inputs
        producer = KafkaProducer(
            bootstrap_servers=self.settings.kafka.bootstrap_servers, linger_ms=20, batch_size=500_000
        )
        began, sent = time.monotonic(), 0
        for record in records:
            if stop is not None and stop.is_set():
                break
            order = not together and b'"Order Completed"' in record.value
            producer.send(purchases if order else clickstream, record.value, record.key)
            sent += 1
            if rate and sent % (rate // 20) == 0:
                time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        producer.flush()
        producer.close()
        return sent

    def wait_for_the_end(self) -> float:
        """Until every record of the input is committed, as the broker says."""
        servers, group = self.settings.kafka.bootstrap_servers, self.settings.application.name
        places = [TopicPartition(topic, task) for topic in self.settings.inputs for task in range(self.partitions)]
        with closing(KafkaConsumer(bootstrap_servers=servers)) as consumer:
            ends = consumer.end_offsets(places)

        def all_committed() -> bool:
            with KafkaAdminClient(bootstrap_servers=servers) as admin:
                found = admin.list_group_offsets({group: places})[group]
            return all(found[place].offset >= end for place, end in ends.items() if end)

        return self.wait(all_committed, "the end of the input")

    def disk(self, topic: str) -> int:
        """Bytes of a topic's log on the broker, as it is stored."""
        with KafkaAdminClient(bootstrap_servers=self.settings.kafka.bootstrap_servers) as admin:
            found = admin.describe_log_dirs([topic])
        sizes = [
            part["partition_size"]
            for node in found
            for log in node["log_dirs"]
            for one in log["topics"]
            for part in one["partitions"]
        ]
        return sum(sizes)

    def commits(self) -> dict[int, list[float]]:
        """When each task's ticks were written, seconds (Unix time), from the journal."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.settings.kafka.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        places = [TopicPartition(self.settings.topic("journal"), task) for task in range(self.partitions)]
        consumer.assign(places)
        left, found = consumer.end_offsets(places), defaultdict(list)
        while any(consumer.position(place) < left[place] for place in places):
            for place, records in consumer.poll(timeout_ms=500).items():
                found[place.partition] += [record.timestamp / 1000 for record in records]
        consumer.close()
        return found


@contextmanager
def fleet(site: tuple[str, str], partitions: int, session_s: float = 10, idle_s: float = 1) -> Iterator[Fleet]:
    """A fleet whose processes end with the block."""
    found = Fleet(site, partitions, session_s, idle_s)
    try:
        yield found
    finally:
        found.close()
