"""Bringing a task's store level with what Kafka has committed: by replaying its journal, never by recomputing.

committed offsets (seq in their metadata)  against  marker in the store (seq)

  neither                     a new task: start where the settings say
  store behind                replay the journal from the marker, or from its beginning where the store is empty
  level                       ready
  offsets gone                expired: go on from the journal's last tick, under a new incarnation
  offsets gone, topics new    refuse: the store belongs to another Kafka
  store ahead                 refuse: Kafka lost data, or somebody reset offsets
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from stream.chunks import Chunks
from stream.errors import JournalGap, Misconfigured, StoreAhead
from stream.ports import UNSTAMPED, Committed, Inputs, Marker, Store, Topic
from stream.processing.customer import DAY_MS
from stream.processing.journal import REWIND, Entry, TaskState, decode, label_of, part_of
from stream.settings import Settings

PATIENCE_S = 5.0
TAIL_RECORDS = 200
AGAIN = "To process again all that the topics hold: `driftline rewind --to earliest`"
BACK_TO_STORE = (
    "To put the offsets back to where Redis is: `driftline rewind --to store`. To drop the customers and process again "
    "all that the topics hold: `driftline rewind --to earliest`"
)
STEP_RECORDS = 50
"""Journal records replayed between two polls, so that a long recovery stays a member of the group."""


@dataclass(slots=True)
class Recovery:
    """Recovers one task, a bounded step at a time; may be dropped at any step and begun again.

    `expired` says that the group had lost the task's offsets: they are known again, and not committed yet.

    Raises from `step`: `StoreAhead`, `JournalGap`, `Misconfigured`, and what the ports raise.
    """

    task: int
    partitions: int
    settings: Settings
    inputs: Inputs
    store: Store
    journal: Topic
    generation: int
    monotonic: Callable[[], float]
    _committed: Committed | None = None
    _marker: Marker | None = None
    _position: int = 0
    _chunks: Chunks | None = None
    _empty_since: float | None = None
    expired: bool = False
    _ahead: int | None = None
    _begun: int = 0
    _anew: int = 0
    replayed: int = 0

    def step(self) -> TaskState | None:
        """The state to go on from, once the store is level and the inputs are sought; None = call again."""
        if self._chunks is None:
            state = self._compare()
            if state is not None:
                return self._begin(state)
            self._chunks = Chunks()
            self._ahead = 0 if self._marker is None else None
            self.journal.catch_up(self.task)
        if self._ahead is not None:
            self._look_ahead(self._chunks)
            return None
        return self._replay()

    def _compare(self) -> TaskState | None:
        # The store first: it is never ahead of Kafka, so offsets read after it can only be ahead of it. The other way
        # round, ticks of another owner that end between the two look as if Kafka had lost them.
        self._marker, _ = self.store.load(self.task, ())
        self._committed = self.inputs.committed(self.task)
        marker = self._marker
        if self._committed is None:
            self._take_from_the_journal(marker)
        state = compared(self.task, self.partitions, self.inputs.topics, self._committed, marker)
        if state is None:
            self._position = 0 if marker is None or self._is_of_another_kafka(marker) else marker.journal_offset + 1
        return state

    def _take_from_the_journal(self, marker: Marker | None) -> None:
        """Where the group's offsets have expired, those of the journal's last tick stand for them."""
        if marker is not None and set(marker.state.offsets) <= set(self.inputs.topics):
            said = strangers(self.task, marker, self.inputs.ends(self.task), self.journal.end(self.task))
            if said:
                raise StoreAhead(said)
        last = last_entry(self.journal, self.task)
        self.expired = last is not None or marker is not None
        if last is not None and last.seq > (marker.state.seq if marker else 0):
            self._committed = Committed(last.state.offsets, last.seq, last.state.incarnation)

    def _is_of_another_kafka(self, marker: Marker) -> bool:
        return marker.journal_offset >= self.journal.end(self.task)

    def _look_ahead(self, chunks: Chunks) -> None:
        """Find the newest rewind: an empty store is rebuilt from there, what lies before is not needed.

        A rewind that drops all customers is one, and one that wrote all rows, if all its parts are here.
        """
        assert self._ahead is not None
        records = self.journal.read(self.task, self._ahead, STEP_RECORDS)
        for record in records:
            self._ahead = record.offset + 1
            data = chunks.add(record.value or b"", record.headers)
            if data is None:
                continue
            seq, code, customers = label_of(data)
            part, count = part_of(code) or (0, 0)
            if code == REWIND and customers == 0:
                self._anew = seq
            elif part:
                self._begun = seq if part == 1 else self._begun
                self._anew = self._begun if part == count and seq - self._begun == count - 1 else self._anew
        if not records:
            self._ahead = None
            self.journal.catch_up(self.task)

    def _replay(self) -> TaskState | None:
        committed, chunks = self._committed, self._chunks
        assert committed is not None
        assert chunks is not None
        records = self.journal.read(self.task, self._position, STEP_RECORDS)
        if not records:
            self.journal.catch_up(self.task)
            self._empty_since = self._empty_since or self.monotonic()
            if self.monotonic() - self._empty_since < PATIENCE_S:
                return None  # the journal's part of a transaction may become visible after the offsets'
            seq = self._marker.state.seq if self._marker else 0
            raise JournalGap(
                f"task {self.task}: the journal ends before tick {committed.seq}, the store is at tick {seq}; restore "
                "the journal topic or an older snapshot of Redis with it"
            )
        self._empty_since = None
        for record in records:
            self._position = record.offset + 1
            data = chunks.add(record.value or b"", record.headers)
            if data is None:
                continue
            entry = decode(data)
            application = self.settings.application.name
            if entry.application != application:
                raise Misconfigured(
                    f"the journal holds ticks of application {entry.application!r}, this is {application!r}; "
                    "give each application its own journal topic"
                )
            seq = self._marker.state.seq if self._marker else 0
            if entry.seq <= seq or (self._marker is None and entry.seq < self._anew):
                continue
            part = part_of(entry.code)
            if entry.seq == committed.seq and part and part[0] < part[1]:
                raise JournalGap(
                    f"task {self.task}: a rewind was broken off at part {part[0]} of {part[1]}; "
                    "run the same `driftline rewind` again, it goes on there"
                )
            self._apply(entry, record.offset)
            if entry.seq == committed.seq:
                state = _agreed(self.task, committed, entry.state)
                return self._begin(replace(state, incarnation=state.incarnation + self.expired))
        return None

    def _apply(self, entry: Entry, offset: int) -> None:
        seq = self._marker.state.seq if self._marker else 0
        if entry.prev_seq != seq and entry.seq != self._anew:
            self._check_rebuild(entry)
        marker = Marker(entry.state, self.generation, offset, self.partitions)
        self.store.apply(
            self.task, entry.prev_seq if self._marker else 0, marker, entry.customers, entry.rows, entry.forgotten
        )
        self._marker = marker
        self.replayed += 1

    def _check_rebuild(self, entry: Entry) -> None:
        """An empty store may begin at a later tick, as every row is written again within half the retention."""
        if self._marker is not None:
            raise JournalGap(
                f"task {self.task}: the journal goes from tick {self._marker.state.seq} to {entry.seq}, ticks between "
                "were removed; empty this task's Redis keys and restart, so that it is rebuilt from the journal whole"
            )
        covered_days = (self._last_stream_time_ms() - entry.state.stream_time_ms) / DAY_MS
        needed_days = self.settings.journal.retention_days / 2
        if covered_days < needed_days:
            raise JournalGap(
                f"task {self.task}: the store is empty and the journal begins at tick {entry.seq}; it covers "
                f"{covered_days:.1f} days of stream time, a rebuild needs {needed_days:.1f}. "
                "Restore a snapshot of Redis, or the journal's older records"
            )

    def _last_stream_time_ms(self) -> int:
        """Stream time of the newest tick that woke everybody who was due, from the journal's tail."""
        latest = 0
        for entry in entries(self.journal, self.task, max(self._position, self.journal.end(self.task) - TAIL_RECORDS)):
            if len(entry.wakes) < self.settings.tick.max_wakes:
                latest = entry.state.stream_time_ms
        return latest

    def _begin(self, state: TaskState) -> TaskState:
        offsets = self.inputs.start(self.task, dict(state.offsets) or None)
        return replace(state, offsets=dict(offsets))


