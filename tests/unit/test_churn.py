"""The churn model on customers whose truth is known: each buys at a rate, and leaves after an order or does not."""

import math

import numpy as np
import pytest
from scipy.special import betaln, gammaln

from online_models import ChurnRisk, mbg
from online_models.churn import PARTS
from online_models.purchases import COLUMNS, FEATURES

HORIZON = 28.0


def customers(n: int, seed: int, days: float = 400.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories up to a day between 30 and `days` after the first order: columns, whether no order followed within the
    horizon, and the probability of that, as it was drawn: rates from Gamma(1.5, 20), departures from Beta(1, 5)."""
    random = np.random.default_rng(seed)
    rows, churned, truth = np.zeros((n, len(COLUMNS))), np.zeros(n, np.bool_), np.zeros(n)
    for i in range(n):
        rate, leaves, now = random.gamma(1.5) / 20.0, random.beta(1.0, 5.0), random.uniform(30.0, days)
        times, stays = [0.0], random.random() >= leaves
        while stays and times[-1] < now + HORIZON:
            times.append(times[-1] + random.exponential(1.0 / rate))
            stays = random.random() >= leaves
        past = np.array([time for time in times if time <= now])
        following = [time for time in times if now < time <= now + HORIZON]
        churned[i] = not following
        staying = math.exp(-rate * (now - past[-1])) * (1 - leaves)
        alive = staying / (staying + leaves)
        truth[i] = 1 - alive * -math.expm1(-rate * HORIZON)
        rows[i] = history(past, now)
    return rows, churned, truth


def history(times: np.ndarray, now: float) -> np.ndarray:
    gaps = np.maximum(np.diff(times), 0.5)
    row = dict.fromkeys(COLUMNS, 0.0)
    row |= {"orders": len(times), "recency": now - times[-1], "age": now - times[0], "spend": 20.0 * len(times)}
    row |= {"log_spend_mean": math.log(21.0), "spend_ewma": 20.0, "last_spend": 20.0, "items_ewma": 2.0}
    for days in (7, 30, 90, 180):
        row[f"orders_{days}d"] = float(np.exp2(-(now - times) / days).sum())
    row["spend_90d"] = 20.0 * row["orders_90d"]
    if len(gaps):
        logs = np.log(gaps)
        row |= {"gap_mean": gaps.mean(), "gap_m2": ((gaps - gaps.mean()) ** 2).sum(), "last_gap": gaps[-1]}
        row |= {"log_gap_mean": logs.mean(), "log_gap_m2": ((logs - logs.mean()) ** 2).sum()}
        row |= {"gap_ewma": gaps[-5:].mean(), "longest_gap": gaps.max()}
        row |= {f"gaps_over_{days}": (gaps > days).sum() for days in (7, 14, 28, 60)}
    return np.array(list(row.values()))


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.where(y, p, 1 - p)).mean())


@pytest.fixture(scope="module")
def fitted() -> ChurnRisk:
    model = ChurnRisk()
    model.learn_many(*customers(4_000, seed=1)[:2])
    return model


# Learning from labels


def test_predicts_nearly_as_well_as_who_knows_each_customer_s_rate(fitted: ChurnRisk) -> None:
    rows, labels, truth = customers(6_000, seed=2)
    loss, best, base = (
        log_loss(fitted.predict_proba_many(rows), labels),
        log_loss(np.clip(truth, 1e-4, 1 - 1e-4), labels),
        log_loss(np.full(len(labels), labels.mean()), labels),
    )
    assert best < loss < best + 0.25 * (base - best)


def test_beats_the_base_rate_after_few_labels() -> None:
    model = ChurnRisk()
    model.learn_many(*customers(100, seed=1)[:2])
    rows, labels, _ = customers(4_000, seed=2)
    assert log_loss(model.predict_proba_many(rows), labels) < log_loss(np.full(4_000, labels.mean()), labels) - 0.03


def test_probabilities_are_calibrated(fitted: ChurnRisk) -> None:
    rows, labels, _ = customers(12_000, seed=3)
    p = fitted.predict_proba_many(rows)
    order = np.argsort(p)
    for part in np.array_split(order, 10):
        assert labels[part].mean() == pytest.approx(p[part].mean(), abs=0.06)


def test_a_longer_silence_raises_the_risk_and_says_so_in_its_parts(fitted: ChurnRisk) -> None:
    row = history(np.arange(0.0, 100.0, 9.0), 100.0)[None, :]
    risks = [float(fitted.predict_proba_many(row, days)[0]) for days in (0, 10, 30, 60)]
    assert risks == sorted(risks)
    later = row.copy()
    later[:, COLUMNS.index("recency")] += 40.0
    grown = fitted.logit_contributions_many(later) - fitted.logit_contributions_many(row)
    assert grown[0, PARTS.index("pattern")] > 0
    assert grown[0, FEATURES.index("overdue")] > 0


def test_the_parts_of_a_risk_add_up_to_its_logit_but_for_a_constant(fitted: ChurnRisk) -> None:
    rows = customers(200, seed=4)[0]
    p = fitted.predict_proba_many(rows)
    inside = (p > 0.02) & (p < 0.98)
    left = np.log(p / (1 - p)) - fitted.logit_contributions_many(rows).sum(axis=1)
    assert np.std(left[inside]) < 0.05 * np.std(np.log(p / (1 - p))[inside])


def test_a_later_moment_of_silence_is_what_the_columns_say_then(fitted: ChurnRisk) -> None:
    times = np.array([0.0, 5.0, 17.0, 20.0, 41.0])
    ahead = fitted.predict_proba_many(history(times, 44.0)[None, :], 30.0)
    then = fitted.predict_proba_many(history(times, 74.0)[None, :])
    assert float(ahead[0]) == pytest.approx(float(then[0]), abs=1e-9)


def test_ready_needs_labels_of_both_classes() -> None:
    model, rows = ChurnRisk(min_labels=50), customers(100, seed=1)[0]
    model.learn_many(rows, np.ones(100))
    assert (model.n_labels, model.ready) == (100, False)
    model.learn_many(rows[:4], np.zeros(4))
    assert not model.ready
    model.learn_many(rows[:1], np.zeros(1))
    assert (model.n_labels, model.ready) == (105, True)


def test_progressive_figures_agree_with_predicting_before_learning(fitted: ChurnRisk) -> None:
    _, labels, truth = customers(4_000, seed=1)
    figures, recent = fitted.figures(), slice(-1_500, None)
    assert figures["labels"] == 4_000
    assert figures["brier"] == pytest.approx(float(np.mean((truth - labels)[recent] ** 2)), abs=0.03)
    assert figures["churned_share"] == pytest.approx(labels[recent].mean(), abs=0.03)
    assert figures["skill"] == pytest.approx(1 - figures["log_loss"] / figures["base_log_loss"])
    assert figures["skill"] > 0.2


def test_labels_without_signal_show_no_skill() -> None:
    model = ChurnRisk()
    model.learn_many(customers(2_000, seed=1)[0], np.random.default_rng(5).random(2_000) < 0.3)
    assert -0.15 < model.figures()["skill"] < 0.03


def test_idle_features_never_make_a_covariance_run_away() -> None:
    model = ChurnRisk()
    rows, labels, _ = customers(2_000, seed=1)
    rows[:, COLUMNS.index("items_ewma")] = 7.0
    model.learn_many(rows, labels)
    assert model.to_arrays()["plain_covariance"].max() <= 5.0
    assert np.isfinite(model.predict_proba_many(rows)).all()


def test_rows_and_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match="found 2 labels for 3 rows"):
        ChurnRisk().learn_many(np.ones((3, len(COLUMNS))), [True, False])


# MBG/NBD


def likelihood(parameters: np.ndarray, x: float, t_x: float, T: float) -> float:
    """As the paper has it, of x orders after the first, the last at t_x."""
    r, alpha, a, b = parameters
    stays = betaln(a, b + x + 1) - (r + x) * math.log(alpha + T)
    leaves = betaln(a + 1, b + x) - (r + x) * math.log(alpha + t_x)
    return float(gammaln(r + x) - gammaln(r) + r * math.log(alpha) - betaln(a, b) + np.logaddexp(stays, leaves))


@pytest.mark.parametrize(("x", "t_x", "T"), [(0, 0, 0), (0, 0, 50), (3, 20, 25), (40, 300, 400)])
def test_the_gradient_is_that_of_the_likelihood(x: int, t_x: float, T: float) -> None:
    logs, found = np.log([0.7, 12.0, 0.4, 3.0]), np.zeros(4)
    mbg.gradient(np.exp(logs), float(x), float(t_x), float(T), found)
    for j in range(4):
        step = np.eye(4)[j] * 1e-5
        slope = (likelihood(np.exp(logs + step), x, t_x, T) - likelihood(np.exp(logs - step), x, t_x, T)) / 2e-5
        assert found[j] == pytest.approx(slope, abs=1e-6)


def test_the_probability_of_silence_is_what_the_likelihoods_make_of_it() -> None:
    parameters, x, t_x, T, days = np.array([0.7, 12.0, 0.4, 3.0]), 3.0, 20.0, 33.0, 28.0
    longer, now = (math.exp(likelihood(parameters, x, t_x, until)) for until in (T + days, T))
    assert mbg.silent(parameters, x, t_x, T, days) == pytest.approx(longer / now)


def test_a_longer_silence_never_makes_an_order_likelier_to_be_missed_less() -> None:
    parameters = np.array([0.7, 12.0, 0.4, 3.0])
    risks = [mbg.silent(parameters, 5.0, 60.0, T, HORIZON) for T in np.arange(60.0, 300.0)]
    assert risks == sorted(risks)
    assert mbg.alive(parameters, 0.0, 0.0, 0.0) < 1.0, "the first order may have been the last"


# Days


def world(model: ChurnRisk, days: int, closed: range = range(0), rate: float = 1 / 6, count: int = 400) -> None:
    """Customers who never leave and order at one rate; nobody orders while the shop is closed."""
    random = np.random.default_rng(3)
    times: list[list[float]] = [[float(random.uniform(0, 10))] for _ in range(count)]
    for day in range(1, days):
        touched = []
        for i in range(count):
            if times[i][0] <= day and random.random() < rate and day - 1 not in closed:
                times[i].append(day - 0.5)
                touched.append(i)
        known = [i for i in range(count) if times[i][0] <= day]
        if day == 12:
            touched = known
        if touched:
            rows = np.array([history(np.array(times[i]), float(day)) for i in touched])
            model.observe(rows, np.array(touched), float(day))
        model.turn(day - 1)


def test_a_shop_that_goes_on_as_it_does_is_neither_busy_nor_quiet() -> None:
    model = ChurnRisk()
    world(model, 80)
    assert model.activity == pytest.approx(1.0, abs=0.15)
    assert not model.quiet


def test_a_closed_shop_is_quiet_within_a_week_and_lively_again_after_it_has_opened() -> None:
    model, found = ChurnRisk(), []
    turn = model.turn

    def watched(day: int) -> None:
        turn(day)
        found.append((day, model.quiet))

    model.turn = watched  # type: ignore[method-assign]
    world(model, 110, closed=range(70, 90))
    quiet = [day for day, is_quiet in found if is_quiet]
    assert 72 <= min(quiet) <= 77
    assert 90 <= max(quiet) <= 97
    assert len(quiet) == max(quiet) - min(quiet) + 1


def test_a_closed_shop_teaches_no_churn() -> None:
    rows, risks = customers(600, seed=6)[0], []
    for days in (None, np.full(600, 68.0)):
        model = ChurnRisk()
        world(model, 100, closed=range(66, 100))
        before = model.predict_proba_many(rows).mean()
        model.learn_many(rows, np.ones(600), days)
        risks.append(float(model.predict_proba_many(rows).mean() - before))
    assert risks[1] < 0.5 * risks[0]


def test_days_that_are_past_and_days_in_one_go_make_no_difference() -> None:
    rows = customers(50, seed=1)[0]
    one, many = ChurnRisk(), ChurnRisk()
    for model in (one, many):
        model.observe(rows, np.arange(50), 10.0)
    one.turn(30)
    one.turn(20)
    for day in range(30, 31):
        many.turn(day)
    many.turn(40)
    for day in range(31, 41):
        one.turn(day)
    left, right = one.to_arrays(), many.to_arrays()
    assert all(np.array_equal(left[name], right[name], equal_nan=True) for name in left)


def test_the_sample_is_of_all_customers_alike_and_holds_each_as_last_seen() -> None:
    model, rows = ChurnRisk(), np.ones((9_000, len(COLUMNS)))
    rows[:, 0] = np.arange(9_000)
    for start in range(0, 9_000, 700):
        model.observe(rows[start : start + 700], np.arange(start, min(start + 700, 9_000)), 5.0)
    held = model.to_arrays()["sample"][:, 0]
    assert len(held) == 2_000
    assert np.mean(held) == pytest.approx(4_500, abs=250)
    who = int(held[0])
    model.observe(np.full((1, len(COLUMNS)), 3.0), np.array([who]), 6.0)
    assert model.to_arrays()["sample"][0].tolist() == [3.0] * len(COLUMNS)
    model.forget(who)
    assert who not in model.to_arrays()["sample"][:, 0]
