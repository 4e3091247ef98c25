"""Who is drifting away: labels that mature in the row, a probability, and one alert a silent spell."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.churn import PARTS
from online_models.purchases import FEATURES
from stream.events import fingerprint
from stream.processing.alerts import CHURN_RISK, CHURN_WAVE, Alert, Reason, rfc3339, strongest
from stream.processing.customer import DAY_MS, LONG_GAPS_DAYS
from stream.processing.examples import Labels, mature
from stream.processing.features import churn_columns
from stream.processing.looking import Hold, Looking, Rules

HOUR_MS = 3_600_000
AHEAD_DAYS = 7.0
"""A silent customer is judged as of now and as of then, if no order comes."""
SLEEPS = ((0.6, 7.0), (0.25, 3.0))
"""How far in logit the nearer of the two lies from an alert, and for how many days that is left alone; else for one."""
MOST_DAYS = 3_650.0
RARE_GAP_DAYS = 14.0
"""Orders further apart than this are few enough to be a reason by themselves."""
FRESH_MS = DAY_MS
"""A first score this soon after an order is of the customer; a later one is of a model that has just become ready."""
SILENCE = (
    "recency",
    "tenure",
    "overdue",
    "overdue_recent",
    "overdue_longest",
    "surprise",
    "surprise_squared",
    "pattern",
)
"""What says, each in its way, how long the silence is."""


class Wave(NamedTuple):
    """Crossings of the threshold in one hour of stream time; `alerted_day` is the day of the last summary alert."""

    hour: int = 0
    crossings: int = 0
    alerted_day: int = 0


def matured(looking: Looking) -> Labels:
    """Take out the examples whose horizon has passed, and take new ones where none waits."""
    rules = looking.rules
    eligible = ~looking.anonymous & (looking.rows["orders"] > 0)
    hashes = np.zeros(len(looking.rows), np.uint64)
    horizon_ms = round(rules.settings.models.horizon_days * DAY_MS)
    taken = looking.rows["example_at"]
    needed = eligible & ((taken == 0) | (looking.now_ms >= taken + horizon_ms))
    for i in np.flatnonzero(needed).tolist():
        hashes[i] = fingerprint(looking.customers[i])
    return mature(looking.before, looking.rows, eligible, hashes, looking.now_ms, horizon_ms, rules.minor_per_major)


def decide(looking: Looking, wave: Wave, customers: int, held: Hold) -> tuple[list[Alert], Wave]:
    """Score who was active and whose time has come; alert who crosses the threshold and whose risk has risen since the
    last order, unless the shop is quiet or implausibly many cross at once.

    A first score is no alert, unless it comes with an order: what a new model finds was so before.
    """
    rows, settings, model = looking.rows, looking.rules.settings.alerts, looking.version.churn
    active = rows["events"] > looking.before["events"]
    index = np.flatnonzero(~looking.anonymous & (rows["orders"] > 0) & (active | (looking.now_ms >= rows["churn_due"])))
    if not model.ready or not len(index):
        return [], wave
    columns = churn_columns(rows.take(index), looking.now_ms[index], looking.rules.minor_per_major)
    risk = model.predict_proba_many(columns)
    former = rows["churn"][index]
    ordered = rows["orders"][index] > looking.before["orders"][index]
    rows["churn"][index] = risk
    rows["churn_high"][index[ordered | (risk < settings.churn_clear)]] = 0
    fresh = looking.now_ms[index] - rows["last_order"][index] < FRESH_MS
    enters = (rows["churn_high"][index] == 0) & (risk >= settings.churn_enter)
    known = ~np.isnan(former) | fresh
    rows["churn_high"][index[enters & ~known]] = 1
    to_go = float(logit(np.array([settings.churn_enter]))[0]) - logit(risk)
    near = (to_go > 0) & (to_go <= SLEEPS[1][0])  # is looked at tomorrow in any case
    low = np.flatnonzero((rows["churn_high"][index] == 0) & ~near)
    ahead = risk.copy()
    ahead[low] = np.maximum(risk[low], model.predict_proba_many(columns[low], AHEAD_DAYS))
    wanted = _wanted(looking, index, ahead)
    crossing = np.flatnonzero(enters & known)
    risen = logit(risk[crossing]) >= wanted[crossing]
    for _ in np.flatnonzero(~risen & ~(former[crossing] >= settings.churn_enter)):
        held(CHURN_RISK, "not_risen")
    crossing = crossing[risen]
    alerts, wave = _told(looking, index[crossing], columns[crossing], risk[crossing], wave, customers, held)
    nearest = wanted - logit(ahead)
    far = (rows["churn_high"][index] == 1) | (nearest > SLEEPS[0][0])
    days = np.select([far, nearest > SLEEPS[1][0]], [SLEEPS[0][1], SLEEPS[1][1]], 1.0)
    rows["churn_due"][index] = looking.now_ms[index] + (days * DAY_MS).astype(np.int64)
    return alerts, wave


def _wanted(looking: Looking, index: NDArray[np.int64], highest: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logit from which on a customer is alerted: that of the threshold, and risen since the last order."""
    settings = looking.rules.settings.alerts
    wanted = np.full(len(index), float(logit(np.array([settings.churn_enter]))[0]))
    near = np.flatnonzero(highest >= settings.churn_enter)
    if len(near) and settings.churn_risen:
        who = index[near]
        then = churn_columns(looking.rows[who], looking.rows["last_order"][who], looking.rules.minor_per_major)
        before = logit(looking.version.churn.predict_proba_many(then))
        wanted[near] = np.maximum(wanted[near], before + settings.churn_risen)
    return wanted