def last_entry(journal: Topic, task: int) -> Entry | None:
    """The newest entry of a task's journal."""
    end, width = journal.end(task), TAIL_RECORDS
    while True:
        last = None
        for entry in entries(journal, task, max(end - width, 0)):
            last = entry
        if last is not None or width >= end:
            return last
        width *= 4


def entries(journal: Topic, task: int, position: int) -> Iterator[Entry]:
    """A task's journal from an offset on."""
    chunks = Chunks()
    journal.catch_up(task)
    while records := journal.read(task, position, STEP_RECORDS):
        for record in records:
            position = record.offset + 1
            data = chunks.add(record.value or b"", record.headers)
            if data is not None:
                yield decode(data)


def strangers(task: int, marker: Marker, ends: Mapping[str, int], journal_end: int) -> str:
    """Why the topics, which end there, cannot be those that the store has read; empty if they can.

    To be asked where the group has no offsets: they may have expired, or Kafka is another one.
    """
    short = [
        f"{topic}-{task} ends at {ends[topic]}, the store has read it up to {offset}"
        for topic, offset in marker.state.offsets.items()
        if offset > ends.get(topic, offset)
    ]
    if marker.journal_offset >= journal_end:
        short.append(f"the journal ends at {journal_end}, the store's last tick lies at {marker.journal_offset}")
    if not short:
        return ""
    return (
        f"task {task}: no offsets are committed, and {'; '.join(short)}. This Redis belongs to another "
        "Kafka, or the topics were created anew. Connect the Kafka it belongs to; or keep its customers and "
        "read the topics here from their beginning: `driftline rewind --to earliest --keep-customers`"
    )


