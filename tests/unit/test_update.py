import math
import statistics
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream.events import Event, Kind
from stream.processing.acts import LocalTime, acts, parts_of_day, weekends
from stream.processing.customer import Rows, blank
from stream.processing.features import fold
from stream.processing.names import ANOMALY_FEATURES
from stream.processing.update import decay
from tests import plain
from tests.builders import DAY_MS, HOUR_MS, NOW, event

ZONE = "America/New_York"
MINUTE_MS = 60_000


def folded(rows: Rows, events: Sequence[Event], who: Sequence[int], zone: str = ZONE) -> np.ndarray:
    """Events into their rows, duplicates left out; returns the features of the others."""
    features = np.zeros((len(events), len(ANOMALY_FEATURES)))
    new = fold(rows, *acts(events, who, LocalTime(zone), 100), features)
    return features[new]


def lived(events: Sequence[Event], zone: str = ZONE) -> np.void:
    """The row after these events."""
    rows = blank(1)
    folded(rows, events, [0] * len(events), zone)
    return rows[0]


def part(row: np.void, *names: str) -> tuple[Any, ...]:
    return tuple(row[name].item() for name in names)


def bought(day: float, amount: int | None = 1_000, order: str | None = None, items: int = 1) -> Event:
    return event(Kind.ORDER, NOW + round(day * DAY_MS), amount_minor=amount, order=order, items=items)


def refunded(order: str | None, amount: int | None = None, message: str | None = None) -> Event:
    return event(Kind.REFUND, NOW + DAY_MS, order=order, amount_minor=amount, message=message)


# The oracle: what a row should say, from the whole list of events, slowly and by definition.


def accepted(events: Sequence[Event]) -> list[Event]:
    messages, orders, kept = deque[str](maxlen=16), deque[int](maxlen=4), []
    for one in events:
        if one.message_id in messages or (one.kind is Kind.ORDER and one.order_hash and one.order_hash in orders):
            continue
        if one.message_id:
            messages.append(one.message_id)
        if one.kind is Kind.ORDER and one.order_hash:
            orders.append(one.order_hash)
        kept.append(one)
    return kept


def spend(events: Sequence[Event]) -> tuple[int, dict[int, int]]:
    """Spend, and what can still be taken back of the last four orders."""
    total, left = 0, {}
    for one in events:
        if one.kind is Kind.ORDER:
            total += one.amount_minor or 0
            if one.order_hash:
                left[one.order_hash] = one.amount_minor or 0
                if len(left) > 4:
                    del left[next(iter(left))]
        elif one.kind is Kind.REFUND and one.order_hash in left:
            back = left[one.order_hash] if one.amount_minor is None else min(left[one.order_hash], one.amount_minor)
            left[one.order_hash] -= back
            total -= back
    return total, left


def gaps_of(orders: Sequence[Event]) -> list[float]:
    """Days between purchase occasions, in order of arrival; an order older than the last one opens no gap."""
    gaps, last = [], None
    for one in orders:
        if last is not None and one.time_ms > last and (one.time_ms - last) / DAY_MS >= 0.5:
            gaps.append((one.time_ms - last) / DAY_MS)
        last = one.time_ms if last is None else max(last, one.time_ms)
    return gaps


def smoothed(values: Sequence[float]) -> float:
    level = 0.0
    for i, value in enumerate(values):
        level = value if i == 0 else 0.7 * level + 0.3 * value
    return level


def squares(values: Sequence[float]) -> float:
    return statistics.pvariance(values) * len(values) if values else 0.0


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def faded(weights: Sequence[tuple[int, float]], half_life_days: float) -> float:
    """Closed form of a decayed counter at the latest of the times."""
    latest = max((time_ms for time_ms, _ in weights), default=0)
    return math.fsum(weight * 2 ** (-(latest - at) / (half_life_days * DAY_MS)) for at, weight in weights)


def sessions_of(events: Sequence[Event]) -> tuple[int, int, int]:
    """(sessions begun, start of the last, its events), late events not counted."""
    times: list[int] = []
    for one in events:
        if not times or one.time_ms >= times[-1]:
            times.append(one.time_ms)
    starts = [i for i, at in enumerate(times) if i == 0 or at - times[i - 1] > 30 * MINUTE_MS]
    return len(starts), times[starts[-1]], len(times) - starts[-1]


