import math
from itertools import pairwise

import numpy as np
import pytest

from online_models import ReferenceForest
from online_models.voices import SMALLEST_SPLIT, Trees, distance, grow, isolation, volume


def auc(normal: np.ndarray, odd: np.ndarray) -> float:
    """Chance that an odd event scores above a normal one."""
    return float(np.mean(odd[:, None] > normal) + np.mean(odd[:, None] == normal) / 2)


def shop(n: int, seed: int) -> np.ndarray:
    """Two kinds of visit, in very different units: amount, items, seconds, share of views."""
    random = np.random.default_rng(seed)
    large = random.random((n, 1)) < 0.3
    rows = np.where(large, [8000.0, 12.0, 900.0, 0.3], [2500.0, 3.0, 240.0, 0.7])
    return rows * random.lognormal(0.0, 0.25, (n, 4))


def fitted(n: int = 6000, **settings: object) -> ReferenceForest:
    model = ReferenceForest(**settings)  # type: ignore[arg-type]
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


def test_nothing_is_unusual_before_the_first_fit() -> None:
    model = ReferenceForest(reference=100, memory=1000)
    model.learn_many(shop(63, seed=1))
    assert model.score_many(shop(3, seed=2) * 100).tolist() == [0.0, 0.0, 0.0]
    assert model.rate_many([0.0, 9.0]).tolist() == [1.0, 1.0]


def test_first_scores_come_early_and_readiness_with_the_full_reference() -> None:
    model = ReferenceForest()
    model.learn_many(shop(64, seed=1))
    assert auc(model.score_many(shop(500, seed=5)), model.score_many(shop(500, seed=3) * 4)) > 0.9
    assert not model.ready
    model.learn_many(shop(935, seed=2))
    assert not model.ready
    model.learn_many(shop(1, seed=3))
    assert model.ready


def test_refits_only_when_told_to_with_refit_every_0() -> None:
    model = ReferenceForest(reference=100, memory=1000, refit_every=0)
    model.refit()
    model.learn_many(shop(5000, seed=1))
    assert model.figures()["refits"] == 0
    model.refit()
    assert model.figures()["refits"] == 1


@pytest.mark.parametrize("n", [3500, 13_500])
def test_rate_holds_on_later_events(n: int) -> None:
    model = fitted(n)
    rates = model.rate_many(model.score_many(shop(20_000, seed=9)))
    for rate in (0.3, 0.1, 0.03, 0.01):
        assert rate / 2 < np.mean(rates <= rate) < rate * 2


def test_one_in_n_comes_true_over_a_stream_that_drifts() -> None:
    rows = shop(60_000, seed=9) * np.linspace(1.0, 1.2, 60_000)[:, None]
    _, rates = ReferenceForest().score_learn_many(rows)
    for n in (100, 1000):
        assert 1 / 1.5 < n * np.mean(rates[20_000:] <= 1 / n) < 1.5


def test_figures_say_how_often_one_in_n_came_true() -> None:
    model = fitted(11_000)
    _, rates = model.score_learn_many(shop(2500, seed=9))
    assert model.figures()["refits"] == fitted(11_000).figures()["refits"] + 1
    assert model.figures()["one_in_100"] == pytest.approx(100 * np.mean(rates[:2500] <= 0.01))


def test_a_change_of_the_world_is_a_surprise_until_the_next_refit() -> None:
    model = ReferenceForest(refit_every=0)
    model.learn_many(shop(3000, seed=1))
    model.refit()
    model.learn_many(shop(2000, seed=2))
    assert not model.surprised
    model.learn_many(shop(500, seed=3) * [2.5, 1.0, 2.5, 1.0])
    assert model.surprised
    model.refit()
    assert not model.surprised


def test_rate_falls_as_the_score_rises_and_has_a_floor() -> None:
    model = fitted()
    rates = model.rate_many(np.linspace(-20, 20, 5000))
    assert (np.diff(rates) <= 0).all()
    assert rates[0] == 1.0
    assert 1e-6 < rates[-1] < 3e-5
    assert (rates == rates[-1]).sum() > 100


