"""Examples for the churn model: a moment drawn for each customer, and what came of it.

The row at that moment follows from the row as it is until an order comes; only then is it kept. So an example waits in
its customer's row without being looked at, and labels reach the trainer through the journal.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.arrays import Hashes, share, splitmix64
from stream.processing.customer import DAY_MS, Rows
from stream.processing.features import churn_columns

SAMPLE_EVERY_DAYS = 7
"""After a label the next example's moment comes within this many days, drawn by hash."""


class Labels(NamedTuple):
    """Examples that matured together: whose (index into the customers), the row as it was (n, 24), when, the outcome.

    `churned` is True where no order came within the horizon.
    """

    who: NDArray[np.int64]
    columns: NDArray[np.float32]
    churned: NDArray[np.bool_]
    taken_ms: NDArray[np.int64]


def mature(
    before: Rows,
    rows: Rows,
    eligible: NDArray[np.bool_],
    hashes: Hashes,
    now_ms: NDArray[np.int64],
    horizon_ms: int,
    minor_per_major: int,
) -> Labels:
    """Take out the examples whose horizon has passed, and draw the moments of the next ones: midnights (UTC).

    Args:
        before: the rows as they were found; changed by nobody.
        rows: the same after this tick's events; their examples are changed in place.
        eligible: which of them are customers with orders.
        hashes: of the customers' ids.
        now_ms: stream time, per row.
    """
    last, taken = rows["last_order"], rows["example_at"].copy()
    bought = (rows["orders"] > before["orders"]) & (before["orders"] > 0)
    waits = eligible & (taken > 0) & (rows["example_bought"] == 0)
    caught = np.flatnonzero(waits & bought & (last > taken) & (last <= taken + horizon_ms))
    rows["example"][caught] = churn_columns(before.take(caught), taken[caught], minor_per_major)
    rows["example_bought"][caught] = 1
    ripe = np.flatnonzero(eligible & (taken > 0) & (now_ms >= taken + horizon_ms))
    stayed = rows["example_bought"][ripe] != 0
    columns = churn_columns(before.take(ripe), taken[ripe], minor_per_major).astype(np.float32)
    columns[stayed] = rows["example"][ripe[stayed]]
    rows["example_bought"][ripe] = 0
    fresh = np.flatnonzero(eligible & (taken == 0))
    for index in (ripe, fresh):
        rows["example_at"][index] = _next_ms(hashes[index], now_ms[index])
    return Labels(ripe, columns, ~stayed, taken[ripe])


def _next_ms(hashes: Hashes, now_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    drawn = share(splitmix64(hashes ^ splitmix64(now_ms.astype(np.uint64))))
    return (now_ms // DAY_MS + 1 + (drawn * SAMPLE_EVERY_DAYS).astype(np.int64)) * DAY_MS
