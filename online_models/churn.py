"""Churn risk: six experts on a customer's purchases, learned in one pass from labels as they mature."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from river import base

from online_models import mbg
from online_models.arrays import ArrayModel, Matrix, fold, splitmix64, uniforms
from online_models.compiled import compiled
from online_models.purchases import (
    COLUMNS,
    FEATURES,
    LN2,
    PRIOR_POPULATION,
    RFM_WIDTH,
    STILL,
    WIDTH,
    advance,
    features,
    moving,
    population_of,
    rfm,
    still,
)

Vector = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CLIP = 3.0  # of a standardised feature
VARIANCE_FLOOR = 1e-4  # of a feature
FORGETTING = 1e-5  # share of the certainty given up per label
LARGEST_VARIANCE = 5.0  # of a weight; forgetting would let those of idle features grow without end
LEAST_CURVATURE = 1e-4
ADAGRAD_RATE, ADAGRAD_START, ADAGRAD_DECAY = 0.05, 1.0, 1e-5
LEAST_P = 1e-4
LARGEST_LOGIT = math.log((1.0 - LEAST_P) / LEAST_P)
WEEK = 7
NODES = (0.5 + 0.5 * np.polynomial.legendre.leggauss(4)[0]).copy()  # of an integral over the horizon
NODE_WEIGHTS = (0.5 * np.polynomial.legendre.leggauss(4)[1]).copy()
LEAST_HAZARD, LARGEST_HAZARD = -12.0, 3.0  # ln of the orders expected in a week

SAMPLE = 2_000  # customers kept
ANCHORED = 500  # of them the level is anchored with
MBG_FROM = 10  # customers
MBG_STEPS = 96  # a day
MBG_SETTLED = 1_000  # steps, before what it expects is held against what happens
ACTIVITY_PRIOR = 10.0  # orders
LEVEL_RATE = 1.0 - 0.8 ** (1.0 / WEEK)
TRUST = 100.0  # labels
LONGEST_PAUSE_DAYS = 400
LEAST_OF_EACH = 5
QUIET, LIVELY = 0.3, 0.7
DECAY = 0.999  # of the progressive figures, per label

PARTS = (*FEATURES, "pattern")
"""What a risk is explained by: the features, and the rhythm of orders as MBG/NBD sees it."""

# Places in the vector of numbers.
LABELS, WEEKS, NOW, TRUSTED, BIAS, STEPS, FIRST_DAY, LEVEL = range(8)
# Places among the progressive figures.
WEIGHT, CHURNED, LOG_LOSS, BRIER, BASE_LOG_LOSS = range(5)


@compiled
def _logit(p: float) -> float:
    p = min(max(p, LEAST_P), 1.0 - LEAST_P)
    return math.log(p / (1.0 - p))


@compiled
def _expit(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(min(z, 700.0), -700.0)))


@compiled
def _silent_logit(p: float, activity: float) -> float:
    """Logit of P(no order) where orders come `activity` times as often as they do."""
    return _logit(math.exp(activity * math.log(max(p, 1e-300))))


@compiled
def _absorb(x: Vector, moments: Matrix) -> None:
    """Running moments of the columns: mean above sum of squared deviations, the count at the end."""
    width = len(x)
    moments[0, width] += 1.0
    for j in range(width):
        delta = x[j] - moments[0, j]
        moments[0, j] += delta / moments[0, width]
        moments[1, j] += delta * (x[j] - moments[0, j])


@compiled
def _standardise(x: Vector, moments: Matrix, out: Vector) -> None:
    width = len(x)
    count = max(moments[0, width], 1.0)
    for j in range(width):
        z = (x[j] - moments[0, j]) / math.sqrt(moments[1, j] / count + VARIANCE_FLOOR)
        out[j] = min(max(z, -CLIP), CLIP)
    out[width] = 1.0


@compiled
def _take_in(row: Vector, population: Vector, moments: Matrix, x: Vector, kept: Vector, z: Vector) -> None:
    """A row's features into `x`, into the running moments, and standardised by these into `z`."""
    still(row, population, x, kept)
    moving(row, 0.0, population, kept, x)
    _absorb(x, moments)
    _standardise(x, moments, z)


