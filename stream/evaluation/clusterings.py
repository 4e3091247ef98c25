"""Ways to cut customers into k groups, and figures to compare them by. Points are in standard units, shape (n, F)."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import base

from online_models import KMeans
from online_models.kmeans import fitted, nearest
from stream.errors import SettingsError

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

STARTS = 10
"""Starts of a batch run, of which the best counts."""
INSTALL = "pip install '.[evaluate]' where Driftline's source is"


class Cut(NamedTuple):
    """Customers cut into groups: the group of each, and the sum of squared distances to the groups' centres."""

    labels: Labels
    inertia: float


class Batch(NamedTuple):
    """The batch method: its name, and a run on points with k groups and a seed."""

    name: str
    run: Callable[[Matrix, int, int], Cut]


def batch() -> Batch:
    """scikit-learn's k-means; where it is not installed our own with as many starts."""
    try:
        cluster = importlib.import_module("sklearn.cluster")
    except ImportError:
        return Batch(f"batch k-means, {STARTS} starts (ours; for scikit-learn's: {INSTALL})", _own)

    def run(points: Matrix, k: int, seed: int) -> Cut:
        model = cluster.KMeans(k, n_init=STARTS, random_state=seed).fit(points)
        return Cut(model.labels_.astype(np.int64), float(model.inertia_))

    return Batch(f"batch k-means, {STARTS} starts (scikit-learn)", run)


def _own(points: Matrix, k: int, seed: int) -> Cut:
    centres, _ = min((fitted(points, k, (seed, start)) for start in range(STARTS)), key=lambda fit: fit[1])
    return by_centres(points, centres)


def by_centres(points: Matrix, centres: Matrix) -> Cut:
    """Each point to its nearest centre."""
    labels, distances, _ = nearest(points, centres)
    return Cut(labels, float(distances.sum()))


def by_means(points: Matrix, labels: Labels) -> Cut:
    """Groups as they are; the centre of each is the mean of its points."""
    parts = (points[labels == label] for label in np.unique(labels))
    return Cut(labels, float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts)))


def by_rank(points: Matrix, k: int, columns: Sequence[int], signs: Sequence[float]) -> Cut:
    """RFM cells: the mean rank over some columns, cut into k groups of one size."""
    ranks = [np.argsort(np.argsort(sign * points[:, j])) for j, sign in zip(columns, signs, strict=True)]
    order = np.argsort(np.argsort(np.sum(ranks, axis=0), kind="stable"))
    return by_means(points, order * k // len(points))


def agreement(left: Labels, right: Labels) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): 1 = the same groups, 0 = as alike as chance makes them.

    >>> agreement(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
    1.0
    """
    _, left = np.unique(left, return_inverse=True)
    _, right = np.unique(right, return_inverse=True)
    table = np.zeros((left.max() + 1, right.max() + 1))
    np.add.at(table, (left, right), 1.0)

    def pairs(counts: Matrix) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    chance = rows * columns / max(pairs(np.array([float(len(left))])), 1.0)
    most = (rows + columns) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


class Scaled:
    """Standard units by the running mean and deviation of what was learned; a missing value is the mean."""

    def __init__(self) -> None:
        self._count = self._sum = self._squares = np.zeros(1)

    def learn(self, rows: Matrix) -> None:
        present = ~np.isnan(rows)
        values = np.where(present, rows, 0.0)
        self._count = self._count + present.sum(axis=0)
        self._sum = self._sum + values.sum(axis=0)
        self._squares = self._squares + (values**2).sum(axis=0)

    def standard(self, rows: Matrix) -> Matrix:
        count = np.maximum(self._count, 1.0)
        mean = self._sum / count
        std = np.sqrt(np.maximum(self._squares / count - mean**2, 0.0))
        return np.nan_to_num((rows - mean) / np.where(std > 1e-6, std, 1.0), nan=0.0)


class Peer:
    """A learner that takes one row for each event, in order, under a running scale."""

    def __init__(self, name: str, learn: Callable[[Matrix], None], label: Callable[[Matrix], Labels]) -> None:
        self.name = name
        self._learn, self._label = learn, label
        self._scale = Scaled()
        self._began = False

    def learn(self, rows: Matrix) -> None:
        """Learn rows in the features' own units."""
        if len(rows):
            self._scale.learn(rows)
            self._learn(self._scale.standard(rows))
            self._began = True

    def cut(self, rows: Matrix, points: Matrix) -> Cut | None:
        """Groups of rows, which are `points` in standard units; None before anything was learned."""
        return by_means(points, self._label(self._scale.standard(rows))) if self._began else None


def river_kmeans(k: int, halflife: float, seed: int) -> Peer:
    """River's KMeans, by our form of it, which gives the same to the last bit."""
    model = KMeans(k, halflife, seed=seed)
    return Peer(f"River: cluster.KMeans(halflife={halflife:g})", model.learn_many, model.predict_many)


def mini_batch(k: int, seed: int) -> Peer | None:
    """scikit-learn's MiniBatchKMeans, fed by `partial_fit`; None where it is not installed."""
    try:
        cluster = importlib.import_module("sklearn.cluster")
    except ImportError:
        return None
    model = cluster.MiniBatchKMeans(k, random_state=seed, n_init=3)
    waiting: list[Matrix] = []

    def learn(points: Matrix) -> None:
        waiting.append(points)
        if sum(map(len, waiting)) >= max(50 * k, 250):  # the first batch places the centres
            model.partial_fit(np.concatenate(waiting))
            waiting.clear()

    def label(points: Matrix) -> Labels:
        if not hasattr(model, "cluster_centers_"):
            return np.zeros(len(points), np.int64)
        return np.asarray(model.predict(points), np.int64)

    return Peer("scikit-learn: MiniBatchKMeans", learn, label)


def named(path: str, k: int, seed: int) -> Peer:
    """A River clusterer by its class, such as river.cluster.DBSTREAM; `n_clusters` and `seed` are given if it has them.

    Raises:
        SettingsError: there is no such class, or it does not cluster.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError):
        raise SettingsError(f"--model {path}: no such class; write it like river.cluster.DBSTREAM") from None
    if not (isinstance(kind, type) and issubclass(kind, base.Clusterer)):
        raise SettingsError(f"--model {path} is no River clusterer; those of river.cluster are")
    known = inspect.signature(kind).parameters
    model = kind(**{key: value for key, value in (("n_clusters", k), ("seed", seed)) if key in known})

    def learn(points: Matrix) -> None:
        for row in points.tolist():
            model.learn_one(dict(enumerate(row)))

    def label(points: Matrix) -> Labels:
        return np.array([int(model.predict_one(dict(enumerate(row)))) for row in points.tolist()], np.int64)

    return Peer(f"River: {path.removeprefix('river.')}", learn, label)
