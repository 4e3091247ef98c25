"""What every model promises. A new model is tested by being listed in MODELS."""

import doctest
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import river.checks
from river import base

from online_models import ChurnRisk, HalfSpaceTrees, IncrementalKMeans, KMeans, ReferenceForest
from online_models.purchases import COLUMNS

UNITS = {"recency": 30.0, "orders": 4.0, "spend": 5000.0, "gap": 9.0} | {f"affinity {i}": 1.0 for i in range(7)}
NAMES = list(UNITS)
ROWS = 1200


@dataclass(frozen=True)
class Case:
    """How the suite speaks to one model: its verbs, by name, and what learning takes beside the rows."""

    build: Callable[..., Any]
    predict_many: tuple[str, ...]
    predict_one: str
    takes: str  # "keys", "labels" or "rows" alone
    columns: tuple[str, ...] = ()  # a model's own, where it does not take any

    @property
    def names(self) -> tuple[str, ...]:
        return self.columns or tuple(NAMES)

    def new(self, **settings: Any) -> Any:
        return self.build(**({} if self.columns else {"features": NAMES}), **settings)

    def stream(self, n: int = ROWS, seed: int = 3, missing: float = 0.05) -> np.ndarray:
        if not self.columns:
            return stream(n, seed, missing)
        random = np.random.default_rng(seed)
        rows = random.gamma(2.0, 4.0, (n, len(self.columns)))
        return np.where(random.random(rows.shape) < missing, np.nan, rows)

    def as_dict(self, row: np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self.names, row, strict=True) if not np.isnan(value)}

    def learn(self, model: Any, rows: np.ndarray, start: int = 0) -> None:
        model.learn_many(rows, *([] if self.takes == "rows" else [self.second(len(rows), start)]))

    def second(self, n: int, start: int) -> np.ndarray:
        order = np.arange(start, start + n)
        return order % 3 == 0 if self.takes == "labels" else (order * 7919 % 500).astype(np.uint64)

    def answers(self, model: Any, rows: np.ndarray) -> list[bytes]:
        return [getattr(model, verb)(rows).tobytes() for verb in self.predict_many]


def trees(**settings: Any) -> HalfSpaceTrees:
    limits = {name: (0.0, 5 * unit) for name, unit in UNITS.items()}
    return HalfSpaceTrees(**({"n_trees": 5, "height": 6, "window_size": 100, "limits": limits} | settings))


def forest(**settings: Any) -> ReferenceForest:
    settings = {"n_trees": 5, "reference": 100, "memory": 1000, "window": 400, "refit_every": 350} | settings
    return ReferenceForest(**settings)


def clusters(**settings: Any) -> IncrementalKMeans:
    settings = {"n_clusters": 3, "sample": 150, "min_customers": 40, "refit_every": 130} | settings
    return IncrementalKMeans(**settings)


def churn(**settings: Any) -> ChurnRisk:
    return ChurnRisk(**({"min_labels": 100} | settings))


MODELS = [
    pytest.param(Case(trees, ("score_many",), "score_one", "rows"), id="half-space trees"),
    pytest.param(Case(forest, ("score_many",), "score_one", "keys"), id="reference forest"),
    pytest.param(Case(clusters, ("predict_many", "margin_many"), "predict_one", "keys"), id="k-means"),
    pytest.param(Case(KMeans, ("predict_many",), "predict_one", "rows"), id="sequential k-means"),
    pytest.param(
        Case(churn, ("predict_proba_many", "logit_contributions_many"), "predict_proba_one", "labels", COLUMNS),
        id="churn",
    ),
]
every_model = pytest.mark.parametrize("case", MODELS)


def stream(n: int = ROWS, seed: int = 3, missing: float = 0.05) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.gamma(2.0, 1.0, (n, len(NAMES))) * list(UNITS.values())
    return np.where(random.random(rows.shape) < missing, np.nan, rows)


def as_dict(row: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(NAMES, row, strict=True) if not np.isnan(value)}


def learned(case: Case, n: int = ROWS, **settings: Any) -> Any:
    model = case.new(**settings)
    case.learn(model, case.stream(n))
    return model


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, left[name].tobytes())
        == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name in left
    )


