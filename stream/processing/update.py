"""What one event does to its customer's row: O(1), in place, no clock but the event's own.

Compiled loops over rows (`ROW`) and acts (`ACT`); all arithmetic is float64, put into float32 shares at the end.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.compiled import compiled
from stream.events import Kind
from stream.processing.customer import DAY_MS, LONG_GAPS_DAYS, MOST_GAPS, ORDER_HALF_LIVES_DAYS, PARTS_OF_DAY

SESSION_GAP_MS = 1_800_000
SAME_OCCASION_DAYS = 0.5
"""Orders closer together than this are one purchase occasion: they move no gap statistics."""
EWMA_RATE = 0.3
SHARE_MEMORY = 100
SPEND_HALF_LIVES_DAYS = (7.0, 90.0)


@compiled
def is_duplicate(row: np.void, act: np.void) -> bool:
    """Whether the row already holds the event's message id, or its order id as an order."""
    if _holds(row["message_ids"], act["message"]):
        return True
    return bool(act["kind"] == Kind.ORDER and _holds(row["order_ids"], act["order"]))


@compiled
def _holds(latest: NDArray[np.uint64], value: int) -> bool:
    return _place(latest, value) >= 0


@compiled
def _place(latest: NDArray[np.uint64], value: int) -> int:
    """Where a fingerprint lies; -1 where it does not, and for 0, which stands for none."""
    if value != 0:
        for i in range(len(latest)):
            if latest[i] == value:
                return i
    return -1


@compiled
def apply(row: np.void, act: np.void, categories: NDArray[np.int64]) -> None:
    """Count the event in the row. The caller has made sure that it is no duplicate."""
    time_ms = act["time_ms"]
    if row["events"] == 0:
        row["first_seen"] = time_ms
        row["last_seen"] = time_ms
    if act["message"] != 0:
        _remember(row["message_ids"], act["message"])
    row["events"] += 1
    _count(row, act["kind"])
    if time_ms < row["last_seen"]:
        row["late"] += 1
        row["first_seen"] = min(row["first_seen"], time_ms)
    else:
        _session(row, time_ms)
        row["last_seen"] = time_ms
    _activity(row, act)
    _habits(row, act, categories)
    if act["kind"] == Kind.ORDER:
        _order(row, act)
    elif act["kind"] == Kind.REFUND:
        _refund(row, act)


@compiled
def _count(row: np.void, kind: int) -> None:
    if kind == Kind.VIEW:
        row["views"] += 1
    elif kind == Kind.SEARCH:
        row["searches"] += 1
    elif kind == Kind.CART_ADD:
        row["adds"] += 1
    elif kind == Kind.CART_REMOVE:
        row["removes"] += 1
    elif kind == Kind.CHECKOUT:
        row["checkouts"] += 1


@compiled
def _remember(latest: NDArray[Any], value: int) -> None:
    """Put a value first, and let the last one go."""
    for i in range(len(latest) - 1, 0, -1):
        latest[i] = latest[i - 1]
    latest[0] = value


@compiled
def decay(value: float, half_life_days: float, elapsed_ms: int) -> float:
    """What is left of a decayed counter after `elapsed_ms`."""
    return value * math.exp2(-elapsed_ms / (half_life_days * DAY_MS))


@compiled
def _age(sums: NDArray[Any], half_lives_days: tuple[float, ...], waited_ms: int, added: float, aged_ms: int) -> None:
    """Decay sums for `waited_ms`, and add to each what was `added`, decayed for `aged_ms` already."""
    for i in range(len(sums)):
        sums[i] = decay(sums[i], half_lives_days[i], waited_ms) + decay(added, half_lives_days[i], aged_ms)


@compiled
def _session(row: np.void, time_ms: int) -> None:
    if row["session_events"] == 0 or time_ms - row["last_seen"] > SESSION_GAP_MS:
        row["session_start"] = time_ms
        row["session_events"] = 0
        row["sessions"] += 1
    row["session_events"] += 1


@compiled
def _weights(at_ms: int, time_ms: int) -> tuple[int, int, int]:
    """(time to decay to, how long the sum decays, how long the new event has decayed already).

    A sum that has no time yet (0) takes the event's.
    """
    if at_ms == 0 or time_ms >= at_ms:
        return time_ms, time_ms - at_ms if at_ms else 0, 0
    return at_ms, 0, at_ms - time_ms


@compiled
def is_trouble(kind: int) -> bool:
    """Whether an event of this kind counts as a removal or a refund."""
    return bool(kind == Kind.CART_REMOVE or kind == Kind.REFUND)


