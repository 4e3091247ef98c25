"""The worker in one process over in-memory backends: what `driftline demo` and `driftline replay` run.

The same worker, trainer and processing as against Kafka and Redis; only the four ports differ.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import orjson

from stream.backends.memory import MemoryCluster, MemoryInputs, MemoryOutputs, MemoryStore, MemoryTopic
from stream.events import Record
from stream.metrics import Metrics
from stream.ports import Clock, Outgoing
from stream.processing.journal import Published
from stream.processing.tick import TickResult
from stream.processing.version import Version
from stream.profile import profile
from stream.settings import Settings
from stream.trainer import Trainer
from stream.worker import Ports, Worker

FEED_RECORDS = 5_000
KEEP_RECORDS = 500
"""Retention of our own topics: nothing reads further back within one process."""

Source = Iterator[Record]


class Embedded:
    """Feeds sources of records, one input topic each, through a worker until they end.

    Stream time follows the records alone, so the same sources give the same alerts, byte for byte.
    """

    def __init__(
        self,
        settings: Settings,
        topics: tuple[str, ...],
        on_tick: Callable[[TickResult], None],
        on_version: Callable[[Version, Published | None], None] = lambda *_: None,
    ) -> None:
        """`on_tick` sees every committed tick, `on_version` every model version with the alert published beside it."""
        self.settings = settings.model_copy(update={"tick": settings.tick.model_copy(update={"idle_after_s": 0.0})})
        self.metrics = Metrics()
        self.store = MemoryStore()
        self._cluster = cluster = MemoryCluster(topics)
        for kind in ("alerts", "dead_letters"):
            cluster.topic(self.settings.topic(kind), keep=KEEP_RECORDS)
        models = MemoryTopic(cluster, self.settings.topic("models"), partitions=1, keep=KEEP_RECORDS)
        journal = MemoryTopic(cluster, self.settings.topic("journal"), keep=KEEP_RECORDS)
        instance = self.settings.application.instance
        self._inputs = MemoryInputs(cluster, instance)
        self.worker = Worker(
            self.settings,
            Ports(self._inputs, MemoryOutputs(cluster, instance), journal, models, self.store),
            Trainer(
                self.settings,
                journal,
                models,
                lambda: MemoryOutputs(cluster, "trainer"),
                self.metrics,
                self._now,
                on_version,
            ),
            self.metrics,
            Clock(self._now),
            on_tick,
        )

    def _now(self) -> int:
        return self._cluster.now_ms

    def run(self, sources: Mapping[str, Source], progress: Callable[[int], None] = lambda _: None) -> None:
        """Run the sources to their end; `progress` is called with the number of records fed."""
        cluster = self._cluster
        waiting = dict(sources)
        cluster.more_to_come = set(waiting)
        while waiting:
            for topic, source in list(waiting.items()):
                if self._unread(topic) >= FEED_RECORDS:
                    continue
                batch = list(islice(source, FEED_RECORDS))
                for record in batch:
                    cluster.now_ms = max(cluster.now_ms, record.timestamp_ms)
                    cluster.produce(Outgoing(topic, 0, record.key, record.value, record.headers), record.timestamp_ms)
                if len(batch) < FEED_RECORDS:
                    del waiting[topic]
                    cluster.more_to_come.discard(topic)
                progress(len(batch))
            while self.worker.turn():
                pass
            for topic in sources:
                self._cluster.topic(topic)[0].trim(self._done(topic))
        while self.worker.turn():
            pass

    def customers(self) -> Iterator[bytes]:
        """Every customer as JSON, by id."""
        version = self.worker.version
        for customer, row in sorted(self.store.scan(0)):
            yield orjson.dumps(profile(customer, row, version, self.settings))

    def _unread(self, topic: str) -> int:
        return self._cluster.topic(topic)[0].end - self._done(topic)

    def _done(self, topic: str) -> int:
        return self._cluster.committed.get((topic, 0), (0, 0, 0))[0]