class Dataset:
    """Stands in for River's data sets, of which some are downloaded and some need scikit-learn."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[dict[str, float], bool]]:
        for i, row in enumerate(stream(self.n, missing=0.0)):
            yield as_dict(row), i % 3 == 0


def river_checks() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(river.checks, "_yield_datasets", lambda _model, scale=1: iter([Dataset(150 * scale)]))
        for param in MODELS:
            model = param.values[0].build()
            for i, check in enumerate(river.checks.yield_checks(model)):
                if check.__name__ != "check_roc_auc":  # needs scikit-learn; the unit tests ask for more
                    yield pytest.param(model, check, id=f"{param.id}-{check.__name__}-{i}")


@pytest.mark.parametrize(("model", "check"), list(river_checks()))
def test_passes_river_s_own_checks(model: base.Estimator, check: Callable[[base.Estimator], None]) -> None:
    check(model.clone())


@pytest.mark.parametrize(
    "module",
    [
        *("arrays", "half_space_trees", "reference_forest", "kmeans", "lineage", "sequential_kmeans"),
        *("churn", "mbg", "purchases"),
    ],
)
def test_examples_in_docstrings_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"online_models.{module}")).failed == 0


@every_model
def test_batches_of_any_size_learn_the_same(case: Case) -> None:
    rows = case.stream()
    models = []
    for cuts in ([], [1, 2, 9, 40, 99, 100, 101, 101, 640, 1199], range(0, ROWS, 37)):
        model = case.new()
        for start, stop in zip([0, *cuts], [*cuts, ROWS], strict=True):
            case.learn(model, rows[start:stop], start)
        models.append(model.to_arrays())
    assert same(models[0], models[1])
    assert same(models[0], models[2])


@every_model
def test_learn_one_equals_learn_many(case: Case) -> None:
    one, many, rows = case.new(), case.new(), case.stream(500)
    if case.takes == "labels":
        for i, row in enumerate(rows):
            one.learn_one(case.as_dict(row), bool(i % 3 == 0))
        case.learn(many, rows)
    else:
        for row in rows:
            one.learn_one(case.as_dict(row))
        many.learn_many(rows)
    assert same(one.to_arrays(), many.to_arrays())


@every_model
def test_batches_of_any_size_answer_the_same(case: Case) -> None:
    model, rows = learned(case), case.stream(seed=4)
    whole = [getattr(model, verb)(rows) for verb in case.predict_many]
    for size in (1, 2, 7, 64, 333):
        for verb, expected in zip(case.predict_many, whole, strict=True):
            parts = [getattr(model, verb)(rows[start : start + size]) for start in range(0, ROWS, size)]
            assert np.concatenate(parts).tobytes() == expected.tobytes()


@every_model
def test_one_answers_as_many(case: Case) -> None:
    model, rows = learned(case), case.stream(200, seed=4)
    many = getattr(model, case.predict_many[0])(rows).tolist()
    one = [getattr(model, case.predict_one)(case.as_dict(row)) for row in rows]
    assert [answer[True] if isinstance(answer, dict) else answer for answer in one] == many


@every_model
def test_memory_layout_of_the_matrix_does_not_matter(case: Case) -> None:
    model, rows = learned(case), case.stream(200, seed=4)
    assert case.answers(model, np.asfortranarray(rows)) == case.answers(model, rows)
    assert case.answers(model, np.repeat(rows, 2, axis=0)[::2]) == case.answers(model, rows)


@every_model
def test_empty_batch_is_neither_learned_nor_refused(case: Case) -> None:
    model = learned(case)
    before, none = model.to_arrays(), np.empty((0, len(case.names)))
    case.learn(model, none)
    assert same(model.to_arrays(), before)
    assert all(len(getattr(model, verb)(none)) == 0 for verb in case.predict_many)


@every_model
def test_answering_changes_nothing(case: Case) -> None:
    model, rows = learned(case), case.stream(100, seed=5)
    before = model.to_arrays()
    first = case.answers(model, rows)
    getattr(model, case.predict_one)({"recency": 3.0, "unknown": 1.0})
    model.figures()
    assert case.answers(model, rows) == first
    assert same(model.to_arrays(), before)


@every_model
def test_learning_leaves_its_input_alone(case: Case) -> None:
    rows = case.stream()
    case.learn(case.new(), rows)
    assert rows.tobytes() == case.stream().tobytes()


@every_model
def test_key_order_does_not_matter(case: Case) -> None:
    forward, backward = case.build(), case.build()
    for i, row in enumerate(case.stream(300, missing=0.0)):
        x, label = case.as_dict(row), [bool(i % 3 == 0)] if case.takes == "labels" else []
        forward.learn_one(x, *label)
        backward.learn_one(dict(reversed(x.items())), *label)
    assert same(forward.to_arrays(), backward.to_arrays())


@every_model
def test_same_seed_gives_the_same_model_whatever_numpy_s_global_generator_does(case: Case) -> None:
    np.random.seed(1)  # the legacy generator is what must not matter
    first = learned(case).to_arrays()
    np.random.seed(2)
    state = np.random.get_state()[1].tolist()
    assert same(learned(case).to_arrays(), first)
    assert np.random.get_state()[1].tolist() == state


@every_model
def test_snapshot_stops_growing(case: Case) -> None:
    model, sizes = case.new(), []
    for i in range(8):
        case.learn(model, case.stream(500, seed=i), i * 500)
        sizes.append(sum(array.nbytes for array in model.to_arrays().values()))
    assert max(sizes[4:]) < 1.1 * max(sizes[:4])


@every_model
@pytest.mark.parametrize("n", [0, 1, 60, ROWS])
def test_snapshot_goes_on_as_the_model_would(case: Case, n: int) -> None:
    model = learned(case, n)
    restored = type(model).from_arrays(model.to_arrays())
    assert same(restored.to_arrays(), model.to_arrays())
    assert case.answers(restored, case.stream(50, seed=6)) == case.answers(model, case.stream(50, seed=6))
    for each in (model, restored):
        case.learn(each, case.stream(700, seed=7), n)
    assert same(restored.to_arrays(), model.to_arrays())
    assert restored.figures() == model.figures()


@every_model
def test_snapshot_is_not_touched_by_later_learning(case: Case) -> None:
    model = learned(case)
    snapshot = model.to_arrays()
    kept = {name: array.copy() for name, array in snapshot.items()}
    restored = type(model).from_arrays(snapshot)
    for each in (model, restored):
        case.learn(each, case.stream(700, seed=7), ROWS)
    assert same(snapshot, kept)


@every_model
def test_snapshot_holds_plain_arrays_and_no_objects(case: Case) -> None:
    assert all(array.dtype.kind in "uif" for array in learned(case).to_arrays().values())


@every_model
def test_snapshot_of_another_schema_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learned(case)
    arrays = model.to_arrays()
    known = type(model).schema
    monkeypatch.setattr(type(model), "schema", known + 1)
    with pytest.raises(ValueError, match=rf"schema {known}, this code reads .* schema {known + 1}"):
        type(model).from_arrays(arrays)


@every_model
def test_missing_and_infinite_values_give_finite_answers(case: Case) -> None:
    model = case.new()
    odd = case.stream(400, missing=0.3)
    odd[::50, 1], odd[7::50, 2], odd[:, 3] = np.inf, -np.inf, np.nan
    case.learn(model, odd)
    rows = np.vstack([odd, np.full((1, len(case.names)), np.nan), np.full((1, len(case.names)), np.inf)])
    assert all(np.isfinite(getattr(model, verb)(rows)).all() for verb in case.predict_many)


@every_model
def test_missing_key_none_and_nan_mean_the_same(case: Case) -> None:
    model, ask = learned(case), case.predict_one
    whole = {"recency": 20.0, "orders": 3.0, "spend": float("nan"), case.names[3]: 9.0}
    without = {name: value for name, value in whole.items() if name != "spend"}
    answer = getattr(model, ask)(whole)
    assert getattr(model, ask)(without) == answer
    assert getattr(model, ask)(without | {"spend": None, "unknown": 5.0}) == answer


@every_model
def test_wrong_number_of_columns_is_named(case: Case) -> None:
    model = learned(case)
    with pytest.raises(ValueError, match=rf"found an array of shape \(2, 3\), expected \(rows, {len(case.names)}\)"):
        getattr(model, case.predict_many[0])(np.ones((2, 3)))


@every_model
def test_figures_are_finite_numbers_from_the_start(case: Case) -> None:
    for model in (case.build(), learned(case)):
        assert all(np.isfinite(value) for value in model.figures().values())


def test_defaults_with_twelve_features_fit_in_1_100_kilobytes() -> None:
    random = np.random.default_rng(0)
    names = [f"f{i}" for i in range(12)]
    churn_risk = ChurnRisk()
    churn_risk.observe(random.gamma(2.0, 4.0, (8000, len(COLUMNS))), np.arange(8000), 1.0)
    churn_risk.turn(30)
    models: list[Any] = [ReferenceForest(names), IncrementalKMeans(names)]
    for model in models:
        model.learn_many(random.normal(size=(8000, 12)))
    assert sum(array.nbytes for model in (*models, churn_risk) for array in model.to_arrays().values()) < 1_100_000
