"""What the worker says of itself: its metrics, and one log line for every tick that raised or refused something."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stream.metrics import Metrics
from stream.processing.journal import TaskState
from stream.processing.tick import TickResult
from stream.processing.version import Version

log = logging.getLogger(__name__)

GAUGE_EVERY_S = 1.0


class Held(NamedTuple):
    """A task as this worker holds it."""

    ready: bool
    state: TaskState


class Reporter:
    """Turns what happened into metrics; adds up per tick, never per event."""

    def __init__(self, metrics: Metrics, wall_ms: Callable[[], int]) -> None:
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._cpu = time.thread_time()
        self._gauged: set[str] = set()
        self._gauged_at = 0.0

    def spent(self, phase: str) -> None:
        """Account the CPU time since the last call to a phase of the loop."""
        now = time.thread_time()
        self._metrics.phase_seconds.labels(phase).inc(now - self._cpu)
        self._cpu = now

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
            else:
                metrics.events.labels(name).inc(count)
        for reason, count in Counter(letter.reason for letter in result.dead_letters).items():
            metrics.dead_letters.labels(reason).inc(count)
        for (kind, reason), count in result.held.items():
            metrics.held.labels(kind, reason).inc(count)
        for kind, count in Counter(result.alert_kinds).items():
            metrics.alerts.labels(kind).inc(count)
            metrics.last_alert.labels(kind).set(self._wall_ms() / 1000)
        if entry.alerts or result.dead_letters:
            said = {"alerts": [alert.id for alert in entry.alerts], "dead_letters": len(result.dead_letters)}
            log.info("tick", extra={"task": entry.task, "seq": entry.seq, "events": len(entry.who), **said})

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

    def holding(self, tasks: Mapping[int, Held]) -> None:
        """Set what is true of each task now, also while nothing is committed; drop what is no longer ours."""
        if time.monotonic() - self._gauged_at < GAUGE_EVERY_S:
            return
        self._gauged_at = time.monotonic()
        metrics, wall_ms = self._metrics, self._wall_ms()
        ready = sum(held.ready for held in tasks.values())
        metrics.tasks.labels("ready").set(ready)
        metrics.tasks.labels("recovering").set(len(tasks) - ready)
        numbers = {str(number) for number in tasks}
        for number in self._gauged - numbers:
            metrics.lag.remove(number)
            metrics.customers.remove(number)
        self._gauged = numbers
        for task, held in tasks.items():
            metrics.lag.labels(str(task)).set((wall_ms - held.state.stream_time_ms) / 1000)
            metrics.customers.labels(str(task)).set(held.state.customers)
