"""Who is drifting away: labels that mature in the row, a probability, and one alert a silent spell."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.events import fingerprint
from stream.processing.alerts import CHURN_RISK, CHURN_WAVE, Alert, Reason, rfc3339, strongest
from stream.processing.customer import DAY_MS
from stream.processing.features import churn_features, shrunk_gap_days
from stream.processing.looking import Hold, Looking
from stream.processing.names import CHURN_FEATURES

SAMPLE_EVERY_DAYS = 7.0
"""After a label has matured the next example is taken within this many days, at a moment drawn by hash."""
HOUR_MS = 3_600_000
SILENCE = ("recency", "overdue", "overdue_recent", "surprise", "single")
"""Features that say, each in its way, how long the silence is."""
RISEN = 0.1
"""A risk that is high without having grown by this since the last order was high all along."""


class Labels(NamedTuple):
    """Examples that matured in a tick: whose (index into the tick's customers), features (n, 16), churned or not."""

    who: NDArray[np.int64]
    features: NDArray[np.float32]
    churned: NDArray[np.bool_]


class Wave(NamedTuple):
    """Crossings of the threshold in one hour of stream time; `alerted_day` is the day of the last summary alert."""

    hour: int = 0
    crossings: int = 0
    alerted_day: int = 0


def mature(looking: Looking) -> Labels:
    """Take out the examples whose horizon has passed, and take new ones where none waits."""
    rows, now_ms = looking.rows, looking.now_ms
    horizon_ms = round(looking.rules.settings.models.horizon_days * DAY_MS)
    eligible = ~looking.anonymous & (rows["orders"] > 0)
    ripe = np.flatnonzero(eligible & (rows["label_taken"] > 0) & (now_ms >= rows["label_at"]))
    labels = Labels(ripe, rows["label_features"][ripe].copy(), rows["label_bought"][ripe] == 0)
    fresh = np.flatnonzero(eligible & (rows["label_taken"] == 0) & (rows["label_at"] == 0))
    due = np.flatnonzero(eligible & (rows["label_taken"] == 0) & (rows["label_at"] > 0) & (now_ms >= rows["label_at"]))
    for index in (*ripe, *fresh):
        rows["label_at"][index] = now_ms[index] + _pause_ms(looking.customers[index], int(now_ms[index]))
    rows["label_taken"][ripe] = 0
    if len(due):
        rows["label_features"][due] = churn_features(rows[due], now_ms[due])
        rows["label_taken"][due] = now_ms[due]
        rows["label_at"][due] = now_ms[due] + horizon_ms
        rows["label_bought"][due] = 0
    return labels


def decide(looking: Looking, wave: Wave, customers: int, held: Hold) -> tuple[list[Alert], Wave]:
    """Score every touched customer; alert who crosses the threshold, unless implausibly many cross at once.

    A first score is no alert: an alert means that something changed.
    """
    rows, settings = looking.rows, looking.rules.settings.alerts
    index = np.flatnonzero(~looking.anonymous & (rows["orders"] > 0))
    if not looking.version.churn.ready or not len(index):
        return [], wave
    features = churn_features(rows[index], looking.now_ms[index])
    risk = looking.version.churn.predict_proba_many(features)
    former = rows["churn"][index]
    ordered = rows["orders"][index] > looking.before["orders"][index]
    rows["churn"][index] = risk
    rows["churn_high"][index[ordered | (risk < settings.churn_clear)]] = 0
    enters = (rows["churn_high"][index] == 0) & (risk >= settings.churn_enter)
    rows["churn_high"][index[enters & np.isnan(former)]] = 1
    crossing = np.flatnonzero(enters & ~np.isnan(former))
    risen = _risen(looking, index[crossing], risk[crossing])
    for _ in np.flatnonzero(~risen & (former[crossing] < settings.churn_enter)):
        held(CHURN_RISK, "not_risen")
    crossing = crossing[risen]
    if not len(crossing):
        return [], wave
    hour = int(looking.now_ms.max()) // HOUR_MS
    crossed = len(crossing) + (wave.crossings if wave.hour == hour else 0)
    limit = max(settings.wave_min, math.ceil(settings.wave_share * customers)) * looking.hours
    wave = Wave(hour, crossed, wave.alerted_day)
    if crossed > limit:
        for _ in crossing:
            held(CHURN_RISK, "wave")
        if wave.alerted_day == hour // 24:
            return [], wave
        return [_wave_alert(looking, crossed, limit, customers)], wave._replace(alerted_day=hour // 24)
    rows["churn_high"][index[crossing]] = 1
    parts = looking.version.churn.logit_contributions_many(features[crossing])
    return [
        _alert(looking, int(index[place]), features[place], float(risk[place]), part)
        for place, part in zip(crossing, parts, strict=True)
    ], wave


def _risen(looking: Looking, index: NDArray[np.int64], risk: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the risk has grown since the customer's last order: an alert means that something changed."""
    if not len(index):
        return np.zeros(0, np.bool_)
    then = churn_features(looking.rows[index], looking.rows["last_order"][index])
    return np.asarray(risk - looking.version.churn.predict_proba_many(then) >= RISEN, np.bool_)


def _pause_ms(customer: str, now_ms: int) -> int:
    return fingerprint(f"{customer}:{now_ms}") % round(SAMPLE_EVERY_DAYS * DAY_MS) + 1


def _alert(
    looking: Looking, index: int, features: NDArray[np.float64], risk: float, parts: NDArray[np.float64]
) -> Alert:
    row, rules, now_ms = looking.rows[index], looking.rules, int(looking.now_ms[index])
    horizon = rules.settings.models.horizon_days
    typical = float(shrunk_gap_days(looking.rows[index : index + 1])[0])
    # The customer's own baseline is the same row on the day of its last order.
    at_order = churn_features(looking.rows[index : index + 1], np.array([int(row["last_order"])]))
    usual_parts = looking.version.churn.logit_contributions_many(at_order)[0]
    reasons = [
        Reason(name, float(value), float(usual), float(part - usual_part), _text(name, row, now_ms))
        for name, value, usual, part, usual_part in zip(
            CHURN_FEATURES, features, at_order[0], parts, usual_parts, strict=True
        )
    ]
    return Alert(
        CHURN_RISK,
        looking.customers[index],
        now_ms,
        looking.cause(index),
        "low",
        "high",
        "high" if risk >= (1 + rules.settings.alerts.churn_enter) / 2 else "medium",
        risk,
        (
            _silence(row, now_ms, reasons),
            *strongest([one for one in reasons if one.feature not in SILENCE], 2),
        ),
        {
            "probability": risk,
            "threshold": rules.settings.alerts.churn_enter,
            "horizon_days": horizon,
            "last_order": rfc3339(int(row["last_order"])),
            "expected_next_order": rfc3339(int(row["last_order"]) + round(typical * DAY_MS)),
            "orders": int(row["orders"]),
            "spend_minor": int(row["spend_minor"]),
            "cleared_by": f"an order, or a risk below {rules.settings.alerts.churn_clear:g}",
            "evidence_event_ids": looking.evidence(index),
        },
        looking.version.churn.n_labels,
    )


def _silence(row: np.void, now_ms: int, reasons: Sequence[Reason]) -> Reason:
    """How long the customer has been silent: the first reason of every alert, with the parts of all that say so."""
    days = (now_ms - int(row["last_order"])) / DAY_MS
    part = sum(max(reason.contribution, 0.0) for reason in reasons if reason.feature in SILENCE)
    usual = float(row["gap_mean_days"])
    known = f"; usually every {usual:,.1f}" if days >= usual else f"; orders come {usual:,.0f} days apart"
    known = known if row["order_days"] > 1 else ", the first and only one"
    return Reason("days_since_order", days, usual, max(part, 1e-6), f"{days:,.0f} days since the last order{known}")


def _text(name: str, row: np.void, now_ms: int) -> str:
    silent = (now_ms - int(row["last_order"])) / DAY_MS
    orders = int(row["orders"])
    match name:
        case "overdue_longest":
            pause = float(row["longest_gap_days"])
            return f"silent for {silent:,.0f} days; the longest pause so far was {pause:,.0f}" if silent > pause else ""
        case "rate" | "tenure" | "orders_90d" | "orders_180d":
            days = (now_ms - int(row["first_order"])) / DAY_MS
            return f"{orders} orders in {days:,.0f} days" if orders > 1 else ""
        case _:
            return ""


def _wave_alert(looking: Looking, crossed: int, limit: int, customers: int) -> Alert:
    now_ms = int(looking.now_ms.max())
    application = looking.rules.settings.application.name
    text = (
        f"{crossed} of {customers} customers of one task would cross the churn threshold at once; more than "
        f"{limit} points to a lost feed or a closed shop. Their alerts are held back; check the input topics"
    )
    return Alert(
        CHURN_WAVE,
        application,
        now_ms,
        f"task-{looking.task}-hour-{now_ms // HOUR_MS}",
        "quiet",
        "held",
        "high",
        float(crossed),
        (Reason("crossings", float(crossed), float(limit), float(crossed - limit), text),),
        {"crossings": crossed, "limit": limit, "customers": customers},
        looking.version.churn.n_labels,
    )