@compiled
def _dot(weights: Vector, z: Vector) -> float:
    total = 0.0
    for j in range(len(z)):
        total += weights[j] * z[j]
    return total


@compiled
def _filter(weights: Vector, covariance: Matrix, z: Vector, surprise: float, curvature: float, gain: Vector) -> None:
    """One label of an extended Kalman filter of second order: `surprise` is the slope of the log-likelihood."""
    width = len(z)
    certainty = 1.0
    for i in range(width):
        total = 0.0
        for j in range(width):
            total += covariance[i, j] * z[j]
        gain[i] = total
    for i in range(width):
        certainty += curvature * z[i] * gain[i]
    largest = 0.0
    for i in range(width):
        weights[i] += gain[i] * surprise / certainty
        for j in range(width):
            covariance[i, j] = (covariance[i, j] - curvature / certainty * gain[i] * gain[j]) / (1.0 - FORGETTING)
        largest = max(largest, covariance[i, i])
    if largest > LARGEST_VARIANCE:
        for i in range(width):
            for j in range(width):
                covariance[i, j] *= LARGEST_VARIANCE / largest


@compiled
def _learn_logit(weights: Vector, covariance: Matrix, z: Vector, offset: float, y: float, gain: Vector) -> None:
    p = _expit(_dot(weights, z) + offset)
    _filter(weights, covariance, z, y - p, max(p * (1.0 - p), LEAST_CURVATURE), gain)


@compiled
def _learn_weeks(
    X: Matrix,
    bought: Flags,
    offset: Vector,
    numbers: Vector,
    population: Vector,
    moments: Matrix,
    weights: Vector,
    covariance: Matrix,
) -> None:
    x, z, gain, kept = np.empty(WIDTH), np.empty(WIDTH + 1), np.empty(WIDTH + 1), np.empty(STILL)
    for i in range(len(X)):
        _take_in(X[i], population, moments, x, kept, z)
        m = min(max(_dot(weights, z) + offset[i], LEAST_HAZARD), LARGEST_HAZARD)
        p = 1.0 - math.exp(-math.exp(m))
        slope = math.exp(m - math.exp(m))
        spread = p * (1.0 - p)
        y = 1.0 if bought[i] else 0.0
        _filter(weights, covariance, z, slope * (y - p) / spread, max(slope * slope / spread, LEAST_CURVATURE), gain)
        numbers[WEEKS] += 1.0


@compiled
def _judge(
    X: Matrix,
    ahead: Vector,
    horizon: float,
    numbers: Vector,
    population: Vector,
    parameters: Vector,
    moments: Matrix,
    rfm_moments: Matrix,
    adagrad: Matrix,
    plain: Vector,
    residual: Vector,
    rfm_weights: Vector,
    week_moments: Matrix,
    week_weights: Vector,
    out: Matrix,
) -> None:
    """Per row: the ensemble's logit without the level's bias, the pattern's probability, the hazard's."""
    x, z, kept = np.empty(WIDTH), np.empty(WIDTH + 1), np.empty(STILL)
    few, few_z = np.empty(RFM_WIDTH), np.empty(RFM_WIDTH + 1)
    now, trusted = numbers[NOW], numbers[TRUSTED]
    for i in range(len(X)):
        still(X[i], population, x, kept)
        recency, age = max(X[i, 1], 0.0) + ahead[i], max(X[i, 2], 0.0) + ahead[i]
        p = mbg.silent(parameters, max(X[i, 0], 1.0) - 1.0, max(age - recency, 0.0), age, horizon)
        base_logit = _logit(p)
        pattern = _silent_logit(p, now)
        offset = pattern - base_logit
        hazard = 0.0
        if numbers[WEEKS] > 0.0:
            for node in range(len(NODES)):
                moving(X[i], ahead[i] + NODES[node] * horizon, population, kept, x)
                _standardise(x, week_moments, z)
                m = min(max(_dot(week_weights, z), LEAST_HAZARD), LARGEST_HAZARD)
                hazard += NODE_WEIGHTS[node] * math.exp(m)
            hazard *= now * horizon / WEEK
        logit = pattern
        if numbers[LABELS] > 0.0:
            moving(X[i], ahead[i], population, kept, x)
            _standardise(x, moments, z)
            rfm(X[i], ahead[i], few)
            _standardise(few, rfm_moments, few_z)
            total = _bounded(_dot(adagrad[0], z) + offset)
            total += _bounded(_dot(plain, z) + offset)
            total += _bounded(_dot(residual, z) + pattern)
            total += _bounded(_dot(rfm_weights, few_z) + offset)
            experts = 4.0
            if numbers[STEPS] > 0.0:
                total += pattern
                experts += 1.0
            if numbers[WEEKS] > 0.0:
                total += _logit(math.exp(-hazard))
                experts += 1.0
            logit += trusted * (total / experts - pattern)
        out[i, 0] = logit
        out[i, 1] = math.exp(now * math.log(max(p, 1e-300)))
        out[i, 2] = math.exp(-hazard) if numbers[WEEKS] > 0.0 else out[i, 1]


