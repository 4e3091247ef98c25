"""The trainer: learns from committed journal records, publishes versions.

Scorers score, the trainer learns. It is stepped between ticks, never a thread, and publishes after a count of learned
events, so a replay learns the same at the same place. The offsets it has learned lie inside each version: whoever
takes over goes on exactly there.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stream.chunks import Chunks, chunked
from stream.errors import OutcomeUnknown, TaskLost
from stream.events import fingerprint
from stream.metrics import Metrics
from stream.ports import Outgoing, Outputs, Token, Topic
from stream.processing import journal
from stream.processing.features import segment_features
from stream.processing.segment_names import names
from stream.processing.version import Version, from_bytes, to_bytes, warming
from stream.settings import Settings
from stream.versions import KEY, Versions

log = logging.getLogger(__name__)

STEP_RECORDS = 20
"""Journal records learned between two ticks of the worker."""
NO_GROUP = Token(0, frozenset(), None)
KEEP_VERSIONS = 3


class Trainer:
    """Owns the models while it owns the models topic's one partition; learns nothing otherwise."""

    def __init__(
        self,
        settings: Settings,
        journal_topic: Topic,
        models_topic: Topic,
        outputs: Callable[[], Outputs],
        metrics: Metrics,
        wall_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._journal = journal_topic
        self._models = models_topic
        self._make_outputs = outputs
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._outputs: Outputs | None = None
        self._versions = Versions(models_topic)
        self._learner = warming(settings.models)
        self._learned = {"events": 0, "customers": 0, "labels": 0}
        self._positions: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._chunks: dict[int, Chunks] = {}
        self._next_task = 0

    def step(self) -> bool:
        """Learn a bounded number of journal records; publish if enough was learned. Returns whether there was any."""
        if not self._models.owned():
            self._give_up()
            return False
        if self._outputs is None:
            self._take_over()
        busy = False
        count = self._journal.partitions()
        for turn in range(count):
            task = (self._next_task + turn) % count
            records = self._journal.read(task, self._positions.get(task, 0), STEP_RECORDS)
            for record in records:
                self._positions[task] = record.offset + 1
                data = self._chunks.setdefault(task, Chunks()).add(record.value or b"", record.headers)
                if data is not None:
                    self._learn(journal.decode(data))
                    self._done[task] = record.offset + 1
                    if self._enough():
                        self.publish()
                        if self._outputs is None:
                            return True
            busy = busy or bool(records)
        self._next_task = (self._next_task + 1) % count
        return busy

    def close(self) -> None:
        """Hand over, and close the topics."""
        self._give_up()
        self._journal.close()
        self._models.close()

    def _take_over(self) -> None:
        """Fence the trainer before, and go on from the newest version."""
        outputs = self._make_outputs()
        try:
            self._models.catch_up(0)
            newest = self._versions.refresh()
        except BaseException:
            outputs.close()
            raise
        if newest is None:
            self._learner = warming(self._settings.models)
            self._learned = {"events": 0, "customers": 0, "labels": 0}
            self._done = {}
        else:
            self._learner = from_bytes(to_bytes(newest, {}))
            self._learned = {"events": 0, "customers": 0, "labels": 0, **newest.learned}
            # Beyond the end lies nothing that was learned: the journal was created anew.
            self._done = {task: at for task, at in newest.journal.items() if self._holds(task, at)}
        self._positions = dict(self._done)
        self._chunks = {}
        self._outputs = outputs  # last: only a whole take-over counts
        self._metrics.training.set(1)
        log.info("trainer takes over", extra={"version": self._learner.number, "learned": dict(self._learned)})

    def _give_up(self) -> None:
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
            self._metrics.training.set(0)
            log.info("trainer hands over", extra={"version": self._learner.number})

    def _learn(self, entry: journal.Entry) -> None:
        models = self._learner
        if len(entry.features):
            models.anomaly.learn_many(entry.features.astype(np.float64), entry.uids)
        rows, min_orders = entry.rows, self._settings.alerts.segment_min_orders
        known = np.array([not customer.startswith("anon:") for customer in entry.customers], np.bool_)
        index = np.flatnonzero(known & (rows["order_days"] >= min_orders))
        if len(index):
            now_ms = np.maximum(entry.state.stream_time_ms, rows["last_seen"][index])
            hashes = np.array([fingerprint(entry.customers[i]) for i in index.tolist()], np.uint64)
            models.segments.learn_many(segment_features(rows[index], now_ms), hashes)
        for customer in entry.forgotten:
            models.segments.forget(fingerprint(customer))
        if len(entry.label_churned):
            models.churn.learn_many(entry.label_features.astype(np.float64), entry.label_churned)
        for what, count in (
            ("events", len(entry.features)),
            ("customers", len(index)),
            ("labels", len(entry.label_churned)),
        ):
            self._learned[what] += count
            self._metrics.learned.labels(what).inc(count)

    def _enough(self) -> bool:
        """A quarter more than the version before, within the settings' bounds; sooner where events are unlike it."""
        settings, before = self._settings.models, self._learner.learned.get("events", 0)
        step = min(max(before // 4, settings.publish_min_events), settings.publish_max_events)
        if self._learner.anomaly.surprised:
            step = settings.publish_min_events
        return self._learned["events"] >= before + step

    def publish(self) -> None:
        """Refit what is refitted, and write a version with the journal offsets it has learned."""
        assert self._outputs is not None
        models = self._learner
        if self._learned["events"] >= self._settings.models.reference_events:
            models.anomaly.refit()
        models.segments.refit()
        segment_names: dict[int, str] = {}
        shares: dict[int, float] = {}
        if models.segments.ready:
            ids = models.segments.ids.tolist()
            before = [models.segment_names.get(segment, "") for segment in ids]
            segment_names = dict(zip(ids, names(models.segments.profile(), before), strict=True))
            shares = dict(zip(ids, models.segments.shares().tolist(), strict=True))
        version = replace(
            models,
            number=models.number + 1,
            parent=models.number,
            segment_names=segment_names,
            segment_shares=shares,
            learned=dict(self._learned),
            journal=dict(self._done),
        )
        if self._write(version):
            self._learner = version

    def _write(self, version: Version) -> bool:
        """Publish, and tombstone what nothing can need any more; returns whether it was committed."""
        assert self._outputs is not None
        topic, settings = self._settings.topic("models"), self._settings
        records = chunked(topic, 0, f"{KEY}{version.number:08d}".encode(), to_bytes(version, {"code": 1}), {})
        self._versions.refresh()
        oldest_ms = self._wall_ms() - round((settings.journal.retention_days + 1) * 86_400_000)
        for number, published_ms in sorted(self._versions.published_ms.items())[:-KEEP_VERSIONS]:
            # No journal record that is still kept can need it: a tombstone lets compaction drop it.
            if published_ms < oldest_ms:
                records += [Outgoing(topic, 0, key, None) for key in self._versions.chunks.get(number, ())]
        try:
            self._outputs.commit(records, (), NO_GROUP)
        except (TaskLost, OutcomeUnknown) as error:
            log.warning("a model version was not published: %s", error)
            self._give_up()  # taking over again begins with whatever was published
            return False
        log.info(
            "published a model version",
            extra={"version": version.number, "learned": dict(version.learned), **_ready(version)},
        )
        return True

    def _holds(self, task: int, offset: int) -> bool:
        return task < self._journal.partitions() and offset <= self._journal.end(task)


def _ready(version: Version) -> dict[str, bool]:
    return {
        "anomaly": version.anomaly.ready,
        "segments": version.segments.ready,
        "churn": version.churn.ready,
    }
