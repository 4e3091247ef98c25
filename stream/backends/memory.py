"""Kafka and Redis in this process: fakes with the same contracts, for the demo, replays and tests.

One `MemoryCluster` stands for the brokers: partitions with offsets and retention, a group with generations, atomic
commits that are refused to stale members. Nothing survives the process.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice

from stream.errors import RowsLost, TaskLost
from stream.events import Record
from stream.ports import Committed, Marker, Offset, Outgoing, Polled, Token
from stream.processing.customer import Rows
from stream.processing.placement import partition_of


class MemoryPartition:
    """A log with absolute offsets; `keep` bounds the number of records, as retention does."""

    def __init__(self, keep: int | None = None) -> None:
        self.first = 0
        self.keep = keep
        self.records: deque[Record] = deque()

    @property
    def end(self) -> int:
        return self.first + len(self.records)

    def append(self, record: Record) -> int:
        offset = self.end
        self.records.append(record._replace(offset=offset))
        if self.keep is not None and len(self.records) > self.keep:
            self.records.popleft()
            self.first += 1
        return offset

    def trim(self, first: int) -> None:
        """Remove what lies below an offset, as retention does."""
        while self.records and self.first < first:
            self.records.popleft()
            self.first += 1

    def read(self, start: int, limit: int) -> list[Record]:
        skip = max(start - self.first, 0)
        return list(islice(self.records, skip, skip + limit))


class MemoryCluster:
    """Brokers, topics, and one group over the input topics.

    `now_ms` is the brokers' clock; a topic in `more_to_come` does not count as read to its end.
    """

    def __init__(self, inputs: Sequence[str], partitions: int = 1, journal_keep: int | None = None) -> None:
        self.inputs = tuple(inputs)
        self.partitions = partitions
        self.journal_keep = journal_keep
        self.now_ms = 0
        self.more_to_come: set[str] = set()
        self.topics: dict[str, list[MemoryPartition]] = {}
        self.committed: dict[tuple[str, int], tuple[int, int, int]] = {}
        self.generation = 0
        self.members: dict[str, MemoryInputs] = {}
        self.writers: dict[str, MemoryOutputs] = {}

    def topic(self, name: str, partitions: int | None = None, keep: int | None = None) -> list[MemoryPartition]:
        """A topic's partitions, created on first use."""
        if name not in self.topics:
            count = self.partitions if partitions is None else partitions
            self.topics[name] = [MemoryPartition(keep) for _ in range(count)]
        return self.topics[name]

    def produce(self, outgoing: Outgoing, timestamp_ms: int) -> int:
        """Append a record; returns its offset."""
        log = self.topic(outgoing.topic)
        partition = outgoing.partition
        if partition is None:
            partition = partition_of((outgoing.key or b"").decode(errors="replace"), len(log), "murmur2")
        return log[partition].append(
            Record(
                outgoing.topic,
                partition,
                0,
                timestamp_ms if outgoing.timestamp_ms is None else outgoing.timestamp_ms,
                outgoing.key,
                outgoing.value,
                outgoing.headers,
            )
        )

    def rebalance(self) -> None:
        """Give every member its share of the tasks under a new generation."""
        self.generation += 1
        names = sorted(self.members)
        for place, name in enumerate(names):
            self.members[name].assign(frozenset(range(self.partitions)[place :: len(names)]))


class MemoryInputs:
    """One member of the group."""

    def __init__(self, cluster: MemoryCluster, instance: str, start_at: str = "earliest") -> None:
        self._cluster = cluster
        self._instance = instance
        self._start_at = start_at
        self._tasks: frozenset[int] = frozenset()
        self._positions: dict[tuple[str, int], int] = {}
        self.topics = cluster.inputs
        cluster.members[instance] = self
        cluster.rebalance()

    @property
    def partitions(self) -> int:
        return self._cluster.partitions

    def assign(self, tasks: frozenset[int]) -> None:
        self._tasks = tasks
        self._positions.clear()

    def poll(self, timeout_s: float, full: frozenset[tuple[str, int]]) -> Polled:  # noqa: ARG002  nothing to wait for
        records: list[Record] = []
        for (topic, task), position in self._positions.items():
            if (topic, task) not in full:
                read = self._cluster.topic(topic)[task].read(position, 500)
                records += read
                if read:
                    self._positions[topic, task] = read[-1].offset + 1
        return Polled(records, Token(self._cluster.generation, self._tasks, self._instance))

    def committed(self, task: int) -> Committed | None:
        found = {topic: self._cluster.committed.get((topic, task)) for topic in self._cluster.inputs}
        offsets = {topic: stamp[0] for topic, stamp in found.items() if stamp is not None}
        if not offsets:
            return None
        _, seq, incarnation = next(stamp for stamp in found.values() if stamp is not None)
        return Committed(offsets, seq, incarnation)

    def start(self, task: int, offsets: Mapping[str, int] | None) -> Mapping[str, int]:
        if offsets is None:
            logs = {topic: self._cluster.topic(topic)[task] for topic in self._cluster.inputs}
            offsets = {topic: log.first if self._start_at == "earliest" else log.end for topic, log in logs.items()}
        for topic, offset in offsets.items():
            self._positions[topic, task] = offset
        return offsets

    def ends(self, task: int) -> Mapping[str, int]:
        return {topic: self._cluster.topic(topic)[task].end for topic in self._cluster.inputs}

    def ended(self, task: int, since: float = 0.0) -> frozenset[str]:  # noqa: ARG002  its ends are always those of now
        return frozenset(
            topic
            for (topic, partition), position in self._positions.items()
            if partition == task
            and topic not in self._cluster.more_to_come
            and position >= self._cluster.topic(topic)[task].end
        )

    def heard_ends(self, task: int) -> Mapping[str, int]:
        places = [place for place in self._positions if place[1] == task]
        return {topic: self._cluster.topic(topic)[task].end for topic, _ in places}

    def close(self) -> None:
        del self._cluster.members[self._instance]
        if self._cluster.members:
            self._cluster.rebalance()


