"""A deliberate rewind of a task's offsets: a tick by hand, under a new incarnation.

    EARLIEST  the customers are dropped, and everything the input topics hold is processed again
    STORE     the group goes back to where the store is, or on to the oldest records kept where retention has passed it
    KEPT      Redis has outlived its Kafka: customers are kept, and written whole into the new journal

It is written as a worker writes a tick: journal and offsets in one transaction, then applied to the store. So a task is
rewound or it is not, and whoever comes next recovers as after any other tick. Whether it is done already shows in the
journal: its last entry is then the rewind, and the group is committed where that entry says.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, cast

import numpy as np

from stream.chunks import chunked
from stream.errors import JournalGap, StoreAhead
from stream.ports import UNSTAMPED, Committed, Inputs, Marker, Offset, Outputs, Store, Token, Topic
from stream.processing.customer import ROW, Rows, blank
from stream.processing.journal import REWIND, Entry, TaskState, encode, part_of
from stream.processing.names import ANOMALY_FEATURES, CHURN_COLUMNS
from stream.processing.version import WARMING
from stream.recovery import Recovery, entries, last_entry
from stream.settings import Settings

PART_CUSTOMERS = 2_000
PART_DROPPED = 20_000
"""Ids of a part: about 1 MB, so that it is committed and applied within the time-outs whatever a task has."""


class To(Enum):
    """Where to."""

    EARLIEST = "earliest"
    STORE = "store"
    KEPT = "earliest, customers kept"


class Found(NamedTuple):
    """One task before its rewind; `last` is the journal's last entry, `gap` says why the store cannot be brought level.

    `begins` and `ends` are of the task's input partitions.
    """

    task: int
    committed: Committed | None
    marker: Marker | None
    last: Entry | None
    gap: str
    begins: Mapping[str, int]
    ends: Mapping[str, int]

    @property
    def used(self) -> bool:
        """Whether anything has ever been processed."""
        return not (self.committed is None and self.marker is None and self.last is None)

    @property
    def seq(self) -> int:
        """The highest tick that anybody knows of."""
        return max(_seq(self.marker), self.last.seq if self.last else 0, self.committed.seq if self.committed else 0)

    @property
    def incarnation(self) -> int:
        return max(
            self.marker.state.incarnation if self.marker else 0,
            self.last.state.incarnation if self.last else 0,
            self.committed.incarnation if self.committed else 0,
        )

    @property
    def part(self) -> tuple[int, int] | None:
        """How far a rewind in parts has come that is the journal's last."""
        return part_of(self.last.code) if self.last else None

    @property
    def broken_off(self) -> bool:
        return self.part is not None and self.part[0] < self.part[1]

    @property
    def copying(self) -> bool:
        """Whether it is a copy of all rows that was broken off: a drop leaves no customers."""
        return self.broken_off and self.last is not None and self.last.state.customers > 0

    @property
    def newest(self) -> TaskState:
        """The state after the highest tick that store or journal hold."""
        states = [one.state for one in (self.last, self.marker) if one is not None]
        return max(states, key=lambda state: state.seq, default=TaskState())

    @property
    def lost(self) -> dict[str, int]:
        """How many records of each input topic retention removed before the store came to them."""
        offsets = self.marker.state.offsets if self.marker else self.begins
        gone = {topic: first - offsets.get(topic, 0) for topic, first in self.begins.items()}
        return {topic: count for topic, count in gone.items() if count > 0}

    @property
    def beyond(self) -> dict[str, int]:
        """The ends of the input topics that end before what the store has read of them."""
        offsets = self.marker.state.offsets if self.marker else {}
        return {topic: end for topic, end in self.ends.items() if offsets.get(topic, 0) > end}

    @property
    def read_twice(self) -> list[str]:
        """The input topics that would count twice if they were read from their beginning with the customers kept.

        A topic that ends before the store's offset, while no tick is committed, is not the one that was read.
        """
        ticked = self.committed is not None and self.committed.seq != UNSTAMPED
        if self.marker is None or not (ticked or self.last):
            return []
        offsets = self.marker.state.offsets
        return [
            topic
            for topic, first in self.begins.items()
            if first < offsets.get(topic, 0) and (ticked or topic not in self.beyond)
        ]

    @property
    def agreed(self) -> bool:
        """Whether group, journal and store stand at one tick and its offsets."""
        return (
            self.marker is not None
            and self.committed is not None
            and self.committed.seq == self.seq == _seq(self.marker)
            and self.committed.incarnation == self.incarnation == self.marker.state.incarnation
            and dict(self.committed.offsets) == dict(self.marker.state.offsets)
        )


