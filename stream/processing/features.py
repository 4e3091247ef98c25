"""From rows to the columns that models see. Every formula is closed: it needs the row, the time and nothing else."""

import math

import numpy as np
from numpy.typing import NDArray

from stream.events import Event, Kind
from stream.processing.customer import DAY_MS, ORDER_HALF_LIVES_DAYS, Rows
from stream.processing.update import (
    EWMA_RATE,
    SESSION_GAP_MS,
    SPEND_HALF_LIVES_DAYS,
    LocalTime,
    bucket,
    decay,
)

Matrix = NDArray[np.float64]
Times = int | NDArray[np.int64]
"""One moment for all rows, or one per row; epoch ms."""
NAN = math.nan

PRIOR_GAP_DAYS = 14.0
"""The gap expected of a customer before the first one is seen; it counts as two gaps."""
SHORT_DAYS = 30.0
"""A silence much shorter than this sets nobody apart."""
SEGMENT_HABIT_EVENTS = 10
"""Hours and weekdays of fewer events are chance."""
TREND_AFTER_DAYS = 30.0
HABIT_EVENTS = 5
"""A customer's own habit (hour, category, amount, gap) is not a baseline before this many observations of it."""


def event_features(row: np.void, event: Event, local: LocalTime, minor_per_major: int) -> tuple[float, ...]:
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


def segment_features(rows: Rows, time_ms: Times) -> Matrix:
    """SEGMENT_FEATURES of customers at `time_ms`, shape (n, 7).

    All move slowly, so that one order moves nobody into another segment: a rate is drawn towards what is usual while
    a customer has shown little, habits of hour and weekday are NaN until they are ones, and a silence counts from
    about `SHORT_DAYS` on.
    """
    left = _decayed_orders(rows, time_ms)
    tenure = np.maximum(time_ms - rows["first_order"], 0) / DAY_MS + 1.0
    silent = np.maximum(time_ms - rows["last_order"], 0) / DAY_MS
    share = rows["categories"].astype(np.float64) + 1e-9
    share /= share.sum(axis=1, keepdims=True)
    settled = rows["events"] >= SEGMENT_HABIT_EVENTS
    return np.column_stack(
        (
            np.log((left[:, 2] + 1.0) / (_exposure(tenure, 90.0) + PRIOR_GAP_DAYS) * 30.0),
            np.log(silent + SHORT_DAYS),
            rows["log_amount_mean"],
            np.where(rows["categorised"] > 0, -(share * np.log2(share)).sum(axis=1), 0.0),
            np.where(settled, rows["parts_of_day"][:, 6:].sum(axis=1, dtype=np.float64), NAN),
            np.where(settled, rows["weekend"].astype(np.float64), NAN),
            np.log1p(rows["views"] / np.maximum(rows["orders"], 1)),
        )
    )


def usual_gap_days(rows: Rows) -> NDArray[np.float64]:
    """The gap to expect between a customer's orders: their own mean, drawn towards `PRIOR_GAP_DAYS` while few."""
    gaps = np.maximum(rows["order_days"] - 1, 0)
    return np.asarray((gaps * rows["gap_mean_days"] + 2.0 * PRIOR_GAP_DAYS) / (gaps + 2.0), np.float64)


def churn_columns(rows: Rows, time_ms: Times, minor_per_major: int) -> Matrix:
    """CHURN_COLUMNS of customers at `time_ms`, shape (n, 24); defined for rows with at least one order."""
    single = rows["order_days"] < 2
    quarter = np.exp2(-np.maximum(time_ms - rows["orders_at"], 0) / (90.0 * DAY_MS))
    last, earlier = rows["last_spend"], rows["spend_ewma"]
    recent = np.where(single, last, earlier + EWMA_RATE * (last - earlier))
    return np.column_stack(
        (
            np.maximum(rows["order_days"], 1),
            np.maximum(time_ms - rows["last_order"], 0) / DAY_MS,
            np.maximum(time_ms - rows["first_order"], 0) / DAY_MS,
            rows["gap_mean_days"],
            rows["gap_m2"],
            rows["log_gap_mean"],
            rows["log_gap_m2"],
            rows["gap_ewma_days"],
            rows["last_gap_days"],
            rows["longest_gap_days"],
            rows["gaps_over"],
            _decayed_orders(rows, time_ms),
            rows["spend_decayed"][:, 1] * quarter / minor_per_major,
            rows["spend_minor"] / minor_per_major,
            recent / minor_per_major,
            last / minor_per_major,
            rows["log_amount_mean"],
            rows["items_ewma"],
        )
    )


def _decayed_orders(rows: Rows, time_ms: Times) -> Matrix:
    waited = np.maximum(time_ms - rows["orders_at"], 0)[:, None] / DAY_MS
    return np.asarray(rows["orders_decayed"] * np.exp2(-waited / np.array(ORDER_HALF_LIVES_DAYS)), np.float64)


def _exposure(days: NDArray[np.float64], half_life_days: float) -> NDArray[np.float64]:
    """How many decayed days a history of `days` is worth."""
    return np.asarray(half_life_days / math.log(2.0) * (1.0 - np.exp2(-days / half_life_days)), np.float64)
