"""The customer's row: one fixed record, each field named, typed, explained and sourced in one place.

In memory a task's customers are rows of a numpy array of `ROW`; in Redis and in the journal a row is the same bytes.
Times are epoch milliseconds of event time, 0 = never. Money is int64 minor units of the application's currency.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.processing.names import CHURN_COLUMNS

SCHEMA = 3
"""The newest version of the row, which is `ROW`; `OLDEST_SCHEMA` is the oldest that is still read and written.

A task goes on in the schema it is found in until `journal.schema_version` says otherwise, so that the release before
can still read what this one writes. Rows of an older schema are migrated as they wake.
"""
OLDEST_SCHEMA = 1

DAY_MS = 86_400_000
ORDER_HALF_LIVES_DAYS = (7.0, 30.0, 90.0, 180.0)
LONG_GAPS_DAYS = (7.0, 14.0, 28.0, 60.0)
MOST_GAPS = 65_535
PARTS_OF_DAY = 8
CATEGORY_BUCKETS = 16
RECENT_MESSAGES = 16
RECENT_ORDERS = 4
NO_SEGMENT = -1

Rows = NDArray[np.void]


class Field(NamedTuple):
    """One field of the row: numpy type (with shape), unit, meaning, and the paper or practice it comes from.

    `since` is the schema that brought it; rows of an older one have it blank. `until` is the last schema that has it.
    """

    name: str
    type: str
    unit: str
    meaning: str
    source: str
    since: int = 1
    until: int = SCHEMA


FIELDS = (
    Field("first_seen", "i8", "ms", "event time of the first accepted event", "RFM practice"),
    Field("last_seen", "i8", "ms", "highest event time of an accepted event", "RFM practice"),
    Field("due", "i8", "ms", "stream time at which the row is looked at again without an event", "delivery: due times"),
    Field("events", "i8", "count", "accepted events, duplicates not counted", "exact counter"),
    Field("orders", "i8", "count", "orders, each order id once while it is held", "exact counter"),
    Field("spend_minor", "i8", "minor units", "amounts of orders less refunds of orders still held", "exact counter"),
    Field("unpriced", "i4", "count", "orders whose amount is missing or in a currency without a rate", "exact counter"),
    Field("refunds", "i4", "count", "refunds, matched to an order or not", "exact counter"),
    Field("views", "i4", "count", "product and list views", "exact counter"),
    Field("searches", "i4", "count", "searches", "exact counter"),
    Field("adds", "i4", "count", "products put into the cart", "exact counter"),
    Field("removes", "i4", "count", "products taken out of the cart", "exact counter"),
    Field("checkouts", "i4", "count", "checkout steps", "exact counter"),
    Field("late", "i4", "count", "events older than last_seen: counted, recency not moved", "Akidau et al. 2015"),
    Field("first_order", "i8", "ms", "event time of the first order", "Fader, Hardie & Lee 2005"),
    Field("last_order", "i8", "ms", "highest event time of an order", "Fader, Hardie & Lee 2005"),
    Field("order_days", "i4", "count", "purchase occasions: orders half a day or more apart", "Fader & Hardie, day merging"),
    Field("gap_mean_days", "f8", "days", "mean gap between purchase occasions", "Welford 1962"),
    Field("log_gap_mean", "f8", "ln days", "mean of the log gap", "Welford 1962"),
    Field("log_gap_m2", "f8", "ln days²", "sum of squared deviations of the log gap", "Welford 1962"),
    Field("gap_ewma_days", "f8", "days", "gap, exponentially weighted, rate 0.3", "Roberts 1959"),
    Field("last_gap_days", "f8", "days", "latest gap", "RFM practice"),
    Field("longest_gap_days", "f8", "days", "longest gap", "RFM practice"),
    Field("orders_at", "i8", "ms", "time to which orders_decayed and spend_decayed are decayed", "forward decay, Cormode 2009"),
    Field("orders_decayed", "(4,)f8", "count", "orders decayed with half-lives of 7, 30, 90, 180 days", "forward decay, Cormode 2009"),
    Field("spend_decayed", "(2,)f8", "minor units", "spend decayed with half-lives of 7 and 90 days", "forward decay, Cormode 2009"),
    Field("priced", "i4", "count", "orders with an amount", "exact counter"),
    Field("log_amount_mean", "f8", "ln major units", "mean of ln(1 + amount)", "Welford 1962"),
    Field("log_amount_m2", "f8", "ln²", "sum of squared deviations of ln(1 + amount)", "Welford 1962"),
    Field("items_ewma", "f8", "pieces", "pieces per order, exponentially weighted, rate 0.3", "Roberts 1959"),
    Field("activity_at", "i8", "ms", "time to which events_day and trouble_week are decayed", "forward decay, Cormode 2009"),
    Field("events_day", "f8", "count", "events decayed with a half-life of one day", "forward decay, Cormode 2009"),
    Field("trouble_week", "f8", "count", "removals and refunds decayed with a half-life of 7 days", "forward decay, Cormode 2009"),
    Field("session_start", "i8", "ms", "first event of the present session (30 minutes of silence end one)", "web analytics practice"),
    Field("session_events", "i4", "count", "events of the present session", "web analytics practice"),
    Field("sessions", "i4", "count", "sessions begun", "web analytics practice"),
    Field("weekend", "f4", "share", "share of events on Saturday or Sunday, local time, weighted to the recent 100", "Roberts 1959"),
    Field("parts_of_day", f"({PARTS_OF_DAY},)f4", "share", "share of events in each three hours of the local day", "Roberts 1959"),
    Field("categories", f"({CATEGORY_BUCKETS},)f4", "share", "share of categories, hashed to 16 buckets", "feature hashing, Weinberger 2009"),
    Field("categorised", "i4", "count", "events that named a category", "exact counter"),
    Field("message_ids", f"({RECENT_MESSAGES},)u8", "hash", "the last 16 message ids", "deduplication by messageId, Segment"),
    Field("order_ids", f"({RECENT_ORDERS},)u8", "hash", "the last 4 order ids", "deduplication by order_id, Segment"),
    Field("order_amounts", f"({RECENT_ORDERS},)i8", "minor units", "what a refund of these orders can still take back", "Segment, Order Refunded"),
    Field("segment", "i4", "id", "present segment, -1 = none yet", "MacQueen 1967"),
    Field("segment_since", "i8", "ms", "stream time of the last change of segment", "hysteresis"),
    Field("candidate", "i4", "id", "segment that the model names now, while it differs; -2 - id where a new version is of another opinion, not the customer moved", "hysteresis"),
    Field("candidate_since", "i8", "ms", "stream time since which it does", "hysteresis"),
    Field("segment_version", "i4", "version", "model version of the last assignment", "models"),
    Field("segment_at", "i8", "ms", "time of the last assignment: a new version is first asked about that moment", "models"),
    Field("anomaly_rate", "f8", "share", "rarest event of the last 30 days: share of events at least as unusual", "Tan, Ting & Liu 2011"),
    Field("anomaly_at", "i8", "ms", "event time of that event", "Tan, Ting & Liu 2011"),
    Field("anomaly_quiet_until", "i8", "ms", "no further anomaly alert before", "cool-down"),
    Field("churn", "f8", "probability", "no order within the horizon; NaN = not scored yet", "logistic regression, online"),
    Field("churn_high", "i4", "flag", "1 from the churn alert until the risk is cleared", "hysteresis"),
    Field("label_at", "i8", "ms", "when the waiting example matures, or the next one is taken", "delayed labels", until=2),
    Field("label_taken", "i8", "ms", "when the waiting example was taken, 0 = none waits", "delayed labels", until=2),
    Field("label_bought", "i4", "flag", "1 when an order came while the example waits", "delayed labels", until=2),
    Field("label_features", "(16,)f4", "features", "the waiting example, as it was taken", "delayed labels", until=2),
    Field("alerts", "i4", "count", "alerts published about this customer", "exact counter", since=2),
    Field("alerted_at", "i8", "ms", "stream time of the last of them", "customer relations practice", since=2),
    Field("gap_m2", "f4", "days²", "sum of squared deviations of the gap", "Welford 1962", since=3),
    Field("gaps_over", "(4,)u2", "count", "gaps longer than 7, 14, 28 and 60 days", "exact counter", since=3),
    Field("last_spend", "f4", "minor units", "spend of the last purchase occasion", "RFM practice", since=3),
    Field("spend_ewma", "f4", "minor units", "spend of the occasions before it, exponentially weighted, rate 0.3", "Roberts 1959", since=3),
    Field("churn_due", "i8", "ms", "when the churn risk of a silent customer is looked at again", "two-speed timers", since=3),
    Field("example_at", "i8", "ms", "moment of the example that waits for its churn label; it may lie ahead", "delayed labels", since=3),
    Field("example_bought", "u1", "flag", "1 when an order came after that moment, within the horizon", "delayed labels", since=3),
    Field("example", f"({len(CHURN_COLUMNS)},)f4", "columns", "the row as it was at that moment, kept when that order came; until then it follows from the row", "delayed labels", since=3),
)  # fmt: skip
"""The row, field by field. docs/customers.md is written from this table."""

ROWS = {
    schema: np.dtype(
        [(field.name, field.type) for field in FIELDS if field.since <= schema <= field.until]
    ).newbyteorder("<")
    for schema in range(OLDEST_SCHEMA, SCHEMA + 1)
}
"""The row of each schema that this release reads and writes."""
ROW = ROWS[SCHEMA]


def blank(count: int) -> Rows:
    """`count` rows of customers never seen."""
    rows = np.zeros(count, ROW)
    rows["segment"] = rows["candidate"] = NO_SEGMENT
    rows["churn"] = np.nan
    rows["anomaly_rate"] = 1.0
    return rows


def raw(rows: Rows) -> Rows:
    """The same rows as bare bytes, to be copied: numpy copies structured ones field by field, at 20 times the cost."""
    return rows.view(f"V{ROW.itemsize}")


def as_written(rows: Rows, schema: int) -> Rows:
    """Rows in the form of a schema, for the store and the journal: what came later is left out."""
    return rows if schema == SCHEMA else _copied(rows, np.zeros(len(rows), ROWS[schema]))


def as_read(data: bytes, schema: int) -> Rows:
    """Rows of `ROW` from the bytes of a schema that this release reads: what came later is blank or estimated."""
    rows = np.frombuffer(data, ROWS[schema])
    return rows if schema == SCHEMA else _migrated(rows)


def without_news(rows: Rows, schema: int) -> Rows:
    """Rows of `ROW` as a reader of that schema's bytes would have them."""
    return rows if schema == SCHEMA else _migrated(as_written(rows, schema))