def counts(events: Sequence[Event]) -> dict[str, int]:
    number = {kind: sum(one.kind is kind for one in events) for kind in Kind}
    orders = [one for one in events if one.kind is Kind.ORDER]
    sessions, session_start, session_events = sessions_of(events)
    return {
        "first_seen": min(one.time_ms for one in events),
        "last_seen": max(one.time_ms for one in events),
        "events": len(events),
        "orders": number[Kind.ORDER],
        "spend_minor": spend(events)[0],
        "unpriced": sum(one.amount_minor is None for one in orders),
        "priced": sum(one.amount_minor is not None for one in orders),
        "refunds": number[Kind.REFUND],
        "views": number[Kind.VIEW],
        "searches": number[Kind.SEARCH],
        "adds": number[Kind.CART_ADD],
        "removes": number[Kind.CART_REMOVE],
        "checkouts": number[Kind.CHECKOUT],
        "late": sum(one.time_ms < max(x.time_ms for x in events[: i + 1]) for i, one in enumerate(events)),
        "first_order": min((one.time_ms for one in orders), default=0),
        "last_order": max((one.time_ms for one in orders), default=0),
        "order_days": len(gaps_of(orders)) + 1 if orders else 0,
        "sessions": sessions,
        "session_start": session_start,
        "session_events": session_events,
        "categorised": sum(bool(one.categories) for one in events),
    }


