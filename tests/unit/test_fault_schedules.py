"""What a seed draws for the real servers; the rounds themselves: tests/integration/test_schedules.py."""

from collections import Counter

from tests.faults.round import FAULTS_S, schedule
from tests.faults.table import FAULTS

ROUNDS = 400


def test_a_schedule_is_that_of_its_seed_and_number_alone() -> None:
    assert schedule(3, 5) == schedule(3, 5)
    assert len({schedule(3, 5), schedule(3, 6), schedule(4, 5)}) == 3


def test_every_fault_is_drawn_and_the_heavier_ones_more_often() -> None:
    plans = [schedule(1, number, brokers=3) for number in range(ROUNDS)]
    drawn = Counter(planned.name for plan in plans for planned in plan.faults)
    assert set(drawn) == set(FAULTS)
    mean = {
        weight: sum(drawn[name] for name, one in FAULTS.items() if one.weight == weight)
        / sum(one.weight == weight for one in FAULTS.values())
        for weight in {one.weight for one in FAULTS.values()}
    }
    assert [*sorted(mean)] == sorted(mean, key=lambda weight: mean[weight]), mean


def test_one_broker_is_asked_for_no_fault_that_needs_another() -> None:
    drawn = {planned.name for number in range(ROUNDS) for planned in schedule(1, number).faults}
    assert drawn == {name for name, one in FAULTS.items() if one.brokers == 1}


def test_faults_come_in_order_within_the_stream() -> None:
    for number in range(ROUNDS):
        plan = schedule(2, number)
        times = [planned.at_s for planned in plan.faults]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= FAULTS_S
        assert (2 <= plan.workers <= 3, 2 <= len(times) <= 5) == (True, True)


def test_only_the_faults_that_were_asked_for_are_drawn() -> None:
    drawn = {planned.name for number in range(20) for planned in schedule(1, number, ["broker_killed"]).faults}
    assert drawn == {"broker_killed"}
