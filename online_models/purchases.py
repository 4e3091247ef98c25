"""A customer's purchase history as fixed columns, and what the churn model sees of it at any moment of silence.

The columns are the history up to now; as long as no order comes, every feature of a later moment follows from them.
"""

import math

import numpy as np
import numpy.typing as npt

from online_models.compiled import compiled

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

COLUMNS = (
    "orders",  # purchase occasions, at least 1
    "recency",  # days since the last
    "age",  # days since the first
    "gap_mean",  # of the days between occasions; all gaps here are in days
    "gap_m2",  # sum of squared deviations
    "log_gap_mean",
    "log_gap_m2",
    "gap_ewma",
    "last_gap",
    "longest_gap",
    "gaps_over_7",
    "gaps_over_14",
    "gaps_over_28",
    "gaps_over_60",
    "orders_7d",  # decayed with a half-life of 7 days, and so on
    "orders_30d",
    "orders_90d",
    "orders_180d",
    "spend_90d",
    "spend",  # of all orders; money in any unit, the same throughout
    "spend_ewma",
    "last_spend",
    "log_spend_mean",  # mean of ln(1 + spend of an order)
    "items_ewma",
)
FEATURES = (
    "recency",
    "tenure",
    "orders",
    "single",
    "overdue",
    "overdue_recent",
    "overdue_longest",
    "surprise",
    "surprise_squared",
    "irregular",
    "orders_7d",
    "orders_30d",
    "orders_90d",
    "orders_180d",
    "rate",
    "rate_trend",
    "last_gap",
    "recent_gap",
    "usual_spend",
    "recent_spend",
    "last_spend",
    "spend_90d",
    "items",
    "gaps_over_7",
    "gaps_over_14",
    "gaps_over_28",
    "gaps_over_60",
    "long_gaps",
)
RFM = ("recency", "orders", "total_spend", "mean_spend", "tenure")
WIDTH, RFM_WIDTH = len(FEATURES), len(RFM)
PRIOR_POPULATION = (30.0, 3.0, 1.0)
"""Mean gap, mean log gap and its variance before the first gap is seen."""
LEAST_VARIANCE = 0.1
LN2 = math.log(2.0)
HALF_LIVES = np.array((7.0, 30.0, 90.0, 180.0))
FLOOR_30, FLOOR_180 = 0.3, 0.3
STILL = 4  # what `still` hands on to `moving`


@compiled
def still(x: Vector, population: Vector, out: Vector, kept: Vector) -> None:
    """Write the features that silence does not change, and keep what the others need."""
    pg, plg, pv = population[0], population[1], population[2]
    gaps = max(x[0], 1.0) - 1.0
    weight = gaps + 2.0
    mean = (gaps * max(x[3], 0.0) + 2.0 * pg) / weight
    log_mean = (gaps * x[5] + 2.0 * plg) / weight
    apart = x[5] - plg
    variance = (max(x[6], 0.0) + 2.0 * pv + 2.0 * gaps / weight * apart * apart) / weight
    recent = min(gaps, 3.0)
    ewma = (max(x[7], 0.0) * recent + pg) / (recent + 1.0)
    out[2] = math.log(gaps + 1.0)
    out[3] = 1.0 if gaps == 0.0 else 0.0
    out[9] = math.log(math.sqrt((max(x[4], 0.0) + 2.0 * pg * pg) / weight) / mean + 0.05)
    out[16] = math.log(1.0 + (max(x[8], 0.0) if gaps > 0.0 else pg))
    out[17] = math.log(ewma)
    out[18] = x[22]
    out[19] = math.log(1.0 + max(x[20], 0.0))
    out[20] = math.log(1.0 + max(x[21], 0.0))
    out[22] = math.log(1.0 + max(x[23], 0.0))
    for i in range(4):
        out[23 + i] = math.log((max(x[10 + i], 0.0) + 0.5) / weight)
    out[27] = math.log(max(x[12], 0.0) + 0.5)
    kept[0] = math.log(mean)
    kept[1] = log_mean
    kept[2] = math.sqrt(variance + 0.05)
    kept[3] = math.log(max(x[9], 0.0) + 1.0)


