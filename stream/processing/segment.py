"""Which segment each customer belongs to, with an identity that neither noise nor a new model version moves."""

import numpy as np
from numpy.typing import NDArray

from stream.processing.alerts import SEGMENT_CHANGED, Alert, Reason, rfc3339, strongest
from stream.processing.customer import DAY_MS, NO_SEGMENT
from stream.processing.features import segment_features
from stream.processing.looking import Hold, Looking
from stream.processing.names import SEGMENT_FEATURES
from stream.processing.segment_names import said

PLAIN_SHARE = 0.08
PLAIN_LOG = 0.18
"""A difference that a person would call one: 8 points of a share, or a fifth of anything else."""


def decide(looking: Looking, held: Hold) -> list[Alert]:
    """Assign, and alert on customers who moved and stayed moved.

    A first assignment is no alert. Under a new version a customer is first asked about the moment of the last
    assignment: a different answer there is the model's doing, is taken over and raises no alert.
    """
    settings, model = looking.rules.settings.alerts, looking.version.segments
    rows = looking.rows
    eligible = ~looking.anonymous & (rows["order_days"] >= settings.segment_min_orders)
    if not model.ready or not eligible.any():
        return []
    index = np.flatnonzero(eligible)
    _take_over(looking, index, held)
    features = segment_features(rows[index], looking.now_ms[index])
    named, margins = model.predict_many(features), model.margin_many(features)
    present, now_ms = rows["segment"][index], looking.now_ms[index]
    stays = (present == named) | (present == NO_SEGMENT)
    first = index[present == NO_SEGMENT]
    rows["segment"][first] = named[present == NO_SEGMENT]
    rows["segment_since"][first] = looking.now_ms[first]
    new = ~stays & (rows["candidate"][index] != named)
    rows["candidate"][index[new]] = named[new]
    rows["candidate_since"][index[new]] = now_ms[new]
    rows["candidate"][index[stays]] = NO_SEGMENT
    dwelt = now_ms - rows["candidate_since"][index] >= settings.segment_dwell_days * DAY_MS
    moved = np.flatnonzero(~stays & dwelt & (margins >= settings.segment_margin))
    alerts = []
    for position in moved:
        alerts.append(
            _alert(looking, int(index[position]), int(named[position]), float(margins[position]), features[position])
        )
        row = rows[index[position]]
        row["segment"], row["segment_since"], row["candidate"] = named[position], now_ms[position], NO_SEGMENT
    rows["segment_at"][index] = now_ms
    rows["segment_version"][index] = looking.version.number
    return alerts


def _take_over(looking: Looking, index: NDArray[np.int64], held: Hold) -> None:
    """Let a new version say where it would have put customers when they were last looked at."""
    rows = looking.rows
    present, ids = rows["segment"][index], looking.version.segments.ids
    foreign = (rows["segment_version"][index] != looking.version.number) | ~np.isin(present, ids)
    stale = index[(present != NO_SEGMENT) & foreign]
    if not len(stale):
        return
    earlier = segment_features(looking.before[stale], looking.before["segment_at"][stale])
    named = looking.version.segments.predict_many(earlier)
    gone = ~np.isin(rows["segment"][stale], ids)
    differs = named != rows["segment"][stale]
    # A customer near a border stays where he is known: only the model's plain disagreement moves him.
    clear = looking.version.segments.margin_many(earlier) >= looking.rules.settings.alerts.segment_margin
    moved = gone | (differs & clear)
    rows["segment"][stale[moved]] = named[moved]
    rows["candidate"][stale[moved]] = NO_SEGMENT
    for _ in range(int(moved.sum())):
        held(SEGMENT_CHANGED, "new_model_version")


def _alert(looking: Looking, index: int, segment: int, margin: float, features: NDArray[np.float64]) -> Alert:
    version, row = looking.version, looking.rows[index]
    before = int(row["segment"])
    ids = list(version.segments.ids)
    left = version.segments.centres()[ids.index(before)]
    pull = version.segments.contrast(features, before, segment)
    currency = looking.rules.currency
    reasons = [
        Reason(name, value, usual, part, _text(name, value, usual, currency))
        for name, value, usual, part in zip(
            SEGMENT_FEATURES, features.tolist(), left.tolist(), pull.tolist(), strict=True
        )
    ]
    return Alert(
        SEGMENT_CHANGED,
        looking.customers[index],
        int(looking.now_ms[index]),
        looking.cause(index),
        str(before),
        str(segment),
        "info",
        margin,
        strongest(reasons),
        {
            "from_name": version.segment_names.get(before, ""),
            "to_name": version.segment_names.get(segment, ""),
            "to_share": version.segment_shares.get(segment, 0.0),
            "confidence": margin,
            "threshold": looking.rules.settings.alerts.segment_margin,
            "since": rfc3339(int(row["candidate_since"])),
            "evidence_event_ids": looking.evidence(index),
        },
        int(version.segments.figures()["customers"]),
    )


def _text(name: str, value: float, left: float, currency: str) -> str:
    """Nothing where the two lie too close to tell a person why."""
    plain = PLAIN_SHARE if name in ("evening", "weekend") else PLAIN_LOG
    if abs(value - left) < plain:
        return ""
    return f"{said(name, value, currency)}; in the segment left {said(name, left, currency)}"
