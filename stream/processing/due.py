"""When a silent customer is looked at again, and when one is forgotten."""

import numpy as np
from numpy.typing import NDArray

from stream.processing.customer import DAY_MS
from stream.processing.looking import Looking

FAR_DAYS = 7.0
"""How often a row is looked at that nothing else makes due."""


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
    due = looking.now_ms + round(min(FAR_DAYS, settings.journal.retention_days / 2) * DAY_MS)
    due = np.where(rows["churn_due"] > 0, np.minimum(due, rows["churn_due"]), due)
    due = np.minimum(due, rows["last_seen"] + (days * DAY_MS).astype(np.int64))
    rows["due"] = np.maximum(due, looking.now_ms + 1)
