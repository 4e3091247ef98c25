"""Silent customers are looked at when their time comes: as good as every day, at a fraction of the cost."""

import numpy as np
import pytest

from benchmarks.models_churn import bought, compared
from stream.events import Event
from stream.processing.customer import DAY_MS
from tests.builders import NOW, kinds, silent_task


def log(customers: int = 150, days: int = 220) -> list[Event]:
    """Customers of many rhythms; every third leaves, and the shop shifts to a slower pace half-way."""
    random, found = np.random.default_rng(6), []
    for i in range(customers):
        gap, at = random.uniform(3, 40), random.uniform(0, 40)
        leaves = random.uniform(40, days) if i % 3 == 0 else days
        while at < leaves:
            found.append(bought(f"c-{i}", NOW + round(at * DAY_MS), random.gamma(4, 10), 2, len(found)))
            at += random.exponential(gap) * (1.3 if at > days / 2 else 1.0)
    return sorted(found, key=lambda event: event.time_ms)


@pytest.mark.parametrize("risen", [0.0, 0.5])
def test_hardly_an_alert_is_missed_or_late_against_looking_at_everyone_every_day(risen: float) -> None:
    result = compared(log(), 28, 0.5, risen)
    assert result["alerts"] > 40
    assert result["missed"] + result["late"] <= max(1, 0.02 * result["alerts"])
    assert result["asked"] < 0.45 * result["daily"]


def test_a_customer_far_from_an_alert_is_left_alone_for_a_week_and_one_near_it_for_a_day() -> None:
    task = silent_task(days=40.0, churn_risen=0.0)
    waits = []
    for day in (0.0, 8.0, 11.0, 12.0, 16.5):
        task.tick(wakes=["a"], now_ms=NOW + round(day * DAY_MS))
        waits.append((int(task.row("a")["churn_due"]) - NOW) / DAY_MS - day)
    assert waits == [7.0, 3.0, 1.0, 1.0, 1.0]


def test_a_look_that_is_not_due_costs_no_score() -> None:
    task = silent_task(days=40.0)
    due = int(task.row("a")["churn_due"])
    task.version.churn.predict_proba_many = None  # type: ignore[method-assign,assignment]  # it would be called in vain
    task.tick(wakes=["a"], now_ms=due - 1)
    with pytest.raises(TypeError):
        task.tick(wakes=["a"], now_ms=due)


def test_a_rare_buyer_who_was_at_risk_all_along_is_no_alert_and_one_whose_risk_has_risen_is() -> None:
    always = silent_task(days=40.0, least=0.6)
    assert [kinds(always.tick(wakes=["a"], now_ms=NOW + day * DAY_MS)) for day in (2, 12, 24)] == [[], [], []]
    assert [kinds(always.tick(wakes=["a"], now_ms=NOW + day * DAY_MS)) for day in (25, 30, 34)] == [
        [],
        [("churn_risk", "a")],
        [],
    ]
    told = silent_task(days=40.0, least=0.6, churn_risen=0.0)
    assert kinds(told.results[-1]) == [("churn_risk", "a")], "without the option he is alerted with his order"


def test_a_quiet_shop_holds_alerts_back_and_says_so_once_a_day() -> None:
    task = silent_task(days=40.0)
    task.version.churn.quiet, task.version.churn.activity = True, 0.12  # type: ignore[misc]
    first = task.tick(wakes=["a"], now_ms=NOW + 30 * DAY_MS)
    assert [kind for kind, _ in kinds(first)] == ["churn_wave"]
    assert b"12% of what was expected" in first.entry.alerts[0].value
    assert first.held["churn_risk", "quiet_shop"] == 1
    task.version.churn.quiet = False  # type: ignore[misc]
    assert kinds(task.tick(wakes=["a"], now_ms=NOW + 31 * DAY_MS)) == [("churn_risk", "a")]
