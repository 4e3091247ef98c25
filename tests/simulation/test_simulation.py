"""300 schedules of faults; and each guard, taken away, is missed.

Ten thousand: make simulate SEEDS=0:10000. One, step by step: python -m tests.simulation --seeds 17 --trace.
"""

import os
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from typing import Any

import pytest

from stream.errors import TaskLost
from stream.ports import Marker, Token
from stream.worker import Prepared, Task, Worker
from tests.simulation.__main__ import outcome
from tests.simulation.world import FAULTS, ScheduleError, World

SCHEDULES = 300
ENOUGH = 120
"""Schedules within which a missing guard must show."""
HARM = "a tick lacks|a gap or an overlap|StoreAhead|JournalGap"
"""Two owners have committed the same tick, or one has moved the offsets back."""
ROWS = "other (rows|customers)|run again"
"""The store is not what the journal says."""


@pytest.mark.timeout(1_200)
def test_nothing_is_lost_repeated_or_stuck_in_300_schedules_of_faults() -> None:
    happened: Counter[str] = Counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(outcome, range(SCHEDULES), chunksize=4))
    for _, _, counts in results:
        happened.update(counts)
    assert [failure for _, failure, _ in results if failure] == []
    missing = [name for name in FAULTS if not happened[f"fault: {name}"]]
    assert not missing, f"faults that never happened: {missing}"
    assert happened["alerts"] > 10 * SCHEDULES, "too few alerts to show a repeated one"
    assert happened["alerts of versions"] > SCHEDULES / 10, "too few alerts of a version to show a repeated one"
    assert happened["alerts of timers"] > SCHEDULES, "too few alerts without an event to show a repeated one"


def test_a_schedule_replays_to_the_same_step() -> None:
    def trace(seed: int) -> tuple[int, str]:
        digest = blake2b(digest_size=8)
        world = World(seed, heard=lambda line: digest.update(line.encode()))
        world.run()
        return world.stage.steps, digest.hexdigest()

    assert trace(3) == trace(3) != trace(4)


class AppliesLater(Worker):
    """A worker that goes on while ticks wait to be applied, as a pipelined one would.

    Its cache gives rows up although the store does not have them yet: the guard that `RowCache` asks for is missing.
    """

    EVERY = 4

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._waiting: list[tuple[Task, Prepared, Marker]] = []
        self._turns = 0

    def turn(self) -> bool:
        self._turns += 1
        if self._turns % self.EVERY == 0:
            waiting, self._waiting = self._waiting, []
            for task, prepared, marker in waiting:
                if self._tasks.get(task.number) is not task:
                    continue  # recovered since: the journal has brought the store level
                entry = prepared.result.entry
                try:
                    self._ports.store.apply(
                        task.number, entry.prev_seq, marker, entry.customers, entry.rows, entry.forgotten
                    )
                except Exception as error:
                    self._lose([task], "store", error)
        return super().turn() or bool(self._waiting)

    def _apply(self, prepared: Prepared, journal_offset: int) -> None:
        assert isinstance(self._token, Token)
        task, result, _ = prepared
        entry = result.entry
        marker = Marker(entry.state, self._token.generation, journal_offset, entry.partitions)
        self._waiting.append((task, prepared, marker))
        task.state = entry.state
        task.cache.put(entry.customers, entry.rows, entry.forgotten)

    def _compare(self, task: Task, marker: Marker | None) -> None:
        mine = [one.result.entry.prev_seq for waiting, one, _ in self._waiting if waiting is task]
        if (marker.state.seq if marker else 0) != min(mine, default=task.state.seq):
            raise TaskLost("the store is elsewhere")


def found(only: tuple[str, ...], **taken_away: Any) -> str:
    """What the first schedule says that fails without a guard and passes with it; fails where there is none."""
    for seed in range(ENOUGH):
        try:
            World(seed, only=only, **taken_away).run()
        except ScheduleError as error:
            World(seed, only=only).run()
            return str(error)
    return pytest.fail(f"{ENOUGH} schedules did not miss the guard")


@pytest.mark.parametrize(
    ("guard", "faults", "harm"),
    [
        ("the generation is read at the commit", ("freeze", "expel", "join"), HARM),
        ("inputs are read uncommitted", ("freeze", "expel", "join", "kill"), HARM),
        (
            "the script is not guarded",
            ("freeze", "redis_loses_its_tail", "redis_is_emptied"),
            ROWS,
        ),
        ("a chunk does not ask for those before it", ("redis_loses_its_tail",), ROWS),
        ("refused offsets are sent again", ("freeze", "expel", "join", "stop"), HARM),
        ("timer ticks are not numbered", ("kill", "night"), '"seq"|StoreAhead|a tick lacks'),
    ],
)
def test_a_guard_that_is_taken_away_is_missed(guard: str, faults: tuple[str, ...], harm: str) -> None:
    said = found(faults, mutations=frozenset([guard]))
    assert re.search(harm, said), said


def test_rows_given_up_before_they_are_applied_are_missed() -> None:
    said = found(("night",), worker_type=AppliesLater)
    assert "run again it gives another journal record" in said


def test_it_is_the_eviction_that_is_missed() -> None:
    for seed in range(12):
        World(seed, worker_type=AppliesLater, cache_rows=1_000, only=("night",)).run()
