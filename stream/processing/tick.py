"""The tick: a pure function of the rows before it, its records, its wakes, the model version, rules and stream time.

Everything it depends on is in its journal entry, so any tick can be run again and gives the same bytes.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import online_models
from stream.errors import InvalidEvent
from stream.events import Event, Kind, Record, fingerprint, minor_digits
from stream.processing import anomaly, churn, due, segment
from stream.processing.acts import LocalTime, acts
from stream.processing.alerts import Alert, Origin, alert_id, render
from stream.processing.clock import Decoded, raised
from stream.processing.customer import DAY_MS, Rows, blank, raw, without_news
from stream.processing.features import fold
from stream.processing.journal import Entry, Published, TaskState
from stream.processing.looking import Hold, Looking, Rules
from stream.processing.names import ANOMALY_FEATURES
from stream.processing.placement import is_placed
from stream.processing.version import Version
from stream.settings import Settings


@dataclass(frozen=True, slots=True)
class TickInput:
    """What a tick is a function of, beside the rows.

    `decoded` is in the order of `clock.merged`; `wakes` are the customers whose due time has come; `stream_time_ms`
    is the task's clock at the end of the tick; `released` the topics that had let go.
    """

    task: int
    partitions: int
    state: TaskState
    decoded: Sequence[Decoded]
    wakes: Sequence[str]
    released: Sequence[str]
    stream_time_ms: int
    live: bool
    version: Version


LONGEST_STEP_HOURS = 24
"""A log of dates without times steps by a day; a longer step is a hole in the stream."""


class DeadLetter(NamedTuple):
    """A record that cannot be used, whole, with the reason; whose it is, if it is only misplaced."""

    record: Record
    reason: str
    detail: str
    customer: str = ""


class TickResult(NamedTuple):
    """What a tick came to; nothing has left the process yet.

    `entry` is its journal entry: after-images, tombstones, alerts, features, labels, and the state after it.
    `counts` are for metrics: events by kind, duplicates, late, clamped; rows that ended, forgotten or expired. `held`
    counts alerts held back by (kind, reason).
    """

    entry: Entry
    dead_letters: Sequence[DeadLetter]
    counts: Mapping[str, int]
    held: Mapping[tuple[str, str], int]
    alert_kinds: Sequence[str]
    misplaced: Sequence[str]
    met: int


def rules(settings: Settings) -> Rules:
    """The settings as processing uses them."""
    return Rules(settings, LocalTime(settings.application.timezone), 10 ** minor_digits(settings.application.currency))


def code_hash() -> str:
    """Twelve hexadecimal digits of the source that a tick's result depends on."""
    here = Path(__file__).parent
    files = [*here.glob("*.py"), *Path(online_models.__file__).parent.glob("*.py"), here.parent / "events.py"]
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(files, key=lambda path: path.name):
        digest.update(path.read_bytes())
    return digest.hexdigest()


CODE = code_hash()


def touched(decoded: Sequence[Decoded], wakes: Sequence[str]) -> list[str]:
    """The customers whose rows a tick needs, in the order in which it meets them."""
    seen = dict.fromkeys([outcome.customer for _, outcome, _ in decoded if not isinstance(outcome, InvalidEvent)])
    seen.update(dict.fromkeys(wakes))
    return list(seen)