@compiled
def _activity(row: np.void, act: np.void) -> None:
    at, waited, aged = _weights(row["activity_at"], act["time_ms"])
    row["activity_at"] = at
    row["events_day"] = decay(row["events_day"], 1.0, waited) + decay(1.0, 1.0, aged)
    trouble = 1.0 if is_trouble(act["kind"]) else 0.0
    row["trouble_week"] = decay(row["trouble_week"], 7.0, waited) + decay(trouble, 7.0, aged)


@compiled
def _habits(row: np.void, act: np.void, categories: NDArray[np.int64]) -> None:
    rate = 1.0 / min(row["events"], SHARE_MEMORY)
    row["weekend"] += np.float32(rate * (act["weekend"] - np.float64(row["weekend"])))
    parts = row["parts_of_day"]
    for i in range(PARTS_OF_DAY):
        parts[i] *= np.float32(1.0 - rate)
    parts[act["part_of_day"]] += np.float32(rate)
    if len(categories):
        row["categorised"] += 1
        rate = 1.0 / min(row["categorised"], SHARE_MEMORY)
        shares = row["categories"]
        for i in range(len(shares)):
            shares[i] *= np.float32(1.0 - rate)
        for category in categories:
            shares[category] += np.float32(rate / len(categories))


@compiled
def _order(row: np.void, act: np.void) -> None:
    time_ms = act["time_ms"]
    priced = act["amount_minor"] >= 0
    amount_minor = act["amount_minor"] if priced else 0
    if act["order"] != 0:
        _remember(row["order_ids"], act["order"])
        _remember(row["order_amounts"], amount_minor)
    first = row["orders"] == 0
    row["orders"] += 1
    at, waited, aged = _weights(row["orders_at"], time_ms)
    row["orders_at"] = at
    _age(row["orders_decayed"], ORDER_HALF_LIVES_DAYS, waited, 1.0, aged)
    _age(row["spend_decayed"], SPEND_HALF_LIVES_DAYS, waited, float(amount_minor), aged)
    if priced:
        row["spend_minor"] += amount_minor
        row["priced"] += 1
        log_amount = math.log1p(act["amount"])
        deviation = log_amount - row["log_amount_mean"]
        row["log_amount_mean"] += deviation / row["priced"]
        row["log_amount_m2"] += deviation * (log_amount - row["log_amount_mean"])
    else:
        row["unpriced"] += 1
    if act["items"] != 0:
        row["items_ewma"] += (1.0 if row["items_ewma"] == 0 else EWMA_RATE) * (act["items"] - row["items_ewma"])
    if first:
        row["first_order"] = time_ms
        row["last_order"] = time_ms
        row["order_days"] = 1
        row["last_spend"] = amount_minor
    elif time_ms >= row["last_order"]:
        gap_days = (time_ms - row["last_order"]) / DAY_MS
        if gap_days < SAME_OCCASION_DAYS:
            row["last_spend"] += np.float32(amount_minor)
        else:
            _gap(row, gap_days)
            _spent(row, amount_minor)
        row["last_order"] = time_ms
    row["first_order"] = min(row["first_order"], time_ms)


@compiled
def _gap(row: np.void, gap_days: float) -> None:
    row["order_days"] += 1
    gaps = row["order_days"] - 1
    deviation = gap_days - row["gap_mean_days"]
    row["gap_mean_days"] += deviation / gaps
    row["gap_m2"] += np.float32(deviation * (gap_days - row["gap_mean_days"]))
    deviation = math.log(gap_days) - row["log_gap_mean"]
    row["log_gap_mean"] += deviation / gaps
    row["log_gap_m2"] += deviation * (math.log(gap_days) - row["log_gap_mean"])
    row["gap_ewma_days"] += (1.0 if gaps == 1 else EWMA_RATE) * (gap_days - row["gap_ewma_days"])
    row["last_gap_days"] = gap_days
    row["longest_gap_days"] = max(row["longest_gap_days"], gap_days)
    over = row["gaps_over"]
    for i in range(len(over)):
        if gap_days > LONG_GAPS_DAYS[i] and over[i] < MOST_GAPS:
            over[i] += 1


@compiled
def _spent(row: np.void, amount_minor: int) -> None:
    """Begin a new occasion; orders that follow within it are added to `last_spend`."""
    rate = 1.0 if row["order_days"] == 2 else EWMA_RATE
    row["spend_ewma"] += np.float32(rate * (np.float64(row["last_spend"]) - np.float64(row["spend_ewma"])))
    row["last_spend"] = amount_minor


@compiled
def _refund(row: np.void, act: np.void) -> None:
    """Take back what the order brought in: the named amount, or all that is left of it."""
    row["refunds"] += 1
    place = _place(row["order_ids"], act["order"])
    if place < 0:
        return
    left = row["order_amounts"][place]
    taken = left if act["amount_minor"] < 0 else min(left, act["amount_minor"])
    row["order_amounts"][place] = left - taken
    row["spend_minor"] -= taken
