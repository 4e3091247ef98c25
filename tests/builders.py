"""What tests arrange with: event bodies, records, small models, ticks by hand, a synthetic shop and its run.

A builder's defaults are valid; a test names only what it is about.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson

from online_models import ChurnRisk
from online_models.churn import PARTS
from stream.backends.memory import MemoryTopic
from stream.embedded import Embedded
from stream.events import FORGET_HEADER, Event, EventRules, Kind, Record, fingerprint
from stream.processing import clock, tick
from stream.processing.customer import DAY_MS, ROW, Rows, blank
from stream.processing.journal import Entry, TaskState, decode, encode
from stream.processing.tick import TickInput, TickResult
from stream.processing.version import WARMING, Version, warming
from stream.settings import Settings, parse
from stream.versions import Versions

HOUR_MS = 3_600_000
NOW = 1_700_000_000_000  # 2023-11-14T22:13:20Z, a Tuesday
CLICKS, BUYS = "clickstream", "purchases"
RULES = EventRules("USD")


def iso(time_ms: int) -> str:
    """Epoch milliseconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def body(event: str = "Product Viewed", time_ms: int = NOW, **fields: Any) -> dict[str, Any]:
    """A Segment track call; `fields` replace or add to the defaults, `...` takes a field out."""
    whole = {
        "type": "track",
        "event": event,
        "messageId": "m-1",
        "userId": "c-1",
        "timestamp": iso(time_ms),
        "properties": {},
    } | fields
    return {name: value for name, value in whole.items() if value is not ...}


def order(revenue: Any = 12.5, order_id: str = "o-1", time_ms: int = NOW, **fields: Any) -> dict[str, Any]:
    """An `Order Completed` body."""
    return body("Order Completed", time_ms, properties={"order_id": order_id, "revenue": revenue}, **fields)


def record(
    value: Mapping[str, Any] | bytes | None, *, topic: str = CLICKS, offset: int = 0, timestamp_ms: int = NOW
) -> Record:
    """A record of partition 0 with the body as JSON, or with these bytes."""
    return Record(topic, 0, offset, timestamp_ms, None, orjson.dumps(value) if isinstance(value, Mapping) else value)


def event(kind: Kind = Kind.VIEW, time_ms: int = NOW, **fields: Any) -> Event:
    """A decoded event; `message` and `order` are ids in words."""
    message, order_id = fields.pop("message", None), fields.pop("order", None)
    whole = {
        "kind": kind,
        "name": kind.name,
        "customer": "c-1",
        "anonymous": False,
        "message_id": message,
        "message_hash": fingerprint(message) if message else 0,
        "time_ms": time_ms,
        "clamped": False,
        "order_hash": fingerprint(order_id) if order_id else 0,
        "amount_minor": None,
        "items": 0,
        "categories": (),
    }
    return Event(**(whole | fields))


SMALL_MODELS = {
    "horizon_days": 14.0,
    "segments": 3,
    "reference_events": 300,
    "first_customers": 50,
    "min_labels": 60,
    "publish_min_events": 400,
    "publish_max_events": 4_000,
}
"""Models that are ready within a few hundred events."""


def settings(**tables: Mapping[str, Any]) -> Settings:
    """Settings with small models and alerts that come easily; `tables` go over them, section by section."""
    base: dict[str, dict[str, Any]] = {
        "application": {"name": "test", "instance": "worker"},
        "models": SMALL_MODELS,
        "alerts": {
            "anomaly_one_in": 100.0,
            "anomaly_cooldown_hours": 24.0,
            "anomaly_min_events": 5,
            "segment_dwell_days": 3.0,
            "segment_margin": 0.1,
            "churn_enter": 0.5,
            "churn_clear": 0.3,
        },
    }
    return parse({name: {**base.get(name, {}), **tables.get(name, {})} for name in {**base, **tables}})