def run(
    tick: TickInput,
    customers: Sequence[str],
    rows: Rows,
    known: NDArray[np.bool_],
    rules: Rules,
    spent: Callable[[str], None] = lambda _phase: None,
) -> TickResult:
    """Run one tick.

    Args:
        tick: what to process.
        customers: `touched(tick.decoded, tick.wakes)`.
        rows: their rows before the tick; not changed. Rows that are not `known` are ignored.
        known: which of them exist.
        rules: the settings.
        spent: called at the end of each phase.
    """
    settings = rules.settings
    after = blank(len(customers))
    raw(after)[known] = raw(rows)[known]
    before = after.copy()
    counts: Counter[str] = Counter()
    held: Counter[tuple[str, str]] = Counter()
    dead, accepted, forgotten, erased = _take_in(tick, customers, after, rules, counts)
    ended_here = int((known & erased).sum())
    known = known & ~erased
    before[erased] = blank(1)[0]
    spent("state")
    scored = _score(tick.version, accepted)
    spent("score")
    anonymous = np.array([customer.startswith("anon:") for customer in customers], np.bool_)
    alive = np.flatnonzero(after["events"] > 0)
    latest = np.full(len(customers), -1)
    latest[accepted.table["who"]] = np.arange(len(accepted.table))  # of a repeated index numpy keeps the last
    looking = Looking(
        tick.task,
        _hours(tick),
        rules,
        tick.version,
        [customers[i] for i in alive.tolist()],
        before.take(alive),
        after.take(alive),
        known[alive],
        anonymous[alive],
        np.maximum(tick.stream_time_ms, after["last_seen"][alive]),
        tick.stream_time_ms,
        accepted.events,
        accepted.records,
        latest[alive],
    )
    place = np.full(len(customers), -1, np.int64)
    place[alive] = np.arange(len(alive))
    scored = scored._replace(who=place[scored.who])

    def hold(kind: str, reason: str) -> None:
        held[kind, reason] += 1

    labels = churn.matured(looking)
    met = int((~looking.known).sum())
    customers_after = tick.state.customers + met - ended_here
    alerts = anomaly.decide(looking, scored, hold)
    alerts += segment.decide(looking, hold)
    risks, wave = churn.decide(looking, tick.state.wave, customers_after, hold)
    alerts += risks
    gone = due.expired(looking)
    if gone.any():
        counts["expired"] = int(gone.sum())
    due.schedule(looking)
    stays = np.flatnonzero(~gone)
    listed = np.empty(len(gone), np.int64)
    listed[np.concatenate((stays, np.flatnonzero(gone)))] = np.arange(len(gone))
    seq = tick.state.seq + 1
    day = tick.stream_time_ms // DAY_MS
    alerted = dict(tick.state.alerted) if tick.state.day == day else {}
    schema = max(tick.state.schema, settings.journal.schema_version or tick.state.schema)
    history_until_ms = tick.state.history_until_ms
    causes_of_past: set[str] = set()
    if schema > 1:
        history = np.flatnonzero(accepted.table["history"])
        history_until_ms = max([history_until_ms, *accepted.table["time_ms"][history].tolist()])
        # The clock may be ahead of them, and with it the alert's time.
        causes_of_past = {accepted.records[i].place for i in history.tolist()}
    past: list[Alert] = []
    present: list[Alert] = []
    for alert in alerts:
        is_past = alert.time_ms <= history_until_ms or alert.cause in causes_of_past
        (past if is_past else present).append(alert)
    for alert in past:
        hold(alert.kind, "history")
    kept = _capped(present, alerted, settings.alerts.max_per_day, hold)
    _note(looking, kept, tick.stream_time_ms)
    state = replace(
        tick.state,
        seq=seq,
        stream_time_ms=tick.stream_time_ms,
        offsets=_next_offsets(tick),
        highs=raised(tick.state.highs, tick.decoded),
        customers=customers_after - counts["expired"],
        day=day,
        alerted=alerted,
        live=tick.live,
        wave=wave,
        schema=schema,
        history_until_ms=history_until_ms,
    )
    config = settings.config_hash
    ended = forgotten | set(tick.wakes)
    origin = Origin(settings.application.name, state.incarnation, tick.task, seq, config, CODE, tick.version.number)
    entry = Entry(
        settings.application.name,
        tick.task,
        tick.state.seq,
        state,
        dict(tick.state.offsets),
        list(tick.wakes),
        list(tick.released),
        tick.version.number,
        config,
        CODE,
        tick.partitions,
        [looking.customers[i] for i in stays.tolist()],
        without_news(looking.rows.take(stays), schema),
        [looking.customers[i] for i in np.flatnonzero(gone).tolist()]
        # A due time without a row is taken out of the store's index like a row that has ended.
        + [name for name, events in zip(customers, after["events"], strict=True) if name in ended and events == 0],
        [Published(alert.customer, alert_id(origin, alert), render(origin, alert)) for alert in kept],
        [Published(alert.customer, alert_id(origin, alert), render(origin, alert)) for alert in past],
        listed[scored.who].astype(np.uint32),
        _uids(accepted),
        scored.features.astype(np.float32),
        scored.scores.astype(np.float32),
        listed[labels.who].astype(np.uint32),
        labels.columns,
        labels.churned,
        labels.taken_ms,
    )
    misplaced = [letter.customer for letter in dead if letter.reason == "misplaced"]
    spent("decide")
    return TickResult(entry, dead, counts, held, [alert.kind for alert in kept], misplaced, met)


class _Accepted(NamedTuple):
    """Events that count, in order: with their records, as columns, and described against the row before each."""

    events: list[Event]
    records: list[Record]
    table: NDArray[np.void]
    features: NDArray[np.float64]

    def only(self, these: NDArray[np.bool_]) -> "_Accepted":
        events, records = list(compress(self.events, these)), list(compress(self.records, these))
        return _Accepted(events, records, self.table[these], self.features[these])

    def then(self, later: "_Accepted") -> "_Accepted":
        if not self.events:
            return later
        table, features = np.concatenate((self.table, later.table)), np.concatenate((self.features, later.features))
        return _Accepted(self.events + later.events, self.records + later.records, table, features)


class _TakenIn(NamedTuple):
    """`forgotten` are the customers asked to be, `erased` marks those who were there; what followed made new ones."""

    dead: list[DeadLetter]
    accepted: _Accepted
    forgotten: set[str]
    erased: NDArray[np.bool_]