def _migrated(rows: Rows) -> Rows:
    """Rows of an older schema in the newest. What an older row did not count of its gaps is what their log's mean and
    variance make likely; an example that waits in it is of another form, and dropped."""
    after = _copied(rows, blank(len(rows)))
    gaps = np.maximum(rows["order_days"] - 1, 0)
    spread = np.sqrt(rows["log_gap_m2"] / np.maximum(gaps, 1) + 0.1)
    for i, days in enumerate(LONG_GAPS_DAYS):
        beyond = 1.0 / (1.0 + np.exp(1.702 * (np.log(days) - rows["log_gap_mean"]) / spread))
        after["gaps_over"][:, i] = np.minimum(np.round(gaps * beyond), MOST_GAPS)
    after["gap_m2"] = (
        gaps * np.square(rows["gap_mean_days"]) * np.expm1(np.minimum(np.square(spread), 2.0)) * (gaps > 1)
    )
    spend = rows["spend_minor"] / np.maximum(rows["priced"], 1)
    after["last_spend"] = after["spend_ewma"] = np.maximum(spend, 0.0)
    return after


def _copied(rows: Rows, to: Rows) -> Rows:
    for name in set(rows.dtype.names or ()) & set(to.dtype.names or ()):
        to[name] = rows[name]
    return to
