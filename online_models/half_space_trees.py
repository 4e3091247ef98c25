"""Half-space trees that are refitted from a slowly changing reference sample of events."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from river import base

from online_models.arrays import Hashes, Matrix, RefittedModel, ordered_sum, share, splitmix64, uniforms

SMALLEST_SPLIT = 5  # rows; a node with fewer is a leaf
PADDING = 0.15  # River's rule: a threshold lies in the inner 70 % of its node's range
TABLE_POINTS = 401
TAIL = 0.01
BEYOND = 20


class Trees(NamedTuple):
    """All trees in one set of arrays; node t is the root of tree t, a right child follows its left sibling."""

    feature: npt.NDArray[np.int16]
    threshold: Matrix  # a value below it goes left; infinite in a leaf
    child: npt.NDArray[np.int32]  # left child; a leaf points at itself
    value: Matrix  # how unusual a leaf is; 0 inside
    depth: int


class HalfSpaceTrees(RefittedModel, base.AnomalyDetector):
    """Anomaly detector: random half-space trees over a reference sample of events, refitted every so often.

    A leaf that holds m of the n reference rows at depth d says −(log2((m + 1)/n) + d): the fewer events per volume,
    the higher. The score, from about −12 to 10, is the mean over trees. Its size means little by itself, so
    `rate_many` turns it into the share of recent events that were at least as unusual.

    The reference is the first `reference` rows; after that each event enters with probability `reference / memory`
    and overwrites a slot, both drawn from a hash of its uid, so that ages decay with a mean of `memory` events and a
    replay gives the same sample. A missing value counts as its feature's median.

    **Warm-up**: `reference` events; until then the score is 0 and the rate 1. **Cost**: `height` numpy steps over
    rows × trees, some microseconds per event in batches; learning is a copy of the row; a refit takes milliseconds.

    Parameters
    ----------
    features
        Names of the columns.
    n_trees, height
        Number of trees, and their greatest depth.
    reference, memory
        Rows in the reference, and their mean age in events.
    window
        Last events kept, in single precision, to calibrate rates.
    seed
        Moves both trees and reference.
    refit_every
        Rows between refits; 0 leaves them to calls of `refit`.

    Examples
    --------
    >>> import numpy as np
    >>> model = HalfSpaceTrees(["amount", "items"], reference=500)
    >>> angle = np.arange(2000) * 2.4
    >>> model.learn_many(np.column_stack([50 + 10 * np.cos(angle), 3 + np.sin(angle)]))
    >>> usual, unusual = {"amount": 57.0, "items": 3.7}, {"amount": 400.0, "items": 1.0}
    >>> model.score_one(usual) < model.score_one(unusual)
    True
    >>> model.rate_many([model.score_one(usual), model.score_one(unusual)]).round(3).tolist()
    [0.482, 0.0]

    References
    ----------
    Tan, S.C., Ting, K.M. and Liu, T.F., 2011. Fast anomaly detection for streaming data. IJCAI.
    """

    _state = (
        *("_learned", "_due", "_refits", "_calibrated", "_reference_rows", "_window_rows", "_medians"),
        *("_feature", "_threshold", "_child", "_value", "_depth", "_table_scores", "_table_log_rates"),
        "_tail_scale",
    )

    def __init__(
        self,
        features: Sequence[str] | None = None,
        n_trees: int = 25,
        height: int = 12,
        reference: int = 1000,
        memory: int = 20_000,
        window: int = 5_000,
        seed: int = 42,
        refit_every: int = 2500,
    ) -> None:
        if not 0 < reference <= memory:
            raise ValueError(f"found reference={reference} and memory={memory}, expected 0 < reference <= memory")
        self.features = features
        self.n_trees = n_trees
        self.height = height
        self.reference = reference
        self.memory = memory
        self.window = window
        self.seed = seed
        self.refit_every = refit_every
        self._learned = self._refits = self._calibrated = 0
        self._tail_scale = 1.0
        self._due = reference if refit_every else 0
        self._allocate(0)
        self._start()

    def _allocate(self, width: int) -> None:
        self._reference_rows = np.full((self.reference, width), np.nan, np.float32)
        self._window_rows = np.full((self.window, width), np.nan, np.float32)
        self._medians = np.zeros(width)
        self._set_trees(Trees(np.zeros(0, np.int16), np.zeros(0), np.zeros(0, np.int32), np.zeros(0), 0))
        self._table_scores = self._table_log_rates = np.zeros(0)

    def _set_trees(self, trees: Trees) -> None:
        self._feature, self._threshold, self._child, self._value, self._depth = trees

    def figures(self) -> dict[str, float]:
        """Events learned, refits so far and nodes in all trees."""
        return {"learned": self._learned, "refits": self._refits, "nodes": len(self._value)}

    def learn_many(self, X: npt.ArrayLike, uids: npt.ArrayLike | None = None) -> None:
        """Learn the rows of X in order; `uids` (uint64, one per row) decide which of them enter the reference."""
        self._learn(X, uids)

    def _absorb(self, rows: Matrix, hashes: Hashes) -> None:
        order = self._learned + np.arange(len(rows))
        self._window_rows[order % self.window] = rows  # of a repeated index numpy keeps the last, here and below
        enters = (order < self.reference) | (share(hashes) < self.reference / self.memory)
        slots = (share(splitmix64(hashes)) * self.reference).astype(np.int64)
        self._reference_rows[np.where(order < self.reference, order, slots)[enters]] = rows[enters]

    def refit(self) -> None:
        """Build trees and rates from the reference as it is now; does nothing before the warm-up is over."""
        if self._learned < self.reference:
            return
        self._refits += 1
        self._medians = np.array([_median(column) for column in self._reference_rows.T.astype(np.float64)])
        rows = self._filled(self._reference_rows.astype(np.float64))
        self._set_trees(grow(rows, self.n_trees, self.height, (self.seed, self._refits)))
        self._calibrate()

    def _calibrate(self) -> None:
        rows = self._window_rows[: min(self._learned, self.window)].astype(np.float64)
        scores = np.sort(self._score(self._filled(rows)))
        n = self._calibrated = len(scores)
        tail = np.geomspace(1, n, TABLE_POINTS).round().astype(np.int64)  # so many events are at least this unusual
        self._table_scores = np.unique(scores[n - tail])
        at_least = n - np.searchsorted(scores, self._table_scores, "left")
        self._table_log_rates = np.log((at_least + 1) / (n + 1))
        top = scores[-max(round(TAIL * n), 2) :]
        self._tail_scale = max(float((top - top[0]).mean()), 1e-6)

    def score_one(self, x: Mapping[Any, Any]) -> float:
        """Score one event; 0 before the model is ready."""
        return float(self.score_many(self._row(x))[0])

    def score_many(self, X: npt.ArrayLike) -> Matrix:
        """Score each row of X: higher is more unusual; 0 before the model is ready."""
        rows = self._matrix(X)
        return self._score(self._filled(rows)) if self.ready else np.zeros(len(rows))

    def rate_many(self, scores: npt.ArrayLike) -> Matrix:
        """Share of events at least this unusual, in (0, 1]: falls as the score rises; 1 before the model is ready.

        Counted over the window as it was at the last refit. Beyond its highest score the rate falls exponentially, by
        the mean excess of the window's highest percent (Pickands 1975, peaks over threshold), to a twentieth of what
        could be counted and no further.
        """
        values = np.asarray(scores, np.float64)
        if not self.ready:
            return np.ones(len(values))
        logs = np.interp(values, self._table_scores, self._table_log_rates, left=0.0)
        beyond = np.maximum(values - self._table_scores[-1], 0.0) / self._tail_scale
        return np.asarray(np.exp(np.maximum(logs - beyond, -np.log(BEYOND * (self._calibrated + 1)))), np.float64)

    def explain_many(self, X: npt.ArrayLike, baseline: npt.ArrayLike) -> Matrix:
        """Contribution of each feature, (n, F): the score less the score with that feature as in `baseline`.

        `baseline` is one row, or one row for each of X. Costs F + 1 scores a row.
        """
        rows = self._matrix(X)
        usual = np.broadcast_to(np.asarray(baseline, np.float64), rows.shape)
        scores = self.score_many(rows)
        contributions = np.empty_like(rows)
        for j in range(rows.shape[1]):
            changed = rows.copy()
            changed[:, j] = usual[:, j]
            contributions[:, j] = scores - self.score_many(changed)
        return contributions

    def _filled(self, rows: Matrix) -> Matrix:
        return np.where(np.isnan(rows), self._medians, rows)

    def _score(self, rows: Matrix) -> Matrix:
        values = rows.ravel()
        first = np.arange(len(rows)) * rows.shape[1]
        node = np.repeat(np.arange(self.n_trees)[:, None], len(rows), axis=1)
        for _ in range(self._depth):
            node = self._child[node] + (values[first + self._feature[node]] >= self._threshold[node])
        return ordered_sum(self._value[node], like=rows[:, 0]) / self.n_trees


def grow(rows: Matrix, n_trees: int, height: int, key: tuple[int, ...]) -> Trees:
    """Grow all trees at once, level by level, from rows without missing values; `key` decides every draw."""
    low, span = _limits(rows)
    n, width = rows.shape
    row = np.tile(np.arange(n), n_trees)
    node = np.repeat(np.arange(n_trees), n)  # where that row is now, counted within the level
    left, right = np.zeros((n_trees, width)), np.ones((n_trees, width))  # each node's range, in units of the limits
    levels: list[Trees] = []
    start = 0  # number of the level's first node
    for depth in range(height + 1):
        count = len(left)
        mass = np.bincount(node, minlength=count)
        split = (mass >= SMALLEST_SPLIT) & (depth < height)
        feature, at = _draw_splits(left, right, uniforms(2 * count, *key, depth))
        threshold = np.where(split, low[feature] + at * span[feature], np.inf)
        first_child: npt.NDArray[np.int64] = 2 * np.cumsum(split) - 2 * split  # within the next level
        child = np.where(split, start + count + first_child, start + np.arange(count))
        value = np.where(split, 0.0, -(np.log2((mass + 1) / n) + depth))
        levels.append(Trees(feature.astype(np.int16), threshold, child.astype(np.int32), value, depth))
        if not split.any():
            break
        row, node = row[split[node]], node[split[node]]
        node = first_child[node] + (rows[row, feature[node]] >= threshold[node])
        left, right = np.repeat(left[split], 2, axis=0), np.repeat(right[split], 2, axis=0)
        pair = 2 * np.arange(split.sum())
        right[pair, feature[split]] = left[pair + 1, feature[split]] = at[split]
        start += count
    return Trees(
        np.concatenate([level.feature for level in levels]),
        np.concatenate([level.threshold for level in levels]),
        np.concatenate([level.child for level in levels]),
        np.concatenate([level.value for level in levels]),
        levels[-1].depth,
    )


def _limits(rows: Matrix) -> tuple[Matrix, Matrix]:
    """Lower limit and span of each feature: 1 % to 99 %, widened by half of that on each side."""
    low, high = np.quantile(rows, [0.01, 0.99], axis=0)
    narrow = high == low
    low, high = np.where(narrow, rows.min(axis=0), low), np.where(narrow, rows.max(axis=0), high)
    span = np.where(high > low, high - low, 1.0)
    return low - span / 2, 2 * span


def _draw_splits(left: Matrix, right: Matrix, draws: Matrix) -> tuple[npt.NDArray[np.int64], Matrix]:
    """For each node a feature, in proportion to the range left to it, and a threshold within that range."""
    reach = np.cumsum(right - left, axis=1)
    drawn, where = draws.reshape(2, -1)
    feature = (reach[:, :-1] <= drawn[:, None] * reach[:, -1:]).sum(axis=1)
    near, far = left[np.arange(len(left)), feature], right[np.arange(len(left)), feature]
    return feature, near + (PADDING + (1 - 2 * PADDING) * where) * (far - near)


def _median(column: Matrix) -> float:
    present = column[~np.isnan(column)]
    return float(np.median(present)) if len(present) else 0.0
