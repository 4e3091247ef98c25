import numpy as np
import pytest

from online_models import ChurnRisk

TRUTH = np.array([1.5, -0.8, 0.0])  # per standard deviation: recency raises churn, orders lower it, the last is noise
UNITS, CENTRES = np.array([12.0, 3.0, 900.0]), np.array([40.0, 8.0, 4000.0])


def labelled(n: int, seed: int, intercept: float = -0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels, and the probabilities the labels were drawn with."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(n, 3))
    p = 1 / (1 + np.exp(-(z @ TRUTH + intercept)))
    return z * UNITS + CENTRES, random.random(n) < p, p


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.where(y, p, 1 - p)).mean())


def fitted(n: int = 4000) -> ChurnRisk:
    model = ChurnRisk()
    model.learn_many(*labelled(n, seed=1)[:2])
    return model


def test_predicts_nearly_as_well_as_the_truth() -> None:
    rows, labels, truth = labelled(20_000, seed=2)
    loss, best, base = (
        log_loss(fitted().predict_proba_many(rows), labels),
        log_loss(truth, labels),
        log_loss(np.full(len(labels), labels.mean()), labels),
    )
    assert best < loss < best + 0.05 * (base - best)


def test_beats_the_base_rate_after_few_labels() -> None:
    model = ChurnRisk()
    model.learn_many(*labelled(300, seed=1)[:2])
    rows, labels, _ = labelled(5000, seed=2)
    assert log_loss(model.predict_proba_many(rows), labels) < log_loss(np.full(5000, labels.mean()), labels) - 0.05


def test_probabilities_are_calibrated() -> None:
    rows, labels, _ = labelled(20_000, seed=2)
    p = fitted().predict_proba_many(rows)
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (p >= low) & (p < low + 0.1)
        assert labels[inside].mean() == pytest.approx(p[inside].mean(), abs=0.05)


def test_contributions_have_the_sign_of_the_cause_and_add_up_to_the_logit() -> None:
    model, rows = fitted(), np.vstack([CENTRES, CENTRES + 2 * UNITS])
    contributions, p = model.logit_contributions_many(rows), model.predict_proba_many(rows)
    assert contributions[0] == pytest.approx(0.0, abs=0.1)
    assert contributions[1] == pytest.approx(2 * TRUTH, abs=0.5)
    logits = np.log(p / (1 - p))
    assert logits[1] - logits[0] == pytest.approx(contributions[1].sum() - contributions[0].sum())


def test_clipping_bounds_what_one_feature_can_say() -> None:
    model = fitted()
    far, farther = model.predict_proba_many([CENTRES + 10 * UNITS, CENTRES + 1e6 * UNITS])
    assert far == farther


def test_ready_needs_labels_of_both_classes() -> None:
    model = ChurnRisk(min_labels=50)
    rows = labelled(100, seed=1)[0]
    model.learn_many(rows, np.ones(100))
    assert (model.n_labels, model.ready) == (100, False)
    model.learn_many(rows[:9], np.zeros(9))
    assert not model.ready
    model.learn_many(rows[:1], np.zeros(1))
    assert (model.n_labels, model.ready) == (110, True)


def test_says_one_half_before_any_label() -> None:
    assert ChurnRisk().predict_proba_one({"recency": 3.0}) == {False: 0.5, True: 0.5}
    assert ChurnRisk(["recency"]).predict_proba_many([[3.0], [9.0]]).tolist() == [0.5, 0.5]


def test_progressive_figures_agree_with_predicting_before_learning() -> None:
    rows, labels, truth = labelled(6000, seed=1)
    model = ChurnRisk()
    model.learn_many(rows, labels)
    figures, recent = model.figures(), slice(-1500, None)
    assert figures["labels"] == 6000
    assert figures["log_loss"] == pytest.approx(log_loss(truth[recent], labels[recent]), abs=0.02)
    assert figures["brier"] == pytest.approx(float(np.mean((truth - labels)[recent] ** 2)), abs=0.02)
    assert figures["churned_share"] == pytest.approx(labels[recent].mean(), abs=0.03)
    assert figures["skill"] == pytest.approx(1 - figures["log_loss"] / figures["base_log_loss"])
    assert figures["skill"] > 0.15


def test_labels_without_signal_show_no_skill() -> None:
    rows = labelled(4000, seed=1)[0]
    model = ChurnRisk()
    model.learn_many(rows, np.random.default_rng(5).random(4000) < 0.3)
    assert abs(model.figures()["skill"]) < 0.02
    assert np.ptp(model.predict_proba_many(rows)) < 0.3


def test_follows_a_churn_rate_that_changes() -> None:
    model = ChurnRisk(forgetting=1e-3)
    model.learn_many(*labelled(3000, seed=1, intercept=-1.5)[:2])
    model.learn_many(*labelled(6000, seed=2, intercept=1.5)[:2])
    rows, labels, _ = labelled(5000, seed=3, intercept=1.5)
    assert model.predict_proba_many(rows).mean() == pytest.approx(labels.mean(), abs=0.05)


def test_idle_features_never_make_the_covariance_run_away() -> None:
    model = ChurnRisk(forgetting=0.01)
    rows, labels, _ = labelled(3000, seed=1)
    rows[:, 2] = 7.0
    model.learn_many(rows, labels)
    assert model.to_arrays()["covariance"].max() <= 5.0
    assert np.isfinite(model.predict_proba_many(rows)).all()


def test_rows_and_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        ChurnRisk().learn_many(np.ones((3, 2)), [True, False])
