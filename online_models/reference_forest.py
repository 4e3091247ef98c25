"""The default anomaly detector: trees and distances, refitted from a slowly changing, trimmed sample of events."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from river import base

from online_models.arrays import Hashes, Matrix, RefittedModel, fold, share, splitmix64, uniforms
from online_models.voices import Trees, distance, grow, isolation, volume

FIRST = 64
"""Rows of the first fit; scores are rough until the reference is full."""
TRIMMED = 0.1
ISOLATION = (100, 64, 6)
"""The trimming's trees: their number, the rows of each, their height."""
SAMPLES, SAMPLE = 10, 20
NARROWEST = 1e-6

KEPT = 2_000
TAIL = 0.05
BULK = 0.05
"""Rows that are kept to rate later ones: every unusual one, and this share of the others."""
LEVELS = np.geomspace(1.0, 1e-4, 41)
PRIOR = 20.0
"""Events as rated; so many more or fewer than promised are needed to move a rate plainly."""
TABLE_POINTS = 401
EXCESS = 0.01
BEYOND = 20
SURPRISING = 2.0
LAGGING = 1 / 3
"""A feature that the reference holds less than this share as often as the latest events has only just become known."""


class Fit(NamedTuple):
    """What a refit makes of the reference: arrays that scoring reads."""

    trees: Trees
    medians: Matrix
    low: Matrix
    span: Matrix
    points: npt.NDArray[np.float32]
    centres: Matrix  # of both voices, trees first: the median of the reference
    scales: Matrix  # and from there to its 95 % quantile


