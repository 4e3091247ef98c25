"""`driftline evaluate churn` on somebody's own events."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammaln

from stream.cli import main
from stream.embedded import Embedded
from stream.errors import InvalidEvent
from stream.evaluation import churn
from stream.evaluation.btyd import Refit, bg_nbd, pareto_nbd
from stream.evaluation.measures import auc, calibration_error, log_loss
from stream.evaluation.purchases import Shop, stretches
from stream.events import Event, Kind, Record, decode
from stream.processing.customer import DAY_MS, as_read
from stream.settings import Settings
from tests.builders import NOW, event, settings, shop


def purchases(path: Path, customers: int = 60, days: int = 150, clock: bool = False) -> Path:
    """A CSV of a small shop: customers order every 4 to 30 days, and a third leaves on the way."""
    random = np.random.default_rng(4)
    lines = []
    for i in range(customers):
        gap, leaves = random.uniform(4, 30), random.uniform(30, days) if i % 3 == 0 else days
        at = random.uniform(0, 20)
        while at < leaves:
            moment = np.datetime64("2025-01-01T00:00:00") + np.timedelta64(round(at * 86_400), "s")
            lines.append((str(moment)[: 19 if clock else 10], f"c-{i}", f"{random.gamma(4, 10):.2f}"))
            at += random.exponential(gap)
    lines.sort()
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([("date", "customer", "amount"), *lines])
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["evaluate", "churn", *map(str, arguments), "--json"]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


def test_all_methods_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = purchases(tmp_path / "orders.csv")
    assert main(["evaluate", "churn", "--events", str(events), "--horizon", "21", "--cuts", "2025-04-10"]) == 0
    said = capsys.readouterr().out
    rivals = ("recency", "BG/NBD", "Pareto/NBD", "batch logistic", "batch gradient", "Hoeffding", "PA", "ARF")
    assert all(name in said for name in ("Driftline", *rivals))
    assert "no order within 21 days" in said


def test_any_river_classifier_is_measured_by_its_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, model = purchases(tmp_path / "orders.csv"), "river.naive_bayes.GaussianNB"
    found = evaluated(capsys, "--events", events, "--horizon", 21, "--cuts", "2025-04-10", "--model", model)
    assert 0.4 < found["models"][model]["auc"] < 1.0


def test_the_outcome_is_whether_an_order_came_after_the_cut_within_the_horizon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "orders.csv"
    rows = [("2025-01-01", "a"), ("2025-01-01", "b"), ("2025-02-01", "c"), ("2025-02-08", "a"), ("2025-02-09", "b")]
    rows += [("2025-03-20", "d")]
    path.write_text("date,customer\n" + "".join(f"{day},{who}\n" for day, who in rows))
    found = evaluated(capsys, "--events", path, "--ours", "--horizon", 7, "--cuts", "2025-02-01,2025-03-19")
    assert [(cut["customers"], cut["churned"]) for cut in found["cuts"]] == [(3, pytest.approx(2 / 3)), (3, None)]


def test_scores_are_written_for_every_customer_known_at_each_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, scores = purchases(tmp_path / "orders.csv"), tmp_path / "scores.csv"
    cuts = ("2025-01-03", "2025-03-01", "2025-05-20T12:00:00Z")  # no label yet, some, and no outcome any more
    found = evaluated(
        capsys, "--events", events, "--ours", "--horizon", 21, "--cuts", ",".join(cuts), "--scores", scores
    )
    with scores.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [len([row for row in rows if row["time"].startswith(cut[:10])]) for cut in cuts] == [
        cut["customers"] for cut in found["cuts"]
    ]
    assert all(0 <= float(row["score"]) <= 1 and math.isfinite(float(row["score"])) for row in rows)


def test_the_same_events_give_the_same_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, found = purchases(tmp_path / "orders.csv", clock=True), []
    for name in ("one.csv", "two.csv"):
        evaluated(capsys, "--events", events, "--ours", "--horizon", 21, "--scores", tmp_path / name)
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]


def test_what_comes_after_a_cut_does_not_move_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = purchases(tmp_path / "orders.csv")
    lines = events.read_text().splitlines()
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("\n".join([lines[0], *(line for line in lines[1:] if line[:10] <= "2025-03-15")]) + "\n")
    found = []
    for path in (events, shorter):
        out = tmp_path / f"{path.stem}-scores.csv"
        evaluated(capsys, "--events", path, "--ours", "--horizon", 21, "--cuts", "2025-03-15", "--scores", out)
        found.append(out.read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cuts", "soon"), "'soon' is no time"),
        (("--cuts", "2020-01-01"), "lies before the first event"),
        (("--model", "river.nothing.Here"), "name a River classifier"),
        (("--horizon", "200"), "too few for a cut"),
    ],
)
def test_wrong_usage_is_named(
    arguments: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = purchases(tmp_path / "orders.csv", customers=5)
    assert main(["evaluate", "churn", "--events", str(events), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_events_without_an_order_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "views.csv"
    path.write_text("date,customer,event\n2025-01-01,a,view\n")
    assert main(["evaluate", "churn", "--events", str(path)]) == 2
    assert "no order of a customer with an id" in capsys.readouterr().err


# The same rows as the stream's


def test_rows_are_those_of_the_stream_but_for_what_the_models_wrote() -> None:
    events = shop(30, 60)
    chosen = settings()
    embedded = Embedded(chosen, tuple(events), lambda _: None)
    embedded.run({topic: iter(records) for topic, records in events.items()})
    stored = {customer: as_read(row, 3)[0] for customer, row in embedded.store.scan(0)}
    evaluated_shop = Shop(chosen)
    decoded = _decoded([one for records in events.values() for one in records], chosen)
    for part, now_ms in stretches(decoded, ()):
        evaluated_shop.advance(part, now_ms)
    compared = 0
    for customer, row in zip(evaluated_shop.customers, evaluated_shop.rows, strict=True):
        if customer in stored:
            for name in (
                "orders",
                "spend_minor",
                "order_days",
                "gaps_over",
                "last_order",
                "gap_mean_days",
                "last_spend",
            ):
                assert np.array_equal(row[name], stored[customer][name]), (customer, name)
            compared += 1
    assert compared > 20


def _decoded(records: list[Record], chosen: Settings) -> list[Event]:
    found = []
    for one in records:
        try:
            found.append(decode(one, chosen.event_rules))
        except InvalidEvent:
            continue
    return sorted(found, key=lambda one: one.time_ms)


# Measures and fits


def test_measures_are_those_of_the_textbook() -> None:
    p, y = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auc(y, p) == pytest.approx((1 + 0.5 + 2) / 4)
    assert log_loss(y, p) == pytest.approx(-np.log([0.9, 0.4, 0.6, 0.8]).mean())
    assert calibration_error(np.arange(300) % 4 == 0, np.full(300, 0.25)) == pytest.approx(0.0, abs=0.01)
    assert math.isnan(auc(np.ones(4, np.bool_), p))


@pytest.mark.parametrize("parameters", [(0.6, 12.0, 0.5, 30.0), (0.6, 12.0, 0.5, 5.0)])
@pytest.mark.parametrize(("x", "t_x", "T"), [(0.0, 0.0, 20.0), (4.0, 30.0, 50.0), (60.0, 200.0, 210.0)])
def test_pareto_nbd_is_the_integral_over_departures(
    parameters: tuple[float, ...], x: float, t_x: float, T: float
) -> None:
    r, alpha, s, beta = parameters
    scale = (r + x) * math.log(alpha + t_x)

    def density(t: float) -> float:
        return math.exp(scale - (r + x) * math.log(alpha + t)) * s * beta**s * (beta + t) ** (-s - 1)

    left = quad(density, t_x, T)[0]
    stays = math.exp(scale - (r + x) * math.log(alpha + T)) * (beta / (beta + T)) ** s
    constant = gammaln(r + x) - gammaln(r) + r * math.log(alpha) - scale
    found = pareto_nbd(np.array(parameters), *(np.array([one]) for one in (x, t_x, T)))
    assert found[0] == pytest.approx(constant + math.log(left + stays), abs=1e-6)


@pytest.mark.parametrize(("model", "start"), [(bg_nbd, (0.5, 20.0, 0.5, 2.0)), (pareto_nbd, (0.5, 20.0, 0.5, 60.0))])
def test_a_refit_is_calibrated_on_customers_who_buy_until_they_leave(model: object, start: tuple[float, ...]) -> None:
    from tests.unit.test_churn import customers

    rows, churned, _ = customers(1_500, seed=8)
    p = Refit(model, start).silent(rows[:, 0], rows[:, 1], rows[:, 2], 28.0)  # type: ignore[arg-type]
    assert p.mean() == pytest.approx(churned.mean(), abs=0.03)
    assert auc(churned, p) > 0.8


def test_default_cuts_have_a_past_and_an_outcome() -> None:
    ends = [event(Kind.ORDER, NOW), event(Kind.ORDER, NOW + 200 * DAY_MS)]
    cuts = churn._cuts(None, ends, 28.0)
    assert (cuts[0] - NOW) // DAY_MS >= 89
    assert cuts[-1] + 28 * DAY_MS <= NOW + 201 * DAY_MS
