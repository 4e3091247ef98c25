"""The features each model sees, by name and in column order: arrays without names travel in this order."""

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

CHURN_FEATURES = (
    "recency",
    "tenure",
    "orders",
    "single",
    "overdue",
    "overdue_recent",
    "overdue_longest",
    "surprise",
    "orders_7d",
    "orders_30d",
    "orders_90d",
    "orders_180d",
    "rate",
    "rate_trend",
    "last_gap",
    "spend",
)
"""Of one customer at one time; a subset of the 28 of Driftline's churn study, closed forms in features.py."""
