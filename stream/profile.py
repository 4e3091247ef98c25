"""What is known of one customer, as `driftline customer --json` prints it."""

from typing import Any

import numpy as np

from stream.processing.alerts import rfc3339
from stream.processing.customer import NO_SEGMENT, ROW
from stream.processing.version import Version
from stream.settings import Settings


def profile(customer: str, data: bytes, version: Version | None, settings: Settings) -> dict[str, Any]:
    """A row in words and numbers; counts are exact, amounts in minor units of `application.currency`."""
    row = np.frombuffer(data, ROW)[0]
    segment, churn = int(row["segment"]), float(row["churn"])
    names = version.segment_names if version else {}
    return {
        "customer_id": customer,
        "events": int(row["events"]),
        "orders": int(row["orders"]),
        "spend_minor": int(row["spend_minor"]),
        "currency": settings.application.currency,
        **{
            name: int(row[name])
            for name in ("refunds", "unpriced", "views", "searches", "adds", "removes", "checkouts")
        },
        "sessions": int(row["sessions"]),
        "first_seen": _time(int(row["first_seen"])),
        "last_seen": _time(int(row["last_seen"])),
        "last_order": _time(int(row["last_order"])),
        "segment": None if segment == NO_SEGMENT else {"id": segment, "name": names.get(segment, "")},
        "anomaly": {"rate": float(f"{float(row['anomaly_rate']):.6g}"), "at": _time(int(row["anomaly_at"]))},
        "churn": {
            "probability": None if np.isnan(churn) else float(f"{churn:.6g}"),
            "horizon_days": settings.models.horizon_days,
            "high": bool(row["churn_high"]),
        },
        "due": _time(int(row["due"])),
        "alerts": {"count": int(row["alerts"]), "last": _time(int(row["alerted_at"]))},
    }


def _time(time_ms: int) -> str | None:
    return rfc3339(time_ms) if time_ms else None