class MemoryOutputs:
    """A writer; a second one of the same name fences the first."""

    def __init__(self, cluster: MemoryCluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self.reset()

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        cluster = self._cluster
        if cluster.writers.get(self._name) is not self:
            raise TaskLost(f"another writer named {self._name} has taken over; restart this worker to take it back")
        if offsets and token.generation != cluster.generation:
            raise TaskLost(f"generation {token.generation} is over, the group is at {cluster.generation}")
        for topic, task, next_offset, seq, incarnation in offsets:
            cluster.committed[topic, task] = (next_offset, seq, incarnation)
        return [cluster.produce(record, cluster.now_ms) for record in records]

    def reset(self) -> None:
        self._cluster.writers[self._name] = self

    def close(self) -> None:
        if self._cluster.writers.get(self._name) is self:
            del self._cluster.writers[self._name]


class MemoryTopic:
    """One of our own topics."""

    def __init__(
        self, cluster: MemoryCluster, name: str, partitions: int | None = None, keep: int | None = None
    ) -> None:
        self._logs = cluster.topic(name, partitions, keep)

    def partitions(self) -> int:
        return len(self._logs)

    def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
        return self._logs[partition].read(start, limit)

    def end(self, partition: int) -> int:
        return self._logs[partition].end

    def catch_up(self, partition: int) -> None:
        """Reads see everything at once."""

    def owned(self) -> bool:
        return True

    def close(self) -> None: ...


class MemoryStore:
    """Customers as bytes in a dict, guarded as the Redis script guards them."""

    def __init__(self) -> None:
        self._markers: dict[int, Marker] = {}
        self._rows: dict[int, dict[str, bytes]] = {}
        self._due: dict[int, dict[str, int]] = {}
        self._queue: dict[int, list[tuple[int, str]]] = {}

    def load(self, task: int, customers: Sequence[str]) -> tuple[Marker | None, Mapping[str, bytes]]:
        rows = self._rows.get(task, {})
        lost = [name for name in customers if name not in rows and name in self._due.get(task, {})]
        if lost:
            raise RowsLost(f"task {task}: the rows of {len(lost)} customers are gone")
        return self._markers.get(task), {name: rows[name] for name in customers if name in rows}

    def apply(
        self, task: int, prev_seq: int, marker: Marker, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]
    ) -> None:
        present = self._markers.get(task)
        if present is not None:
            stored, ours = (
                (present.state.incarnation, present.generation),
                (marker.state.incarnation, marker.generation),
            )
            if ours < stored:
                raise TaskLost(f"the store knows a later owner {stored} of task {task} than {ours}")
            if present.state.seq >= marker.state.seq:
                return
        seq = present.state.seq if present else 0
        if seq != prev_seq:
            raise TaskLost(f"the store is at tick {seq} of task {task}, not at {prev_seq}")
        mine, due = self._rows.setdefault(task, {}), self._due.setdefault(task, {})
        queue = self._queue.setdefault(task, [])
        dues = rows["due"].tolist()
        for place, customer in enumerate(customers):
            mine[customer] = rows[place].tobytes()
            due[customer] = dues[place]
            heappush(queue, (dues[place], customer))
        for customer in forgotten:
            mine.pop(customer, None)
            due.pop(customer, None)
        self._markers[task] = marker

    def discard(self, task: int) -> None:
        self._markers.pop(task, None)

    def due(self, task: int, until_ms: int, limit: int) -> Sequence[str]:
        due, queue = self._due.get(task, {}), self._queue.get(task, [])
        ripe: dict[str, int] = {}
        while queue and queue[0][0] <= until_ms and len(ripe) < limit:
            at, customer = heappop(queue)
            if due.get(customer) == at:  # else the customer was looked at since, or forgotten
                ripe[customer] = at
        for customer, at in ripe.items():  # they stay due until a tick that woke them is applied
            heappush(queue, (at, customer))
        return list(ripe)

    def scan(self, task: int) -> Iterator[tuple[str, bytes]]:
        yield from self._rows.get(task, {}).items()

    def close(self) -> None: ...
