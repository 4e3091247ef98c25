from typing import Any

import numpy as np
import pytest
from river import cluster

from online_models import KMeans

SETTINGS = [
    {"n_clusters": 5, "halflife": 0.05},
    {"n_clusters": 8, "halflife": 0.5, "mu": 1, "sigma": 3},
    {"n_clusters": 3, "halflife": 0.1, "p": 1},
    {"n_clusters": 3, "halflife": 0.1, "p": 3},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_and_centres_are_river_s_to_the_last_bit(settings: dict[str, Any], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(5000, 7)) * [1, 2, 3, 1, 1, 1, 10]
    river, ours = cluster.KMeans(**settings, seed=seed), KMeans(**settings, seed=seed)
    labels: list[int] = []
    start = 0
    for size in (1, 2, 250, 3, 1000, 1, 3743):
        labels += ours.learn_predict_many(rows[start : start + size]).tolist()
        start += size
    assert start == len(rows)
    assert labels == [river.learn_predict_one(dict(enumerate(row))) for row in rows.tolist()]
    assert ours.centres().tolist() == [[river.centers[c][j] for j in range(7)] for c in range(ours.n_clusters)]
    fresh = np.random.default_rng(9).normal(size=(500, 7)) * 3
    assert ours.predict_many(fresh).tolist() == [river.predict_one(dict(enumerate(row))) for row in fresh.tolist()]


def test_missing_values_count_as_nothing_and_do_not_pull_as_in_river() -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(2000, 4))
    rows[1:][random.random((1999, 4)) < 0.2] = np.nan
    river, ours = cluster.KMeans(4, 0.1, seed=3), KMeans(4, 0.1, seed=3)
    dicts = [{j: value for j, value in enumerate(row) if value == value} for row in rows.tolist()]
    assert ours.learn_predict_many(rows).tolist() == [river.learn_predict_one(x) for x in dicts]
    assert ours.centres().tolist() == [[river.centers[c][j] for j in range(4)] for c in range(4)]


def test_one_row_at_a_time_learns_as_many_do() -> None:
    rows = np.random.default_rng(4).normal(size=(300, 3))
    one, many = KMeans(3, 0.1, seed=1), KMeans(3, 0.1, seed=1)
    labels = [one.learn_predict_one(dict(enumerate(row))) for row in rows.tolist()]
    assert labels == many.learn_predict_many(rows).tolist()
    assert one.centres().tolist() == many.centres().tolist()