class _Journalled:
    """Inputs that are committed where the journal ends, whatever the group's offsets are."""

    def __init__(self, last: Entry) -> None:
        self._last = last
        self.topics = tuple(last.state.offsets)

    def committed(self, task: int) -> Committed:  # noqa: ARG002  as the port calls it
        return Committed(self._last.state.offsets, self._last.seq, self._last.state.incarnation)

    def start(self, task: int, offsets: Mapping[str, int] | None) -> Mapping[str, int]:  # noqa: ARG002
        return offsets or {}


@dataclass
class Rewind:
    """Rewinds tasks one by one, as the one member of the group, which `token` is the proof of."""

    settings: Settings
    inputs: Inputs
    outputs: Outputs
    journal: Topic
    store: Store
    token: Token

    def look(self, task: int, begins: Mapping[str, int], ends: Mapping[str, int], to: To) -> Found:
        """Bring the task's store level with its journal, and see how everything stands.

        An empty store is not rebuilt where all it would hold is to be dropped.

        Raises:
            TransactionOpen: what a worker left open is not decided yet; look again.
            Misconfigured: the offsets or the journal's ticks are not this application's.
            NewerSchema: a newer release has written rows or ticks.
            BrokerUnavailable, StoreUnavailable: no answer.
        """
        self.inputs.poll(0, self._all())  # a member that does not poll is thrown out
        committed = self.inputs.committed(task)  # first: it waits for what another may have left open
        last = last_entry(self.journal, task)
        marker, _ = self.store.load(task, ())
        gap = ""
        part, count = (part_of(last.code) if last else None) or (0, 0)
        fits = marker is not None and marker.partitions == self.inputs.partitions
        wanted = fits if marker is not None else to is not To.EARLIEST or (last is not None and _drops(last))
        # What was broken off stays beyond the store, so that no worker goes on from half of it.
        if last is not None and last.seq > _seq(marker) and part == count and wanted:
            try:
                self._level(task, last, marker.generation if marker else 0)
            except JournalGap as error:
                gap = str(error)
            except StoreAhead:
                assert marker is not None
                gap = (
                    f"task {task}: the store is at tick {_seq(marker)} of incarnation {marker.state.incarnation}, the "
                    f"journal ends at tick {last.seq} of incarnation {last.state.incarnation}: they are not of one "
                    "history. Restore the one that belongs to the other"
                )
            marker, _ = self.store.load(task, ())
        return Found(task, committed, marker, last, gap, begins, ends)

    def is_done(self, found: Found, to: To) -> bool:
        """Whether there is nothing to do: never used, or rewound so already and not touched since."""
        if not found.used:
            return True
        if not found.agreed or found.marker is None:
            return False
        state = found.marker.state
        if found.broken_off:
            return False
        if to is To.STORE:
            return not (found.lost or found.beyond)
        if found.last is None or found.last.seq != found.seq or dict(state.offsets) != dict(found.begins):
            return False
        if to is To.EARLIEST:
            return _drops(found.last)
        return found.part is not None and found.part[0] == found.part[1]

    def refusal(self, found: Found, to: To) -> str:
        """Why this rewind would do harm, and what to do instead; empty if it would not."""
        where, schema = f"task {found.task}", self._schema(found)
        marker = found.marker
        if marker is not None and marker.partitions != self.inputs.partitions:
            return (
                f"{where} was stored with {marker.partitions} partitions, the input topics have "
                f"{self.inputs.partitions}; restore the partition count, or start under a new application.name"
            )
        if to is To.EARLIEST:
            if schema == 1:
                return (
                    f"{where} is written in schema 1, which cannot hold back the alerts that were told already; set "
                    "journal.schema_version = 2 once every worker runs this release"
                )
            return ""
        if found.broken_off and not found.copying:  # a worker that tried to start may have dropped the first parts
            return f"{where}: a rewind to the earliest was broken off; finish it: `driftline rewind --to earliest`"
        if found.gap:
            return f"{found.gap}; or run `driftline rewind --to earliest`"
        if marker is None:
            return f"{where}: Redis knows nothing of it, there is nothing to keep; run `driftline rewind --to earliest`"
        if to is To.STORE:
            if found.beyond:
                remedy = (
                    "Restore them; or drop the customers and count what they hold: `driftline rewind --to earliest`"
                    if found.read_twice
                    else "Run `driftline rewind --to earliest --keep-customers`"
                )
                return (
                    f"{where}: the store has come to offsets {dict(marker.state.offsets)}, the input topics end at "
                    f"{found.beyond}: they are not the ones it has read, or Kafka lost their last records. {remedy}"
                )
            return ""
        if not found.copying and found.read_twice:
            return (
                f"{where}: this group has processed {' and '.join(found.read_twice)} up to tick {found.seq}; to read "
                "it again with the customers kept would count everything twice. Run `driftline rewind --to store` to "
                "go on, or `--to earliest` to count anew"
            )
        return ""

    def run(self, found: Found, to: To) -> None:
        """Rewind one task.

        Raises:
            TaskLost: a worker has joined, or the membership ended.
            OutcomeUnknown: no answer. After either, look again: the task is rewound, or it is not.
        """
        if to is To.EARLIEST:
            self._to_earliest(found)
            return
        assert found.marker is not None
        if to is To.STORE and found.last is not None and found.last.seq == _seq(found.marker):
            self._to_store(found, found.marker)
            return
        # The journal has lost what the store holds, or never had it: from here on it has it whole.
        self._copy(found, found.marker, _reached(found, found.marker) if to is To.STORE else found.begins)

    def _to_earliest(self, found: Found) -> None:
        marker, told_ms = found.marker, 0
        for state in (marker.state if marker else None, found.last.state if found.last else None):
            if state is not None:
                # Alerts of events came with their own time, which runs ahead of the clock that waits for both topics.
                told_ms = max(told_ms, state.stream_time_ms, state.history_until_ms, *state.highs.values())
        dropped = {customer: None for customer, _ in self.store.scan(found.task)}
        if found.gap or marker is None:  # a snapshot of Redis that is restored later must forget these too
            for entry in self._entries(found.task, 0):
                dropped.update(dict.fromkeys(entry.customers))
        names, size = list(dropped), PART_DROPPED
        count = max(-(-len(names) // size), 1)
        before = found.newest
        state = TaskState(
            seq=found.seq,
            incarnation=found.incarnation + 1,
            offsets=dict(found.begins),
            schema=self._schema(found),
            history_until_ms=told_ms,
        )
        written = []
        for place in range(count):
            state = replace(state, seq=state.seq + 1)
            code = REWIND if count == 1 else f"{REWIND} {place + 1}/{count}"
            forgotten = names[place * size : (place + 1) * size]
            written.append(self._write(found.task, before, state, code, forgotten=forgotten))
            before = state
            self.inputs.poll(0, self._all())  # a member that does not poll is thrown out
        for entry, offset in written:  # once all is committed: no worker goes on from a store that is half dropped
            marker = self._apply(marker, entry, offset)

    def _to_store(self, found: Found, marker: Marker) -> None:
        offsets = _reached(found, marker)
        state = replace(marker.state, seq=found.seq + 1, incarnation=found.incarnation + 1, offsets=offsets)
        self._apply(marker, *self._write(found.task, marker.state, state, REWIND))

    def _copy(self, found: Found, marker: Marker, offsets: Mapping[str, int]) -> None:
        """Write every row into the journal, part by part; goes on where an earlier run was broken off."""
        task, size = found.task, PART_CUSTOMERS
        customers = dict.fromkeys(sorted(customer for customer, _ in self.store.scan(task)))
        done, count = 0, max(-(-len(customers) // size), 1)
        before = found.newest
        after = replace(marker.state, seq=found.seq, incarnation=found.incarnation + 1, offsets=dict(offsets))
        if found.copying and found.part and found.last:
            (done, count), before, after = found.part, found.last.state, found.last.state
            for entry in self._entries(task, 0):
                if part_of(entry.code) and entry.state.incarnation == after.incarnation:
                    for customer in entry.customers:
                        customers.pop(customer, None)
        rest = list(customers)
        for place in range(done, count):
            first = (place - done) * size
            # The last part takes whoever is left: a copy that was begun with parts of another size ends whole too.
            chosen = rest[first:] if place == count - 1 else rest[first : first + size]
            _, loaded = self.store.load(task, chosen)
            rows = np.frombuffer(b"".join(loaded[customer] for customer in chosen), ROW)
            after = replace(after, seq=after.seq + 1)
            written = self._write(task, before, after, f"{REWIND} {place + 1}/{count}", chosen, rows)
            before = after
            self.inputs.poll(0, self._all())  # a member that does not poll is thrown out
        self._apply(marker, written[0]._replace(customers=(), rows=blank(0)), written[1])

    def _write(
        self,
        task: int,
        before: TaskState,
        state: TaskState,
        code: str,
        customers: Sequence[str] = (),
        rows: Rows | None = None,
        forgotten: Sequence[str] = (),
    ) -> tuple[Entry, int]:
        """Commit an entry with the group's offsets in one transaction; returns it with its offset."""
        settings, partitions = self.settings, self.inputs.partitions
        nobody = np.zeros(0, np.uint32)
        entry = Entry(
            application=settings.application.name,
            task=task,
            prev_seq=before.seq,
            state=state,
            offsets_before=dict(before.offsets),
            wakes=(),
            released=(),
            model_version=WARMING,
            config=settings.config_hash,
            code=code,
            partitions=partitions,
            customers=customers,
            rows=blank(0) if rows is None else rows,
            forgotten=forgotten,
            alerts=(),
            past=(),
            who=nobody,
            uids=np.zeros(0, np.uint64),
            features=np.zeros((0, len(ANOMALY_FEATURES)), np.float32),
            scores=np.zeros(0, np.float32),
            label_who=nobody,
            label_features=np.zeros((0, len(CHURN_COLUMNS)), np.float32),
            label_churned=np.zeros(0, np.bool_),
            label_taken_ms=np.zeros(0, np.int64),
        )
        headers = {"driftline-seq": b"%d" % state.seq}
        records = chunked(settings.topic("journal"), task, b"%d" % task, encode(entry), headers)
        offsets = [Offset(topic, task, at, state.seq, state.incarnation) for topic, at in state.offsets.items()]
        written = self.outputs.commit(records, offsets, self.token)
        return entry, written[-1]

    def _apply(self, before: Marker | None, entry: Entry, offset: int) -> Marker:
        marker = Marker(entry.state, self.token.generation, offset, entry.partitions)
        self.store.apply(entry.task, _seq(before), marker, entry.customers, entry.rows, entry.forgotten)
        return marker

    def _level(self, task: int, last: Entry, generation: int) -> None:
        recovery = Recovery(
            task,
            self.inputs.partitions,
            self.settings,
            cast(Inputs, _Journalled(last)),  # a recovery asks no more of them
            self.store,
            self.journal,
            max(self.token.generation, generation),
            time.monotonic,
        )
        while recovery.step() is None:
            self.inputs.poll(0, self._all())

    def _entries(self, task: int, position: int) -> Iterator[Entry]:
        """The journal from an offset on."""
        for entry in entries(self.journal, task, position):
            self.inputs.poll(0, self._all())  # a member that does not poll is thrown out
            yield entry

    def _all(self) -> frozenset[tuple[str, int]]:
        return frozenset((topic, task) for topic in self.inputs.topics for task in range(self.inputs.partitions))

    def _schema(self, found: Found) -> int:
        states = [one.state for one in (found.marker, found.last) if one is not None]
        written = max((state.schema for state in states), default=TaskState().schema)
        return max(written, self.settings.journal.schema_version or written)


def _drops(entry: Entry) -> bool:
    """Whether an entry is a rewind, or the last part of one, after which no customer is left."""
    part, count = part_of(entry.code) or (0, 0)
    return (entry.code == REWIND or 0 < part == count) and entry.state.customers == 0


def _reached(found: Found, marker: Marker) -> dict[str, int]:
    """Where to go on from a store: where it has come to, or the oldest record kept if that is beyond it."""
    return {topic: max(offset, found.begins[topic]) for topic, offset in marker.state.offsets.items()}


def _seq(marker: Marker | None) -> int:
    return marker.state.seq if marker else 0