def test_explanation_names_the_feature_that_is_off() -> None:
    model = fitted()
    usual = np.array([2500.0, 3.0, 240.0, 0.7])
    rows = np.tile(usual, (4, 1)) * (1 + 9 * np.eye(4))
    contributions = model.explain_many(rows, usual)
    assert contributions.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert (contributions[~np.eye(4, dtype=bool)] == 0).all()
    assert model.explain_many(rows, rows).any() == np.False_


def shapley(model: ReferenceForest, row: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Each feature's part in the score by brute force, over all subsets of features."""
    width = len(row)
    subsets = (np.arange(2**width)[:, None] >> np.arange(width)) & 1 == 1
    scores = model.score_many(np.where(subsets, row, usual))
    parts = np.zeros(width)
    for j in range(width):
        without = np.flatnonzero(~subsets[:, j])
        size = subsets[without].sum(axis=1)
        weight = [math.factorial(k) * math.factorial(width - k - 1) / math.factorial(width) for k in size.tolist()]
        parts[j] = np.dot(weight, scores[without | 1 << j] - scores[without])
    return parts


def test_reasons_are_those_of_a_brute_force_attribution() -> None:
    random = np.random.default_rng(0)
    visits = np.column_stack([shop(8000, seed=1), shop(8000, seed=2)])
    model = ReferenceForest()
    model.learn_many(visits)
    usual = np.median(visits, axis=0)
    strange = visits[:300] * np.where(random.random((300, 8)) < 0.25, random.uniform(2.0, 6.0, (300, 8)), 1.0)
    strange = strange[model.rate_many(model.score_many(strange)) < 0.01]
    assert len(strange) > 80
    said = model.explain_many(strange, usual)
    true = np.array([shapley(model, row, usual) for row in strange])
    assert np.allclose(true.sum(axis=1), model.score_many(strange) - model.score_many(usual[None]))
    assert np.mean(said.argmax(axis=1) == true.argmax(axis=1)) >= 0.9
    assert np.median([np.corrcoef(*pair)[0, 1] for pair in zip(said, true, strict=True)]) > 0.98


def test_restored_model_gives_the_same_rates_and_reasons() -> None:
    model = fitted()
    restored = ReferenceForest.from_arrays(model.to_arrays())
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
        model = ReferenceForest()
        model.learn_many(rows, ids)
        samples.append(model.to_arrays()["reference_rows"].tobytes())
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_reference_forgets_with_the_mean_age_it_was_given() -> None:
    model = ReferenceForest(["number"], reference=1000, memory=5000, refit_every=0)
    model.learn_many(np.arange(40_000.0)[:, None])
    ages = 40_000 - model.to_arrays()["reference_rows"]
    assert 4000 < ages.mean() < 6000


def test_follows_a_shop_that_changes() -> None:
    model, later = ReferenceForest(memory=4000), shop(20_000, seed=6) * [3.0, 1.0, 3.0, 1.0]
    model.learn_many(shop(4000, seed=1))
    surprised = model.score_many(later[:500]).mean()
    model.learn_many(later)
    assert model.score_many(later[-500:]).mean() < surprised - 1


def test_missing_value_counts_as_the_median() -> None:
    model, row = fitted(), shop(1, seed=2)
    with_median = row.copy()
    with_median[0, 1] = np.median(model.to_arrays()["reference_rows"][:, 1])
    row[0, 1] = np.nan
    model.refit()
    assert model.score_many(row) == model.score_many(with_median)


def test_a_feature_that_becomes_known_to_all_at_once_raises_no_wave() -> None:
    rows = np.column_stack([shop(30_000, seed=1), shop(30_000, seed=2)[:, 0]])
    rows[:15_500, 4] = np.nan
    rows[::2, 4] = np.nan
    _, rates = ReferenceForest().score_learn_many(rows)
    assert np.mean(rates[15_500:18_500] <= 0.01) < 0.02
    model = ReferenceForest()
    model.learn_many(rows)
    strange = rows[-1:] * [1.0, 1.0, 1.0, 1.0, 8.0]
    assert model.rate_many(model.score_many(strange))[0] < model.rate_many(model.score_many(rows[-1:]))[0] / 10


def test_constant_and_absent_features_do_no_harm() -> None:
    rows = np.column_stack([shop(2000, seed=1), np.full(2000, 7.0), np.full(2000, np.nan)])
    model = ReferenceForest()
    model.learn_many(rows)
    assert auc(model.score_many(rows), model.score_many(rows * 6)) > 0.98


def trees_of(rows: np.ndarray, height: int) -> Trees:
    low, span = rows.min(axis=0), np.ptp(rows, axis=0)
    return Trees(*grow(np.ascontiguousarray(rows.T), low, span, 3, height, np.uint64(1)))


def test_a_leaf_says_the_mass_and_depth_of_the_rows_that_reach_it() -> None:
    rows = shop(300, seed=1)
    trees = trees_of(rows, height=6)
    for first, end in pairwise([*trees.root.tolist(), len(trees.link)]):
        mass: dict[int, int] = {}
        depths: dict[int, int] = {}
        for row in rows:
            node, depth = 0, 0
            while np.isfinite(trees.threshold[first + node]):
                link = int(trees.link[first + node])
                node = (link >> 16) + int(row[link & 0xFFFF] >= trees.threshold[first + node])
                depth += 1
            mass[node], depths[node] = mass.get(node, 0) + 1, depth
        assert sum(mass.values()) == 300
        for node, count in mass.items():
            assert first + node < end
            assert trees.value[first + node] == np.float32(-(math.log2((count + 1) / 300) + depths[node]))
            assert count < SMALLEST_SPLIT or depths[node] == 6


def test_a_score_is_the_mean_of_the_leaves() -> None:
    rows = shop(300, seed=1)
    trees = trees_of(rows, height=6)
    one_by_one = []
    for first in trees.root.tolist():
        node = np.zeros(len(rows), np.int64)
        for _ in range(6):
            link = trees.link[first + node].astype(np.int64)
            right = rows[np.arange(len(rows)), link & 0xFFFF] >= trees.threshold[first + node]
            node = (link >> 16) + right
        one_by_one.append(trees.value[first + node].astype(np.float64))
    assert volume(rows, *trees).tolist() == (sum(one_by_one) / 3).tolist()


def test_distance_is_to_the_nearest_of_each_sample_and_not_to_oneself() -> None:
    rows = shop(50, seed=1)
    low, span = np.zeros(4), np.ones(4) * 100
    own = np.arange(12)  # three samples of four, place by place
    points = np.ascontiguousarray((rows[own] / span).T, np.float32)
    gaps = np.abs(rows[:, None] / span - rows[own] / span).sum(axis=2) + 4e-4
    gaps[np.arange(12), np.arange(12)] = np.inf
    expected = np.log2(gaps.reshape(50, 4, 3).min(axis=1)).mean(axis=1)
    assert distance(rows, low, span, points, 3, own) == pytest.approx(expected, rel=1e-4)
    elsewhere = distance(rows, low, span, points, 3, np.zeros(0, np.int64))
    assert (elsewhere[:12] < expected[:12] - 1).all()
    assert elsewhere[12:] == pytest.approx(expected[12:], rel=1e-4)


def test_lonely_rows_have_short_paths() -> None:
    rows = np.vstack([shop(400, seed=1), shop(20, seed=2) * 8, np.full((400, 4), 7.0)[:3]])
    paths = isolation(np.ascontiguousarray(rows.T), 100, 64, 6, np.uint64(5))
    assert auc(-paths[:400], -paths[400:420]) > 0.98


def test_a_burst_does_not_become_the_new_normal() -> None:
    model, burst = fitted(10_000), odd(1000, seed=7)
    before = model.score_many(burst).mean()
    _, rates = model.score_learn_many(burst)
    model.learn_many(shop(3000, seed=8))
    assert model.score_many(odd(1000, seed=9)).mean() > 0.7 * before
    assert np.mean(rates <= 0.05) > 0.8


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="found reference=1000 and memory=10"):
        ReferenceForest(memory=10)
