"""Redis in memory: the guarded script chunk by chunk, answers that get lost, tails that get lost, nothing at all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stream.errors import RowsLost, StoreUnavailable, TaskLost
from stream.ports import Marker
from stream.processing.customer import Rows
from tests.simulation.actors import Actor, Stage

CHUNK_CUSTOMERS = 4
REMEMBERED = 40


class Contents(NamedTuple):
    """A task's keys at one moment."""

    marker: Marker | None
    rows: Mapping[str, bytes]
    dues: Mapping[str, int]
    part: tuple[int, int] = (0, 0)


NOTHING = Contents(None, {}, {})


class Server:
    """The keys, and what they were before: a failover to a replica that lagged behind takes the last writes away."""

    def __init__(self, stage: Stage, mutations: frozenset[str]) -> None:
        self.stage, self.mutations = stage, mutations
        self.tasks: dict[int, Contents] = {}
        self._before: dict[int, list[Contents]] = {}
        self.down_until = 0.0
        self.lost_answers = 0.0

    def check(self) -> None:
        if self.stage.now < self.down_until:
            raise StoreUnavailable("Redis is down")

    def answer(self) -> None:
        """Raise where the answer to what was just done gets lost."""
        if self.lost_answers and self.stage.draw.random() < self.lost_answers:
            raise StoreUnavailable("the answer got lost")

    def write(self, task: int, contents: Contents) -> None:
        self._before.setdefault(task, []).append(self.tasks.get(task, NOTHING))
        del self._before[task][:-REMEMBERED]
        self.tasks[task] = contents

    def lose_tail(self, task: int, writes: int) -> None:
        """As they were some writes ago; keys of one task share a slot, so they go back together."""
        before = self._before.get(task, [])
        if before:
            writes = min(writes, len(before))
            self.tasks[task] = before[-writes]
            del before[-writes:]

    def lose_rows(self, task: int, share: float) -> None:
        """Somebody deletes single keys."""
        contents = self.tasks.get(task, NOTHING)
        kept = {name: row for name, row in contents.rows.items() if self.stage.draw.random() >= share}
        self.write(task, contents._replace(rows=kept))

    def empty(self) -> None:
        self.tasks.clear()
        self._before.clear()


class SimStore:
    """`Store` as `RedisStore` keeps it."""

    def __init__(self, server: Server, actor: Actor) -> None:
        self._server, self._actor = server, actor

    def load(self, task: int, customers: Sequence[str]) -> tuple[Marker | None, Mapping[str, bytes]]:
        self._actor.pause("load")
        self._server.check()
        contents = self._server.tasks.get(task, NOTHING)
        lost = [name for name in customers if name not in contents.rows and name in contents.dues]
        if lost:
            raise RowsLost(f"task {task}: the rows of {len(lost)} customers are gone")
        return contents.marker, {name: contents.rows[name] for name in customers if name in contents.rows}

    def apply(
        self, task: int, prev_seq: int, marker: Marker, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]
    ) -> None:
        dues = rows["due"].tolist()
        work: list[tuple[str, bytes | None, int]] = [
            (name, rows[i].tobytes(), dues[i]) for i, name in enumerate(customers)
        ]
        work += [(name, None, 0) for name in forgotten]
        for number, first in enumerate(range(0, max(len(work), 1), CHUNK_CUSTOMERS)):
            self._actor.pause("apply")
            self._server.check()
            last = first + CHUNK_CUSTOMERS >= len(work)
            done = self._script(task, prev_seq, marker, work[first : first + CHUNK_CUSTOMERS], number, last)
            self._server.answer()
            if done:
                return

    def _script(
        self,
        task: int,
        prev_seq: int,
        marker: Marker,
        chunk: Sequence[tuple[str, bytes | None, int]],
        number: int,
        last: bool,
    ) -> bool:
        """What the Lua script does in one go; returns whether the tick had been applied before."""
        present, mutations = self._server.tasks.get(task, NOTHING), self._server.mutations
        if "the script is not guarded" not in mutations:
            seq = present.marker.state.seq if present.marker else 0
            stored = (present.marker.state.incarnation, present.marker.generation) if present.marker else (0, 0)
            ours = (marker.state.incarnation, marker.generation)
            if ours < stored:
                raise TaskLost(f"the store knows a later owner {stored} of task {task} than {ours}")
            if seq >= marker.state.seq:
                return True
            if seq != prev_seq:
                raise TaskLost(f"the store is at tick {seq} of task {task}, not at {prev_seq}")
            missed = number and present.part != (marker.state.seq, number)
            if missed and "a chunk does not ask for those before it" not in mutations:
                raise TaskLost(f"the store lost a chunk of tick {marker.state.seq} of task {task}")
        rows, dues = dict(present.rows), dict(present.dues)
        for name, row, due in chunk:
            if row is None:
                rows.pop(name, None)
                dues.pop(name, None)
            else:
                rows[name], dues[name] = row, due
        part = (0, 0) if last else (marker.state.seq, number + 1)
        self._server.write(task, Contents(marker if last else present.marker, rows, dues, part))
        return False

    def discard(self, task: int) -> None:
        self._actor.pause("discard")
        self._server.check()
        contents = self._server.tasks.get(task, NOTHING)
        self._server.write(task, contents._replace(marker=None, part=(0, 0)))

    def due(self, task: int, until_ms: int, limit: int) -> Sequence[str]:
        self._actor.pause("due")
        self._server.check()
        dues = self._server.tasks.get(task, NOTHING).dues
        ripe = sorted((at, name) for name, at in dues.items() if at <= until_ms)
        return [name for _, name in ripe[:limit]]

    def scan(self, task: int) -> Iterator[tuple[str, bytes]]:
        yield from self._server.tasks.get(task, NOTHING).rows.items()

    def close(self) -> None: ...