@compiled
def moving(x: Vector, ahead: float, population: Vector, kept: Vector, out: Vector) -> None:
    """Write the features that silence moves, `ahead` days from now if no order comes."""
    pg = population[0]
    gaps = max(x[0], 1.0) - 1.0
    recency = max(x[1], 0.0) + ahead
    tenure = max(x[2], 0.0) + ahead
    late = math.log(recency + 0.5)
    out[0] = math.log(1.0 + recency)
    out[1] = math.log(1.0 + tenure)
    out[4] = late - kept[0]
    out[5] = late - out[17]
    out[6] = late - kept[3] if gaps > 0.0 else 0.0
    z = (out[0] - kept[1]) / kept[2]
    out[7] = z
    out[8] = max(z, 0.0) * max(z, 0.0)
    for i in range(4):
        out[10 + i] = max(x[14 + i], 0.0) * math.exp(-LN2 * ahead / HALF_LIVES[i])
    span_30 = 30.0 / LN2 * (1.0 - math.exp(-LN2 * (tenure + 1.0) / 30.0))
    span_180 = 180.0 / LN2 * (1.0 - math.exp(-LN2 * (tenure + 1.0) / 180.0))
    rate_30 = (out[11] + FLOOR_30) / (span_30 + FLOOR_30 * pg)
    rate_180 = (out[13] + FLOOR_180) / (span_180 + FLOOR_180 * pg)
    out[15] = math.log(rate_30 / rate_180)
    for i in range(4):
        out[10 + i] = math.log(out[10 + i] + 0.02)
    out[14] = math.log((gaps + 0.5) / (tenure + pg))
    out[21] = math.log(1.0 + max(x[18], 0.0) * math.exp(-LN2 * ahead / 90.0))


@compiled
def rfm(x: Vector, ahead: float, out: Vector) -> None:
    """Write the five features of recency, frequency and money."""
    orders, spend = max(x[0], 1.0), max(x[19], 0.0)
    out[0] = math.log(1.0 + max(x[1], 0.0) + ahead)
    out[1] = math.log(orders)
    out[2] = math.log(1.0 + spend)
    out[3] = math.log(1.0 + spend / orders)
    out[4] = math.log(1.0 + max(x[2], 0.0) + ahead)


@compiled
def features(X: Matrix, ahead: float, population: Vector) -> Matrix:
    """FEATURES of each row, `ahead` days from now."""
    found = np.empty((len(X), WIDTH))
    kept = np.empty(STILL)
    for i in range(len(X)):
        still(X[i], population, found[i], kept)
        moving(X[i], ahead, population, kept, found[i])
    return found


def advance(X: Matrix, ahead: Vector) -> Matrix:
    """Rows as they are `ahead` days later (one number each) if no order comes."""
    later = X.copy()
    later[:, 1] += ahead
    later[:, 2] += ahead
    later[:, 14:18] *= np.exp(-LN2 * ahead[:, None] / HALF_LIVES)
    later[:, 18] *= np.exp(-LN2 * ahead / 90.0)
    return later


@compiled
def population_of(X: Matrix, population: Vector) -> None:
    """Write mean gap, mean log gap and its variance over all gaps of the rows; left as they are without gaps."""
    gaps, total, logs, squares = 0.0, 0.0, 0.0, 0.0
    for i in range(len(X)):
        count = max(X[i, 0], 1.0) - 1.0
        gaps += count
        total += count * X[i, 3]
        logs += count * X[i, 5]
        squares += X[i, 6] + count * X[i, 5] * X[i, 5]
    if gaps > 0.0:
        population[0] = max(total / gaps, 0.1)
        population[1] = logs / gaps
        population[2] = max(squares / gaps - population[1] * population[1], LEAST_VARIANCE)
