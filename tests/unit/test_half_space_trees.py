import numpy as np
import pytest

from online_models import HalfSpaceTrees
from online_models.half_space_trees import grow


def auc(normal: np.ndarray, odd: np.ndarray) -> float:
    """Chance that an odd event scores above a normal one."""
    return float(np.mean(odd[:, None] > normal) + np.mean(odd[:, None] == normal) / 2)


def shop(n: int, seed: int) -> np.ndarray:
    """Two kinds of visit, in very different units: amount, items, seconds, share of views."""
    random = np.random.default_rng(seed)
    large = random.random((n, 1)) < 0.3
    rows = np.where(large, [8000.0, 12.0, 900.0, 0.3], [2500.0, 3.0, 240.0, 0.7])
    return rows * random.lognormal(0.0, 0.25, (n, 4))


def fitted(n: int = 6000, **settings: object) -> HalfSpaceTrees:
    model = HalfSpaceTrees(**settings)  # type: ignore[arg-type]
    model.learn_many(shop(n, seed=1))
    return model


def odd(n: int, seed: int) -> np.ndarray:
    """Items of a small visit with the amount of a large one: usual one by one, not together."""
    random = np.random.default_rng(seed)
    return np.array([8000.0, 3.0, 900.0, 0.7]) * random.lognormal(0.0, 0.25, (n, 4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("outliers", [odd(500, seed=2), shop(500, seed=3) * 4, shop(500, seed=4) / 10])
def test_outliers_score_above_normal_events(outliers: np.ndarray, seed: int) -> None:
    model = fitted(seed=seed)
    assert auc(model.score_many(shop(2000, seed=5)), model.score_many(outliers)) > 0.95


def test_nothing_is_unusual_before_the_warm_up_is_over() -> None:
    model = HalfSpaceTrees(reference=100, memory=1000)
    model.learn_many(shop(99, seed=1))
    assert not model.ready
    assert model.score_many(shop(3, seed=2) * 100).tolist() == [0.0, 0.0, 0.0]
    assert model.rate_many([0.0, 9.0]).tolist() == [1.0, 1.0]
    model.learn_many(shop(1, seed=2))
    assert model.ready


def test_refits_only_when_told_to_with_refit_every_0() -> None:
    model = HalfSpaceTrees(reference=100, memory=1000, refit_every=0)
    model.refit()
    model.learn_many(shop(5000, seed=1))
    assert model.figures()["refits"] == 0
    model.refit()
    assert model.figures()["refits"] == 1


@pytest.mark.parametrize("n", [1000, 6000])
def test_rate_holds_on_later_events(n: int) -> None:
    model = fitted(n)
    rates = model.rate_many(model.score_many(shop(20_000, seed=9)))
    for rate in (0.3, 0.1, 0.03, 0.01):
        assert rate / 2 < np.mean(rates <= rate) < rate * 2


def test_rate_falls_as_the_score_rises_and_has_a_floor() -> None:
    model = fitted()
    rates = model.rate_many(np.linspace(-20, 20, 5000))
    assert (np.diff(rates) <= 0).all()
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(1 / (20 * 5001))
    beyond = rates < 1 / 5001
    assert 0 < beyond.sum() < len(rates)


def test_explanation_names_the_feature_that_is_off() -> None:
    model = fitted()
    usual = np.array([2500.0, 3.0, 240.0, 0.7])
    rows = np.tile(usual, (4, 1)) * (1 + 9 * np.eye(4))
    contributions = model.explain_many(rows, usual)
    assert contributions.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert (contributions[~np.eye(4, dtype=bool)] == 0).all()
    assert model.explain_many(rows, rows).any() == np.False_


def test_restored_model_gives_the_same_rates_and_reasons() -> None:
    model = fitted()
    restored = HalfSpaceTrees.from_arrays(model.to_arrays())
    rows, scores = shop(50, seed=2) * 2, np.linspace(-20, 20, 500)
    assert restored.rate_many(scores).tobytes() == model.rate_many(scores).tobytes()
    assert restored.explain_many(rows, rows[0]).tobytes() == model.explain_many(rows, rows[0]).tobytes()


def test_rate_of_one_score_equals_that_in_a_batch() -> None:
    model, scores = fitted(), np.linspace(-20, 20, 2001)
    assert [model.rate_many([score])[0] for score in scores] == model.rate_many(scores).tolist()


def test_sample_depends_on_uids_and_not_on_the_run() -> None:
    rows, uids = shop(3000, seed=1), np.arange(3000, dtype=np.uint64) + np.uint64(2**63)
    samples = []
    for ids in (uids, uids, uids[::-1]):
        model = HalfSpaceTrees()
        model.learn_many(rows, ids)
        samples.append(model.to_arrays()["reference_rows"].tobytes())
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_reference_forgets_with_the_mean_age_it_was_given() -> None:
    model = HalfSpaceTrees(["number"], reference=1000, memory=5000, refit_every=0)
    model.learn_many(np.arange(40_000.0)[:, None])
    ages = 40_000 - model.to_arrays()["reference_rows"]
    assert 4000 < ages.mean() < 6000


def test_follows_a_shop_that_changes() -> None:
    model, later = HalfSpaceTrees(memory=4000), shop(20_000, seed=6) * [3.0, 1.0, 3.0, 1.0]
    model.learn_many(shop(4000, seed=1))
    surprised = model.score_many(later[:500]).mean()
    model.learn_many(later)
    assert model.score_many(later[-500:]).mean() < surprised - 2


def test_missing_value_counts_as_the_median() -> None:
    model, row = fitted(), shop(1, seed=2)
    with_median = row.copy()
    with_median[0, 1] = np.median(model.to_arrays()["reference_rows"][:, 1])
    row[0, 1] = np.nan
    model.refit()
    assert model.score_many(row) == model.score_many(with_median)


def test_constant_and_absent_features_do_no_harm() -> None:
    rows = np.column_stack([shop(2000, seed=1), np.full(2000, 7.0), np.full(2000, np.nan)])
    model = HalfSpaceTrees()
    model.learn_many(rows)
    assert auc(model.score_many(rows), model.score_many(rows * 6)) > 0.98


def test_trees_send_each_reference_row_to_the_leaf_that_counted_it() -> None:
    rows = shop(300, seed=1)
    trees = grow(rows, n_trees=3, height=6, key=(1,))
    for tree in range(3):
        mass: dict[int, int] = {}
        for row in rows:
            node, depth = tree, 0
            while np.isfinite(trees.threshold[node]):
                node = int(trees.child[node]) + int(row[trees.feature[node]] >= trees.threshold[node])
                depth += 1
            mass[node] = mass.get(node, 0) + 1
        for node, count in mass.items():
            depths = [d for d in range(7) if trees.value[node] == -(np.log2((count + 1) / 300) + d)]
            assert len(depths) == 1


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="found reference=1000 and memory=10"):
        HalfSpaceTrees(memory=10)
