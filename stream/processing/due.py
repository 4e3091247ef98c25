"""When a silent customer is looked at again, and when one is forgotten."""

import numpy as np
from numpy.typing import NDArray

from stream.processing.customer import DAY_MS
from stream.processing.looking import Looking

NEAR_DAYS = 1.0
FAR_DAYS = 7.0
NEAR = 0.5
"""Above this share of the churn threshold a customer is looked at every `NEAR_DAYS`, below it every `FAR_DAYS`."""


def expired(looking: Looking) -> NDArray[np.bool_]:
    """Customers silent for their whole retention: a tombstone ends the row."""
    settings = looking.rules.settings.customers
    days = np.where(looking.anonymous, settings.anonymous_retention_days, settings.retention_days)
    return np.asarray(looking.now_ms - looking.rows["last_seen"] >= days * DAY_MS, np.bool_)


def schedule(looking: Looking) -> None:
    """Set every row's due time.

    Never further off than half the journal's retention: waking writes the row to the journal again, so the journal
    alone always rebuilds the store.
    """
    rows, settings = looking.rows, looking.rules.settings
    days = np.where(looking.anonymous, settings.customers.anonymous_retention_days, settings.customers.retention_days)
    near = ~looking.anonymous & (rows["churn_high"] == 0) & (rows["churn"] >= NEAR * settings.alerts.churn_enter)
    longest = settings.journal.retention_days / 2
    sleep = np.where(near, min(NEAR_DAYS, longest), min(FAR_DAYS, longest)) * DAY_MS
    due = looking.now_ms + sleep.astype(np.int64)
    due = np.where(rows["label_at"] > 0, np.minimum(due, rows["label_at"]), due)
    due = np.minimum(due, rows["last_seen"] + (days * DAY_MS).astype(np.int64))
    rows["due"] = np.maximum(due, looking.now_ms + 1)
