"""The detectors that are compared: rows in, one score per row out, each from before the row was learned."""

import importlib
import inspect
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models import HalfSpaceTrees, ReferenceForest
from stream.errors import SettingsError

Matrix = NDArray[np.float64]
Advance = Callable[[int], None]
"""Called with the number of rows done."""
Run = Callable[[Advance], Matrix | tuple[Matrix, Matrix]]

BATCH = 250
SEED = 42
FARTHEST = 1e6


class Verdict(NamedTuple):
    """What a detector said: scores, higher is more unusual; rates, where it gives them; CPU seconds; or why nothing."""

    name: str
    scores: Matrix
    rates: Matrix | None = None
    seconds: float = 0.0
    missing: str = ""


def warm_up(count: int) -> int:
    """Rows that are not judged, and that a batch method is fitted on."""
    return 1_000 if count >= 3_000 else min(500, count // 3)


def warm_kernels() -> None:
    """Load the compiled loops, so that no detector's time holds their compilation."""
    rows = np.random.default_rng(0).random((300, 3))
    for run in (reference_forest, half_space_trees):
        run(rows, lambda _: None)


def timed(name: str, run: Run, advance: Advance) -> Verdict:
    """Run a detector and take its CPU time."""
    began = time.process_time()
    said = run(advance)
    seconds = time.process_time() - began
    scores, rates = said if isinstance(said, tuple) else (said, None)
    return Verdict(name, scores, rates, seconds)


def reference_forest(rows: Matrix, advance: Advance, seed: int = SEED) -> tuple[Matrix, Matrix]:
    """Driftline's default; scores and rates."""
    model = ReferenceForest(list(map(str, range(rows.shape[1]))), seed=seed)
    scores, rates = np.zeros(len(rows)), np.ones(len(rows))
    for first in range(0, len(rows), BATCH):
        part = slice(first, first + BATCH)
        scores[part], rates[part] = model.score_learn_many(rows[part])
        advance(len(rows[part]))
    return scores, rates


def half_space_trees(rows: Matrix, advance: Advance, seed: int = SEED) -> Matrix:
    """River's default, by our trees: the same scores to the bit."""
    model = HalfSpaceTrees(seed=seed, features=[f"{j:05}" for j in range(rows.shape[1])])
    low, high = np.minimum.accumulate(rows), np.maximum.accumulate(rows)
    now = _scaled(rows, low, high)
    before = np.vstack([now[:1], _scaled(rows[1:], low[:-1], high[:-1])])
    scores = np.zeros(len(rows))
    for first in range(0, len(rows), model.window_size):
        part = slice(first, first + model.window_size)
        scores[part] = model.score_many(before[part])
        model.learn_many(now[part])
        advance(len(rows[part]))
    return scores


def _scaled(rows: Matrix, low: Matrix, high: Matrix) -> Matrix:
    span = high - low
    return np.divide(rows - low, span, out=np.zeros_like(rows), where=span != 0)


def river_default(rows: Matrix, advance: Advance, seed: int = SEED) -> Matrix:
    """River's half-space trees behind River's online min-max scaler."""
    from river import anomaly, preprocessing  # they load pandas and scipy.stats: half a second of every command

    return one_by_one(preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=seed), rows, advance)


def one_by_one(model: Any, rows: Matrix, advance: Advance) -> Matrix:
    """Any River detector, event by event."""
    names = [f"{j:05}" for j in range(rows.shape[1])]
    scores = np.zeros(len(rows))
    for i, row in enumerate(rows.tolist()):
        x = dict(zip(names, row, strict=True))
        scores[i] = model.score_one(x)
        model.learn_one(x)
        if i % BATCH == BATCH - 1:
            advance(BATCH)
    advance(len(rows) % BATCH)
    return scores


def isolation_forest(rows: Matrix, advance: Advance, seed: int = SEED) -> Matrix:
    """scikit-learn's, 100 trees, fitted once on the warm-up. Raises ImportError where it is not installed."""
    from sklearn.ensemble import IsolationForest

    first = warm_up(len(rows))
    model = IsolationForest(n_estimators=100, random_state=seed).fit(rows[:first])
    scores = -model.score_samples(rows)
    advance(len(rows))
    return np.asarray(scores, np.float64)


def from_mean(rows: Matrix, advance: Advance) -> Matrix:
    """The trivial detector: distance from the running mean, in running standard deviations of each feature."""
    x = rows - rows[0]
    count = np.arange(1, len(rows) + 1)[:, None]
    mean, square = np.cumsum(x, axis=0) / count, np.cumsum(x * x, axis=0) / count
    before = np.vstack([np.zeros((1, rows.shape[1])), mean[:-1]])
    variance = np.vstack([np.zeros((1, rows.shape[1])), np.maximum(square[:-1] - mean[:-1] ** 2, 0.0)])
    z = np.divide(x - before, np.sqrt(variance), out=np.zeros_like(x), where=variance > 0)
    advance(len(rows))
    return np.asarray(np.sqrt((np.minimum(np.abs(z), FARTHEST) ** 2).sum(axis=1)), np.float64)


def filled(rows: Matrix) -> Matrix:
    """Rows for detectors that know no missing values: the warm-up's median in their place, 0 where it has none."""
    first = rows[: warm_up(len(rows))]
    present = np.where(np.isnan(first).all(axis=0), 0.0, first)
    finite = np.clip(rows, -1e30, 1e30)
    return np.where(np.isnan(finite), np.nanmedian(present, axis=0), finite)


def river_class(path: str) -> type:
    """A River detector by its class, such as `river.anomaly.OneClassSVM`.

    Raises:
        SettingsError: there is no such class, it scores no anomalies, or it needs arguments.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise SettingsError(
            f"--model {path}: no such class; give its full name, as river.anomaly.OneClassSVM"
        ) from None
    if not inspect.isclass(found) or not (hasattr(found, "score_one") and hasattr(found, "learn_one")):
        raise SettingsError(
            f"--model {path} is no detector: it lacks score_one or learn_one; give a class of river.anomaly"
        )
    try:
        found()
    except TypeError as error:
        raise SettingsError(f"--model {path} cannot be made without arguments: {error}") from None
    return found


def named(path: str, rows: Matrix, advance: Advance) -> Matrix:
    """A River detector by its class, behind River's online min-max scaler.

    Raises:
        SettingsError: it cannot score such rows.
    """
    from river import preprocessing

    model = preprocessing.MinMaxScaler() | river_class(path)()
    try:
        return one_by_one(model, rows, advance)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SettingsError(f"--model {path} cannot score these rows: {type(error).__name__}: {error}") from error
