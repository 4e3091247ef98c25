"""What each model sees, by name and in column order: arrays without names travel in this order."""

from online_models.purchases import COLUMNS

ANOMALY_FEATURES = (
    "amount_z",
    "amount",
    "items",
    "gap_z",
    "part_of_day",
    "category",
    "session_events",
    "pace",
    "events_day",
    "spend_trend",
    "trouble",
)
"""Of one event, against the row before it. NaN = does not apply to this event or this customer yet."""

SEGMENT_FEATURES = ("frequency", "recency", "amount", "variety", "evening", "weekend", "browsing")
"""Of one customer at one time."""

CHURN_COLUMNS = COLUMNS
"""Of one customer at one time: what the churn model makes its features of."""
