"""Which segment each customer belongs to, with an identity that neither noise nor a new model version moves."""

import numpy as np
from numpy.typing import NDArray

from stream.processing.alerts import SEGMENT_CHANGED, Alert, Reason, rfc3339, strongest
from stream.processing.customer import DAY_MS, NO_SEGMENT
from stream.processing.features import segment_features, usual_gap_days
from stream.processing.looking import Hold, Looking
from stream.processing.names import SEGMENT_FEATURES
from stream.processing.segment_names import said

PLAIN_SHARE = 0.08
PLAIN_LOG = 0.18
"""A difference that a person would call one: 8 points of a share, or a fifth of anything else."""
LONGEST_DWELL_DAYS = 45.0
"""Of customers who order rarely; a real change is told by then."""
MODEL_DWELL_DAYS = 28.0
"""How long a new version's other opinion of a customer must hold before it is taken over."""


def decide(looking: Looking, held: Hold) -> list[Alert]:
    """Assign, and alert on customers who moved and stayed moved.

    A first assignment is no alert. Under a new version a customer is first asked about the moment of the last
    assignment: a different answer there is the model's doing, must hold for weeks, and raises no alert when it is taken
    over.
    """
    settings, model = looking.rules.settings.alerts, looking.version.segments
    rows = looking.rows
    eligible = ~looking.anonymous & (rows["order_days"] >= settings.segment_min_orders)
    if not model.ready or not eligible.any():
        return []
    index = np.flatnonzero(eligible)
    now_ms, ids = looking.now_ms[index], model.ids
    features = segment_features(rows.take(index), now_ms)
    distances = model.distances_many(features)
    named = ids[distances.argmin(axis=1)]
    present = rows["segment"][index]
    gone = (present != NO_SEGMENT) & ~np.isin(present, ids)
    settled = gone | (present == NO_SEGMENT)
    _hold(held, gone)
    rows["segment"][index[settled]] = named[settled]
    rows["segment_since"][index[settled]] = now_ms[settled]
    present = rows["segment"][index]
    stays = present == named
    candidate, by_model = _read(rows["candidate"][index])
    new = ~stays & (candidate != named)
    by_model = np.where(new, _said_before(looking, index, named), by_model)
    rows["candidate"][index] = np.where(stays, NO_SEGMENT, _written(named, by_model))
    rows["candidate_since"][index[new]] = now_ms[new]
    own = np.minimum(settings.segment_dwell_gaps * usual_gap_days(rows.take(index)), LONGEST_DWELL_DAYS)
    dwell = np.maximum(np.where(by_model, MODEL_DWELL_DAYS, own), settings.segment_dwell_days)
    dwelt = now_ms - rows["candidate_since"][index] >= dwell * DAY_MS
    margins = _nearer(distances, np.searchsorted(ids, present), np.searchsorted(ids, named))
    moved = ~stays & dwelt & (margins >= settings.segment_margin)
    _hold(held, moved & by_model)
    alerts = [
        _alert(looking, int(index[i]), int(named[i]), float(margins[i]), features[i])
        for i in np.flatnonzero(moved & ~by_model)
    ]
    rows["segment"][index[moved]] = named[moved]
    rows["segment_since"][index[moved]] = now_ms[moved]
    rows["candidate"][index[moved]] = NO_SEGMENT
    rows["segment_at"][index] = now_ms
    rows["segment_version"][index] = looking.version.number
    return alerts


def _hold(held: Hold, taken_over: NDArray[np.bool_]) -> None:
    for _ in range(int(taken_over.sum())):
        held(SEGMENT_CHANGED, "new_model_version")


def _said_before(looking: Looking, index: NDArray[np.int64], named: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether a version new to a customer would have named that segment when the customer was last looked at."""
    before = looking.before[index]
    asked = (before["segment_at"] > 0) & (before["segment_version"] != looking.version.number)
    same = np.zeros(len(index), np.bool_)
    if asked.any():
        earlier = segment_features(before[asked], before["segment_at"][asked])
        same[asked] = looking.version.segments.predict_many(earlier) == named[asked]
    return same


def _read(candidate: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The candidate's id, and whether it is one of a new version rather than of the customer."""
    by_model = candidate < NO_SEGMENT
    return np.where(by_model, NO_SEGMENT - 1 - candidate, candidate), by_model


def _written(named: NDArray[np.int32], by_model: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.where(by_model, NO_SEGMENT - 1 - named, named)


def _nearer(
    distances: NDArray[np.float64], present: NDArray[np.int64], named: NDArray[np.int64]
) -> NDArray[np.float64]:
    """How much nearer each customer is to the segment named than to the present one, 0 to 1."""
    each = np.arange(len(distances))
    left = distances[each, present]
    return np.asarray(1.0 - np.divide(distances[each, named], left, out=np.ones(len(each)), where=left > 0))


def _alert(looking: Looking, index: int, segment: int, margin: float, features: NDArray[np.float64]) -> Alert:
    version, row = looking.version, looking.rows[index]
    before = int(row["segment"])
    left = version.segments.centres()[version.segments.ids.tolist().index(before)]
    pull = version.segments.contrast(features, before, segment)
    currency = looking.rules.currency
    reasons = [
        Reason(name, value, usual, part, _text(name, value, usual, currency))
        for name, value, usual, part in zip(
            SEGMENT_FEATURES, features.tolist(), left.tolist(), pull.tolist(), strict=True
        )
    ]
    entered, former = version.segment(segment), version.segment(before)
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
            "from_name": former["name"],
            "to_name": entered["name"],
            "to_share": entered["share"],
            "from_segment": former,
            "to_segment": entered,
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
    if not abs(value - left) >= plain:  # NaN neither
        return ""
    now, then = said(name, value, currency), said(name, left, currency)
    return f"{now}; in the segment left {then}" if now != then else ""