class SilenceRisk:
    """A churn model for tests: the risk is the days since the last order over `days`, and never below `least`."""

    ready = True
    n_labels = 1_000
    quiet = False
    activity = 1.0

    def __init__(self, days: float = 20.0, least: float = 0.0) -> None:
        self.days, self.least = days, least

    def predict_proba_many(self, columns: np.ndarray, ahead_days: float = 0.0) -> np.ndarray:
        return np.clip((columns[:, 1] + ahead_days) / self.days, self.least, 0.99)

    def features_many(self, columns: np.ndarray) -> np.ndarray:
        return ChurnRisk().features_many(columns)

    def logit_contributions_many(self, columns: np.ndarray) -> np.ndarray:
        parts = np.zeros((len(columns), len(PARTS)))
        parts[:, 0] = columns[:, 1]
        return parts

    def gap_many(self, columns: np.ndarray) -> np.ndarray:
        return np.full(len(columns), 7.0)

    def next_order_many(self, columns: np.ndarray) -> np.ndarray:
        return np.full(len(columns), 5.0)


def silence_version(settings: Settings, days: float = 20.0, least: float = 0.0) -> Version:
    """A version whose only ready model is `SilenceRisk`."""
    return replace(warming(settings.models), number=1, churn=SilenceRisk(days, least))  # type: ignore[arg-type]


