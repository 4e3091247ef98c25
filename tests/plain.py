"""What one event does to a row, and its features, in plain Python: what the compiled loops must equal to the byte.

It works on Python's own floats and on `Event`s, one at a time; stream/processing/update.py and features.py on columns.
"""

import math
from datetime import datetime
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from stream.events import Event, Kind
from stream.processing.customer import CATEGORY_BUCKETS, DAY_MS, LONG_GAPS_DAYS, MOST_GAPS, ORDER_HALF_LIVES_DAYS
from stream.processing.features import HABIT_EVENTS, TREND_AFTER_DAYS
from stream.processing.update import EWMA_RATE, SAME_OCCASION_DAYS, SESSION_GAP_MS, SHARE_MEMORY, SPEND_HALF_LIVES_DAYS

NAN = math.nan

_COUNTERS = {
    Kind.VIEW: "views",
    Kind.SEARCH: "searches",
    Kind.CART_ADD: "adds",
    Kind.CART_REMOVE: "removes",
    Kind.CHECKOUT: "checkouts",
}


class Local:
    """Local time, asked anew for each event."""

    def __init__(self, zone: str) -> None:
        self._zone = ZoneInfo(zone)

    def part_of_day(self, time_ms: int) -> int:
        return datetime.fromtimestamp(time_ms // 1000, self._zone).hour // 3

    def is_weekend(self, time_ms: int) -> bool:
        return datetime.fromtimestamp(time_ms // 1000, self._zone).weekday() >= 5


def is_duplicate(row: np.void, event: Event) -> bool:
    """Whether the row already holds the event's message id, or its order id as an order."""
    if event.message_hash and event.message_hash in row["message_ids"].tolist():
        return True
    return event.kind is Kind.ORDER and event.order_hash != 0 and event.order_hash in row["order_ids"].tolist()


def apply(row: np.void, event: Event, local: Local, minor_per_major: int) -> None:
    """Count the event in the row. The caller has made sure that it is no duplicate."""
    time_ms = event.time_ms
    if row["events"] == 0:
        row["first_seen"] = row["last_seen"] = time_ms
    late = time_ms < row["last_seen"]
    if event.message_hash:
        _remember(row["message_ids"], event.message_hash)
    row["events"] += 1
    if event.kind in _COUNTERS:
        row[_COUNTERS[event.kind]] += 1
    if late:
        row["late"] += 1
        row["first_seen"] = min(int(row["first_seen"]), time_ms)
    else:
        _session(row, time_ms)
        row["last_seen"] = time_ms
    _activity(row, event)
    _habits(row, event, local)
    if event.kind is Kind.ORDER:
        _order(row, event, minor_per_major)
    elif event.kind is Kind.REFUND:
        _refund(row, event)


def _remember(latest: NDArray[Any], value: int) -> None:
    """Put a value first, and let the last one go."""
    latest[1:] = latest[:-1]
    latest[0] = value


def decay(value: float, half_life_days: float, elapsed_ms: int) -> float:
    """What is left of a decayed counter after `elapsed_ms`."""
    return value * math.exp2(-elapsed_ms / (half_life_days * DAY_MS))


def _decayed(
    sums: NDArray[Any], half_lives_days: tuple[float, ...], waited_ms: int, added: float, aged_ms: int
) -> tuple[float, ...]:
    """Sums decayed for `waited_ms`, plus what is `added`, decayed for `aged_ms` already."""
    return tuple(
        decay(value, half_life, waited_ms) + decay(added, half_life, aged_ms)
        for value, half_life in zip(sums.tolist(), half_lives_days, strict=True)
    )


def _session(row: np.void, time_ms: int) -> None:
    if row["session_events"] == 0 or time_ms - int(row["last_seen"]) > SESSION_GAP_MS:
        row["session_start"] = time_ms
        row["session_events"] = 0
        row["sessions"] += 1
    row["session_events"] += 1


def _weights(at_ms: int, time_ms: int) -> tuple[int, int, int]:
    """(time to decay to, how long the sum decays, how long the new event has decayed already)."""
    return (time_ms, time_ms - at_ms, 0) if time_ms >= at_ms else (at_ms, 0, at_ms - time_ms)


def _activity(row: np.void, event: Event) -> None:
    at, waited, aged = _weights(int(row["activity_at"]) or event.time_ms, event.time_ms)
    row["activity_at"] = at
    row["events_day"] = decay(float(row["events_day"]), 1.0, waited) + decay(1.0, 1.0, aged)
    trouble = 1.0 if event.kind in (Kind.CART_REMOVE, Kind.REFUND) else 0.0
    row["trouble_week"] = decay(float(row["trouble_week"]), 7.0, waited) + decay(trouble, 7.0, aged)


def _habits(row: np.void, event: Event, local: Local) -> None:
    rate = 1.0 / min(int(row["events"]), SHARE_MEMORY)
    row["weekend"] += rate * (float(local.is_weekend(event.time_ms)) - float(row["weekend"]))
    parts = row["parts_of_day"]
    parts *= 1.0 - rate
    parts[local.part_of_day(event.time_ms)] += rate
    if event.categories:
        row["categorised"] += 1
        rate = 1.0 / min(int(row["categorised"]), SHARE_MEMORY)
        shares = row["categories"]
        shares *= 1.0 - rate
        for category in event.categories:
            shares[bucket(category)] += rate / len(event.categories)


def bucket(category: str) -> int:
    """The place of a category among `CATEGORY_BUCKETS`."""
    return crc32(category.encode()) % CATEGORY_BUCKETS


def _order(row: np.void, event: Event, minor_per_major: int) -> None:
    time_ms = event.time_ms
    amount = event.amount_minor
    if event.order_hash:
        _remember(row["order_ids"], event.order_hash)
        _remember(row["order_amounts"], amount or 0)
    first = row["orders"] == 0
    row["orders"] += 1
    at, waited, aged = _weights(int(row["orders_at"]) or time_ms, time_ms)
    row["orders_at"] = at
    row["orders_decayed"] = _decayed(row["orders_decayed"], ORDER_HALF_LIVES_DAYS, waited, 1.0, aged)
    row["spend_decayed"] = _decayed(row["spend_decayed"], SPEND_HALF_LIVES_DAYS, waited, float(amount or 0), aged)
    if amount is None:
        row["unpriced"] += 1
    else:
        row["spend_minor"] += amount
        row["priced"] += 1
        log_amount = math.log1p(amount / minor_per_major)
        deviation = log_amount - float(row["log_amount_mean"])
        row["log_amount_mean"] += deviation / int(row["priced"])
        row["log_amount_m2"] += deviation * (log_amount - float(row["log_amount_mean"]))
    if event.items:
        row["items_ewma"] += (1.0 if row["items_ewma"] == 0 else EWMA_RATE) * (event.items - float(row["items_ewma"]))
    if first:
        row["first_order"] = row["last_order"] = time_ms
        row["order_days"] = 1
        row["last_spend"] = amount or 0
    elif time_ms >= row["last_order"]:
        gap_days = (time_ms - int(row["last_order"])) / DAY_MS
        if gap_days < SAME_OCCASION_DAYS:
            row["last_spend"] += amount or 0
        else:
            _gap(row, gap_days)
            _spent(row, amount or 0)
        row["last_order"] = time_ms
    row["first_order"] = min(int(row["first_order"]), time_ms)


def _gap(row: np.void, gap_days: float) -> None:
    row["order_days"] += 1
    gaps = int(row["order_days"]) - 1
    deviation = gap_days - float(row["gap_mean_days"])
    row["gap_mean_days"] += deviation / gaps
    row["gap_m2"] += deviation * (gap_days - float(row["gap_mean_days"]))
    deviation = math.log(gap_days) - float(row["log_gap_mean"])
    row["log_gap_mean"] += deviation / gaps
    row["log_gap_m2"] += deviation * (math.log(gap_days) - float(row["log_gap_mean"]))
    row["gap_ewma_days"] += (1.0 if gaps == 1 else EWMA_RATE) * (gap_days - float(row["gap_ewma_days"]))
    row["last_gap_days"] = gap_days
    row["longest_gap_days"] = max(float(row["longest_gap_days"]), gap_days)
    for i, days in enumerate(LONG_GAPS_DAYS):
        row["gaps_over"][i] = min(int(row["gaps_over"][i]) + (gap_days > days), MOST_GAPS)


def _spent(row: np.void, amount: int) -> None:
    """Begin a new occasion; orders that follow within it are added to `last_spend`."""
    rate = 1.0 if row["order_days"] == 2 else EWMA_RATE
    row["spend_ewma"] += rate * (float(row["last_spend"]) - float(row["spend_ewma"]))
    row["last_spend"] = amount


def _refund(row: np.void, event: Event) -> None:
    """Take back what the order brought in: the named amount, or all that is left of it."""
    row["refunds"] += 1
    if not event.order_hash:
        return
    held = np.flatnonzero(row["order_ids"] == event.order_hash)
    if len(held) == 0:
        return
    left = int(row["order_amounts"][held[0]])
    taken = left if event.amount_minor is None else min(left, event.amount_minor)
    row["order_amounts"][held[0]] = left - taken
    row["spend_minor"] -= taken


def event_features(row: np.void, event: Event, local: Local, minor_per_major: int) -> tuple[float, ...]:
    """ANOMALY_FEATURES of an event against the row before it.

    Each grows with what a shop would act on, and is cut off or crowded on the other side: a smaller order than usual,
    or a sooner one, is nobody's alarm.
    """
    time_ms = event.time_ms
    amount = amount_z = items = gap_z = spend_trend = NAN
    if event.kind is Kind.ORDER:
        if event.items:
            items = math.sqrt(event.items)
        if event.amount_minor is not None:
            amount = math.sqrt(event.amount_minor / minor_per_major)
            log_amount = math.log1p(event.amount_minor / minor_per_major)
            if row["priced"] >= HABIT_EVENTS:
                spread = math.sqrt((float(row["log_amount_m2"]) + 0.5) / (int(row["priced"]) + 1))
                amount_z = max((log_amount - float(row["log_amount_mean"])) / spread, 0.0)
        if row["order_days"] > HABIT_EVENTS:
            gap_days = max((time_ms - int(row["last_order"])) / DAY_MS, 0.5)
            spread = math.sqrt((float(row["log_gap_m2"]) + 0.5) / int(row["order_days"]))
            gap_z = max((math.log(gap_days) - float(row["log_gap_mean"])) / spread, 0.0)
        if row["priced"] >= HABIT_EVENTS:
            spend_trend = _spend_trend(row, time_ms, event.amount_minor or 0)
            spend_trend = NAN if math.isnan(spend_trend) else max(spend_trend, 0.0)
    part_of_day = category = NAN
    if row["events"] >= HABIT_EVENTS:
        part_of_day = -math.log2(float(row["parts_of_day"][local.part_of_day(time_ms)]) + 0.02)
    if event.categories and row["categorised"] >= HABIT_EVENTS:
        best = max(float(row["categories"][bucket(name)]) for name in event.categories)
        category = -math.log2(best + 0.02)
    silence = time_ms - int(row["last_seen"])
    same_session = row["session_events"] > 0 and silence <= SESSION_GAP_MS
    in_session = int(row["session_events"]) + 1 if same_session else 1
    minutes = max(time_ms - int(row["session_start"]), 0) / 60_000 if same_session else 0.0
    waited = max(time_ms - int(row["activity_at"]), 0) if row["activity_at"] else 0
    trouble = 1.0 if event.kind in (Kind.CART_REMOVE, Kind.REFUND) else 0.0
    return (
        amount_z,
        amount,
        items,
        gap_z,
        part_of_day,
        category,
        math.log1p(in_session),
        math.log1p(in_session / (minutes + 1.0)) if minutes > 0 else NAN,  # a log of dates has no pace
        math.log1p(decay(float(row["events_day"]), 1.0, waited) + 1.0),
        spend_trend,
        math.log1p(decay(float(row["trouble_week"]), 7.0, waited) + trouble),
    )


def _spend_trend(row: np.void, time_ms: int, amount_minor: int) -> float:
    """ln of spend a day over the last week against that over the last three months, this order in both.

    NaN before `TREND_AFTER_DAYS` of history.
    """
    waited = max(time_ms - int(row["orders_at"]), 0)
    week, quarter = (
        decay(float(row["spend_decayed"][i]), half_life, waited) for i, half_life in enumerate(SPEND_HALF_LIVES_DAYS)
    )
    tenure_days = (time_ms - int(row["first_order"])) / DAY_MS
    if tenure_days < TREND_AFTER_DAYS:
        return NAN
    spans = [
        half_life / math.log(2.0) * (1.0 - math.exp2(-tenure_days / half_life)) for half_life in SPEND_HALF_LIVES_DAYS
    ]
    return math.log((week + amount_minor + 1.0) / spans[0]) - math.log((quarter + amount_minor + 1.0) / spans[1])
