"""An alert as the CRM reads it: CloudEvents 1.0 in JSON, with an id that any replay computes again.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md; the JSON Schema of each kind is in deploy/schemas/.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

ANOMALY = "anomaly"
SEGMENT_CHANGED = "segment_changed"
CHURN_RISK = "churn_risk"
CHURN_WAVE = "churn_wave"
SEGMENT_LINEAGE = "segment_lineage"
KINDS = (ANOMALY, SEGMENT_CHANGED, CHURN_RISK, CHURN_WAVE, SEGMENT_LINEAGE)

CONTENT_TYPE = ("content-type", b"application/cloudevents+json; charset=UTF-8")


class Reason(NamedTuple):
    """Why: a feature, its value, the baseline it is held against, its part in the score, and a sentence."""

    feature: str
    value: float
    baseline: float
    contribution: float
    text: str


class Origin(NamedTuple):
    """What every alert of a tick shares: who raised it, and from what it can be derived again.

    The trainer, which publishes a version and runs no tick, has neither task nor number.
    """

    application: str
    incarnation: int
    task: int | None
    seq: int | None
    config: str
    code: str
    model_version: int


class Alert(NamedTuple):
    """One alert, before it is rendered.

    `cause` is topic-partition-offset of the event behind it, or `due-` and the stream time that woke the customer;
    `strength` orders alerts when a cap holds some back.
    """

    kind: str
    customer: str
    time_ms: int
    cause: str
    before: str
    after: str
    severity: str
    strength: float
    reasons: tuple[Reason, ...]
    details: Mapping[str, Any]
    model_trained: int = 0


def alert_id(origin: Origin, alert: Alert) -> str:
    """The same for the same change, whichever tick, worker or run finds it."""
    parts = (
        origin.application,
        str(origin.incarnation),
        alert.customer,
        alert.kind,
        alert.cause,
        alert.before,
        alert.after,
    )
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=12).hexdigest()


def render(origin: Origin, alert: Alert) -> bytes:
    """The alert as a structured CloudEvent."""
    event = {
        "specversion": "1.0",
        "id": alert_id(origin, alert),
        "source": f"urn:driftline:{origin.application}",
        "type": f"io.driftline.{alert.kind}.v1",
        "subject": alert.customer,
        "time": rfc3339(alert.time_ms),
        "datacontenttype": "application/json",
        "dataschema": f"urn:driftline:schema:{alert.kind}:1",
        "data": {
            "customer_id": alert.customer,
            "kind": alert.kind,
            "severity": alert.severity,
            "from": alert.before,
            "to": alert.after,
            "reasons": [reason._asdict() for reason in map(_rounded_reason, alert.reasons)],
            **{name: _rounded(value) for name, value in alert.details.items()},
            "model": {"version": origin.model_version, "trained_on": alert.model_trained},
            "derived_from": {
                **({} if origin.task is None else {"task": origin.task, "seq": origin.seq}),
                "incarnation": origin.incarnation,
                "cause": alert.cause,
                "config": origin.config,
                "code": origin.code,
            },
        },
    }
    return orjson.dumps(event)


def rfc3339(time_ms: int) -> str:
    """Epoch milliseconds as text.

    >>> rfc3339(1_488_412_800_000)
    '2017-03-02T00:00:00.000Z'
    """
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def strongest(reasons: Sequence[Reason], count: int = 3) -> tuple[Reason, ...]:
    """The reasons that speak for the alert, strongest first, each sentence once."""
    said: dict[str, Reason] = {}
    for reason in sorted(reasons, key=lambda reason: -reason.contribution):
        if reason.contribution > 0 and reason.text:
            said.setdefault(reason.text, reason)
    return tuple(said.values())[:count]


def _rounded(value: Any) -> Any:
    """Six significant digits: what is left out is noise, and JSON has no NaN."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _rounded_reason(reason: Reason) -> Reason:
    return Reason(*map(_rounded, reason))
