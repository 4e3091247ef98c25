import numpy as np
import pytest

from online_models import IncrementalKMeans
from online_models.kmeans import drawn, lloyd, nearest, squared_distances, swap

UNITS = [1.0, 40.0, 9000.0]


def blobs(n: int, seed: int, k: int = 6, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around k places that differ by seed 0 only, and which place each row belongs to."""
    places = np.random.default_rng(0).uniform(-6, 6, (k, 3)) + shift
    random = np.random.default_rng(seed)
    which = random.integers(k, size=n)
    return (places[which] + random.normal(size=(n, 3))) * UNITS, which


def standard(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def inertia(points: np.ndarray, centres: np.ndarray) -> float:
    return float(squared_distances(points, centres).min(axis=1).sum())


@pytest.mark.parametrize("seed", range(4))
def test_inertia_is_near_that_of_a_batch_run(seed: int) -> None:
    rows, _ = blobs(6000, seed=1)
    model = IncrementalKMeans(seed=seed)
    for start in range(0, 6000, 250):
        model.learn_many(rows[start : start + 250])
    points = standard(rows)
    starts = (points[np.random.default_rng(i).choice(6000, 6, replace=False)] for i in range(10))
    batch = min(lloyd(points, start, 100)[1] for start in starts)
    assert inertia(points, (model.centres() - rows.mean(axis=0)) / rows.std(axis=0)) < 1.03 * batch


def test_no_segment_before_there_are_enough_customers() -> None:
    model, (rows, _) = IncrementalKMeans(), blobs(200, seed=1)
    model.learn_many(rows, np.zeros(200))
    assert not model.ready
    assert set(model.predict_many(rows)) == {-1}
    assert model.margin_many(rows).tolist() == [0.0] * 200
    assert model.centres().shape == (0, 3)
    model.learn_many(rows)
    assert model.ready
    assert set(model.predict_many(rows)) == set(range(6))


def test_ids_hold_while_customers_drift_slowly() -> None:
    model = IncrementalKMeans(sample=1000, refit_every=500, seed=3)
    probes, which = blobs(500, seed=2)
    seen = set()
    for step in range(30):
        shift = 0.1 * step
        model.learn_many(blobs(500, seed=step, shift=shift)[0], np.arange(500) + 500 * (step % 2))
        if step >= 4:
            ids = model.predict_many(probes + shift * np.array(UNITS))
            seen.add(tuple(int(np.bincount(ids[which == place]).argmax()) for place in range(6)))
    assert model.figures()["refits"] > 20
    assert len(seen) == 1
    assert set(next(iter(seen))) == set(range(6))


def test_fresh_centres_inherit_the_ids_of_the_old_ones() -> None:
    model, (rows, _) = IncrementalKMeans(refit_every=0, better=10.0), blobs(1500, seed=1)  # every fresh start is taken
    model.learn_many(rows)
    model.refit()
    before = model.profile()
    for _ in range(8):
        model.refit()
        assert model.lineage == []
        assert model.ids.tolist() == list(range(6))
        assert model.profile() == pytest.approx(before, abs=0.05)


def test_ids_of_segments_that_are_gone_are_never_used_again() -> None:
    model = IncrementalKMeans(n_clusters=3, refit_every=0)
    random, seen = np.random.default_rng(1), set()
    for step in range(6):
        model.learn_many(
            random.normal(size=(600, 2)) + random.uniform(-50, 50, (3, 2)).repeat(200, axis=0), np.arange(600)
        )
        model.refit()
        born = {change.segment for change in model.lineage if change.what in ("born", "split")}
        gone = {change.segment for change in model.lineage if change.what in ("merged", "retired")}
        assert not born & seen
        assert not gone & set(model.ids.tolist())
        seen |= set(model.ids.tolist())
        assert len(born) == (3 if step == 0 else len(gone))
    assert len(seen) > 3


def test_a_refit_in_steps_is_the_refit_and_changes_the_model_with_its_last_step_only() -> None:
    whole, steps = IncrementalKMeans(refit_every=0), IncrementalKMeans(refit_every=0)
    for model in (whole, steps):
        model.learn_many(blobs(4000, seed=1)[0])
    before, turns = steps.to_arrays(), 0
    for _ in steps.refitting():
        turns += 1
        assert {name: array.tobytes() for name, array in steps.to_arrays().items()} == {
            name: array.tobytes() for name, array in before.items()
        }
    whole.refit()
    assert turns >= 3
    assert steps.profile().tolist() == whole.profile().tolist()


def test_empty_cluster_restarts_at_the_farthest_point() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0], [100.0], [101.0]])
    centres, left, rests = lloyd(points, np.array([[0.5], [10.5], [9000.0]]), 20)
    assert (centres.ravel().tolist(), left, rests) == ([0.5, 10.5, 100.5], 1.5, True)


def test_first_centres_are_drawn_far_from_those_before() -> None:
    points = np.concatenate([np.zeros((99, 1)), [[1000.0]]])
    reached = ((points - points[0]) ** 2)[:, 0]
    place, reach = drawn(points, reached, np.array([0.01, 0.99]))
    assert place == 99
    assert reach.tolist() == [0.0] * 100


def test_a_swap_takes_the_centre_that_is_missed_least_and_only_where_it_helps() -> None:
    points = np.array([[0.0], [0.2], [10.0], [10.2], [50.0]])
    centres = np.array([[0.0], [0.2], [10.1]])
    swap(points, centres, 0.999)  # draws the far point
    assert centres.ravel().tolist() in ([50.0, 0.2, 10.1], [0.0, 50.0, 10.1])
    good = np.array([[0.1], [10.1], [50.0]])
    swap(points, good, 0.1)
    assert good.ravel().tolist() == [0.1, 10.1, 50.0]


def test_nearest_and_second_nearest_are_those_of_the_whole_table_of_distances() -> None:
    random = np.random.default_rng(1)
    points, centres = random.normal(size=(300, 4)), random.normal(size=(5, 4))
    table = squared_distances(points, centres)
    labels, first, second = nearest(points, centres)
    assert labels.tolist() == table.argmin(axis=1).tolist()
    assert first.tolist() == table.min(axis=1).tolist()
    assert second.tolist() == np.sort(table, axis=1)[:, 1].tolist()


def test_heavy_users_do_not_own_the_centres() -> None:
    random = np.random.default_rng(1)
    customers = np.where(random.random(20_000) < 0.9, random.integers(10, size=20_000), np.arange(20_000))
    heavy = customers < 10
    rows = random.normal(size=(20_000, 2)) + np.where(heavy[:, None], 6.0, 0.0)
    model = IncrementalKMeans(n_clusters=3)
    model.learn_many(rows, customers)
    near_heavy = np.linalg.norm(model.centres() - 6.0, axis=1) < 3.0
    assert model.shares()[near_heavy].sum() < 0.02
    assert near_heavy.sum() <= 1


def test_sample_is_the_same_in_any_order_and_holds_the_latest_states() -> None:
    random, rows = np.random.default_rng(1), blobs(3000, seed=1)[0]
    customers = random.integers(900, size=3000)
    latest = dict(zip(customers.tolist(), rows, strict=True))
    model = IncrementalKMeans(sample=300)
    model.learn_many(rows, customers)
    once = IncrementalKMeans(sample=300)
    once.learn_many(np.array(list(latest.values())), np.array(list(latest)))
    assert model.to_arrays()["hashes"].tolist() == once.to_arrays()["hashes"].tolist()
    assert model.to_arrays()["rows"].tolist() == once.to_arrays()["rows"].tolist()


def test_forgotten_customer_leaves_the_sample() -> None:
    model, (rows, _) = IncrementalKMeans(), blobs(500, seed=1)
    model.learn_many(rows, np.arange(500))
    model.forget(77)
    kept = model.to_arrays()["rows"]
    assert len(kept) == 499
    assert not (kept == rows[77].astype(np.float32)).all(axis=1).any()
    model.forget(77)
    assert len(model.to_arrays()["rows"]) == 499


def test_margin_is_high_at_a_centre_and_low_between_two() -> None:
    model = IncrementalKMeans(n_clusters=2)
    model.learn_many(np.concatenate([blobs(300, seed=1, k=1)[0], blobs(300, seed=2, k=1, shift=8.0)[0]]))
    first, second = model.centres()
    margins = model.margin_many([first, (first + second) / 2])
    assert margins == pytest.approx([1.0, 0.0], abs=1e-9)


def test_profile_shares_and_ids_describe_the_same_centres() -> None:
    model, (rows, _) = IncrementalKMeans(), blobs(2000, seed=1)
    model.learn_many(rows)
    model.refit()
    found = np.bincount(model.predict_many(rows), minlength=6)[model.ids] / 2000
    assert model.shares() == pytest.approx(found, abs=0.001)
    assert model.profile() * rows.std(axis=0) + rows.mean(axis=0) == pytest.approx(model.centres(), rel=1e-4)
    assert model.predict_many(model.centres()).tolist() == model.ids.tolist()


def test_progressive_inertia_shows_customers_that_no_longer_fit() -> None:
    model = IncrementalKMeans()
    model.learn_many(blobs(4000, seed=1)[0])
    assert 0.9 < model.figures()["inertia_ratio"] < 1.15
    model.learn_many(blobs(500, seed=2, shift=4.0)[0])
    assert model.figures()["inertia_ratio"] > 1.5


def test_fewer_places_than_clusters_still_ends() -> None:
    model = IncrementalKMeans()
    model.learn_many(np.repeat([[0.0, 1.0], [5.0, 1.0]], 200, axis=0))
    assert np.isfinite(model.centres()).all()
    assert model.margin_many([[0.0, 1.0], [5.0, 1.0]]).min() >= 0.0


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="found n_clusters=6, min_customers=3 and sample=4000"):
        IncrementalKMeans(min_customers=3)