def compared(
    task: int, partitions: int, topics: Collection[str], committed: Committed | None, marker: Marker | None
) -> TaskState | None:
    """The state that a task goes on from, None where the store is behind and the journal is to be replayed.

    Where nothing is committed, ask `strangers` too.

    Raises:
        StoreAhead: the offsets are not those that the store came from.
        Misconfigured: the store was filled under another partition count, or from other topics.
    """
    renamed = sorted(set(marker.state.offsets) - set(topics)) if marker is not None else []
    if renamed:
        raise Misconfigured(
            f"task {task}: the store has read the topics {' and '.join(renamed)}, the settings name "
            f"{' and '.join(sorted(topics))}. Name the former in topics.*, or give the new ones a new application.name"
        )
    if marker is not None and marker.partitions != partitions:
        raise Misconfigured(
            f"task {task} was stored with {marker.partitions} partitions, the input topics have "
            f"{partitions}; customers would move away from their rows. Restore the partition count, or give "
            "the application a new name and feed it its history"
        )
    if committed is not None and committed.seq == UNSTAMPED:
        raise StoreAhead(
            f"task {task}: the committed offsets {dict(committed.offsets)} carry no tick: somebody reset the "
            f"group's offsets with a tool. {BACK_TO_STORE if marker else AGAIN}"
        )
    if committed is None:
        return TaskState() if marker is None else replace(marker.state, incarnation=marker.state.incarnation + 1)
    seq = marker.state.seq if marker else 0
    if marker is not None and (
        seq > committed.seq
        or marker.state.incarnation > committed.incarnation
        or (seq == committed.seq and marker.state.incarnation != committed.incarnation)
    ):
        raise StoreAhead(
            f"task {task}: the store is at tick {seq} of incarnation {marker.state.incarnation}, the group's "
            f"committed offsets at tick {committed.seq} of incarnation {committed.incarnation}. Kafka lost data, "
            f"or somebody reset the offsets. {BACK_TO_STORE}"
        )
    if seq < committed.seq:
        return None
    return _agreed(task, committed, marker.state if marker else TaskState())


def _agreed(task: int, committed: Committed, state: TaskState) -> TaskState:
    """Check that the committed offsets are those of the tick they are stamped with."""
    if dict(committed.offsets) != dict(state.offsets):
        raise StoreAhead(
            f"task {task}: tick {state.seq} ended at offsets {dict(state.offsets)}, the group is committed at "
            f"{dict(committed.offsets)}; somebody changed the group's offsets. {BACK_TO_STORE}"
        )
    return state