class ReferenceForest(RefittedModel, base.AnomalyDetector):
    """Anomaly detector: half-space trees and distances to samples, over a reference sample of events.

    **Reference**: the first `reference` rows; after that each event enters with probability `reference / memory` and
    overwrites a slot, both drawn from a hash of its uid, so that ages decay with a mean of `memory` events, a burst
    does not become the new normal, and a replay gives the same sample.

    **Refit**, from the reference alone: 100 isolation trees drop its loneliest tenth; over the rest stand 25 half-space
    trees, in whose leaves of m of n rows at depth d the score is −(log2((m + 1)/n) + d), and 10 samples of 20 rows, to
    which the score is the mean log distance. Each voice is put on one scale by the median (0) and the 95 % quantile (1)
    of the reference; the score is their mean. A missing value counts as its feature's median, and so does every value
    of a feature that has only just become known: it says what is new, not what is unusual.

    **Rate**: a score means little by itself. `rate_many` turns it into the share of events at least as unusual, from
    the last `window` events as this fit scores them (unusual ones all, the others sampled), corrected by what became of
    the rates given before.

    **Warm-up**: 64 rows give the first, rough scores, refits at every doubling better ones; `ready` when the reference
    is full. Before, scores are 0 and rates 1. **Cost** at 10 features: about 0.5 µs to score an event in batches, 4 ms
    a refit, 300 kB.

    Parameters
    ----------
    features
        Names of the columns.
    n_trees, height
        Number of half-space trees, and their greatest depth.
    reference, memory
        Rows in the reference, and their mean age in events.
    window
        Last events that rates are counted over.
    seed
        Moves trees, samples and reference.
    refit_every
        Rows between refits; 0 leaves them to calls of `refit`.

    Examples
    --------
    >>> import numpy as np
    >>> model = ReferenceForest(["amount", "items"], reference=500)
    >>> model.learn_many(np.random.default_rng(0).normal([50.0, 3.0], [10.0, 1.0], (2000, 2)))
    >>> usual, unusual = {"amount": 57.0, "items": 3.7}, {"amount": 120.0, "items": 1.0}
    >>> [round(model.score_one(each), 1) for each in (usual, unusual)]
    [0.0, 2.0]
    >>> model.rate_many([model.score_one(usual), model.score_one(unusual)]).round(3).tolist()
    [0.558, 0.0]

    References
    ----------
    Tan, S.C., Ting, K.M. and Liu, T.F., 2011. Fast anomaly detection for streaming data. IJCAI.
    Liu, F.T., Ting, K.M. and Zhou, Z.-H., 2008. Isolation forest. ICDM.
    Sugiyama, M. and Borgwardt, K., 2013. Rapid distance-based outlier detection via sampling. NIPS.
    """

    _state = (
        *("_learned", "_due", "_refits", "_fitted", "_kept", "_said", "_since", "_called_100", "_called_1000"),
        *("_latest", "_present", "_known"),
        *("_held_100", "_held_1000", "_reference_rows", "_kept_rows", "_kept_at", "_kept_weight", "_said_rates"),
        *("_root", "_depth", "_link", "_threshold", "_value", "_medians", "_low", "_span", "_points"),
        *("_centres", "_scales", "_table_scores", "_table_log_rates", "_tail_scale", "_log_corrected"),
    )

    def __init__(
        self,
        features: Sequence[str] | None = None,
        n_trees: int = 25,
        height: int = 12,
        reference: int = 1000,
        memory: int = 20_000,
        window: int = 20_000,
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
        self._learned = self._refits = self._fitted = self._kept = self._said = 0
        self._since = self._called_100 = self._called_1000 = self._latest = 0
        self._held_100 = self._held_1000 = self._tail_scale = 1.0
        self._due = min(FIRST, reference) if refit_every else 0
        self._allocate(0)
        self._start()

    def _allocate(self, width: int) -> None:
        self._reference_rows = np.full((self.reference, width), np.nan, np.float32)
        self._kept_rows = np.full((KEPT, width), np.nan, np.float32)
        self._kept_at = np.zeros(KEPT, np.int64)
        self._kept_weight = np.zeros(KEPT, np.float32)
        self._said_rates = np.ones(self.window, np.float32)
        self._present = np.zeros(width, np.int64)  # values since the last refit, of so many events: `_latest`
        self._known = np.ones(width, np.uint8)
        nothing = np.zeros(0, np.uint32), np.zeros(0, np.float32)
        trees = Trees(nothing[0], nothing[0], nothing[0], nothing[1], nothing[1])
        zeros = np.zeros(width)
        self._set(Fit(trees, zeros, zeros, zeros, np.zeros((width, 0), np.float32), np.zeros(2), np.ones(2)))
        self._table_scores = self._table_log_rates = np.zeros(0)
        self._log_corrected = np.log(LEVELS)

    def _set(self, fit: Fit) -> None:
        self._root, self._depth, self._link, self._threshold, self._value = fit.trees
        _, self._medians, self._low, self._span, self._points, self._centres, self._scales = fit

    @property
    def ready(self) -> bool:
        """True once a refit has seen a full reference."""
        return self._fitted >= self.reference

    @property
    def surprised(self) -> bool:
        """True while "one in 100" has come more than twice as often as promised since the last refit: time for one."""
        return self._called_100 * 100 > SURPRISING * self._since

    def figures(self) -> dict[str, float]:
        """Events learned, refits, nodes in all trees; and how often "one in 100" and "one in 1,000" came true.

        The last two are the share of events rated so while the fit before this one was in use, as a multiple of what
        was promised: 1 is calibrated, 2 twice as many.
        """
        return {
            "learned": self._learned,
            "refits": self._refits,
            "nodes": len(self._value),
            "one_in_100": self._held_100,
            "one_in_1000": self._held_1000,
        }

    def learn_many(self, X: npt.ArrayLike, uids: npt.ArrayLike | None = None) -> None:
        """Learn the rows of X in order; `uids` (uint64, one per row) decide which of them enter the reference."""
        self._learn(X, uids)

    def score_learn_many(self, X: npt.ArrayLike, uids: npt.ArrayLike | None = None) -> tuple[Matrix, Matrix]:
        """Scores and rates of the rows of X, each from before it was learned; they are learned as by `learn_many`."""
        said = [self._take(rows, hashes) for rows, hashes in self._stretches(X, uids)]
        scores, rates = zip(*said, strict=True) if said else ((np.zeros(0),), (np.zeros(0),))
        return np.concatenate(scores), np.concatenate(rates)

    def _absorb(self, rows: Matrix, hashes: Hashes) -> None:
        self._take(rows, hashes)

    def _take(self, rows: Matrix, hashes: Hashes) -> tuple[Matrix, Matrix]:
        scores, rates = self._rate(rows, hashes)
        order = self._learned + np.arange(len(rows))
        enters = (order < self.reference) | (share(hashes) < self.reference / self.memory)
        slots = (share(splitmix64(hashes)) * self.reference).astype(np.int64)
        # Of a repeated index numpy keeps the last, here and below.
        self._reference_rows[np.where(order < self.reference, order, slots)[enters]] = rows[enters]
        self._present += (~np.isnan(rows)).sum(axis=0)
        self._latest += len(rows)
        return scores, rates

    def _interval(self) -> int:
        return max(min(self._due, self.reference - self._due), 0) or self.refit_every  # doubling, then even

    def _rate(self, rows: Matrix, hashes: Hashes) -> tuple[Matrix, Matrix]:
        """Scores and rates of new rows; keeps what later rates are made of."""
        n = len(rows)
        weight = np.ones(n, np.float32)
        scores, rates = np.zeros(n), np.ones(n)
        if self._refits:
            scores = self._score(self._filled(rows))
            counted = self._counted(scores)
            rates = self._corrected(counted)
            self._said_rates[(self._said + np.arange(n)) % self.window] = counted
            self._said += n
            self._since += n
            self._called_100 += int((rates <= 0.01).sum())
            self._called_1000 += int((rates <= 0.001).sum())
            usual = counted > TAIL
            weight[usual] = 1 / BULK
            weight[usual & (share(splitmix64(splitmix64(hashes))) >= BULK)] = 0.0
        kept = np.flatnonzero(weight)
        places = (self._kept + np.arange(len(kept))) % KEPT
        self._kept_rows[places] = rows[kept]
        self._kept_at[places] = self._learned + kept
        self._kept_weight[places] = weight[kept]
        self._kept += len(kept)
        return scores, rates

    def refit(self) -> None:
        """Fit to the reference as it is now, and count rates anew; does nothing before the first rows are in."""
        n = min(self._learned, self.reference)
        if n < min(FIRST, self.reference):
            return
        self._refits += 1
        if n == self.reference > self._fitted:
            self._said = 0  # rates given by the rough fits of the warm-up say nothing of later ones
        self._fitted = n
        rows = self._reference_rows[:n].astype(np.float64)
        if self._latest:
            held = (~np.isnan(rows)).sum(axis=0) / n
            self._known = ((held > 0) & (held >= LAGGING * self._present / self._latest)).astype(np.uint8)
        self._present[:], self._latest = 0, 0
        self._set(fitted(np.where(self._known, rows, np.nan), self.n_trees, self.height, self._key()))
        if self._since:
            self._held_100 = 100 * self._called_100 / self._since
            self._held_1000 = 1000 * self._called_1000 / self._since
        self._since = self._called_100 = self._called_1000 = 0
        self._tabulate()

    def _key(self) -> tuple[int, int]:
        return self.seed, self._refits

    def _tabulate(self) -> None:
        n = min(self._kept, KEPT)
        recent = np.flatnonzero(self._kept_at[:n] >= self._learned - self.window)
        scores = self._score(self._filled(self._kept_rows[recent].astype(np.float64)))
        order = np.argsort(-scores, kind="stable")
        scores, at_least = scores[order], np.cumsum(self._kept_weight[recent][order].astype(np.float64))
        last_of_equal = np.append(scores[:-1] != scores[1:], True)
        scores, at_least = scores[last_of_equal], at_least[last_of_equal]
        some = np.unique(np.geomspace(1, len(scores), TABLE_POINTS).round().astype(np.int64) - 1)[::-1]
        total = at_least[-1]
        self._table_scores, self._table_log_rates = scores[some], np.log((at_least[some] + 1) / (total + 1))
        highest = scores[: max(int(np.searchsorted(at_least, EXCESS * total)), 2)]
        self._tail_scale = max(float((highest - highest[-1]).mean()), NARROWEST)
        said = self._said_rates[: min(self._said, self.window)]
        called = np.searchsorted(np.sort(said), LEVELS.astype(np.float32), "right")
        promised = LEVELS * len(said)
        came_true = np.minimum(LEVELS * (called + PRIOR) / (promised + PRIOR), 1.0)
        self._log_corrected = np.log(np.minimum.accumulate(came_true))

    def score_one(self, x: Mapping[Any, Any]) -> float:
        """Score one event; 0 before the first fit."""
        return float(self.score_many(self._row(x))[0])

    def score_many(self, X: npt.ArrayLike) -> Matrix:
        """Score each row of X: higher is more unusual, 0 as the median event; 0 before the first fit."""
        rows = self._matrix(X)
        return self._score(self._filled(rows)) if self._refits else np.zeros(len(rows))

    def rate_many(self, scores: npt.ArrayLike) -> Matrix:
        """Share of events at least this unusual, in (0, 1]: falls as the score rises; 1 before the first fit.

        Beyond the highest score counted the rate falls exponentially, by the mean excess of the window's highest
        percent (Pickands 1975, peaks over threshold), to a twentieth of what could be counted and no further.
        """
        values = np.asarray(scores, np.float64)
        return self._corrected(self._counted(values)) if self._refits else np.ones(len(values))

    def _counted(self, scores: Matrix) -> Matrix:
        logs = np.interp(scores, self._table_scores, self._table_log_rates, left=0.0)
        beyond = np.maximum(scores - self._table_scores[-1], 0.0) / self._tail_scale
        return np.asarray(np.exp(np.maximum(logs - beyond, self._table_log_rates[-1] - np.log(BEYOND))), np.float64)

    def _corrected(self, counted: Matrix) -> Matrix:
        levels = np.log(LEVELS)
        logs = np.log(counted)
        inside = np.interp(logs, levels[::-1], self._log_corrected[::-1])
        return np.asarray(np.exp(inside + np.minimum(logs - levels[-1], 0.0)), np.float64)

    def explain_many(self, X: npt.ArrayLike, baseline: npt.ArrayLike) -> Matrix:
        """Contribution of each feature to the score, (n, F), against `baseline`: one row, or one for each of X.

        The mean of what a feature adds to the baseline alone and what the score loses without it: the Shapley value
        where at most two features act together. Costs 2F + 2 scores a row.
        """
        rows = self._matrix(X)
        usual = np.broadcast_to(np.asarray(baseline, np.float64), rows.shape)
        scores, usual_scores = self.score_many(rows), self.score_many(usual)
        contributions = np.empty_like(rows)
        for j in range(rows.shape[1]):
            without, alone = rows.copy(), usual.copy()
            without[:, j], alone[:, j] = usual[:, j], rows[:, j]
            contributions[:, j] = (scores - self.score_many(without) + self.score_many(alone) - usual_scores) / 2
        return contributions

    def _filled(self, rows: Matrix) -> Matrix:
        return np.where(np.isnan(rows) | (self._known == 0), self._medians, rows)

    def _score(self, rows: Matrix) -> Matrix:
        nobody = np.zeros(0, np.int64)
        trees = volume(rows, self._root, self._depth, self._link, self._threshold, self._value)
        distances = distance(rows, self._low, self._span, self._points, SAMPLES, nobody)
        (tree_centre, centre), (tree_scale, scale) = self._centres.tolist(), self._scales.tolist()
        return np.asarray(((trees - tree_centre) / tree_scale + (distances - centre) / scale) / 2, np.float64)


def fitted(reference: Matrix, n_trees: int, height: int, key: tuple[int, ...]) -> Fit:
    """Fit to reference rows; `key` decides every draw."""
    n = len(reference)
    present = (~np.isnan(reference)).sum(axis=0)
    medians = quantile(np.sort(reference, axis=0), 0.5, present)
    rows = np.where(np.isnan(reference), medians, reference)
    trimming, growing = (fold(*key, part)[0] for part in (1, 2))
    with np.errstate(over="ignore"):  # uncompiled, numpy warns when a draw's hash wraps
        paths = isolation(np.ascontiguousarray(rows.T), *ISOLATION, trimming)
        kept = np.sort(np.argsort(paths, kind="stable")[round(TRIMMED * n) :])
        low, span = limits(rows[kept])
        trees = Trees(*grow(np.ascontiguousarray(rows[kept].T), low, span, n_trees, height, growing))
    lots = uniforms(SAMPLES * len(kept), *key, 3).reshape(SAMPLES, -1)
    own = kept[np.argsort(lots, axis=1, kind="stable")[:, :SAMPLE]].T.ravel()
    points = np.ascontiguousarray(((rows[own] - low) / span).T, np.float32)
    voices = np.sort([volume(rows, *trees), distance(rows, low, span, points, SAMPLES, own)], axis=1).T
    centres = quantile(voices, 0.5)
    spread = quantile(voices, 0.95) - centres
    return Fit(trees, medians, low, span, points, centres, np.where(spread > NARROWEST, spread, 1.0))


def limits(rows: Matrix) -> tuple[Matrix, Matrix]:
    """Lower limit and span of each feature: 1 % to 99 %, widened by half of that on each side."""
    ordered = np.sort(rows, axis=0)
    low, high = quantile(ordered, 0.01), quantile(ordered, 0.99)
    narrow = high <= low
    low, high = np.where(narrow, ordered[0], low), np.where(narrow, ordered[-1], high)
    span = np.where(high > low, high - low, 1.0)
    return low - span / 2, 2 * span


def quantile(ordered: Matrix, q: float, present: npt.NDArray[np.int64] | None = None) -> Matrix:
    """A quantile of each sorted column, of which the first `present` values count (all by default); 0 of none."""
    counts = np.full(ordered.shape[1], len(ordered)) if present is None else present
    last = np.maximum(counts - 1, 0)
    below = (q * last).astype(np.int64)
    columns = np.arange(ordered.shape[1])
    a, b = ordered[below, columns], ordered[np.minimum(below + 1, last), columns]
    return np.where(counts > 0, a + (q * last - below) * (b - a), 0.0)
