"""What the models share: rows from dicts, hashing instead of random generators, snapshots made of plain arrays."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

LARGEST = 1e30  # infinities become this: beyond any real value, and its square is finite in every sum
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: Hashes) -> Hashes:
    """Mix 64 bits (Steele, Lea & Flood 2014): a bijection, each bit of `x` moves half the bits of the result."""
    z = x + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fold(*key: int) -> Hashes:
    """Hash a tuple of integers, as an array of one element (numpy warns when a bare uint64 wraps)."""
    mixed = np.zeros(1, np.uint64)
    for part in key:
        mixed = splitmix64(mixed ^ np.uint64(part % 2**64))
    return mixed


def share(hashes: Hashes) -> Matrix:
    """Map hashes to [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms(n: int, *key: int) -> Matrix:
    """`n` numbers in [0, 1) that depend on `key` alone: not on a generator's state, nor on numpy's version."""
    return share(splitmix64(fold(*key) + np.arange(n, dtype=np.uint64) * _GOLDEN))


def ordered_sum(terms: Iterable[Matrix], like: Matrix) -> Matrix:
    """Add `terms` one after another: numpy's own sums pick an order by shape, so one row and many would differ."""
    total = np.zeros_like(like)
    for term in terms:
        total += term
    return total


class ArrayModel:
    """A model whose state is named attributes, each an array or a number, so that its snapshot is a dict of arrays.

    The features are those of the constructor, else the sorted keys of the first dict learned, else the columns of the
    first matrix learned. Afterwards an unknown feature is ignored and a missing one is NaN.
    """

    schema: ClassVar[int] = 1
    _state: ClassVar[tuple[str, ...]]
    features: Sequence[str] | None
    _names: tuple[Hashable, ...] | None

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Everything needed to go on scoring and learning; copies, so later learning leaves them alone."""
        state = {name: getattr(self, name) for name in self._state}
        config = {
            "model": type(self).__name__,
            "schema": self.schema,
            "parameters": self._parameters(),
            "names": self._names,
            "numbers": {name: value for name, value in state.items() if not isinstance(value, np.ndarray)},
        }
        arrays = {name.lstrip("_"): value.copy() for name, value in state.items() if isinstance(value, np.ndarray)}
        return {"config": np.frombuffer(json.dumps(config).encode(), np.uint8).copy(), **arrays}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Restore what `to_arrays` gave. Raises ValueError for the snapshot of another model or schema."""
        config = json.loads(arrays["config"].tobytes())
        found, known = (config["model"], config["schema"]), (cls.__name__, cls.schema)
        if found != known:
            raise ValueError(
                f"snapshot holds {found[0]} schema {found[1]}, this code reads {known[0]} schema {known[1]}"
            )
        model = cls(**config["parameters"])
        if config["names"] is not None:
            model._adopt(config["names"])
        for name in cls._state:
            numbers = config["numbers"]
            setattr(model, name, numbers[name] if name in numbers else np.array(arrays[name.lstrip("_")]))
        model._restored()
        return model

    def _parameters(self) -> dict[str, Any]:
        """What the constructor takes, in JSON's types."""
        parameters: dict[str, Any] = self._get_params()  # type: ignore[attr-defined]  # River's Base is the other parent
        return parameters

    def _restored(self) -> None:
        """Make anew what is a function of the state."""

    def _start(self) -> None:
        self._names = None
        if self.features is not None:
            self._adopt(self.features)

    def _adopt(self, names: Iterable[Hashable]) -> None:
        self._names = tuple(names)
        self._allocate(len(self._names))

    def _allocate(self, width: int) -> None:
        """Make the arrays whose shape depends on the number of features."""
        raise NotImplementedError  # each model has its own, here and below; nothing makes this class itself

    def _row(self, x: Mapping[Any, Any]) -> Matrix:
        names = sorted(x) if self._names is None else self._names
        return np.array([[x.get(name) for name in names]], np.float64)  # None becomes NaN

    def _learnable_row(self, x: Mapping[Any, Any]) -> Matrix:
        if self._names is None:
            self._adopt(sorted(x))
        return self._row(x)

    def _learnable(self, X: npt.ArrayLike) -> Matrix:
        rows = np.asarray(X, np.float64)
        if self._names is None:
            self._adopt(range(rows.shape[1]))
        return self._matrix(rows)

    def _matrix(self, X: npt.ArrayLike) -> Matrix:
        rows = np.ascontiguousarray(X, np.float64)
        width = rows.shape[-1] if self._names is None else len(self._names)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"found an array of shape {rows.shape}, expected (rows, {width}): one column per feature")
        return np.clip(rows, -LARGEST, LARGEST)


class RefittedModel(ArrayModel):
    """A model that keeps rows under hashed keys and is refitted from them after fixed counts of rows learned.

    The counts are of rows, so that a refit falls between the same two rows whatever the batches.
    """

    seed: int
    refit_every: int
    _learned: int
    _due: int  # count of rows at which the next refit comes
    _refits: int

    @property
    def ready(self) -> bool:
        """True after the warm-up and the first refit."""
        return self._refits > 0

    def learn_one(self, x: Mapping[Any, Any]) -> None:
        """Learn one row, under its number as key."""
        self._learn(self._learnable_row(x), None)

    def refit(self) -> None:
        """Fit to the rows kept as they are now."""
        raise NotImplementedError  # each model's own

    def _learn(self, X: npt.ArrayLike, keys: npt.ArrayLike | None) -> None:
        for rows, hashes in self._stretches(X, keys):
            self._absorb(rows, hashes)

    def _stretches(self, X: npt.ArrayLike, keys: npt.ArrayLike | None) -> Iterator[tuple[Matrix, Hashes]]:
        """The rows and their hashed keys, cut where refits fall; a stretch counts as learned when the next begins."""
        rows = self._learnable(X)
        if keys is None:
            keys = np.arange(self._learned, self._learned + len(rows))
        hashes = self._hash(np.asarray(keys).astype(np.uint64))
        if len(hashes) != len(rows):
            raise ValueError(f"found {len(hashes)} keys for {len(rows)} rows, expected one per row")
        while len(rows):
            n = min(len(rows), self._due - self._learned) if self._due > self._learned else len(rows)
            yield rows[:n], hashes[:n]
            self._learned += n
            rows, hashes = rows[n:], hashes[n:]
            if self._learned == self._due:
                self.refit()
                self._due += self._interval()

    def _hash(self, keys: Hashes) -> Hashes:
        return splitmix64(keys ^ fold(self.seed))

    def _interval(self) -> int:
        return self.refit_every

    def _absorb(self, rows: Matrix, hashes: Hashes) -> None:
        raise NotImplementedError  # each model's own
