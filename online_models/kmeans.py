"""K-means over a sample of customers, refitted from its last centres, and River's sequential k-means over arrays."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from river import base

from online_models.arrays import Hashes, Matrix, RefittedModel, ordered_sum, uniforms
from online_models.compiled import compiled
from online_models.lineage import Change, redrawn

MOST_STEPS = 100  # of Lloyd's algorithm from one start
STEP_TERMS = 1_500_000  # differences squared in one step of a refit: one to three milliseconds
FIRST_STARTS, STARTS = 8, 2  # fresh k-means++ starts of the first refit, and of each later one
CANDIDATES = 3  # points tried for each first centre
SWAPS = 8  # points tried in the place of a centre before Lloyd's algorithm goes on
DECAY = 0.999  # of the progressive figures, per row


class IncrementalKMeans(RefittedModel, base.Clusterer):
    """K-means that learns customers, not events, so that heavy users do not own the centres.

    Keeps the latest state of the `sample` customers with the smallest hash (a bottom-k sample: uniform over customers
    however often each is seen, and mergeable). A refit standardises that sample and runs Lloyd's algorithm from the
    present centres, from fresh k-means++ starts improved by swaps, and from the best start of earlier refits; another
    start's centres replace the present ones only if they are plainly better. An empty cluster restarts at the
    farthest point. A segment keeps its id as long as the old and the new one share most customers (`lineage`).

    **Warm-up**: `min_customers` rows of as many customers; until then the id is −1 and the margin 0. Refits come at
    a quarter more rows each time until they are `refit_every` apart. **Cost**: well below a microsecond per row in
    batches; a refit takes some ten milliseconds, in `refitting` a few at a time. A missing value counts as the
    sample's mean.

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
    better
        Other centres replace the present ones when their inertia is below this share: near 1 follows the best fit
        whatever becomes of the ids, lower values keep identities.
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
    [[9.45, 400.45], [1.45, 20.45]]
    >>> model.predict_one({"orders": 8, "spend": 350.0}), model.shares().tolist(), model.population()
    (0, [0.5, 0.5], 400)

    References
    ----------
    Lloyd, S., 1982. Least squares quantization in PCM. IEEE Transactions on Information Theory 28(2).
    Arthur, D. and Vassilvitskii, S., 2007. k-means++: the advantages of careful seeding. SODA.
    Lattanzi, S. and Sohler, C., 2019. A better k-means++ algorithm via local search. ICML.
    Cohen, E. and Kaplan, H., 2007. Summarizing data using bottom-k sketches. PODC.
    """

    _state = (
        *(
            "_learned",
            "_due",
            "_refits",
            "_hashes",
            "_dropped",
            "_rows",
            "_mean",
            "_std",
            "_centres",
            "_ids",
            "_inertia",
        ),
        *("_rival", "_unused", "_distance_sum", "_distance_weight"),
    )

    def __init__(
        self,
        features: Sequence[str] | None = None,
        n_clusters: int = 6,
        sample: int = 4000,
        refit_every: int = 1000,
        min_customers: int = 200,
        better: float = 0.98,
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
        self.better = better
        self.seed = seed
        self._learned = self._refits = self._unused = 0
        self._lineage: list[Change] = []
        self._due = min_customers if refit_every else 0
        self._inertia = self._distance_sum = self._distance_weight = 0.0
        self._allocate(0)
        self._start()

    def _allocate(self, width: int) -> None:
        self._hashes = np.zeros(0, np.uint64)  # ascending
        self._dropped = np.full(1, np.iinfo(np.uint64).max)  # the lowest hash that found no place
        self._rows = np.zeros((0, width), np.float32)
        self._mean, self._std = np.zeros(width), np.ones(width)
        self._centres = np.zeros((0, width))  # in standard units
        self._ids = np.zeros(0, np.int32)
        self._rival = np.zeros((0, width))  # the best centres of fresh starts so far, in the features' units

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The id of each centre, in the order of `centres`, ascending; a segment keeps its id through refits."""
        return self._ids.copy()

    @property
    def lineage(self) -> list[Change]:
        """What the last refit changed of the segments' identities; no part of a snapshot."""
        return list(self._lineage)

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
        return min(self.refit_every, max(self._learned // 4, self.min_customers))  # a young sample changes fast

    def _absorb(self, rows: Matrix, hashes: Hashes) -> None:
        self._track(rows)
        hashes, back = np.unique(hashes[::-1], return_index=True)
        rows = rows[::-1][back]  # the latest of each customer
        place = np.searchsorted(self._hashes, hashes)
        known = np.isin(hashes, self._hashes, assume_unique=True)
        self._rows[place[known]] = rows[known]
        new = ~known & (hashes < self._dropped[0])
        if new.any():
            self._hashes = np.insert(self._hashes, place[new], hashes[new])
            self._rows = np.insert(self._rows, place[new], rows[new], axis=0)
            if len(self._hashes) > self.sample:
                self._dropped[0] = self._hashes[self.sample]
                self._hashes, self._rows = self._hashes[: self.sample], self._rows[: self.sample]

    def _track(self, rows: Matrix) -> None:
        if self.ready:
            for distance in nearest(self.standard(rows), self._centres)[1].tolist():
                self._distance_sum = DECAY * self._distance_sum + distance
                self._distance_weight = DECAY * self._distance_weight + 1.0

    def forget(self, customer: int) -> None:
        """Take a customer out of the sample; what the centres learned from it goes with the next refit."""
        kept = self._hashes != self._hash(np.array([customer], np.uint64))
        self._hashes, self._rows = self._hashes[kept], self._rows[kept]

    def refit(self) -> None:
        """Fit the centres to the sample as it is now; does nothing with fewer than `min_customers` in it."""
        for _ in self.refitting():
            pass

    def refitting(self) -> Generator[None, None, None]:
        """The same in steps of bounded work, a few milliseconds each; the model changes with the last one only."""
        spent = 0
        for cost in self._pieces():
            spent += cost
            if spent >= STEP_TERMS:
                spent = 0
                yield

    def _pieces(self) -> Generator[int, None, None]:
        """Refit; yields the cost of each piece of work once it is done."""
        if len(self._hashes) < self.min_customers:
            return
        rows, number, k = self._rows.astype(np.float64), self._refits + 1, self.n_clusters
        mean, std = _moments(rows)
        points = np.where(np.isnan(rows), 0.0, (rows - mean) / std)
        yield points.size
        fits: list[tuple[Matrix, float]] = []
        for start in range(STARTS if self.ready else FIRST_STARTS):
            fit = yield from _started(points, k, (self.seed, number, start))
            fits.append(fit)
        if len(self._rival):
            fits.append((yield from _settled(points, (self._rival - mean) / std)))
        centres, inertia = min(fits, key=lambda fit: fit[1])
        rival = centres * std + mean
        before = np.zeros(0, np.int64)
        if self.ready:
            before = nearest(self.standard(rows), self._centres)[0]
            kept, kept_inertia = yield from _settled(points, (self.centres() - mean) / std)
            if inertia >= self.better * kept_inertia:
                centres, inertia = kept, kept_inertia
        shared = np.zeros((len(self._ids), k))
        np.add.at(shared, (before, nearest(points, centres)[0][: len(before)]), 1.0)
        ids, self._lineage = redrawn(shared, self._ids, self._unused)
        order = np.argsort(ids)
        self._centres, self._ids, self._rival = centres[order], ids[order], rival
        self._mean, self._std, self._inertia = mean, std, inertia / len(points)
        self._unused = max(self._unused, int(ids.max()) + 1)
        self._refits = number

    def predict_one(self, x: Mapping[Any, Any]) -> int:
        """The id of the nearest centre; −1 before the model is ready."""
        return int(self.predict_many(self._row(x))[0])

    def predict_many(self, X: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """The id of each row's nearest centre; −1 before the model is ready."""
        rows = self._matrix(X)
        if not self.ready:
            return np.full(len(rows), -1, np.int32)
        return np.asarray(self._ids[nearest(self.standard(rows), self._centres)[0]], np.int32)

    def distances_many(self, X: npt.ArrayLike) -> Matrix:
        """Distance of each row to each centre in standard deviations, (n, k), in the order of `ids`."""
        return np.asarray(np.sqrt(squared_distances(self.standard(self._matrix(X)), self._centres)))

    def margin_many(self, X: npt.ArrayLike) -> Matrix:
        """How clear each row's segment is, in [0, 1]: 1 − distance to the nearest centre / to the second nearest."""
        rows = self._matrix(X)
        if not self.ready or self.n_clusters < 2:
            return np.zeros(len(rows))
        _, first, second = nearest(self.standard(rows), self._centres)
        ratio = np.ones(len(rows))
        np.divide(np.sqrt(first), np.sqrt(second), out=ratio, where=second > 0)
        return 1 - ratio

    def contrast(self, row: npt.ArrayLike, before: int, after: int) -> Matrix:
        """By how much each feature of one row speaks for segment `after` and against `before`, (F,).

        The difference of the squared distances to the two centres, in standard units; sums to how much nearer
        `after` is.
        """
        standard = self.standard(np.asarray(row, np.float64))
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
        labels = nearest(self.standard(self._rows.astype(np.float64)), self._centres)[0]
        return np.bincount(labels, minlength=self.n_clusters) / max(len(labels), 1)

    def population(self) -> int:
        """How many customers there are: exact while all are in the sample, else estimated from how dense it lies."""
        return round(len(self._hashes) * 2.0**64 / (float(self._dropped[0]) + 1.0))

    def standard(self, rows: Matrix) -> Matrix:
        """Rows in standard deviations from the sample's mean, as the centres of `profile` are."""
        return np.where(np.isnan(rows), 0.0, (rows - self._mean) / self._std)


def squared_distances(points: Matrix, centres: Matrix) -> Matrix:
    """Squared Euclidean distance of each point to each centre, (n, k)."""
    terms = ((points[:, j, None] - centres[:, j]) ** 2 for j in range(points.shape[1]))
    return ordered_sum(terms, like=np.empty((len(points), len(centres))))


@compiled
def nearest(points: Matrix, centres: Matrix) -> tuple[npt.NDArray[np.int64], Matrix, Matrix]:
    """Of each point the place of the nearest centre, and the squared distances to it and to the second nearest."""
    n, width = points.shape
    labels, first, second = np.zeros(n, np.int64), np.full(n, np.inf), np.full(n, np.inf)
    for i in range(n):
        for c in range(len(centres)):
            distance = 0.0
            for j in range(width):
                step = points[i, j] - centres[c, j]
                distance += step * step
            if distance < first[i]:
                labels[i], first[i], second[i] = c, distance, first[i]
            elif distance < second[i]:
                second[i] = distance
    return labels, first, second


@compiled
def lloyd(points: Matrix, centres: Matrix, steps: int) -> tuple[Matrix, float, bool]:
    """Move centres for `steps` steps; returns them, their inertia (sum of squared distances), and if they rest."""
    n, width = points.shape
    centres = centres.copy()
    labels, distances, _ = nearest(points, centres)
    rests = False
    for _ in range(steps):
        counts, sums = np.zeros(len(centres)), np.zeros(centres.shape)
        for i in range(n):
            counts[labels[i]] += 1.0
            for j in range(width):
                sums[labels[i], j] += points[i, j]
        for c in range(len(centres)):
            if counts[c] > 0:
                for j in range(width):
                    centres[c, j] = sums[c, j] / counts[c]
            else:
                farthest = np.argmax(distances)
                centres[c] = points[farthest]
                distances[farthest] = 0.0
        before = labels
        labels, distances, _ = nearest(points, centres)
        rests = True
        for i in range(n):
            if labels[i] != before[i]:
                rests = False
                break
        if rests:
            break
    inertia = 0.0
    for i in range(n):
        inertia += distances[i]
    return centres, inertia, rests


@compiled
def drawn(points: Matrix, reached: Matrix, draws: Matrix) -> tuple[int, Matrix]:
    """One more first centre, the best of as many points as `draws`, each drawn in proportion to `reached`.

    `reached` are the squared distances from the centres so far (infinite while there is none); returns the point's
    place and the distances with it.
    """
    n, width = points.shape
    weight = np.ones(n) if np.isinf(reached[0]) else reached
    cumulated = np.cumsum(weight)
    best, chosen, chosen_reach = np.inf, 0, reached
    for draw in draws:
        place = min(np.searchsorted(cumulated, draw * cumulated[-1], "right"), n - 1)
        reach, total = np.empty(n), 0.0
        for i in range(n):
            distance = 0.0
            for j in range(width):
                step = points[i, j] - points[place, j]
                distance += step * step
            reach[i] = min(distance, reached[i])
            total += reach[i]
        if total < best:
            best, chosen, chosen_reach = total, place, reach
    return chosen, chosen_reach


@compiled
def swap(points: Matrix, centres: Matrix, draw: float) -> None:
    """Put a point, drawn in proportion to its squared distance, in the place of the centre it betters most, if any."""
    n, width = points.shape
    labels, first, second = nearest(points, centres)
    cumulated = np.cumsum(first)
    place = min(np.searchsorted(cumulated, draw * cumulated[-1], "right"), n - 1)
    present = without = 0.0
    loss = np.zeros(len(centres))  # what it costs to take each centre away, once the point is there
    for i in range(n):
        distance = 0.0
        for j in range(width):
            step = points[i, j] - points[place, j]
            distance += step * step
        near = min(distance, first[i])
        present += first[i]
        without += near
        loss[labels[i]] += min(distance, second[i]) - near
    worst = np.argmin(loss)
    if without + loss[worst] < present:
        centres[worst] = points[place]


def _spread(points: Matrix, draws: Matrix) -> Generator[int, None, Matrix]:
    """First centres, each far from those before it (k-means++, the best of several candidates each time)."""
    reached, chosen = np.full(len(points), np.inf), []
    for row in draws:
        place, reached = drawn(points, reached, row)
        chosen.append(place)
        yield points.size * len(row)
    return points[chosen]


def _started(points: Matrix, k: int, key: tuple[int, ...]) -> Generator[int, None, tuple[Matrix, float]]:
    """Centres from one fresh start that `key` draws, and their inertia."""
    draws = uniforms(k * CANDIDATES + SWAPS, *key)
    centres = yield from _spread(points, draws[SWAPS:].reshape(k, CANDIDATES))
    for draw in draws[:SWAPS]:
        swap(points, centres, draw)
        yield points.size * (k + 1)
    return (yield from _settled(points, centres))


def fitted(points: Matrix, k: int, key: tuple[int, ...]) -> tuple[Matrix, float]:
    """A batch fit from one start that `key` draws: centres and inertia. The best of several keys is what counts."""
    steps = _started(points, k, key)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: tuple[Matrix, float] = end.value
            return result


def _settled(points: Matrix, centres: Matrix) -> Generator[int, None, tuple[Matrix, float]]:
    """Centres where Lloyd's algorithm comes to rest, and their inertia."""
    cost = points.size * len(centres)
    steps = max(STEP_TERMS // cost, 1)
    for _ in range(0, MOST_STEPS, steps):
        centres, inertia, rests = lloyd(points, centres, steps)
        yield cost * (steps + 1)
        if rests:
            break
    return centres, inertia


def _moments(rows: Matrix) -> tuple[Matrix, Matrix]:
    """Mean and standard deviation of each column's present values; a column that does not vary gets 1."""
    present = ~np.isnan(rows)
    counts = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, rows, 0.0).sum(axis=0) / counts
    std = np.sqrt(np.where(present, (rows - mean) ** 2, 0.0).sum(axis=0) / counts)
    return mean, np.where(std > 1e-6, std, 1.0)
