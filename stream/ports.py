"""What the worker asks of the outside: four small ports, each with one contract that every backend passes.

The contracts are tests/conformance/backends.py. Errors are those of stream/errors.py; no call lets a client
library's error through.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from stream.events import Record
from stream.processing.customer import Rows
from stream.processing.journal import TaskState


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Clock(NamedTuple):
    """The wall clock in epoch milliseconds, and one in seconds that never goes back."""

    wall_ms: Callable[[], int] = _wall_ms
    monotonic: Callable[[], float] = time.monotonic


class Token(NamedTuple):
    """Proof of membership, taken in the same critical section as the records of a poll.

    `generation` is the group's generation, never negative; `tasks` are the tasks it assigned to this worker. `proof`
    is the backend's own.
    """

    generation: int
    tasks: frozenset[int]
    proof: Any


class Polled(NamedTuple):
    """Records read, in each partition's own order, and the token under which they were read (None = no member yet)."""

    records: Sequence[Record]
    token: Token | None


UNSTAMPED = -1
"""In place of a tick number: the offsets were committed by something that stamps nothing, an operator's tool."""


class Committed(NamedTuple):
    """What a task's committed offsets say: next offset per topic, and the tick that committed them."""

    offsets: Mapping[str, int]
    seq: int
    incarnation: int


class Outgoing(NamedTuple):
    """A record to be written; `partition` None = by the key's hash, `timestamp_ms` None = the time of writing."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None


class Offset(NamedTuple):
    """A next offset to commit for one input topic of a task, stamped with the tick."""

    topic: str
    task: int
    next_offset: int
    seq: int
    incarnation: int


class Inputs(Protocol):
    """The input topics as one member of the group. A newly assigned task is paused until it is sought.

    Raises `BrokerUnavailable` where a broker does not answer, `Misconfigured` where topics are missing or have
    unequal partition counts.
    """

    topics: tuple[str, ...]

    @property
    def partitions(self) -> int:
        """Partitions of each input topic = number of tasks."""
        ...

    def poll(self, timeout_s: float, full: frozenset[tuple[str, int]]) -> Polled:
        """Wait up to `timeout_s` for records, staying a member; fetch nothing of the `full` (topic, task) pairs."""
        ...

    def committed(self, task: int) -> Committed | None:
        """Offsets of the last committed tick.

        Raises:
            TransactionOpen: another owner's transaction was not decided while this waited for it.
        """
        ...

    def start(self, task: int, offsets: Mapping[str, int] | None) -> Mapping[str, int]:
        """Read on from these offsets (None = where the settings say that a new task begins); returns the offsets."""
        ...

    def ends(self, task: int) -> Mapping[str, int]:
        """The offset after the newest committed record of each topic."""
        ...

    def ended(self, task: int, since: float = 0.0) -> frozenset[str]:
        """The topics of which every record has been delivered, as the broker has said `since` (monotonic seconds)."""
        ...

    def heard_ends(self, task: int) -> Mapping[str, int]:
        """The end of each topic as last heard, asking nobody; topics not heard of since `start` are left out."""
        ...

    def close(self) -> None: ...


class Outputs(Protocol):
    """One transactional writer, fenced by its name."""

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        """Write all or nothing; returns each record's offset.

        Raises:
            TaskLost: the token is stale: nothing was written.
            OutcomeUnknown: no answer, or another writer of this name has taken over; call `reset`, then recover, before
                writing again.
        """
        ...

    def reset(self) -> None:
        """A new writer under the same name: whatever the old one left open is decided before this returns."""
        ...

    def close(self) -> None: ...


class Topic(Protocol):
    """One of our own topics, read without a group, committed records only."""

    def partitions(self) -> int: ...

    def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
        """Up to `limit` records from offset `start` on; empty at the end.

        Records removed by retention are skipped: the first offset returned may lie above `start`, so 0 is the oldest
        record kept.
        """
        ...

    def end(self, partition: int) -> int:
        """The offset after the newest committed record."""
        ...

    def catch_up(self, partition: int) -> None:
        """Let the next read of a partition answer "nothing" only at the end as it is now.

        Reads that follow on one another may answer so before the newest record has arrived.
        """
        ...

    def owned(self) -> bool:
        """Whether this process is the one that may write what only one may (the trainer's models)."""
        ...

    def close(self) -> None: ...


class Marker(NamedTuple):
    """How far a task's store has come: the state after the last applied tick, and its place in the journal."""

    state: TaskState
    generation: int
    journal_offset: int
    partitions: int


class Store(Protocol):
    """Customers and markers. Raises `StoreUnavailable` without an answer, `NewerSchema` for a newer release's rows."""

    def load(self, task: int, customers: Sequence[str]) -> tuple[Marker | None, Mapping[str, bytes]]:
        """The task's marker and the rows (bytes of `ROW`) of those customers it has, read together.

        Raises:
            RowsLost: a row that the store knows the due time of is not there.
        """
        ...

    def discard(self, task: int) -> None:
        """Forget how far a task has come, so that it is rebuilt from the journal; nothing else is touched."""
        ...

    def apply(
        self, task: int, prev_seq: int, marker: Marker, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]
    ) -> None:
        """Write a committed tick's after-images; a no-op where it was applied already.

        Raises:
            TaskLost: the store is not at `prev_seq` (a gap), or knows a later owner: recover.
        """
        ...

    def due(self, task: int, until_ms: int, limit: int) -> Sequence[str]:
        """Customers whose due time is not after `until_ms`, earliest first."""
        ...

    def scan(self, task: int) -> Iterator[tuple[str, bytes]]:
        """All customers of a task with their rows, in no order."""
        ...

    def close(self) -> None: ...
