"""K-means over a sample of customers, refitted from its last centres."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from river import base
from scipy.optimize import linear_sum_assignment

from online_models.arrays import Hashes, Matrix, RefittedModel, ordered_sum, uniforms

MOST_STEPS = 50  # of Lloyd's algorithm in one refit
BETTER = 0.97  # fresh centres replace the present ones when their inertia is below this share
FIRST_STARTS = 8  # k-means++ starts of the first refit, which has no present centres
DECAY = 0.999  # of the progressive figures, per row


class IncrementalKMeans(RefittedModel, base.Clusterer):
    """K-means that learns customers, not events, so that heavy users do not own the centres.

    Keeps the latest state of the `sample` customers with the smallest hash (a bottom-k sample: uniform over customers
    however often each is seen, and mergeable). A refit standardises that sample, runs Lloyd's algorithm from the
    present centres and from one fresh k-means++ start, and takes the fresh one only if it is 3 % better; its
    centres then inherit the ids of the old ones they lie nearest to. An empty cluster restarts at the farthest point.

    **Warm-up**: `min_customers` rows of as many customers; until then the id is −1 and the margin 0. Refits come at
    twice the rows each time until they are `refit_every` apart. **Cost**: about a microsecond per row in batches; a
    refit takes some ten milliseconds. A missing value counts as the sample's mean.

    Parameters
    ----------
    features
        Names of the columns, in any units.
    n_clusters
        Number of segments.
    sample
        Most customers kept.
    refit_every
        Learned rows between refits; 0 refits only when `refit` is called.
    min_customers
        Customers needed for a refit.
    seed
        Moves both sample and starts.

    Examples
    --------
    >>> import numpy as np
    >>> model = IncrementalKMeans(["orders", "spend"], n_clusters=2)
    >>> spread = np.arange(200) % 10 / 10
    >>> few, many = np.column_stack([1 + spread, 20 + spread]), np.column_stack([9 + spread, 400 + spread])
    >>> model.learn_many(np.concatenate([few, many]))
    >>> model.centres().round(2).tolist()
    [[1.45, 20.45], [9.45, 400.45]]
    >>> model.predict_one({"orders": 8, "spend": 350.0}), model.shares().tolist()
    (1, [0.5, 0.5])

    References
    ----------
    Lloyd, S., 1982. Least squares quantization in PCM. IEEE Transactions on Information Theory 28(2).
    Arthur, D. and Vassilvitskii, S., 2007. k-means++: the advantages of careful seeding. SODA.
    Cohen, E. and Kaplan, H., 2007. Summarizing data using bottom-k sketches. PODC.
    """

    _state = (
        *("_learned", "_due", "_refits", "_hashes", "_rows", "_mean", "_std", "_centres", "_ids", "_inertia"),
        *("_distance_sum", "_distance_weight"),
    )

    def __init__(
        self,
        features: Sequence[str] | None = None,
        n_clusters: int = 6,
        sample: int = 2000,
        refit_every: int = 2000,
        min_customers: int = 200,
        seed: int = 42,
    ) -> None:
        if not 0 < n_clusters <= min_customers <= sample:
            raise ValueError(
                f"found n_clusters={n_clusters}, min_customers={min_customers} and sample={sample}, "
                "expected 0 < n_clusters <= min_customers <= sample"
            )
        self.features = features
        self.n_clusters = n_clusters
        self.sample = sample
        self.refit_every = refit_every
        self.min_customers = min_customers
        self.seed = seed
        self._learned = self._refits = 0
        self._due = min_customers if refit_every else 0
        self._inertia = self._distance_sum = self._distance_weight = 0.0
        self._allocate(0)
        self._start()

    def _allocate(self, width: int) -> None:
        self._hashes = np.zeros(0, np.uint64)  # ascending
        self._rows = np.zeros((0, width), np.float32)
        self._mean, self._std = np.zeros(width), np.ones(width)
        self._centres = np.zeros((0, width))  # in standard units
        self._ids = np.zeros(0, np.int32)

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The id of each centre, in the order of `centres`; a segment keeps its id through refits."""
        return self._ids.copy()

    def figures(self) -> dict[str, float]:
        """`inertia_ratio`: mean squared distance of rows before they are learned, over that of the refitted sample."""
        known = self._distance_weight * self._inertia
        return {
            "learned": self._learned,
            "refits": self._refits,
            "customers": len(self._hashes),
            "inertia_ratio": self._distance_sum / known if known else 1.0,
        }

    def learn_many(self, X: npt.ArrayLike, customers: npt.ArrayLike | None = None) -> None:
        """Learn the latest states of `customers` (uint64, one per row), in order; None: customers never seen before."""
        self._learn(X, customers)

    def _interval(self) -> int:
        return min(self.refit_every, self._learned)  # a young sample changes fast

    def _absorb(self, rows: Matrix, hashes: Hashes) -> None:
        self._track(rows)
        hashes, back = np.unique(hashes[::-1], return_index=True)
        rows = rows[::-1][back]  # the latest of each customer
        place = np.searchsorted(self._hashes, hashes)
        known = np.isin(hashes, self._hashes, assume_unique=True)
        self._rows[place[known]] = rows[known]
        new = ~known & (place < self.sample)
        if new.any():
            self._hashes = np.insert(self._hashes, place[new], hashes[new])[: self.sample]
            self._rows = np.insert(self._rows, place[new], rows[new], axis=0)[: self.sample]

    def _track(self, rows: Matrix) -> None:
        if self.ready:
            for distance in self._squared(rows).min(axis=1).tolist():
                self._distance_sum = DECAY * self._distance_sum + distance
                self._distance_weight = DECAY * self._distance_weight + 1.0

    def forget(self, customer: int) -> None:
        """Take a customer out of the sample; what the centres learned from it goes with the next refit."""
        kept = self._hashes != self._hash(np.array([customer], np.uint64))
        self._hashes, self._rows = self._hashes[kept], self._rows[kept]

    def refit(self) -> None:
        """Fit the centres to the sample as it is now; does nothing with fewer than `min_customers` in it."""
        if len(self._hashes) < self.min_customers:
            return
        rows, present, starts = self._rows.astype(np.float64), self.centres(), 1 if self.ready else FIRST_STARTS
        self._refits += 1
        self._mean, self._std = _moments(rows)
        points = self._standard(rows)
        keys = [(self.seed, self._refits, start) for start in range(starts)]
        fits = [lloyd(points, plus_plus(points, self.n_clusters, key)) for key in keys]
        centres, inertia = min(fits, key=lambda fit: fit[1])
        if len(present):
            old = (present - self._mean) / self._std
            kept, kept_inertia = lloyd(points, old)
            if inertia < BETTER * kept_inertia:
                centres = centres[linear_sum_assignment(squared_distances(old, centres))[1]]
            else:
                centres, inertia = kept, kept_inertia
        self._centres, self._inertia = centres, inertia / len(points)
        self._ids = np.arange(self.n_clusters, dtype=np.int32)  # centres move, fresh ones take the places of the old

    def predict_one(self, x: Mapping[Any, Any]) -> int:
        """The id of the nearest centre; −1 before the model is ready."""
        return int(self.predict_many(self._row(x))[0])

    def predict_many(self, X: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """The id of each row's nearest centre; −1 before the model is ready."""
        rows = self._matrix(X)
        if not self.ready:
            return np.full(len(rows), -1, np.int32)
        return np.asarray(self._ids[self._squared(rows).argmin(axis=1)], np.int32)

    def margin_many(self, X: npt.ArrayLike) -> Matrix:
        """How clear each row's segment is, in [0, 1]: 1 − distance to the nearest centre / to the second nearest."""
        rows = self._matrix(X)
        if not self.ready or self.n_clusters < 2:
            return np.zeros(len(rows))
        distances = np.sqrt(np.sort(self._squared(rows), axis=1))
        ratio = np.ones(len(rows))
        np.divide(distances[:, 0], distances[:, 1], out=ratio, where=distances[:, 1] > 0)
        return 1 - ratio

    def contrast(self, row: npt.ArrayLike, before: int, after: int) -> Matrix:
        """By how much each feature of one row speaks for segment `after` and against `before`, (F,).

        The difference of the squared distances to the two centres, in standard units; sums to how much nearer
        `after` is.
        """
        standard = self._standard(np.asarray(row, np.float64))
        old, new = (self._centres[int(np.flatnonzero(self._ids == segment)[0])] for segment in (before, after))
        return np.asarray((standard - old) ** 2 - (standard - new) ** 2)

    def profile(self) -> Matrix:
        """Centres in standard deviations from the sample's mean, (k, F)."""
        return self._centres.copy()

    def centres(self) -> Matrix:
        """Centres in the units of the features, (k, F)."""
        return self._centres * self._std + self._mean

    def shares(self) -> Matrix:
        """Share of the sampled customers in each segment, in the order of `centres`."""
        if not self.ready:
            return np.zeros(0)
        nearest = self._squared(self._rows.astype(np.float64)).argmin(axis=1)
        return np.bincount(nearest, minlength=self.n_clusters) / max(len(nearest), 1)

    def _standard(self, rows: Matrix) -> Matrix:
        return np.where(np.isnan(rows), 0.0, (rows - self._mean) / self._std)

    def _squared(self, rows: Matrix) -> Matrix:
        return squared_distances(self._standard(rows), self._centres)


def squared_distances(points: Matrix, centres: Matrix) -> Matrix:
    """Squared Euclidean distance of each point to each centre, (n, k)."""
    terms = ((points[:, j, None] - centres[:, j]) ** 2 for j in range(points.shape[1]))
    return ordered_sum(terms, like=np.empty((len(points), len(centres))))


def lloyd(points: Matrix, centres: Matrix) -> tuple[Matrix, float]:
    """Move `centres` until no point changes sides; returns them with their inertia (sum of squared distances)."""
    labels = np.full(len(points), -1)
    for _ in range(MOST_STEPS):
        distances = squared_distances(points, centres)
        before, labels = labels, distances.argmin(axis=1)
        if np.array_equal(before, labels):
            break
        centres = _means(points, labels, distances.min(axis=1), len(centres))
    return centres, float(squared_distances(points, centres).min(axis=1).sum())


def _means(points: Matrix, labels: npt.NDArray[np.int64], distances: Matrix, k: int) -> Matrix:
    counts = np.bincount(labels, minlength=k)
    sums = np.column_stack([np.bincount(labels, column, k) for column in points.T])
    centres = sums / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    centres[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
    return centres


def plus_plus(points: Matrix, k: int, key: tuple[int, ...]) -> Matrix:
    """Draw k points as first centres, each in proportion to its squared distance from those drawn before."""
    nearest = np.ones(len(points))
    chosen: list[int] = []
    for draw in uniforms(k, *key):
        reach = np.cumsum(nearest)
        chosen.append(min(int(np.searchsorted(reach, draw * reach[-1], "right")), len(points) - 1))
        new = squared_distances(points, points[chosen[-1:]])[:, 0]
        nearest = new if len(chosen) == 1 else np.minimum(nearest, new)
    return points[chosen]


def _moments(rows: Matrix) -> tuple[Matrix, Matrix]:
    """Mean and standard deviation of each column's present values; a column that does not vary gets 1."""
    present = ~np.isnan(rows)
    counts = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, rows, 0.0).sum(axis=0) / counts
    std = np.sqrt(np.where(present, (rows - mean) ** 2, 0.0).sum(axis=0) / counts)
    return mean, np.where(std > 1e-6, std, 1.0)