@compiled
def _bounded(logit: float) -> float:
    return min(max(logit, -LARGEST_LOGIT), LARGEST_LOGIT)


@compiled
def _log_loss(p: float, y: float) -> float:
    return -math.log(min(max(p if y > 0.0 else 1.0 - p, 1e-12), 1.0))


@compiled
def _track(p: float, y: float, figures: Vector) -> None:
    """The progressive figures after a label that was given probability `p`."""
    rate = (figures[CHURNED] + 1.0) / (figures[WEIGHT] + 2.0)
    for place, new in (
        (CHURNED, y),
        (WEIGHT, 1.0),
        (LOG_LOSS, _log_loss(p, y)),
        (BRIER, (p - y) ** 2),
        (BASE_LOG_LOSS, _log_loss(rate, y)),
    ):
        figures[place] = DECAY * figures[place] + new


@compiled
def _learn(
    X: Matrix,
    labels: Flags,
    activity: Vector,
    horizon: float,
    day: float,
    figures: Vector,
    numbers: Vector,
    population: Vector,
    parameters: Vector,
    moments: Matrix,
    rfm_moments: Matrix,
    adagrad: Matrix,
    plain: Vector,
    plain_covariance: Matrix,
    residual: Vector,
    residual_covariance: Matrix,
    rfm_weights: Vector,
    rfm_covariance: Matrix,
    week_moments: Matrix,
    week_weights: Vector,
) -> None:
    """Each label is predicted, for the figures, before it is learned."""
    x, z, gain, kept = np.empty(WIDTH), np.empty(WIDTH + 1), np.empty(WIDTH + 1), np.empty(STILL)
    few, few_z = np.empty(RFM_WIDTH), np.empty(RFM_WIDTH + 1)
    judged, ahead = np.empty((1, 3)), np.zeros(1)
    for i in range(len(X)):
        y = 1.0 if labels[i] else 0.0
        _judge(
            X[i : i + 1],
            ahead,
            horizon,
            numbers,
            population,
            parameters,
            moments,
            rfm_moments,
            adagrad,
            plain,
            residual,
            rfm_weights,
            week_moments,
            week_weights,
            judged,
        )
        _track(_expit(judged[0, 0] + numbers[BIAS]), y, figures)
        _take_in(X[i], population, moments, x, kept, z)
        p = mbg.silent(parameters, X[i, 0] - 1.0, max(X[i, 2] - X[i, 1], 0.0), X[i, 2], horizon)
        base_logit = _logit(p)
        offset = _silent_logit(p, activity[i]) - base_logit
        wrong = _expit(_dot(adagrad[0], z) + offset) - y
        for j in range(WIDTH + 1):
            slope = wrong * z[j] + ADAGRAD_DECAY * adagrad[0, j]
            adagrad[1, j] += slope * slope
            adagrad[0, j] -= ADAGRAD_RATE * slope / math.sqrt(adagrad[1, j] + 1e-8)
        _learn_logit(plain, plain_covariance, z, offset, y, gain)
        _learn_logit(residual, residual_covariance, z, offset + base_logit, y, gain)
        rfm(X[i], 0.0, few)
        _absorb(few, rfm_moments)
        _standardise(few, rfm_moments, few_z)
        _learn_logit(rfm_weights, rfm_covariance, few_z, offset, y, gain)
        numbers[LABELS] += 1.0
        numbers[TRUSTED] = numbers[LABELS] / (numbers[LABELS] + TRUST)
        if math.isnan(numbers[FIRST_DAY]):
            numbers[FIRST_DAY] = day