def _told(
    looking: Looking,
    who: NDArray[np.int64],
    columns: NDArray[np.float64],
    risk: NDArray[np.float64],
    wave: Wave,
    customers: int,
    held: Hold,
) -> tuple[list[Alert], Wave]:
    """The alerts of those who crossed, or one about their number where it points to the shop and not to them."""
    if not len(who):
        return [], wave
    rows, settings = looking.rows, looking.rules.settings.alerts
    quiet = looking.version.churn.quiet
    hour = int(looking.now_ms.max()) // HOUR_MS
    crossed = len(who) + (wave.crossings if wave.hour == hour else 0)
    limit = max(settings.wave_min, math.ceil(settings.wave_share * customers)) * looking.hours
    wave = Wave(hour, crossed, wave.alerted_day)
    if quiet or crossed > limit:
        for _ in who:
            if quiet:
                held(CHURN_RISK, "quiet_shop")
            else:
                held(CHURN_RISK, "wave")
        if wave.alerted_day == hour // 24:
            return [], wave
        return [_wave_alert(looking, crossed, limit, customers)], wave._replace(alerted_day=hour // 24)
    rows["churn_high"][who] = 1
    parts = looking.version.churn.logit_contributions_many(columns)
    return [
        _alert(looking, index, columns[place], float(risk[place]), parts[place])
        for place, index in enumerate(who.tolist())
    ], wave


def logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds, of probabilities kept a little off 0 and 1."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)), np.float64)


def _alert(
    looking: Looking, index: int, columns: NDArray[np.float64], risk: float, parts: NDArray[np.float64]
) -> Alert:
    row, rules, now_ms = looking.rows[index], looking.rules, int(looking.now_ms[index])
    model, last = looking.version.churn, int(row["last_order"])
    # The customer's own baseline is the same row at the time of its last order.
    then = churn_columns(looking.rows[index : index + 1], last, rules.minor_per_major)
    one = columns[None, :]
    values, usual = (model.features_many(each)[0] for each in (one, then))
    usual_parts, usual_risk = model.logit_contributions_many(then)[0], float(model.predict_proba_many(then)[0])
    silence = sum(
        float(part - before) for name, part, before in zip(PARTS, parts, usual_parts, strict=True) if name in SILENCE
    )
    usually_every, next_days = float(model.gap_many(one)[0]), float(model.next_order_many(one)[0])
    reasons = [
        Reason(name, float(value), float(before), float(part), _text(name, row, now_ms, rules))
        for name, value, before, part in zip(FEATURES, values, usual, parts, strict=False)
        if name not in SILENCE
    ]
    longest = float(row["longest_gap_days"])
    days = (now_ms - last) / DAY_MS
    if row["order_days"] > 1 and days > longest:
        text = f"silent for {days:,.0f} days; the longest pause so far was {longest:,.0f}"
        place = FEATURES.index("overdue_longest")
        part = float(parts[place] - usual_parts[place])
        reasons.append(Reason("overdue_longest", float(values[place]), float(usual[place]), part, text))
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
            Reason("days_since_order", days, usually_every, max(silence, 1e-6), _silence(row, days, usually_every)),
            *strongest(reasons, 2),
        ),
        {
            "probability": risk,
            "probability_at_last_order": usual_risk,
            "threshold": rules.settings.alerts.churn_enter,
            "horizon_days": rules.settings.models.horizon_days,
            "last_order": rfc3339(last),
            "expected_next_order": rfc3339(last + round(usually_every * DAY_MS)),
            "next_order_if_staying": rfc3339(now_ms + round(min(next_days, MOST_DAYS) * DAY_MS)),
            "orders": int(row["orders"]),
            "spend_minor": int(row["spend_minor"]),
            "cleared_by": f"an order, or a risk below {rules.settings.alerts.churn_clear:g}",
            "evidence_event_ids": looking.evidence(index),
        },
        model.n_labels,
    )


