"""From rows to the columns that models see. Every formula is closed: it needs the row, the time and nothing else."""

import math

import numpy as np
from numpy.typing import NDArray

from online_models.compiled import compiled
from stream.events import Kind
from stream.processing.customer import DAY_MS, ORDER_HALF_LIVES_DAYS, Rows
from stream.processing.update import (
    EWMA_RATE,
    SESSION_GAP_MS,
    SPEND_HALF_LIVES_DAYS,
    apply,
    decay,
    is_duplicate,
    is_trouble,
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


@compiled
def fold(rows: Rows, acts: NDArray[np.void], categories: NDArray[np.int64], features: Matrix) -> NDArray[np.bool_]:
    """Count acts in their customers' rows, in order; returns which of them are new.

    Each new one is first described against the row as it is then, in its row of `features`.
    """
    new = np.zeros(len(acts), np.bool_)
    for i in range(len(acts)):
        act = acts[i]
        row = rows[act["who"]]
        if not is_duplicate(row, act):
            named = categories[act["first"] : act["last"]]
            features[i] = event_features(row, act, named)
            apply(row, act, named)
            new[i] = True
    return new


@compiled
def event_features(row: np.void, act: np.void, categories: NDArray[np.int64]) -> tuple[float, ...]:
    """ANOMALY_FEATURES of an event against the row before it.

    Each grows with what a shop would act on, and is cut off or crowded on the other side: a smaller order than usual,
    or a sooner one, is nobody's alarm.
    """
    time_ms = act["time_ms"]
    amount_z = amount = items = gap_z = spend_trend = NAN
    if act["kind"] == Kind.ORDER:
        if act["items"] != 0:
            items = math.sqrt(act["items"])
        if act["amount_minor"] >= 0:
            amount = math.sqrt(act["amount"])
            if row["priced"] >= HABIT_EVENTS:
                spread = math.sqrt((row["log_amount_m2"] + 0.5) / (row["priced"] + 1))
                amount_z = max((math.log1p(act["amount"]) - row["log_amount_mean"]) / spread, 0.0)
        if row["order_days"] > HABIT_EVENTS:
            gap_days = max((time_ms - row["last_order"]) / DAY_MS, 0.5)
            spread = math.sqrt((row["log_gap_m2"] + 0.5) / row["order_days"])
            gap_z = max((math.log(gap_days) - row["log_gap_mean"]) / spread, 0.0)
        if row["priced"] >= HABIT_EVENTS and (time_ms - row["first_order"]) / DAY_MS >= TREND_AFTER_DAYS:
            spend_trend = max(_spend_trend(row, time_ms, max(act["amount_minor"], 0)), 0.0)
    part_of_day = category = NAN
    if row["events"] >= HABIT_EVENTS:
        part_of_day = -math.log2(np.float64(row["parts_of_day"][act["part_of_day"]]) + 0.02)
    if len(categories) and row["categorised"] >= HABIT_EVENTS:
        best = np.float32(0.0)
        for bucket in categories:
            best = max(best, row["categories"][bucket])
        category = -math.log2(np.float64(best) + 0.02)
    same_session = row["session_events"] > 0 and time_ms - row["last_seen"] <= SESSION_GAP_MS
    in_session = row["session_events"] + 1 if same_session else 1
    minutes = max(time_ms - row["session_start"], 0) / 60_000 if same_session else 0.0
    waited = max(time_ms - row["activity_at"], 0) if row["activity_at"] != 0 else 0
    trouble = 1.0 if is_trouble(act["kind"]) else 0.0
    return (
        amount_z,
        amount,
        items,
        gap_z,
        part_of_day,
        category,
        math.log1p(in_session),
        math.log1p(in_session / (minutes + 1.0)) if minutes > 0 else NAN,  # a log of dates has no pace
        math.log1p(decay(row["events_day"], 1.0, waited) + 1.0),
        spend_trend,
        math.log1p(decay(row["trouble_week"], 7.0, waited) + trouble),
    )


@compiled
def _spend_trend(row: np.void, time_ms: int, amount_minor: int) -> float:
    """ln of spend a day over the last week against that over the last three months, this order in both."""
    waited = max(time_ms - row["orders_at"], 0)
    tenure_days = (time_ms - row["first_order"]) / DAY_MS
    short, long = SPEND_HALF_LIVES_DAYS
    week, quarter = decay(row["spend_decayed"][0], short, waited), decay(row["spend_decayed"][1], long, waited)
    return math.log((week + amount_minor + 1.0) / _decayed_days(tenure_days, short)) - math.log(
        (quarter + amount_minor + 1.0) / _decayed_days(tenure_days, long)
    )


@compiled
def _decayed_days(days: float, half_life_days: float) -> float:
    """How many decayed days a history of `days` is worth."""
    return half_life_days / math.log(2.0) * (1.0 - math.exp2(-days / half_life_days))


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
    """`_decayed_days` over an array; numpy's exp2 need not be that of the compiled loop to the last bit."""
    return np.asarray(half_life_days / math.log(2.0) * (1.0 - np.exp2(-days / half_life_days)), np.float64)