@compiled
def _level(logits: Vector, wanted: float) -> float:
    """The bias under which the mean probability is the wanted one."""
    low, high = -6.0, 6.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        total = 0.0
        for i in range(len(logits)):
            total += _expit(logits[i] + middle)
        if total / len(logits) < wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


class ChurnRisk(ArrayModel, base.Classifier):
    """Probability that a customer does not order within the horizon.

    The mean of six experts' logits: MBG/NBD climbed online, a logistic regression by AdaGrad and one by an extended
    Kalman filter, one that learns what MBG/NBD leaves over, one on recency, frequency and money alone, and a weekly
    hazard of the next order, integrated over the horizon. A label is True when no order came; it is H days old when it
    arrives. Therefore

    * each label is told how busy its window was (`turn`), so that a closed shop teaches no churn,
    * MBG/NBD, which needs no labels, speaks alone in the beginning, and a label's experts gain weight with their count,
    * the mean probability is anchored to what MBG/NBD and the hazard say of a sample of customers.

    Three ways to learn: `learn_many` (labels), `observe` (customers as they are, of whom a sample is kept), `turn` (a
    day has gone by: MBG/NBD, the hazard and the level learn from the sample). With `learn_one` alone it is an ordinary
    classifier.

    Rows have the columns of `purchases.COLUMNS`; a missing value counts as 0. **Cost**: about 3 microseconds per
    label, 2 per prediction. **Warm-up**: `min_labels` labels and 5 of each class, then `ready`.

    Parameters
    ----------
    horizon_days
        H, at least 1.
    min_labels
        Labels before the model is ready.
    seed
        Of the sample of customers and of MBG's draws.

    Examples
    --------
    >>> model = ChurnRisk(min_labels=100)
    >>> for i in range(200):
    ...     model.learn_one({"orders": 3, "recency": i % 50, "age": 90}, y=i % 50 > 25 + i % 7)
    >>> model.ready
    True
    >>> [round(model.predict_proba_one({"orders": 3, "recency": r, "age": 90})[True], 2) for r in (5, 30, 45)]
    [0.17, 0.58, 0.72]

    References
    ----------
    Batislam, E., Denizel, M. and Filiztekin, A., 2007. Empirical validation and comparison of models for customer base
    analysis. IJRM 24. West, M., Harrison, P.J. and Migon, H.S., 1985. Dynamic generalized linear models. JASA 80.
    """

    features = COLUMNS
    schema = 3
    _state = (
        *("_numbers", "_population", "_pattern", "_moments", "_rfm_moments", "_week_moments", "_adagrad"),
        *("_plain", "_plain_covariance", "_residual", "_residual_covariance", "_rfm", "_rfm_covariance"),
        *("_week", "_week_covariance", "_hashes", "_sample", "_seen", "_waiting", "_expected", "_activity"),
        *("_day", "_quiet", "_classes", "_figures"),
    )

    def __init__(self, horizon_days: float = 28.0, min_labels: int = 50, seed: int = 42) -> None:
        self.horizon_days = horizon_days
        self.min_labels = min_labels
        self.seed = seed
        self._numbers = np.zeros(8)
        self._numbers[NOW], self._numbers[FIRST_DAY] = 1.0, np.nan
        self._population = np.array(PRIOR_POPULATION)
        self._pattern = mbg.start()
        self._hashes = np.zeros(0, np.uint64)
        self._sample = np.zeros((0, len(COLUMNS)), np.float32)
        self._seen = np.zeros(0)  # the day each customer of the sample was seen as it is there
        self._waiting = np.zeros((0, len(COLUMNS)), np.float32)  # as it was when a week's example was taken; NaN = none
        self._expected = np.zeros((0, WEEK), np.float32)  # P(order within a week) as said on the last seven days
        self._activity = np.ones(math.ceil(horizon_days) + 2 * WEEK)  # by day, the last at `_day`
        self._day = 0
        self._quiet = 0
        self._classes = np.zeros(2, np.int64)  # stayed, churned
        self._figures = np.zeros(5)
        self._start()

    def _allocate(self, _width: int) -> None:
        self._moments, self._week_moments = np.zeros((2, WIDTH + 1)), np.zeros((2, WIDTH + 1))
        self._rfm_moments = np.zeros((2, RFM_WIDTH + 1))
        self._adagrad = np.zeros((2, WIDTH + 1))
        self._adagrad[1] = ADAGRAD_START
        self._plain, self._residual, self._week = (np.zeros(WIDTH + 1) for _ in range(3))
        self._rfm = np.zeros(RFM_WIDTH + 1)
        self._plain_covariance = np.diag([0.1] * WIDTH + [1.0])
        self._residual_covariance = np.diag([0.02] * WIDTH + [0.1])
        self._week_covariance = np.diag([0.1] * WIDTH + [1.0])
        self._rfm_covariance = np.diag([0.3] * RFM_WIDTH + [1.0])

    @property
    def n_labels(self) -> int:
        """Labels learned."""
        return int(self._numbers[LABELS])

    @property
    def ready(self) -> bool:
        """True once there are enough labels, and enough of either class."""
        return self.n_labels >= self.min_labels and int(self._classes.min()) >= LEAST_OF_EACH

    @property
    def activity(self) -> float:
        """Orders of the last seven days over those expected a week ago; 1 while too little is known."""
        return float(self._activity[-1])

    @property
    def quiet(self) -> bool:
        """Whether the shop is closed or its feed lost: from an activity of 0.3 until it is back at 0.7."""
        return bool(self._quiet)

    @property
    def day(self) -> int:
        """The last day that has gone by."""
        return int(self._day)

    def figures(self) -> dict[str, float]:
        """Progressive log loss and Brier score over about the last thousand labels, each predicted before learned.

        `base_log_loss` is that of the churn rate itself, `skill` the share of it that the model saves.
        """
        weight, churned, log_loss, brier, base_log_loss = self._figures.tolist()
        weight = weight or 1.0
        return {
            "labels": self.n_labels,
            "churned_share": churned / weight,
            "log_loss": log_loss / weight,
            "brier": brier / weight,
            "base_log_loss": base_log_loss / weight,
            "skill": 1 - log_loss / base_log_loss if base_log_loss else 0.0,
            "activity": self.activity,
        }

    def learn_one(self, x: Mapping[Any, Any], y: base.typing.ClfTarget) -> None:
        """Learn one customer's matured label."""
        self.learn_many(self._row(x), [y])

    def learn_many(self, X: npt.ArrayLike, y: npt.ArrayLike, days: npt.ArrayLike | None = None) -> None:
        """Learn rows as they were, with what became of them.

        Args:
            X: shape (n, 24), at the moment each was taken.
            y: True where no order came within the horizon.
            days: that moment in days, on the scale of `turn`; without it windows count as neither busy nor quiet.
        """
        rows, labels = self._usable(X), np.asarray(y, np.bool_)
        if len(labels) != len(rows):
            raise ValueError(f"found {len(labels)} labels for {len(rows)} rows, expected one per row")
        activity = np.ones(len(rows))
        if days is not None:
            taken = np.asarray(days, np.float64)
            activity = np.array([self._busy(day, day + self.horizon_days) for day in taken.tolist()])
        self._classes += np.bincount(labels, minlength=2)
        _learn(
            *(rows, labels, activity, self.horizon_days, float(self._day), self._figures, self._numbers),
            *(self._population, self._mbg_parameters(), self._moments, self._rfm_moments),
            *(self._adagrad, self._plain, self._plain_covariance, self._residual, self._residual_covariance),
            *(self._rfm, self._rfm_covariance, self._week_moments, self._week),
        )

    def observe(self, X: npt.ArrayLike, keys: npt.ArrayLike, day: npt.ArrayLike) -> None:
        """See customers as they are on `day` (one for all, or one each): those with the smallest hashes of their keys
        are kept, each as last seen, so that the sample is one of all customers alike."""
        rows = np.nan_to_num(self._matrix(X), nan=0.0, copy=False)
        hashes = splitmix64(np.asarray(keys).astype(np.uint64) ^ fold(self.seed))
        seen = np.broadcast_to(np.asarray(day, np.float64), len(rows))
        if len(self._hashes) == SAMPLE:
            near = np.flatnonzero(hashes <= self._hashes[-1])
            rows, hashes, seen = rows[near], hashes[near], seen[near]
        if not len(rows):
            return
        last = len(hashes) - 1 - np.unique(hashes[::-1], return_index=True)[1]
        rows, hashes, seen = rows[last], hashes[last], seen[last]
        place = np.searchsorted(self._hashes, hashes)
        known = place < len(self._hashes)
        known[known] = self._hashes[place[known]] == hashes[known]
        self._sample[place[known]] = rows[known]
        self._seen[place[known]] = seen[known]
        new = ~known
        if new.any():
            both = np.concatenate((self._hashes, hashes[new]))
            order = np.argsort(both, kind="stable")[:SAMPLE]
            none, unknown = (np.full((int(new.sum()), width), np.nan, np.float32) for width in (len(COLUMNS), WEEK))
            self._hashes = both[order]
            self._sample = np.concatenate((self._sample, rows[new].astype(np.float32)))[order]
            self._seen = np.concatenate((self._seen, seen[new]))[order]
            self._waiting = np.concatenate((self._waiting, none))[order]
            self._expected = np.concatenate((self._expected, unknown))[order]

    def forget(self, key: int) -> None:
        """Take a customer out of the sample."""
        stays = self._hashes != splitmix64(np.array([key], np.uint64) ^ fold(self.seed))[0]
        if not stays.all():
            self._hashes, self._sample = self._hashes[stays], self._sample[stays]
            self._seen, self._waiting = self._seen[stays], self._waiting[stays]
            self._expected = self._expected[stays]

    def turn(self, day: int) -> None:
        """Let days go by up to the end of `day`, counted from any origin; days that are past do nothing."""
        if day <= self._day:
            return
        first = self._day + 1 if self._day else day
        for each in range(max(first, day - LONGEST_PAUSE_DAYS), day + 1):
            self._turn(each)

    def _turn(self, day: int) -> None:
        rows = self._sample.astype(np.float64)
        ahead = day + 1.0 - self._seen  # to the end of the day
        rows = advance(rows, ahead)
        self._measure(day, rows)
        self._day = day
        self._learn_week(day, rows)
        if len(rows) < MBG_FROM:
            return
        population_of(rows, self._population)
        rows = _in_whole_days(rows)
        drawn = uniforms(MBG_STEPS * mbg.BATCH, self.seed, day)
        picks = (drawn * len(rows)).astype(np.int64)
        mbg.learn(self._pattern, rows, picks, MBG_STEPS)
        self._numbers[STEPS] = self._pattern[16]
        self._numbers[NOW] = math.exp(self._numbers[LEVEL] / 2.0)
        if self._numbers[STEPS] < MBG_SETTLED:
            return
        self._expected[:, day % WEEK] = 1.0 - mbg.silent_many(self._mbg_parameters(), rows, WEEK)
        self._anchor(day, rows[:ANCHORED])

    def _learn_week(self, day: int, rows: Matrix) -> None:
        """Each customer of the sample is an example every other week, on a day of its own, for the week after."""
        if not len(rows):
            return
        turns = (self._hashes % np.uint64(2 * WEEK)).astype(np.int64)
        ripe = np.flatnonzero((turns == (day - WEEK) % (2 * WEEK)) & ~np.isnan(self._waiting[:, 0]))
        bought = rows[ripe, 1] <= WEEK
        offset = np.full(len(ripe), math.log(max(float(self._activity[-1]), 0.05)))
        _learn_weeks(
            *(_in_whole_days(self._waiting[ripe].astype(np.float64)), bought, offset, self._numbers, self._population),
            *(self._week_moments, self._week, self._week_covariance),
        )
        self._waiting[ripe] = np.nan
        taken = np.flatnonzero(turns == day % (2 * WEEK))
        self._waiting[taken] = rows[taken]

    def _measure(self, day: int, rows: Matrix) -> None:
        """Orders of the last seven days over those expected, among the customers known a week ago."""
        said = self._expected[:, day % WEEK].astype(np.float64) if len(rows) else np.zeros(0)
        known = ~np.isnan(said)
        bought = rows[known, 1] <= WEEK
        expected = float(np.cumsum(said[known])[-1]) if known.any() else 0.0
        rho = (float(bought.sum()) + ACTIVITY_PRIOR) / (expected + ACTIVITY_PRIOR)
        self._activity[:-1] = self._activity[1:]
        self._activity[-1] = rho
        self._numbers[LEVEL] += LEVEL_RATE * (math.log(min(max(rho, 0.5), 2.0)) - self._numbers[LEVEL])
        self._quiet = int(rho <= QUIET or (bool(self._quiet) and rho < LIVELY))

    def _anchor(self, day: int, rows: Matrix) -> None:
        """Find the bias under which the sample's mean risk is what MBG/NBD and the hazard make of it."""
        if np.isnan(self._numbers[FIRST_DAY]):
            self._numbers[BIAS] = 0.0
            return
        judged = self._judged(rows, np.zeros(len(rows)))
        mean_pattern, mean_hazard = (float(np.cumsum(judged[:, i])[-1]) / len(rows) for i in (1, 2))
        half = self._numbers[TRUSTED] / 2.0
        bias = _level(judged[:, 0].copy(), (1.0 - half) * mean_pattern + half * mean_hazard)
        self._numbers[BIAS] = bias * 2.0 / (2.0 + (day - self._numbers[FIRST_DAY]) / self.horizon_days)

    def _busy(self, start: float, end: float) -> float:
        """Mean activity over the weeks of a window, counted back from its end."""
        last = len(self._activity) - 1 - self._day  # plus a day gives its place
        weeks = max(math.ceil((end - start) / WEEK), 1)
        places = [math.floor(end) - 1 + last - WEEK * week for week in range(weeks)]
        known = [float(self._activity[place]) for place in places if 0 <= place < len(self._activity)]
        return min(max(sum(known) / len(known), 0.05), 5.0) if known else 1.0

    def predict_proba_one(self, x: Mapping[Any, Any], **_kwargs: Any) -> dict[base.typing.ClfTarget, float]:
        """Probability of churn under True, of staying under False."""
        p = float(self.predict_proba_many(self._row(x))[0])
        return {False: 1 - p, True: p}

    def predict_proba_many(self, X: npt.ArrayLike, ahead_days: npt.ArrayLike = 0.0) -> Vector:
        """Each row's probability of churn, as it will be said `ahead_days` from now if no order comes."""
        rows = self._usable(X)
        return self._probabilities(rows, np.broadcast_to(np.asarray(ahead_days, np.float64), len(rows)).copy())

    def features_many(self, X: npt.ArrayLike) -> Matrix:
        """FEATURES of each row, (n, 28)."""
        return features(self._usable(X), 0.0, self._population)

    def gap_many(self, X: npt.ArrayLike) -> Vector:
        """Days to expect between a customer's orders: the own mean, drawn to that of all while gaps are few."""
        rows = self._usable(X)
        gaps = np.maximum(rows[:, 0], 1.0) - 1.0
        return np.asarray((gaps * rows[:, 3] + 2.0 * self._population[0]) / (gaps + 2.0), np.float64)

    def next_order_many(self, X: npt.ArrayLike) -> Vector:
        """Days until half of such customers have ordered again, if they are still customers."""
        rows = self._usable(X)
        r, alpha = self._mbg_parameters()[:2]
        exponent = np.minimum(LN2 / (r + np.maximum(rows[:, 0], 1.0) - 1.0), 50.0)
        return np.asarray((alpha + rows[:, 2]) * np.expm1(exponent), np.float64)

    def logit_contributions_many(self, X: npt.ArrayLike) -> Matrix:
        """What each of PARTS adds to the logit, (n, 29), against the average customer; of the hazard to first order."""
        rows = self._usable(X)
        found = np.zeros((len(rows), len(PARTS)))
        judged = self._judged(rows, np.zeros(len(rows)))
        x = features(rows, 0.0, self._population)
        few = np.zeros((len(rows), RFM_WIDTH))
        for i, row in enumerate(rows):
            rfm(row, 0.0, few[i])
        trusted, experts = float(self._numbers[TRUSTED]), 4.0 + (self._numbers[STEPS] > 0) + (self._numbers[WEEKS] > 0)
        share = trusted / experts if self.n_labels else 0.0
        z = _standardised(x, self._moments)
        found[:, :WIDTH] = share * z * (self._adagrad[0] + self._plain + self._residual)[:WIDTH]
        few_parts = share * _standardised(few, self._rfm_moments) * self._rfm[:RFM_WIDTH]
        for name, part in zip(("recency", "orders", "spend_90d", "usual_spend", "tenure"), few_parts.T, strict=True):
            found[:, FEATURES.index(name)] += part
        if self._numbers[WEEKS] > 0:
            hazard = -np.log(np.clip(judged[:, 2], LEAST_P, 1 - LEAST_P))
            slope = -hazard / -np.expm1(-hazard)
            weeks = _standardised(x, self._week_moments) * self._week[:WIDTH]
            found[:, :WIDTH] += share * slope[:, None] * weeks
        pattern = np.clip(judged[:, 1], LEAST_P, 1 - LEAST_P)
        weight = 1.0 - trusted + share * (1.0 + (self._numbers[STEPS] > 0)) if self.n_labels else 1.0
        found[:, WIDTH] = weight * np.log(pattern / (1.0 - pattern))
        return found

    def _probabilities(self, rows: Matrix, ahead: Vector) -> Vector:
        logits = self._judged(rows, ahead)[:, 0] + self._numbers[BIAS]
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float64)

    def _judged(self, rows: Matrix, ahead: Vector) -> Matrix:
        out = np.empty((len(rows), 3))
        _judge(
            *(rows, ahead, self.horizon_days, self._numbers, self._population, self._mbg_parameters(), self._moments),
            *(self._rfm_moments, self._adagrad, self._plain, self._residual, self._rfm),
            *(self._week_moments, self._week, out),
        )
        return out

    def _mbg_parameters(self) -> Vector:
        return np.asarray(np.exp(self._pattern[4:8]), np.float64)

    def _usable(self, X: npt.ArrayLike) -> Matrix:
        return _in_whole_days(np.nan_to_num(self._matrix(X), nan=0.0, copy=False))


def _standardised(x: Matrix, moments: Matrix) -> Matrix:
    count = max(float(moments[0, -1]), 1.0)
    z = (x - moments[0, :-1]) / np.sqrt(moments[1, :-1] / count + VARIANCE_FLOOR)
    return np.asarray(np.clip(z, -CLIP, CLIP), np.float64)


def _in_whole_days(rows: Matrix) -> Matrix:
    """Count days since an order up to whole ones: the hour of an order says nothing of the next one, and logs would."""
    rows[:, 0] = np.maximum(rows[:, 0], 1.0)
    rows[:, 1] = np.ceil(np.maximum(rows[:, 1], 0.0))
    rows[:, 2] = np.maximum(np.ceil(rows[:, 2]), rows[:, 1])
    return rows