def _silence(row: np.void, days: float, usually_every: float) -> str:
    """How long the customer has been silent: the first reason of every alert."""
    usual = float(row["gap_mean_days"])
    known = f"; usually every {usual:,.1f}" if days >= usual else f"; orders come {usual:,.0f} days apart"
    if row["order_days"] < 2:
        known = f", the first and only one; others come back after about {usually_every:,.0f}"
    return f"{days:,.0f} days since the last order{known}"


def _text(name: str, row: np.void, now_ms: int, rules: Rules) -> str:
    """One feature in words; empty where it says nothing a person would act on."""
    orders, gaps = int(row["orders"]), max(int(row["order_days"]) - 1, 0)
    match name:
        case "single":
            return "has ordered only once" if gaps == 0 else ""
        case "orders" | "rate" | "orders_90d" | "orders_180d":
            days = (now_ms - int(row["first_order"])) / DAY_MS
            return f"{orders} orders in {days:,.0f} days" if 0 < gaps < days / RARE_GAP_DAYS else ""
        case "rate_trend" | "orders_30d":
            return "orders have become rarer over the last months" if gaps > 3 else ""
        case "gaps_over_7" | "gaps_over_14" | "gaps_over_28" | "gaps_over_60" | "long_gaps":
            place = 2 if name == "long_gaps" else LONG_GAPS_DAYS.index(float(name.rpartition("_")[2]))
            count = int(row["gaps_over"][place])
            return (
                f"{count} of {gaps} pauses were longer than {LONG_GAPS_DAYS[place]:.0f} days" if count and gaps else ""
            )
        case "irregular":
            return "orders come at irregular times" if gaps > 3 else ""
        case "last_gap":
            last, usual = float(row["last_gap_days"]), float(row["gap_mean_days"])
            return f"the pause before the last order was {last:,.0f} days" if gaps > 1 and last > 1.5 * usual else ""
        case "last_spend" | "recent_spend" | "usual_spend":
            spent, minor = float(row["last_spend"]), rules.minor_per_major
            usual = math.expm1(float(row["log_amount_mean"]))
            low = row["priced"] > 1 and spent / minor < 0.5 * usual
            return f"the last order was {spent / minor:,.2f} {rules.currency}; usually {usual:,.2f}" if low else ""
        case _:
            return ""


def _wave_alert(looking: Looking, crossed: int, limit: int, customers: int) -> Alert:
    now_ms = int(looking.now_ms.max())
    application = looking.rules.settings.application.name
    model = looking.version.churn
    text = (
        f"orders of the last seven days are {model.activity:.0%} of what was expected: the shop is closed or a feed is "
        "lost. Churn alerts are held back, and nothing is learned from the silence; check the input topics"
        if model.quiet
        else f"{crossed} of {customers} customers of one task would cross the churn threshold at once; more than "
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
        (Reason("crossings", float(crossed), float(limit), max(float(crossed - limit), 0.0), text),),
        {"crossings": crossed, "limit": limit, "customers": customers, "activity": model.activity},
        looking.version.churn.n_labels,
    )
