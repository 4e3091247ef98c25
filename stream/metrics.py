"""Every metric, named and described once. docs/metrics.md is compared with this file by a test.

Counters and histograms are added up per tick, not per event.
"""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stream.events import REASONS, Kind
from stream.processing.alerts import ANOMALY, CHURN_RISK, CHURN_WAVE, KINDS, SEGMENT_CHANGED

PHASES = ("poll", "decode", "recover", "load", "state", "score", "decide", "journal", "commit", "apply", "train")
BUILD = ("version", "code", "config", "worker")
ENDS = ("forgotten", "expired")
LOST = {
    "stale": "the group has moved on",
    "unknown": "a commit without an answer",
    "store": "the store is not where this worker is",
    "open_transaction": "the worker that had the task before left a transaction undecided",
    "broker_unavailable": "Kafka does not answer",
    "store_unavailable": "Redis does not answer",
}
"""Why a task is dropped from memory and recovered: the labels of `driftline_tasks_lost_total`."""

HELD: Mapping[str, Sequence[str]] = {
    "cool_down": (ANOMALY,),
    "daily_cap": (ANOMALY, SEGMENT_CHANGED, CHURN_RISK, CHURN_WAVE),
    "history": KINDS,
    "new_model_version": (SEGMENT_CHANGED,),
    "no_reason_in_words": (ANOMALY,),
    "not_risen": (CHURN_RISK,),
    "quiet_shop": (CHURN_RISK,),
    "too_few_events": (ANOMALY,),
    "wave": (CHURN_RISK,),
}
"""Why an alert is held back, and of which kinds: the labels of `driftline_alerts_held_total`."""


class Metrics:
    """The metrics of one worker, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, description: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"driftline_{name}", description, labels, registry=registry)

        def gauge(name: str, description: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"driftline_{name}", description, labels, registry=registry)

        self.events = counter("events_total", "Accepted events, by kind.", ("kind",))
        self.ignored = counter(
            "events_ignored_total", "Events not counted: duplicates of one still remembered.", ("reason",)
        )
        self.unordered = counter(
            "events_adjusted_total",
            "Events counted late (older than the customer's last) or with a clamped time.",
            ("reason",),
        )
        self.ended = counter(
            "customers_ended_total", "Customers whose row has ended: by request, or after their retention.", ("reason",)
        )
        self.dead_letters = counter("dead_letters_total", "Records that could not be used, by reason.", ("reason",))
        self.alerts = counter("alerts_total", "Alerts published, by kind.", ("kind",))
        self.held = counter("alerts_held_total", "Alerts held back, by kind and reason.", ("kind", "reason"))
        self.ticks = counter("ticks_total", "Committed ticks.")
        self.lost = counter("tasks_lost_total", "Tasks dropped from memory to be recovered, by reason.", ("reason",))
        self.wakes = counter("wakes_total", "Silent customers looked at because their time had come.")
        self.recoveries = counter("recoveries_total", "Recoveries of a task completed.")
        self.replayed = counter("journal_records_replayed_total", "Journal records replayed into the store.")
        self.journal_bytes = counter("journal_bytes_total", "Bytes written to the journal before compression.")
        self.learned = counter("learned_total", "What the trainer learned: events, customers, labels.", ("what",))
        self.tick_seconds = Histogram(
            "driftline_tick_seconds",
            "Wall time of a committed turn, from its records to the store.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self.phase_seconds = counter(
            "phase_cpu_seconds_total", "CPU time of the worker's thread, by phase of the loop.", ("phase",)
        )
        self.phase_wall_seconds = counter(
            "phase_seconds_total",
            "Wall time of the worker's loop, by phase; poll is where it waits for events.",
            ("phase",),
        )
        self.build = gauge(
            "build_info", "1, with the release, the hashes of code and settings, and application.instance.", BUILD
        )
        self.tasks = gauge("tasks", "Tasks of this worker, by state.", ("state",))
        self.recovering = gauge(
            "task_recovering_seconds", "How long a task has not been ready; 0 once it is.", ("task",)
        )
        self.lag = gauge(
            "stream_time_lag_seconds", "Wall clock minus stream time, per ready task; large in a replay.", ("task",)
        )
        self.lag_records = gauge(
            "input_lag_records", "Records of a ready task not committed yet, per input topic.", ("task", "topic")
        )
        self.customers = gauge("customers", "Customers known, per ready task.", ("task",))
        self.model_version = gauge(
            "model_version", "Number of the model version that ticks are scored with; 0 = warming up."
        )
        self.model_published = gauge("model_published_timestamp_seconds", "When that version was published, Unix time.")
        self.model_ready = gauge("model_ready", "1 once a model has learned enough to raise alerts.", ("model",))
        self.model_figure = gauge(
            "model_figure", "Progressive validation of each model: scored before learned.", ("model", "figure")
        )
        self.segment_share = gauge(
            "segment_share", "Share of customers in a segment as its version learned it, 0 to 1.", ("segment", "name")
        )
        self.training = gauge("trainer_active", "1 while this worker is the trainer.")
        self.last_alert = gauge(
            "last_alert_timestamp_seconds", "When the last alert of each kind was published, Unix time.", ("kind",)
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Create every label that is known, so that the first wave or dead letter is an increase and not a birth."""
        for metric, labels in (
            (self.events, [kind.name.lower() for kind in Kind]),
            (self.ignored, ["duplicate"]),
            (self.ended, ENDS),
            (self.unordered, ["late", "clamped"]),
            (self.dead_letters, REASONS),
            (self.alerts, KINDS),
            (self.lost, LOST),
            (self.learned, ["events", "customers", "labels"]),
            (self.phase_seconds, PHASES),
            (self.phase_wall_seconds, PHASES),
        ):
            for label in labels:
                metric.labels(label)
        for reason, kinds in HELD.items():
            for kind in kinds:
                self.held.labels(kind, reason)
