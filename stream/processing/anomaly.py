"""Events out of character: from calibrated rates to alerts with reasons."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.events import Event, Record
from stream.processing.alerts import ANOMALY, Alert, Reason, strongest
from stream.processing.customer import DAY_MS, PARTS_OF_DAY
from stream.processing.features import HABIT_EVENTS
from stream.processing.looking import Hold, Looking, Rules
from stream.processing.names import ANOMALY_FEATURES

MEMORY_MS = 30 * DAY_MS
PLAINLY = 2.0
"""A value this many times the usual one is worth a sentence."""
RARE_SHARE = 0.05
MANY_EVENTS = 10


class Scored(NamedTuple):
    """The accepted events of a tick as the anomaly model sees them, in order.

    `who` is the index of each event's customer in the tick, `features` has shape (n, 11), `rates` the share of events
    at least as unusual (1.0 while the model warms up).
    """

    events: Sequence[Event]
    records: Sequence[Record]
    who: NDArray[np.int64]
    features: NDArray[np.float64]
    scores: NDArray[np.float64]
    rates: NDArray[np.float64]


def decide(looking: Looking, scored: Scored, held: Hold) -> list[Alert]:
    """Alerts for events rarer than the settings allow; remembers each customer's rarest event of the last 30 days."""
    rows, settings = looking.rows, looking.rules.settings.alerts
    if not looking.version.anomaly.ready or not len(scored.who):
        return []
    forgotten = looking.now_ms - rows["anomaly_at"] > MEMORY_MS
    rows["anomaly_rate"][forgotten] = 1.0
    alerts = []
    rarest = _rarest(scored, np.flatnonzero(scored.rates < rows["anomaly_rate"][scored.who]))
    rows["anomaly_rate"][scored.who[rarest]] = scored.rates[rarest]
    rows["anomaly_at"][scored.who[rarest]] = [scored.events[position].time_ms for position in rarest.tolist()]
    for position in np.flatnonzero(scored.rates <= 1.0 / settings.anomaly_one_in).tolist():
        index = int(scored.who[position])
        row, event = rows[index], scored.events[position]
        if row["events"] < settings.anomaly_min_events:
            held(ANOMALY, "too_few_events")
        elif event.time_ms < row["anomaly_quiet_until"]:
            held(ANOMALY, "cool_down")
        else:
            alert = _alert(looking, scored, position, index)
            if not alert.reasons:
                held(ANOMALY, "no_reason_in_words")
                continue
            row["anomaly_quiet_until"] = event.time_ms + round(settings.anomaly_cooldown_hours * 3_600_000)
            alerts.append(alert)
    return alerts


def _rarest(scored: Scored, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of these events each customer's rarest one; of equals the first."""
    ordered = positions[np.lexsort((scored.rates[positions], scored.who[positions]))]
    return ordered[np.diff(scored.who[ordered], prepend=-1) > 0]


def _alert(looking: Looking, scored: Scored, position: int, index: int) -> Alert:
    event, rate = scored.events[position], float(scored.rates[position])
    settings = looking.rules.settings.alerts
    row = looking.before[index] if looking.known[index] else looking.rows[index]
    values = scored.features[position]
    baseline = _baseline(row)
    parts = looking.version.anomaly.explain_many(values[None, :], baseline)[0]
    reasons = [
        Reason(name, float(value), float(usual), float(part), _text(name, event, row, float(value), looking.rules))
        for name, value, usual, part in zip(ANOMALY_FEATURES, values, baseline, parts, strict=True)
    ]
    return Alert(
        ANOMALY,
        looking.customers[index],
        event.time_ms,
        scored.records[position].place,
        "usual",
        "unusual",
        "high" if rate * settings.anomaly_one_in <= 0.1 else "medium",
        1.0 / rate,
        strongest(reasons),
        {
            "score": float(scored.scores[position]),
            "rate": rate,
            "one_in": round(1.0 / rate),
            "threshold_one_in": settings.anomaly_one_in,
            "event": event.name,
            "evidence_event_ids": [event.message_id] if event.message_id else [],
            "cooldown_hours": settings.anomaly_cooldown_hours,
        },
        looking.version.learned.get("events", 0),
    )


def _baseline(row: np.void) -> NDArray[np.float64]:
    """What the customer's own history makes the model expect; NaN where only the population can tell."""
    usual = dict.fromkeys(ANOMALY_FEATURES, math.nan)
    if row["priced"] >= HABIT_EVENTS:
        usual |= {"amount": math.sqrt(math.expm1(float(row["log_amount_mean"]))), "amount_z": 0.0, "spend_trend": 0.0}
    if row["order_days"] > HABIT_EVENTS:
        usual["gap_z"] = 0.0
    if row["orders"] and row["items_ewma"]:
        usual["items"] = math.sqrt(float(row["items_ewma"]))
    if row["events"] >= HABIT_EVENTS:
        usual["part_of_day"] = -math.log2(float(row["parts_of_day"].max()) + 0.02)
    if row["categorised"] >= HABIT_EVENTS:
        usual["category"] = -math.log2(float(row["categories"].max()) + 0.02)
    return np.array(list(usual.values()))


def _text(name: str, event: Event, row: np.void, value: float, rules: Rules) -> str:
    """One feature in words; empty where it says nothing a person would act on."""
    match name:
        case _ if math.isnan(value):
            return ""
        case "amount" | "amount_z":
            amount, usual = (event.amount_minor or 0) / rules.minor_per_major, math.expm1(float(row["log_amount_mean"]))
            if row["priced"] < HABIT_EVENTS:
                return f"an order of {amount:,.2f} {rules.currency}"
            return _above(
                amount, usual, f"an order of {amount:,.2f} {rules.currency}; this customer's usual is {usual:,.2f}"
            )
        case "items":
            usual = float(row["items_ewma"])
            return _above(event.items, usual, f"{event.items:,} pieces in one order; usually {usual:,.0f}")
        case "gap_z":
            days, usual = (event.time_ms - int(row["last_order"])) / DAY_MS, float(row["gap_mean_days"])
            return _above(days, usual, f"back after {days:,.0f} days without an order; usually every {usual:,.1f}")
        case "part_of_day":
            part = rules.local.part_of_day(event.time_ms)
            share, hours = float(row["parts_of_day"][part]), 24 // PARTS_OF_DAY
            said = f"active between {part * hours} and {part * hours + hours} h; {share:.0%} of earlier events were"
            return said if share <= RARE_SHARE else ""
        case "category":
            return (
                f"unfamiliar categories: {', '.join(event.categories[:3])}"
                if value >= -math.log2(2 * RARE_SHARE)
                else ""
            )
        case "session_events":
            return _above(math.expm1(value), MANY_EVENTS, f"{math.expm1(value):,.0f} events in one visit")
        case "pace":
            return _above(math.expm1(value), 1.0, f"{math.expm1(value):,.1f} events a minute")
        case "events_day":
            return _above(math.expm1(value), MANY_EVENTS, f"{math.expm1(value):,.0f} events within about a day")
        case "spend_trend":
            times = math.exp(value)
            return _above(times, 1.0, f"spending this week at {times:,.1f} times the pace of the last three months")
        case _:
            return _above(math.expm1(value), 1.0, f"{math.expm1(value):,.0f} removals and refunds within about a week")


def _above(value: float, usual: float, said: str) -> str:
    """What is said where the value is plainly above the usual one."""
    return said if value >= PLAINLY * usual else ""
