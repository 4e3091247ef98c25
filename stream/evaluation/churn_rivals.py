"""What churn risk is measured against: recency, BG/NBD and Pareto/NBD, batch methods, River's classifiers."""

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.purchases import FEATURES
from stream.errors import SettingsError
from stream.evaluation.btyd import Refit, bg_nbd, pareto_nbd
from stream.evaluation.measures import auc, calibration_error, log_loss

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

ASKED, TAUGHT, FOREST_TAUGHT = 2_000, 50_000, 6_000
"""River's models take tens to thousands of microseconds a row: they are asked about so many customers a cut, and taught
so many examples between two cuts, both drawn evenly from all."""
RIVER: Mapping[str, str] = {
    "River logistic regression": "river.linear_model.LogisticRegression",
    "River Hoeffding tree": "river.tree.HoeffdingTreeClassifier",
    "River PA": "river.linear_model.PAClassifier",
    "River ARF": "river.forest.ARFClassifier",
}


class Cut(NamedTuple):
    """A moment, the customers known then with their columns, what became of them, and whether that is known."""

    time_ms: int
    customers: list[str]
    columns: Matrix
    churned: NDArray[np.bool_]
    known: bool


class Asked(NamedTuple):
    """What a rival may know at a cut: features of the customers, and the examples that have matured by then."""

    cut: Cut
    features: Matrix
    examples: Matrix
    labels: NDArray[np.bool_]
    horizon_days: float


def measured(
    cut: Cut, p: Vector, horizon: float, ranks_only: bool = False, of: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """The measures of probabilities (or, `ranks_only`, of scores), of all customers or of those given."""
    if not cut.known:
        return {}
    columns, churned = (cut.columns, cut.churned) if of is None else (cut.columns[of], cut.churned[of])
    active = columns[:, 1] < horizon
    found = {"auc": auc(churned, p), "auc_active": auc(churned[active], p[active])}
    if ranks_only:
        return found
    return found | {
        "log_loss": log_loss(churned, p),
        "log_loss_active": log_loss(churned[active], p[active]),
        "calibration_error": calibration_error(churned, p),
    }


class Recency:
    """Days since the last order: no probability, only an order of customers."""

    def measured(self, asked: Asked) -> dict[str, float]:
        return measured(asked.cut, asked.cut.columns[:, 1], asked.horizon_days, ranks_only=True)


class BuyTillYouDie:
    """A model of rates and departures, fitted anew to all customers at each cut."""

    def __init__(self, refit: Refit) -> None:
        self._refit = refit

    def measured(self, asked: Asked) -> dict[str, float]:
        orders, recency, age = np.maximum(asked.cut.columns[:, :3].T, [[1.0], [0.0], [0.0]])
        p = self._refit.silent(orders, np.ceil(recency), np.ceil(age), asked.horizon_days)
        return measured(asked.cut, p, asked.horizon_days)


class Batch:
    """A scikit-learn classifier, fitted anew to all examples that have matured at each cut."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def measured(self, asked: Asked) -> dict[str, float]:
        if len(np.unique(asked.labels)) < 2:
            return {}
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        with threadpool_limits(1):  # its threads wait actively: on a busy machine they are many times slower than one
            model = self._make().fit(asked.examples, asked.labels)
            return measured(asked.cut, model.predict_proba(asked.features)[:, 1], asked.horizon_days)


class Online:
    """A River classifier behind River's scaler, taught each matured example once."""

    def __init__(self, path: str) -> None:
        from river import preprocessing

        self._model = preprocessing.StandardScaler() | _classifier(path)
        self._most = FOREST_TAUGHT if ".forest." in path else TAUGHT
        self._learned = 0

    def measured(self, asked: Asked) -> dict[str, float]:
        step = max(1, math.ceil((len(asked.labels) - self._learned) / self._most))
        for row, label in zip(
            asked.examples[self._learned :: step].tolist(), asked.labels[self._learned :: step].tolist(), strict=True
        ):
            self._model.learn_one(dict(zip(FEATURES, row, strict=True)), label)
        self._learned = len(asked.labels)
        of = np.arange(0, len(asked.features), max(1, math.ceil(len(asked.features) / ASKED)))
        p = np.array([self._one(row) for row in asked.features[of].tolist()])
        return measured(asked.cut, p, asked.horizon_days, of=of)

    def _one(self, row: Sequence[float]) -> float:
        found = self._model.predict_proba_one(dict(zip(FEATURES, row, strict=True)))
        return float(found.get(True, 0.5 if not found else 1.0 - found.get(False, 1.0)))


def rivals_of(paths: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "recency": Recency(),
        "BG/NBD refitted": BuyTillYouDie(Refit(bg_nbd, (0.5, 20.0, 0.5, 2.0))),
        "Pareto/NBD refitted": BuyTillYouDie(Refit(pareto_nbd, (0.5, 20.0, 0.5, 60.0))),
    }
    if importlib.util.find_spec("sklearn") is None:
        raise SettingsError(
            "the batch methods need scikit-learn: pip install '.[evaluate]' where Driftline's source is, or --ours "
            "without them"
        )
    found |= {"batch logistic regression": Batch(_logistic), "batch gradient boosting": Batch(_boosting)}
    found |= {name: Online(path) for name, path in RIVER.items()}
    return found | {path: Online(path) for path in paths}


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=1.0, random_state=0
    )


def _classifier(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
        model = kind(seed=0) if "forest" in module else kind()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(
            f"--model {path}: {error}; name a River classifier, such as river.naive_bayes.GaussianNB"
        ) from None
    if not hasattr(model, "learn_one") or not hasattr(model, "predict_proba_one"):
        raise SettingsError(f"--model {path}: it has no learn_one and predict_proba_one; name a River classifier")
    return model
