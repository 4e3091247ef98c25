"""Seeded schedules of faults on real servers. More: make faults SEED=1 ROUNDS=20; what they draw from: tests/faults."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from tests.faults.__main__ import told
from tests.faults.round import DifferenceError, Round
from tests.faults.servers import Pair
from tests.servers import ServerUnavailable

pytestmark = pytest.mark.servers

SEED = 20
ROUNDS = 6
ONE, THREE = 1, 3
IN_SUITE = [
    *((ONE, "kafka-python", number) for number in range(ROUNDS)),
    *((ONE, "librdkafka", number) for number in range(3)),
    (THREE, "kafka-python", 0),  # the group's coordinator is frozen while a worker is frozen in its transaction
    (THREE, "librdkafka", 16),  # the transactions' coordinator is killed
]


Started = Callable[[int], Pair | ServerUnavailable]


@pytest.fixture(scope="module")
def pairs() -> Iterator[Started]:
    """Servers by their number of brokers, started where they are first asked for."""
    with ExitStack() as stack:

        @cache
        def started(brokers: int) -> Pair | ServerUnavailable:
            try:
                return stack.enter_context(Pair(brokers))
            except ServerUnavailable as error:
                return error

        yield started


@pytest.fixture
def brokers() -> int:
    return ONE


@pytest.fixture
def pair(pairs: Started, brokers: int, did_not_run: Callable[..., NoReturn]) -> Pair:
    """Servers that answer, and hold nothing of a round before."""
    pair = pairs(brokers)
    if isinstance(pair, ServerUnavailable):
        did_not_run("schedules of faults", pair)
    pair.mend()
    pair.clear()
    return pair


@pytest.mark.parametrize(("brokers", "client", "number"), IN_SUITE)
def test_nothing_is_lost_repeated_or_stuck_in_a_schedule_of_faults(
    pair: Pair, tmp_path: Path, client: str, number: int
) -> None:
    round = Round(pair, SEED, number, tmp_path, client=client)
    try:
        seen = round.run()
    except DifferenceError as difference:
        pytest.fail(told(round, difference, tmp_path))
    assert sum(round.happened.values()), round.story
    assert seen.alerts or client == "librdkafka"  # its workers may be through before there is a model


class Tampered(Round):
    """Somebody deletes a customer from Redis once every worker has stopped."""

    def _stop(self) -> None:
        super()._stop()
        with self.redis() as client:
            client.delete(next(client.scan_iter(f"{{{self.site.name}:p0}}:c:*")))


def test_a_round_that_ends_with_a_difference_tells_its_seed_what_was_done_and_the_first_divergence(
    pair: Pair, tmp_path: Path
) -> None:
    round = Tampered(pair, SEED, ROUNDS, tmp_path, only=["worker_killed", "redis_emptied"])
    with pytest.raises(DifferenceError) as failed:
        round.run()
    said = told(round, failed.value, tmp_path)
    assert f"--seed {SEED} --round {ROUNDS} " in said
    assert "--client kafka-python --only worker_killed redis_emptied\n" in f"{said}\n"
    assert "first divergence: task 0: other customers than in the journal" in said
    assert "FAULT " in said
    assert str(tmp_path) in said
