"""River's sequential k-means over arrays: the same labels and centres, bit for bit, hundreds of times as fast."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from river import base, cluster

from online_models.arrays import ArrayModel, Matrix
from online_models.compiled import compiled

COMPENSATED = sys.version_info >= (3, 12)
"""Since Python 3.12 `sum`, which River adds up distances with, carries the rounding error along."""


class KMeans(ArrayModel, base.Clusterer):
    """`river.cluster.KMeans` for who asks for exactly that: each row pulls its nearest centre towards itself.

    Parameters, first centres and every step are River's; so are the results, as long as River's dicts have the same
    keys in each event and a set of them iterates in the order of `features` (small integers do). A missing value
    counts as 0 and does not pull. **Not for segments**: it learns events rather than customers, and moves by a constant
    share, so it forgets; see `IncrementalKMeans`.

    Parameters
    ----------
    n_clusters
        Number of centres.
    halflife
        Share of the way that a centre moves towards a row; no half-life, in spite of its name.
    mu, sigma
        Mean and standard deviation of the first centres' coordinates.
    p
        Power of the Minkowski distance.
    seed
        Moves the first centres.
    features
        Names of the columns.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [-4, 2], [-4, 4], [-4, 0]])
    >>> model = KMeans(n_clusters=2, halflife=0.1, sigma=3, seed=42)
    >>> model.learn_predict_many(X).tolist(), model.predict_many([[0, 0], [0, 4]]).tolist()
    ([1, 1, 0, 1, 1, 0], [0, 1])
    """

    _state = ("_centres",)

    def __init__(
        self,
        n_clusters: int = 5,
        halflife: float = 0.5,
        mu: float = 0,
        sigma: float = 1,
        p: int = 2,
        seed: int = 42,
        features: Sequence[str] | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.halflife = halflife
        self.mu = mu
        self.sigma = sigma
        self.p = p
        self.seed = seed
        self.features = features
        self._centres = np.zeros((0, 0))
        self._start()

    def _allocate(self, width: int) -> None:
        self._centres = self._first(width)

    def _first(self, width: int) -> Matrix:
        """First centres, drawn by River itself."""
        reference = cluster.KMeans(self.n_clusters, self.halflife, self.mu, self.sigma, self.p, self.seed)
        return np.array([[reference.centers[c][j] for j in range(width)] for c in range(self.n_clusters)])

    def centres(self) -> Matrix:
        """The centres, (k, F)."""
        return self._centres.copy()

    def figures(self) -> dict[str, float]:
        """Nothing that River's form could say of itself."""
        return {"clusters": self.n_clusters}

    def learn_one(self, x: Mapping[Any, Any]) -> None:
        """Move the nearest centre towards the row."""
        self.learn_predict_many(self._learnable_row(x))

    def learn_predict_one(self, x: Mapping[Any, Any]) -> int:
        """Learn the row; returns the centre that it moved."""
        return int(self.learn_predict_many(self._learnable_row(x))[0])

    def predict_one(self, x: Mapping[Any, Any]) -> int:
        """The nearest centre."""
        return int(self.predict_many(self._row(x))[0])

    def learn_many(self, X: npt.ArrayLike) -> None:
        """Learn the rows, one after another."""
        self.learn_predict_many(X)

    def learn_predict_many(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Learn the rows, one after another; returns the centre that each one moved."""
        return sequential(self._learnable(X), self._centres, float(self.halflife), float(self.p), COMPENSATED)

    def predict_many(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The nearest centre of each row, none moved."""
        rows = self._matrix(X)
        centres = self._centres.copy() if self._names is not None else self._first(rows.shape[1])
        return sequential(rows, centres, 0.0, float(self.p), COMPENSATED)


@compiled
def _distance(centre: Matrix, row: Matrix, p: float, compensated: bool) -> float:
    total = rest = 0.0
    for j in range(len(row)):
        step = abs(centre[j] - row[j])
        term = step * step if p == 2.0 else step**p
        if compensated and j > 0:
            new = total + term
            rest += (total - new) + term if abs(total) >= abs(term) else (term - new) + total
            total = new
        else:
            total += term
    return total + rest


@compiled
def sequential(rows: Matrix, centres: Matrix, pull: float, p: float, compensated: bool) -> npt.NDArray[np.int64]:
    """The centre nearest to each row, each moved by `pull` of the way before the next row is looked at."""
    labels = np.zeros(len(rows), np.int64)
    known = rows == rows  # NaN is not
    values = np.where(known, rows, 0.0)
    for i in range(len(rows)):
        best, nearest = np.inf, 0
        for c in range(len(centres)):
            if p == 2.0 and not compensated:
                total = 0.0
                for j in range(rows.shape[1]):
                    step = centres[c, j] - values[i, j]
                    total += step * step
            else:
                total = _distance(centres[c], values[i], p, compensated)
            if total < best:
                best, nearest = total, c
        labels[i] = nearest
        if pull != 0.0:
            for j in range(rows.shape[1]):
                if known[i, j]:
                    centres[nearest, j] += pull * (values[i, j] - centres[nearest, j])
    return labels
