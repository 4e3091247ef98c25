"""The trainer: learns from committed journal records, publishes versions.

Scorers score, the trainer learns. It is stepped between ticks, never a thread, and publishes after a count of learned
events or a span of stream time, so a replay learns the same at the same place. The offsets it has learned lie inside
each version: whoever takes over goes on exactly there. What a version changes of the segments' identities goes out as
an alert in the version's own transaction.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.arrays import Hashes
from stream.chunks import Chunks, chunked
from stream.errors import OutcomeUnknown, TaskLost
from stream.events import fingerprint, minor_digits
from stream.metrics import Metrics
from stream.ports import Outgoing, Outputs, Token, Topic
from stream.processing import journal
from stream.processing.alerts import CONTENT_TYPE, SEGMENT_LINEAGE, Alert, Origin, alert_id, render
from stream.processing.customer import DAY_MS, Rows
from stream.processing.features import churn_columns, segment_features
from stream.processing.segment_lineage import announce
from stream.processing.segment_names import names
from stream.processing.tick import CODE
from stream.processing.version import Version, from_bytes, to_bytes, warming
from stream.settings import Settings
from stream.versions import KEY, Versions

log = logging.getLogger(__name__)

STEP_RECORDS = 20
"""Journal records learned between two ticks of the worker."""
NO_GROUP = Token(0, frozenset(), None)
KEEP_VERSIONS = 3
LAGGING_MS = 2 * DAY_MS
"""A task further behind the others than this is not waited for."""


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
        on_version: Callable[[Version, journal.Published | None], None] = lambda *_: None,
    ) -> None:
        """`on_version` sees every version that was published, with the alert that went out beside it."""
        self._settings = settings
        self._journal = journal_topic
        self._models = models_topic
        self._make_outputs = outputs
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._on_version = on_version
        self._outputs: Outputs | None = None
        self._versions = Versions(models_topic)
        self._learner = warming(settings.models)
        self._learned = {"events": 0, "customers": 0, "labels": 0}
        self._positions: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._chunks: dict[int, Chunks] = {}
        self._next_task = 0
        self._fitting: Iterator[None] | None = None
        self._stream_time_ms = self._since_ms = self._history_until_ms = self._incarnation = 0
        self._minor_per_major = 10 ** minor_digits(settings.application.currency)
        self._times: dict[int, int] = {}
        self._told_quiet = False

    def step(self) -> bool:
        """Learn a bounded number of journal records, or go on with a version; returns whether there was any work.

        Once enough was learned the models are refitted, over several steps where that takes long, and published.
        """
        if not self._models.owned():
            self._give_up()
            return False
        if self._outputs is None:
            self._take_over()
        if self._fitting is not None:
            self._go_on()
            return True
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
                        self._fitting = self._fit()
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
        self._fitting = None
        self._stream_time_ms = self._since_ms = self._learner.stream_time_ms
        self._times = {}
        models = self._settings.models
        if self._learner.churn.horizon_days != models.horizon_days or self._learner.churn.seed != models.seed:
            log.warning("models.horizon_days or models.seed has changed: churn risk is learned anew")
            self._learner = replace(self._learner, churn=warming(models).churn)
        self._told_quiet = self._learner.churn.quiet
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
        state = entry.state
        self._stream_time_ms = max(self._stream_time_ms, state.stream_time_ms)
        self._since_ms = self._since_ms or state.stream_time_ms
        self._history_until_ms = max(self._history_until_ms, state.history_until_ms)
        self._incarnation = max(self._incarnation, state.incarnation)
        if len(entry.features):
            models.anomaly.learn_many(entry.features.astype(np.float64), entry.uids)
        buyers = _buyers(entry)
        settled = buyers.rows["order_days"] >= self._settings.alerts.segment_min_orders
        if settled.any():
            features = segment_features(buyers.rows[settled], buyers.now_ms[settled])
            models.segments.learn_many(features, buyers.hashes[settled])
        self._learn_churn(entry, buyers)
        for customer in entry.forgotten:
            models.segments.forget(fingerprint(customer))
            models.churn.forget(fingerprint(customer))
        for what, count in (
            ("events", len(entry.features)),
            ("customers", int(settled.sum())),
            ("labels", len(entry.label_churned)),
        ):
            self._learned[what] += count
            self._metrics.learned.labels(what).inc(count)

    def _learn_churn(self, entry: journal.Entry, buyers: "_Buyers") -> None:
        """Days that have gone by for all tasks, then labels, then the customers as they are."""
        model = self._learner.churn
        self._times[entry.task] = max(entry.state.stream_time_ms, self._times.get(entry.task, 0))
        latest = max(self._times.values())
        slowest = min(time_ms for time_ms in self._times.values() if time_ms >= latest - LAGGING_MS)
        model.turn(slowest // DAY_MS - 1)
        if len(entry.label_churned):
            model.learn_many(entry.label_features, entry.label_churned, entry.label_taken_ms / DAY_MS)
        if len(buyers.rows):
            columns = churn_columns(buyers.rows, buyers.now_ms, self._minor_per_major)
            model.observe(columns, buyers.hashes, buyers.now_ms / DAY_MS)

    def _enough(self) -> bool:
        """A tenth more events than the version before, within the settings' bounds.

        Sooner where events are unlike it, the days that the settings say went by, or the shop turned quiet.
        """
        if self._learner.churn.quiet != self._told_quiet:
            return True
        settings, before = self._settings.models, self._learner.learned.get("events", 0)
        step = min(max(before // 10, settings.publish_min_events), settings.publish_max_events)
        if self._learner.anomaly.surprised:
            step = settings.publish_min_events
        days = (self._stream_time_ms - self._since_ms) / DAY_MS
        return self._learned["events"] >= before + (1 if days >= settings.publish_max_days else step)

    def publish(self) -> None:
        """Refit what is refitted, and write a version with the journal offsets it has learned."""
        self._fitting = self._fit()
        while self._fitting is not None:
            self._go_on()

    def _go_on(self) -> None:
        """Take one bounded step of a refit; write the version after the last one."""
        assert self._fitting is not None
        if next(self._fitting, self) is self:
            self._fitting = None
            self._publish()

    def _fit(self) -> Iterator[None]:
        """Refit what is refitted, a few milliseconds at a time where the model can."""
        models = self._learner
        if self._learned["events"] >= self._settings.models.reference_events:
            models.anomaly.refit()
        yield from models.segments.refitting()

    def _publish(self) -> None:
        models = self._learner
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
            stream_time_ms=self._stream_time_ms,
        )
        alert = self._lineage(version)
        if self._write(version, alert):
            self._learner, self._since_ms = version, version.stream_time_ms
            self._on_version(version, alert)
        self._told_quiet = models.churn.quiet

    def _lineage(self, version: Version) -> journal.Published | None:
        """What changed of the segments' identities; None where nothing did, or it is history."""
        application = self._settings.application.name
        alert = announce(self._learner, version, application, version.stream_time_ms)
        if alert is None:
            return None
        if alert.time_ms <= self._history_until_ms:
            self._metrics.held.labels(SEGMENT_LINEAGE, "history").inc()
            return None
        return self._published(alert, version.number)

    def _published(self, alert: Alert, number: int) -> journal.Published:
        settings = self._settings
        name, config = settings.application.name, settings.config_hash
        origin = Origin(name, self._incarnation, None, None, config, CODE, number)
        return journal.Published(alert.customer, alert_id(origin, alert), render(origin, alert))

    def _write(self, version: Version, alert: journal.Published | None) -> bool:
        """Publish, and tombstone what nothing can need any more; returns whether it was committed."""
        assert self._outputs is not None
        topic, settings = self._settings.topic("models"), self._settings
        records = chunked(topic, 0, f"{KEY}{version.number:08d}".encode(), to_bytes(version, {"code": 1}), {})
        if alert is not None:
            records.append(Outgoing(settings.topic("alerts"), None, alert.key.encode(), alert.value, (CONTENT_TYPE,)))
        self._versions.follow()
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
        if alert is not None:
            self._metrics.alerts.labels(SEGMENT_LINEAGE).inc()
            self._metrics.last_alert.labels(SEGMENT_LINEAGE).set(self._wall_ms() / 1000)
        log.info(
            "published a model version",
            extra={"version": version.number, "learned": dict(version.learned), **_ready(version)},
        )
        return True

    def _holds(self, task: int, offset: int) -> bool:
        return task < self._journal.partitions() and offset <= self._journal.end(task)


class _Buyers(NamedTuple):
    """The customers of an entry who are known by name and have ordered: rows, hashes of their ids, their own now."""

    rows: Rows
    hashes: Hashes
    now_ms: NDArray[np.int64]


def _buyers(entry: journal.Entry) -> _Buyers:
    known = np.array([not customer.startswith("anon:") for customer in entry.customers], np.bool_)
    index = np.flatnonzero(known & (entry.rows["orders"] > 0))
    rows = entry.rows.take(index)
    hashes = np.array([fingerprint(entry.customers[i]) for i in index.tolist()], np.uint64)
    return _Buyers(rows, hashes, np.maximum(entry.state.stream_time_ms, rows["last_seen"]))


def _ready(version: Version) -> dict[str, bool]:
    return {
        "anomaly": version.anomaly.ready,
        "segments": version.segments.ready,
        "churn": version.churn.ready,
    }
