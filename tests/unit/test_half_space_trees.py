import numpy as np
import pytest
from river import anomaly, base

from online_models import HalfSpaceTrees

NAMES = [f"f{i:02}" for i in range(10)]


def events(n: int, seed: int = 0) -> np.ndarray:
    """Skewed and correlated, and now and then outside the limits."""
    random = np.random.default_rng(seed)
    return np.clip(random.beta(2, 5, (n, 10)) + random.normal(0.0, 0.06, (n, 1)), -0.2, 1.2)


def as_dicts(rows: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(NAMES, row, strict=True)) for row in rows.tolist()]


def river_says(rows: np.ndarray, **settings: object) -> list[float]:
    model = anomaly.HalfSpaceTrees(**settings)
    said = []
    for x in as_dicts(rows):
        said.append(model.score_one(x))
        model.learn_one(x)
    return said


# The same on 50,000 events is a part of `python -m benchmarks.models_anomaly`; River takes minutes.
@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ({"n_trees": 10, "height": 8, "window_size": 250, "seed": 7}, 3000),
        ({"n_trees": 25, "height": 8, "window_size": 1000, "seed": 42}, 2500),
        ({"n_trees": 2, "height": 15, "window_size": 250, "seed": 1}, 600),
        ({"n_trees": 3, "height": 1, "window_size": 7, "seed": 0}, 200),
        ({"n_trees": 3, "height": 5, "window_size": 1, "seed": 3}, 50),
        ({"n_trees": 2, "height": 4, "window_size": 20, "seed": 2**40 + 1}, 60),
        ({"n_trees": 2, "height": 4, "window_size": 20, "seed": -5}, 60),
    ],
)
def test_scores_are_river_s_to_the_bit_in_batches_of_any_size(settings: dict[str, int], n: int) -> None:
    rows = events(n)
    expected = river_says(rows, **settings)
    for cuts in (range(0, n, 250), [0, 1, 2, 9, 40, 41, 250, 251, 499], range(0, n, 37)):
        model = HalfSpaceTrees(**settings, features=NAMES)
        parts = [model.score_learn_many(part) for part in np.split(rows, [cut for cut in cuts if 0 < cut < n])]
        assert np.concatenate(parts).tolist() == expected


def test_scores_are_river_s_one_by_one_and_mixed_with_batches() -> None:
    rows, settings = events(1200), {"n_trees": 5, "height": 7, "window_size": 100, "seed": 11}
    expected = river_says(rows, **settings)
    one, mixed = HalfSpaceTrees(**settings), HalfSpaceTrees(**settings, features=NAMES)
    said, many = [], []
    for i, x in enumerate(as_dicts(rows)):
        said.append(one.score_one(x))
        one.learn_one(x)
        if i % 7 == 0:
            many.append(mixed.score_one(x))
            mixed.learn_one(x)
        elif i % 7 == 1:
            many.append(mixed.score_many(rows[i : i + 1])[0])
            mixed.learn_many(rows[i : i + 1])
            many += mixed.score_learn_many(rows[i + 1 : i + 6]).tolist()
    assert said == expected
    assert many == expected


def test_scores_are_river_s_with_limits_of_any_range() -> None:
    rows = events(800) * np.array([1, 10, 100, 1, 1, 5, 1, 1, 1000, 1])
    limits = {"f01": (0, 10), "f02": (-5.0, 100.0), "f05": (0.0, 5.0), "f08": (0.0, 1000.0)}
    settings = {"n_trees": 4, "height": 6, "window_size": 50, "seed": 5, "limits": limits}
    assert HalfSpaceTrees(**settings, features=NAMES).score_learn_many(rows).tolist() == river_says(rows, **settings)


def test_nan_goes_right_as_in_river() -> None:
    rows = np.where(np.random.default_rng(1).random((900, 10)) < 0.2, np.nan, events(900))
    settings = {"n_trees": 4, "height": 6, "window_size": 60, "seed": 5}
    assert HalfSpaceTrees(**settings, features=NAMES).score_learn_many(rows).tolist() == river_says(rows, **settings)


def test_is_a_river_anomaly_detector() -> None:
    assert isinstance(HalfSpaceTrees(), base.AnomalyDetector)


@pytest.mark.parametrize("more", [0, 30])
def test_merging_replicas_is_exact(more: int) -> None:
    rows, settings = events(2 * (300 + more)), {"n_trees": 5, "height": 8, "seed": 3, "features": NAMES}
    left, right = np.split(rows, 2)
    replicas = [HalfSpaceTrees(window_size=100, **settings) for _ in range(2)]
    for replica, part in zip(replicas, (left, right), strict=True):
        replica.learn_many(part)
    merged, whole = replicas[0].merge(replicas[1]), HalfSpaceTrees(window_size=200, **settings)
    whole.learn_many(np.vstack([left[200:300], right[200:300], left[300:], right[300:]]))
    later = events(500, seed=2)
    assert merged.score_learn_many(later).tobytes() == whole.score_learn_many(later).tobytes()


def test_merging_what_does_not_fit_is_refused() -> None:
    settings = {"n_trees": 5, "height": 4, "window_size": 50, "features": NAMES}
    one, empty, other = HalfSpaceTrees(**settings), HalfSpaceTrees(**settings), HalfSpaceTrees(**settings, seed=1)
    one.learn_many(events(80))
    with pytest.raises(ValueError, match="one replica has a full window"):
        one.merge(empty)
    with pytest.raises(ValueError, match="replicas differ"):
        one.merge(other)


def test_snapshot_is_two_windows_of_rows_and_little_else() -> None:
    model = HalfSpaceTrees(n_trees=25, height=15, features=NAMES)
    model.learn_many(events(1000))
    assert sum(array.nbytes for array in model.to_arrays().values()) < 2 * 250 * 10 * 8 + 1000


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="found n_trees=0"):
        HalfSpaceTrees(n_trees=0)