def _take_in(tick: TickInput, customers: Sequence[str], after: Rows, rules: Rules, counts: Counter[str]) -> _TakenIn:
    """Count every event in its customer's row, each described against the row as it was before."""
    index = {customer: i for i, customer in enumerate(customers)}
    partitioner = rules.settings.kafka.partitioner

    def is_astray(customer: str) -> bool:
        return not is_placed(customer, tick.task, tick.partitions, partitioner)

    astray = {customers[i] for i in np.flatnonzero(after["events"] == 0).tolist() if is_astray(customers[i])}
    erased = np.zeros(len(customers), np.bool_)
    dead: list[DeadLetter] = []
    forgotten: set[str] = set()
    events: list[Event] = []
    records: list[Record] = []
    accepted = _count(events, records, index, after, rules, counts)
    for record, outcome, _ in tick.decoded:
        if type(outcome) is Event and (not astray or outcome.customer not in astray):  # nearly all of them
            events.append(outcome)
            records.append(record)
        elif isinstance(outcome, InvalidEvent):
            dead.append(DeadLetter(record, outcome.reason, outcome.detail))
        elif outcome.customer in astray:
            dead.append(
                DeadLetter(
                    record,
                    "misplaced",
                    f"customer {outcome.customer!r} does not belong to partition {tick.task} of {tick.partitions} "
                    f"under {partitioner}; key records by customer id, or set kafka.partitioner",
                    outcome.customer,
                )
            )
        else:
            accepted = accepted.then(_count(events, records, index, after, rules, counts))
            events, records = [], []
            who = index[outcome.customer]
            forgotten.add(outcome.customer)
            if after["events"][who] > 0:
                accepted = accepted.only(accepted.table["who"] != who)
                counts["forgotten"] += 1
                erased[who] = True
                after[who] = blank(1)[0]
                if is_astray(outcome.customer):
                    astray.add(outcome.customer)
    accepted = accepted.then(_count(events, records, index, after, rules, counts))
    return _TakenIn(dead, accepted, forgotten, erased)


def _count(
    events: list[Event],
    records: list[Record],
    index: Mapping[str, int],
    after: Rows,
    rules: Rules,
    counts: Counter[str],
) -> _Accepted:
    """Count events in their customers' rows; duplicates are left out."""
    columns = acts(events, [index[event.customer] for event in events], rules.local, rules.minor_per_major)
    features = np.zeros((len(events), len(ANOMALY_FEATURES)))
    late = int(after["late"].sum())
    new = fold(after, *columns, features)
    found = _Accepted(events, records, columns.table, features).only(new)
    if found.events:
        counts["late"] += int(after["late"].sum()) - late
        counts["clamped"] += int(found.table["clamped"].sum())
    if len(found.events) < len(events):
        counts["duplicate"] += len(events) - len(found.events)
    for kind, count in enumerate(np.bincount(found.table["kind"]).tolist()):
        if count:
            counts[Kind(kind).name.lower()] += count
    return found


def _score(version: Version, accepted: _Accepted) -> anomaly.Scored:
    count = len(accepted.events)
    scores, rates = np.zeros(count), np.ones(count)
    if count and version.anomaly.ready:
        scores = version.anomaly.score_many(accepted.features)
        rates = version.anomaly.rate_many(scores)
    return anomaly.Scored(accepted.events, accepted.records, accepted.table["who"], accepted.features, scores, rates)


def _note(looking: Looking, kept: Sequence[Alert], stream_time_ms: int) -> None:
    """Remember in the rows that the CRM was told."""
    place = {customer: i for i, customer in enumerate(looking.customers)}
    for alert in kept:
        i = place.get(alert.customer)
        if i is not None:  # a wave is about a task, not about a customer
            looking.rows["alerts"][i] += 1
            looking.rows["alerted_at"][i] = stream_time_ms


def _capped(alerts: list[Alert], alerted: dict[str, int], limit: int, hold: Hold) -> list[Alert]:
    """At most `limit` alerts of a kind a day, the strongest of the tick first; counts into `alerted`."""
    kept = []
    for alert in sorted(alerts, key=lambda alert: -alert.strength):
        if alerted.get(alert.kind, 0) >= limit:
            hold(alert.kind, "daily_cap")
        else:
            alerted[alert.kind] = alerted.get(alert.kind, 0) + 1
            kept.append(alert)
    return kept


def _hours(tick: TickInput) -> int:
    elapsed = (tick.stream_time_ms - tick.state.stream_time_ms) / 3_600_000
    return max(1, math.ceil(elapsed)) if elapsed <= LONGEST_STEP_HOURS else 1


def _next_offsets(tick: TickInput) -> dict[str, int]:
    last = {record.topic: record.offset for record, _, _ in tick.decoded}
    return dict(tick.state.offsets) | {topic: offset + 1 for topic, offset in last.items()}


def _uids(accepted: _Accepted) -> NDArray[np.uint64]:
    """What a model's sampling draws from: the message, or where it lay."""
    uids = accepted.table["message"].copy()
    for i in np.flatnonzero(uids == 0).tolist():
        uids[i] = fingerprint(accepted.records[i].place)
    return uids