def measures(events: Sequence[Event], zone: str = ZONE) -> dict[str, float]:
    orders = [one for one in events if one.kind is Kind.ORDER]
    gaps = gaps_of(orders)
    amounts = [math.log1p(one.amount_minor / 100) for one in orders if one.amount_minor is not None]
    paid = [(one.time_ms, float(one.amount_minor or 0)) for one in orders]
    trouble = [(one.time_ms, float(one.kind in (Kind.CART_REMOVE, Kind.REFUND))) for one in events]
    local = [datetime.fromtimestamp(one.time_ms / 1000, ZoneInfo(zone)) for one in events]
    named = [one.categories for one in events if one.categories]
    found = {
        "gap_mean_days": mean(gaps),
        "log_gap_mean": mean([math.log(gap) for gap in gaps]),
        "log_gap_m2": squares([math.log(gap) for gap in gaps]),
        "gap_ewma_days": smoothed(gaps),
        "last_gap_days": gaps[-1] if gaps else 0.0,
        "longest_gap_days": max(gaps, default=0.0),
        "log_amount_mean": mean(amounts),
        "log_amount_m2": squares(amounts),
        "items_ewma": smoothed([one.items for one in orders if one.items]),
        "events_day": faded([(one.time_ms, 1.0) for one in events], 1.0),
        "trouble_week": faded(trouble, 7.0),
        "weekend": mean([moment.weekday() >= 5 for moment in local]),
    }
    for i, days in enumerate((7.0, 30.0, 90.0, 180.0)):
        found[f"orders_decayed/{i}"] = faded([(at, 1.0) for at, _ in paid], days)
    for i, days in enumerate((7.0, 90.0)):
        found[f"spend_decayed/{i}"] = faded(paid, days)
    for i in range(8):
        found[f"parts_of_day/{i}"] = mean([moment.hour // 3 == i for moment in local])
    for i in range(16):
        found[f"categories/{i}"] = mean(
            [sum(crc32(name.encode()) % 16 == i for name in names) / len(names) for names in named]
        )
    return found


def measured(row: np.void) -> dict[str, float]:
    """The same measures out of the row."""
    found: dict[str, float] = {}
    for name in measures([event()]):
        field, _, place = name.partition("/")
        found[name] = float(row[field][int(place)] if place else row[field])
    return found


WORDS = st.sampled_from(["toys", "bread", "wine", "Zoë"])
EVENTS = st.builds(
    event,
    kind=st.sampled_from([*Kind, Kind.ORDER, Kind.ORDER]),
    time_ms=st.one_of(
        st.integers(NOW, NOW + 40 * DAY_MS),
        st.integers(0, 40).map(lambda half: NOW + half * DAY_MS // 2),
        st.integers(0, 200).map(lambda minutes: NOW + 20 * DAY_MS + minutes * MINUTE_MS),
    ),
    message=st.integers(0, 30).map(lambda i: f"m-{i}"),
    order=st.integers(0, 6).map(lambda i: f"o-{i}"),
    amount_minor=st.none() | st.integers(0, 10**7),
    items=st.integers(0, 5),
    categories=st.lists(WORDS, max_size=3, unique=True).map(tuple),
)
LIVES = st.lists(EVENTS, min_size=1, max_size=60) | st.lists(EVENTS, min_size=1, max_size=40).map(
    lambda events: sorted(events, key=lambda one: one.time_ms)
)


@given(LIVES)
@examples(max_examples=250, deadline=None)
def test_counts_are_exact_in_any_order_with_any_repetition(events: list[Event]) -> None:
    row, kept = lived(events), accepted(events)
    assert {name: int(row[name]) for name in counts(kept)} == counts(kept)


@given(LIVES)
@examples(max_examples=200, deadline=None)
def test_what_a_row_remembers_is_the_last_16_messages_and_what_is_left_of_4_orders(events: list[Event]) -> None:
    row, kept = lived(events), accepted(events)
    held = {int(order): int(left) for order, left in zip(row["order_ids"], row["order_amounts"], strict=True) if order}
    assert sorted(row["message_ids"][row["message_ids"] > 0].tolist()) == sorted(one.message_hash for one in kept[-16:])
    assert held == spend(kept)[1]


@given(LIVES, st.sampled_from([ZONE, "Asia/Kolkata", "UTC"]))
@examples(max_examples=200, deadline=None)
def test_means_shares_and_decayed_counters_equal_their_closed_forms(events: list[Event], zone: str) -> None:
    assert measured(lived(events, zone)) == pytest.approx(measures(accepted(events), zone), rel=2e-6, abs=2e-6)


@given(LIVES)
@examples(max_examples=60, deadline=None)
def test_the_same_events_once_more_change_nothing_while_they_are_remembered(events: list[Event]) -> None:
    kept = accepted(events)
    assert lived([*events, *kept[-16:]]).tobytes() == lived(events).tobytes()


# Orders, refunds and duplicates, one sentence each


def test_an_order_counts_once_by_its_order_id_whatever_its_message_is() -> None:
    twice = [event(Kind.ORDER, NOW, order="o", amount_minor=500, message=f"m-{i}") for i in range(2)]
    assert part(lived(twice), "events", "orders", "spend_minor") == (1, 1, 500)


def test_an_event_without_ids_is_never_a_duplicate() -> None:
    assert part(lived([bought(0)] * 3), "events", "orders", "spend_minor") == (3, 3, 3_000)


def test_a_message_is_forgotten_after_16_others_and_an_order_after_4_others() -> None:
    messages = [event(message=f"m-{i}") for i in range(17)]
    orders = [bought(i, order=f"o-{i}") for i in range(5)]
    rows = (
        lived([*messages[:16], messages[0]]),
        lived([*messages, messages[0]]),
        lived([*orders[:4], orders[0]]),
        lived([*orders, orders[0]]),
    )
    assert [int(row["events"]) for row in rows] == [16, 18, 4, 6]


def test_the_last_16_messages_are_remembered_when_others_carry_no_id() -> None:
    messages = [event(message=f"m-{i}") for i in range(16)]
    between = [one for message in messages for one in (message, event())]
    assert int(lived([*between, messages[0]])["events"]) == 32


def test_the_last_4_orders_are_remembered_when_others_carry_no_id() -> None:
    orders = [bought(i, order=f"o-{i}") for i in range(4)]
    between = [one for order in orders for one in (order, bought(9))]
    assert int(lived([*between, orders[0]])["orders"]) == 8


@pytest.mark.parametrize(
    ("refunds", "spend_minor"),
    [
        ([refunded("o")], 0),
        ([refunded("o", 300)], 700),
        ([refunded("o", 300), refunded("o", 300)], 400),
        ([refunded("o", 300), refunded("o")], 0),
        ([refunded("o"), refunded("o")], 0),
        ([refunded("o", 900), refunded("o", 900)], 0),
        ([refunded("o", 5_000)], 0),
        ([refunded("o", 0)], 1_000),
        ([refunded("o", 300, message="r"), refunded("o", 300, message="r")], 700),
        ([refunded("unknown", 300)], 1_000),
        ([refunded(None, 300)], 1_000),
    ],
)
def test_a_refund_takes_back_what_it_names_and_never_more_than_is_left(refunds: list[Event], spend_minor: int) -> None:
    assert int(lived([bought(0, 1_000, "o"), *refunds])["spend_minor"]) == spend_minor


def test_a_refund_of_an_order_that_is_no_longer_held_takes_nothing_back() -> None:
    orders = [bought(i, 1_000, f"o-{i}") for i in range(5)]
    assert part(lived([*orders, refunded("o-0")]), "spend_minor", "refunds") == (5_000, 1)


def test_an_order_without_an_amount_is_an_order_that_is_not_priced() -> None:
    row = lived([bought(0, None, "o"), refunded("o", 300)])
    assert part(row, "orders", "unpriced", "priced", "spend_minor", "log_amount_mean") == (1, 1, 0, 0, 0.0)


# Time


def test_a_late_order_moves_neither_recency_nor_gaps_backwards() -> None:
    kept = ("last_seen", "last_order", "order_days", "gap_mean_days", "last_gap_days", "gap_ewma_days", "orders_at")
    on_time, late = [bought(0), bought(10)], bought(4)
    rows = lived(on_time), lived([*on_time, late])
    assert part(rows[1], *kept) == part(rows[0], *kept)
    assert part(rows[1], "orders", "late", "spend_minor") == (3, 1, 3_000)


def test_a_late_event_counts_with_the_weight_that_is_left_of_it() -> None:
    row = lived([bought(30), bought(0)])
    assert row["orders_decayed"].tolist() == pytest.approx([1 + 2 ** (-30 / days) for days in (7, 30, 90, 180)])


def test_an_event_older_than_the_first_moves_the_first_back() -> None:
    row = lived([bought(5), bought(0)])
    assert part(row, "first_seen", "first_order", "last_seen") == (NOW, NOW, NOW + 5 * DAY_MS)


def test_a_late_event_leaves_the_session_as_it_is() -> None:
    session = ("sessions", "session_start", "session_events")
    on_time = [event(time_ms=NOW), event(time_ms=NOW + HOUR_MS), event(time_ms=NOW + HOUR_MS + MINUTE_MS)]
    assert part(lived([*on_time, event(time_ms=NOW + 5 * MINUTE_MS)]), *session) == part(lived(on_time), *session)


def test_thirty_minutes_of_silence_end_a_session_and_not_a_millisecond_less() -> None:
    rows = [lived([event(time_ms=NOW), event(time_ms=NOW + 30 * MINUTE_MS + more)]) for more in (0, 1)]
    assert [part(row, "sessions", "session_events") for row in rows] == [(1, 2), (2, 1)]


def test_orders_within_half_a_day_are_one_occasion() -> None:
    row = lived([bought(0), bought(0.49), bought(1.0), bought(3.0)])
    assert part(row, "orders", "order_days", "last_gap_days") == (4, 3, 2.0)


def test_gaps_are_counted_by_length_and_their_spread_is_kept() -> None:
    row = lived([bought(day) for day in (0, 7, 14.5, 30, 59, 120)])
    gaps = np.diff([0, 7, 14.5, 30, 59, 120])
    assert row["gaps_over"].tolist() == [(gaps > days).sum() for days in (7, 14, 28, 60)]
    assert float(row["gap_m2"]) == pytest.approx(((gaps - gaps.mean()) ** 2).sum(), rel=1e-5)


def test_the_spend_of_one_occasion_is_added_up_before_it_enters_the_average() -> None:
    amounts = ((0, 1_000), (0.2, 500), (5, 3_000), (9, 2_000), (9.1, 1_000))
    row = lived([bought(day)._replace(amount_minor=amount) for day, amount in amounts])
    assert (float(row["last_spend"]), float(row["spend_ewma"])) == (3_000, pytest.approx(1_500 + 0.3 * 1_500))


def test_a_counter_halves_in_its_half_life() -> None:
    assert [decay(8.0, 7.0, days * DAY_MS) for days in (0, 7, 14)] == [8.0, 4.0, 2.0]


@pytest.mark.parametrize("zone", ["UTC", ZONE, "Asia/Kolkata", "Pacific/Auckland"])
def test_part_of_day_and_weekend_are_local_through_the_changes_of_the_clock(zone: str) -> None:
    times = [1_710_000_000_000 + i * 47 * MINUTE_MS for i in range(1_000)]  # around 2024-03-10, clocks go forward
    local_ms = LocalTime(zone).local_ms(np.array(times))
    moments = [datetime.fromtimestamp(at / 1000, ZoneInfo(zone)) for at in times]
    assert list(zip(parts_of_day(local_ms).tolist(), weekends(local_ms).tolist(), strict=True)) == [
        (moment.hour // 3, moment.weekday() >= 5) for moment in moments
    ]


def test_habits_weigh_the_last_hundred_events() -> None:
    friday, saturday = 1_700_222_400_000, 1_700_308_800_000
    row = lived([event(time_ms=friday)] * 300 + [event(time_ms=saturday)] * 100, "UTC")
    assert float(row["weekend"]) == pytest.approx(1 - 0.99**100, rel=1e-4)


# The compiled loop and the same in plain Python


@given(st.lists(st.tuples(EVENTS, st.integers(0, 2)), max_size=60), st.sampled_from([ZONE, "Asia/Kolkata"]))
@examples(max_examples=300, deadline=None)
def test_rows_and_features_equal_those_of_plain_python_to_the_byte(lives: list[tuple[Event, int]], zone: str) -> None:
    events, who = [one for one, _ in lives], [row for _, row in lives]
    rows, expected_rows, expected = blank(3), blank(3), []
    features = folded(rows, events, who, zone)
    for one, place in lives:
        row, local = expected_rows[place], plain.Local(zone)
        if not plain.is_duplicate(row, one):
            expected.append(plain.event_features(row, one, local, 100))
            plain.apply(row, one, local, 100)
    assert rows.tobytes() == expected_rows.tobytes()
    assert features.tobytes() == np.array(expected).tobytes()