@dataclass
class ByHand:
    """A task driven tick by tick without a worker: rows by customer, state, and every result."""

    settings: Settings = field(default_factory=settings)
    version: Version | None = None
    partitions: int = 1
    task: int = 0
    state: TaskState = field(default_factory=TaskState)
    rows: dict[str, bytes] = field(default_factory=dict)
    offset: int = 0
    results: list[TickResult] = field(default_factory=list)

    def input(
        self,
        *bodies: Mapping[str, Any],
        wakes: Sequence[str] = (),
        now_ms: int | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> TickInput:
        """The next tick over these bodies at stream time `now_ms` (by default the last event's time)."""
        records = [
            record(one, topic=BUYS, offset=self.offset + i, timestamp_ms=now_ms or NOW + 3_650 * DAY_MS)._replace(
                headers=headers
            )
            for i, one in enumerate(bodies)
        ]
        return self.of(records, wakes, now_ms)

    def of(self, records: Sequence[Record], wakes: Sequence[str] = (), now_ms: int | None = None) -> TickInput:
        """The next tick over these records."""
        decoded = [clock.read(one, EventRules(self.settings.application.currency)) for one in records]
        times = [one.time_ms for one in decoded]
        stream_time_ms = max([self.state.stream_time_ms, *([now_ms] if now_ms else times)])
        version = self.version or warming(self.settings.models)
        return TickInput(
            self.task, self.partitions, self.state, decoded, list(wakes), [], stream_time_ms, False, version
        )

    def gather(self, customers: Sequence[str]) -> tuple[Rows, np.ndarray]:
        """The customers' rows and which of them exist."""
        return gathered(self.rows, customers)

    def tick(self, *bodies: Mapping[str, Any], **how: Any) -> TickResult:
        """Run the next tick and keep what it came to; `how` as for `input`."""
        return self.run(self.input(*bodies, **how))

    def forget(
        self, customer: str, before: Sequence[Mapping[str, Any]] = (), after: Sequence[Mapping[str, Any]] = ()
    ) -> TickResult:
        """A tick with an order to forget a customer, and what comes before and after it."""
        asked = Record(BUYS, 0, 0, NOW, customer.encode(), None, ((FORGET_HEADER, b"1"),))
        records = [record(one, topic=BUYS, timestamp_ms=NOW + 3_650 * DAY_MS) for one in before]
        records += [asked, *(record(one, topic=BUYS, timestamp_ms=NOW + 3_650 * DAY_MS) for one in after)]
        return self.run(self.of([one._replace(offset=self.offset + i) for i, one in enumerate(records)]))

    def run(self, before: TickInput) -> TickResult:
        """Run a tick and keep what it came to."""
        customers = tick.touched(before.decoded, before.wakes)
        result = tick.run(before, customers, *self.gather(customers), tick.rules(self.settings))
        self.offset += len(before.decoded)
        self.state = result.entry.state
        fold(self.rows, result.entry)
        self.results.append(result)
        return result

    def row(self, customer: str) -> np.void:
        return np.frombuffer(self.rows[customer], ROW)[0]


def silent_task(days: float = 20.0, least: float = 0.0, **alerts: Any) -> ByHand:
    """A task whose churn risk is `SilenceRisk`, and customer "a" with one order at `NOW`, scored then."""
    chosen = settings(alerts={"wave_min": 1_000, **alerts})
    task = ByHand(chosen, silence_version(chosen, days, least))
    task.tick(order(10.0, "a/0", NOW, userId="a", messageId="a/0"))
    return task


def gathered(stored: Mapping[str, bytes], customers: Sequence[str]) -> tuple[Rows, np.ndarray]:
    """Rows out of a dict of bytes, and which of the customers are in it."""
    rows, known = blank(len(customers)), np.zeros(len(customers), np.bool_)
    for i, customer in enumerate(customers):
        if customer in stored:
            rows[i], known[i] = np.frombuffer(stored[customer], ROW)[0], True
    return rows, known


def fold(stored: dict[str, bytes], entry: Entry) -> None:
    """Apply a journal entry to a dict of rows, as a store does."""
    stored |= {customer: entry.rows[i].tobytes() for i, customer in enumerate(entry.customers)}
    for customer in entry.forgotten:
        stored.pop(customer, None)


def kinds(result: TickResult) -> list[tuple[str, str]]:
    """(kind, customer) of each alert of a tick."""
    return [(orjson.loads(alert.value)["data"]["kind"], alert.key) for alert in result.entry.alerts]


class Habit(NamedTuple):
    """How one customer of the synthetic shop lives."""

    name: str
    gap_days: float
    amount: float
    hour: int
    views: int
    category: str
    leaves_on: float
    changes_on: float


SHOP_START = 1_704_067_200_000  # 2024-01-01


def shop(customers: int = 120, days: int = 150, seed: int = 1) -> dict[str, list[Record]]:
    """A shop's two input topics. Some customers leave, some change their ways, a few events are out of character,
    late, repeated, without message id, refunds, or no events at all."""
    draw = random.Random(seed)
    found: list[tuple[int, int, str, bytes]] = []

    def add(time_ms: int, topic: str, value: Mapping[str, Any] | bytes, delay_ms: int = 0) -> None:
        data = orjson.dumps(value) if isinstance(value, Mapping) else value
        found.append((time_ms + delay_ms, len(found), topic, data))

    for number in range(customers):
        _live(_habit(number, days, draw), days, draw, add)
    for number in range(customers // 3):
        start = SHOP_START + round(draw.uniform(0, days - 40) * DAY_MS)
        for view in range(draw.randrange(1, 6)):
            time_ms = start + view * 60_000
            visit = body("Product Viewed", time_ms, messageId=f"a{number}-{view}", anonymousId=f"v-{number}")
            del visit["userId"]
            add(time_ms, CLICKS, visit)
    for _ in range(customers // 4):
        time_ms = SHOP_START + round(draw.uniform(0, days) * DAY_MS)
        add(time_ms, draw.choice((CLICKS, BUYS)), draw.choice((b"{", b"[]", b"\xff", b'{"event": "x"}')))
    logs: dict[str, list[Record]] = {CLICKS: [], BUYS: []}
    for arrival_ms, _, topic, data in sorted(found):
        logs[topic].append(Record(topic, 0, len(logs[topic]), arrival_ms, None, data))
    return logs


def _habit(number: int, days: int, draw: random.Random) -> Habit:
    kind = number % 3
    return Habit(
        f"c-{number:03}",
        (2.5, 7.0, 12.0)[kind] * draw.uniform(0.8, 1.2),
        (15.0, 60.0, 220.0)[kind] * draw.uniform(0.8, 1.2),
        (9, 14, 20)[kind],
        (1, 3, 6)[kind],
        ("bread", "wine", "toys")[kind],
        draw.uniform(0.3, 0.9) * days if number % 4 == 0 else math.inf,
        0.5 * days if number % 5 == 1 else math.inf,
    )


def _live(habit: Habit, days: int, draw: random.Random, add: Any) -> None:
    day, number = draw.uniform(0, habit.gap_days), 0
    while day < min(days, habit.leaves_on):
        changed = day >= habit.changes_on
        time_ms = SHOP_START + int(day) * DAY_MS + habit.hour * HOUR_MS + draw.randrange(2 * HOUR_MS)
        visit = f"{habit.name}/{number}"
        for view in range(0 if changed else habit.views):
            late_ms = 5 * HOUR_MS if draw.random() < 0.02 else 0
            seen = body(
                "Product Viewed", time_ms - (view + 1) * 90_000, messageId=f"{visit}/v{view}", userId=habit.name
            )
            seen["properties"] = {"product_id": f"p{view}", "category": habit.category}
            add(time_ms - (view + 1) * 90_000, CLICKS, seen, late_ms)
        amount = habit.amount * draw.lognormvariate(0, 0.2) * (30 if draw.random() < 0.01 else 1)
        category = draw.choice(("bread", "wine", "toys", "books", "garden")) if changed else habit.category
        bought = order(round(amount, 2), f"o/{visit}", time_ms, messageId=f"{visit}/o", userId=habit.name)
        bought["properties"]["products"] = [{"category": category, "price": 1.0, "quantity": 1 + number % 3}]
        if number % 11 == 10:
            del bought["messageId"]
        add(time_ms, BUYS, bought)
        if draw.random() < 0.03:
            add(time_ms, BUYS, bought, 60_000)
        if draw.random() < 0.04:
            back = {"order_id": f"o/{visit}"} | ({"total": round(amount / 4, 2)} if number % 2 else {})
            sent = body("Order Refunded", time_ms + DAY_MS, messageId=f"{visit}/r", userId=habit.name, properties=back)
            add(time_ms + DAY_MS, BUYS, sent)
        number += 1
        day += habit.gap_days * draw.uniform(0.6, 1.4) / (3 if changed else 1)


@dataclass(frozen=True)
class Run:
    """What the shop came to in one embedded worker: settings, records, and each committed tick."""

    settings: Settings
    records: Mapping[str, Sequence[Record]]
    results: Sequence[TickResult]
    versions: Mapping[int, Version]

    @property
    def journal(self) -> list[bytes]:
        return [encode(result.entry) for result in self.results]

    def alerts(self) -> Iterator[dict[str, Any]]:
        for result in self.results:
            for alert in result.entry.alerts:
                yield orjson.loads(alert.value)

    def taken(self, entry: Entry) -> list[Record]:
        """The records of a tick, by its offset ranges."""
        return [
            one
            for topic, end in entry.state.offsets.items()
            for one in self.records[topic][entry.offsets_before[topic] : end]
        ]

    def again(self) -> Iterator[bytes]:
        """Every tick once more, each from the journal before it, its offset ranges and its model version."""
        stored: dict[str, bytes] = {}
        rules, event_rules = tick.rules(self.settings), event_rules_of(self.settings)
        state: TaskState | None = None
        for data in self.journal:
            entry = decode(data)
            before = replace(state or TaskState(), offsets=entry.offsets_before)
            read = [clock.read(one, event_rules) for one in self.taken(entry)]
            merged = clock.merged(read, tuple(entry.state.offsets))
            version = self.versions[entry.model_version]
            given = TickInput(
                entry.task,
                entry.partitions,
                before,
                merged,
                entry.wakes,
                entry.released,
                entry.state.stream_time_ms,
                entry.state.live,
                version,
            )
            customers = tick.touched(merged, entry.wakes)
            yield encode(tick.run(given, customers, *gathered(stored, customers), rules).entry)
            fold(stored, entry)
            state = entry.state


def event_rules_of(settings: Settings) -> EventRules:
    """The rules that a worker with these settings decodes by."""
    return settings.event_rules


def run(settings: Settings, records: Mapping[str, Sequence[Record]]) -> Run:
    """Run logs of records through the embedded worker to their end."""
    results: list[TickResult] = []
    embedded = Embedded(settings, tuple(records), results.append)
    embedded.run({topic: iter(log) for topic, log in records.items()})
    models = MemoryTopic(embedded._cluster, settings.topic("models"))
    numbers = sorted({result.entry.model_version for result in results})
    versions = Versions(models).read(numbers) | {WARMING: warming(settings.models)}
    return Run(settings, records, results, versions)
