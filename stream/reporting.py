"""What the worker says of itself: its metrics, and its log of ticks.

At INFO a line for each alert, and one for a tick's dead letters; at DEBUG one for each committed tick. All of them
carry `task` and `seq`, as an alert's `derived_from` does, and name customers as `log.customers` says.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import Gauge

from stream.aliases import Customers, called
from stream.metrics import ENDS, Metrics
from stream.processing.alerts import rfc3339
from stream.processing.journal import TaskState
from stream.processing.tick import DeadLetter, TickResult
from stream.processing.version import Version

log = logging.getLogger(__name__)

GAUGE_EVERY_S = 1.0


class Held(NamedTuple):
    """A task as this worker holds it."""

    ready: bool
    state: TaskState


class Reporter:
    """Turns what happened into metrics; adds up per tick, never per event."""

    def __init__(self, metrics: Metrics, wall_ms: Callable[[], int], naming: Customers = "hashed") -> None:
        self._metrics = metrics
        self._naming = naming
        self._wall_ms = wall_ms
        self._cpu, self._wall = time.thread_time(), time.monotonic()
        self._gauged: set[tuple[Gauge, tuple[str, ...]]] = set()
        self._recovering: dict[int, float] = {}
        self._gauged_at = 0.0

    def spent(self, phase: str) -> None:
        """Account the time since the last call to a phase of the loop."""
        cpu, wall = time.thread_time(), time.monotonic()
        self._metrics.phase_seconds.labels(phase).inc(cpu - self._cpu)
        self._metrics.phase_wall_seconds.labels(phase).inc(wall - self._wall)
        self._cpu, self._wall = cpu, wall

    def committed(self, result: TickResult, journal_bytes: int) -> None:
        """A tick is committed."""
        metrics, entry = self._metrics, result.entry
        metrics.ticks.inc()
        metrics.wakes.inc(len(entry.wakes))
        metrics.journal_bytes.inc(journal_bytes)
        for name, count in result.counts.items():
            if name == "duplicate":
                metrics.ignored.labels(name).inc(count)
            elif name in ("late", "clamped"):
                metrics.unordered.labels(name).inc(count)
            elif name in ENDS:
                metrics.ended.labels(name).inc(count)
            else:
                metrics.events.labels(name).inc(count)
        for reason, count in Counter(letter.reason for letter in result.dead_letters).items():
            metrics.dead_letters.labels(reason).inc(count)
        for (kind, reason), count in result.held.items():
            metrics.held.labels(kind, reason).inc(count)
        for kind, count in Counter(result.alert_kinds).items():
            metrics.alerts.labels(kind).inc(count)
            metrics.last_alert.labels(kind).set(self._wall_ms() / 1000)
        self._tell(result)

    def _tell(self, result: TickResult) -> None:
        entry, naming = result.entry, self._naming
        place = {"task": entry.task, "seq": entry.seq}
        for alert, kind in zip(entry.alerts, result.alert_kinds, strict=True):
            log.info("alert", extra={**place, "kind": kind, "id": alert.id, **_named(called(alert.key, naming))})
        if result.dead_letters:
            log.info("dead letters", extra={**place, **_summary(result.dead_letters, naming)})
        if log.isEnabledFor(logging.DEBUG):
            state = entry.state
            offsets = {topic: [entry.offsets_before.get(topic), end] for topic, end in state.offsets.items()}
            told = {
                "stream_time": rfc3339(state.stream_time_ms),
                "version": entry.model_version,
                "offsets": offsets,
                "events": len(entry.who),
                "wakes": len(entry.wakes),
                "alerts": len(entry.alerts),
                "dead_letters": len(result.dead_letters),
                "held": {f"{kind}: {reason}": count for (kind, reason), count in result.held.items()},
            }
            names = [called(customer, naming) for customer in (*entry.customers, *entry.forgotten)]
            log.debug("tick", extra={**place, **told, **({} if naming == "none" else {"customers": names})})

    def turned(self, seconds: float) -> None:
        """A turn with committed ticks took this long, from its records to the store."""
        self._metrics.tick_seconds.observe(seconds)

    def lost(self, reason: str, count: int) -> None:
        """Tasks were dropped from memory; `reason` is one of `metrics.LOST`."""
        self._metrics.lost.labels(reason).inc(count)

    def recovered(self, replayed: int) -> None:
        """A task was recovered by replaying so many journal records."""
        self._metrics.recoveries.inc()
        self._metrics.replayed.inc(replayed)

    def adopted(self, version: Version, published_ms: int) -> None:
        """Ticks are scored with this version from now on."""
        metrics = self._metrics
        metrics.model_version.set(version.number)
        metrics.model_published.set(published_ms / 1000)
        for name, model in (("anomaly", version.anomaly), ("segments", version.segments), ("churn", version.churn)):
            metrics.model_ready.labels(name).set(model.ready)
            for figure, value in model.figures().items():
                metrics.model_figure.labels(name, figure).set(value)
        metrics.segment_share.clear()
        for segment, share in version.segment_shares.items():
            metrics.segment_share.labels(str(segment), version.segment_names.get(segment, "")).set(share)

    def holding(self, tasks: Mapping[int, Held], ends: Callable[[int], Mapping[str, int]]) -> None:
        """Set what is true of each task now, also while nothing is committed; drop what is no longer known.

        `ends` gives the end of each input topic of a task.
        """
        now = time.monotonic()
        if now - self._gauged_at < GAUGE_EVERY_S:
            return
        self._gauged_at = now
        metrics, wall_ms = self._metrics, self._wall_ms()
        ready = {number: held.state for number, held in tasks.items() if held.ready}
        metrics.tasks.labels("ready").set(len(ready))
        metrics.tasks.labels("recovering").set(len(tasks) - len(ready))
        self._recovering = {number: self._recovering.get(number, now) for number in tasks if number not in ready}
        shown: list[tuple[Gauge, tuple[str, ...], float]] = [
            (metrics.recovering, (str(task),), now - self._recovering.get(task, now)) for task in tasks
        ]
        for task, state in ready.items():
            shown.append((metrics.customers, (str(task),), state.customers))
            if state.stream_time_ms:
                shown.append((metrics.lag, (str(task),), (wall_ms - state.stream_time_ms) / 1000))
            for topic, end in ends(task).items():
                shown.append((metrics.lag_records, (str(task), topic), max(end - state.offsets.get(topic, end), 0)))
        for gauge, labels, value in shown:
            gauge.labels(*labels).set(value)
        gauged = {(gauge, labels) for gauge, labels, _ in shown}
        for gauge, labels in self._gauged - gauged:
            gauge.remove(*labels)
        self._gauged = gauged


def _named(name: str | None) -> dict[str, str]:
    return {} if name is None else {"customer": name}


def _summary(letters: Sequence[DeadLetter], naming: Customers) -> dict[str, object]:
    """Dead letters by reason: how many, where the first lies, and, if contents may be shown, what was found in it."""
    first = {letter.reason: letter for letter in reversed(letters)}
    places = {reason: one.record for reason, one in first.items()}
    said: dict[str, object] = {
        "reasons": dict(Counter(letter.reason for letter in letters)),
        "first_at": {reason: f"{at.topic}-{at.partition}-{at.offset}" for reason, at in places.items()},
    }
    return said | ({"found": {reason: one.detail for reason, one in first.items()}} if naming == "plain" else {})
