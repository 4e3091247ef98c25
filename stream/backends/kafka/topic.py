"""One of our own topics, read without a group: the journal, the models, the alerts."""

import time
from collections import deque
from collections.abc import Sequence

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from stream.backends.kafka import consuming
from stream.backends.kafka.batches import take_whole_batches
from stream.backends.kafka.client import REQUEST_TIMEOUT_MS, connection, mapping, unpark
from stream.backends.kafka.owning import Owning
from stream.errors import BrokerUnavailable, Misconfigured
from stream.events import Record
from stream.settings import Settings

FILL_MS = 20
FILL_ATTEMPTS = 500
BUFFERED_BYTES = 8_000_000
FETCHED_BYTES = 4_000_000
"""At most of one partition at a time: several ticks of the journal, or whoever reads it falls behind its writer."""
WAIT_MS = 50
"""At most, of a fetch that finds nothing: what is asked meanwhile, such as where a partition ends, waits behind it."""
LOOK_S = 0.01
"""What has arrived is looked for once in this time, however many partitions are read."""
RESTS_AFTER_S = 5.0
"""Of a partition that nobody has read for this long nothing more is fetched."""


class KafkaTopic:
    """Committed records of one topic, by offset.

    The first read at a new place asks for the end of the partition and does not answer "nothing" before it; reads
    that follow on return what has arrived. With `owner`, `owned` says whether this process holds the topic's one
    partition in a group of that name.
    """

    def __init__(self, settings: Settings, name: str, owner: str | None = None) -> None:
        self._settings = settings
        self._name = name
        self._owner = owner
        self._owning: Owning | None = None
        with mapping(f"reading {name}"):
            self._consumer = KafkaConsumer(
                **connection(settings.kafka, f"driftline-{settings.application.instance}-{name}"),
                group_id=None,
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_poll_records=100,
                fetch_max_wait_ms=WAIT_MS,
                max_partition_fetch_bytes=FETCHED_BYTES,
                request_timeout_ms=REQUEST_TIMEOUT_MS + 5_000,
            )
            take_whole_batches(self._consumer)
            try:
                self._partitions = consuming.partition_counts(self._consumer, [name])[name]
                if not self._partitions:
                    raise Misconfigured(
                        f"the topic {name} does not exist: run `driftline topics create`. If it does, grant this user "
                        "READ on it"
                    )
                places = [TopicPartition(name, partition) for partition in range(self._partitions)]
                self._consumer.assign(places)
                for place in places:
                    self._consumer.seek(place, 0)
                self._consumer.pause(*places)
            except BaseException:
                self._consumer.close(autocommit=False)
                raise
        self._buffers: dict[int, deque[Record]] = {partition: deque() for partition in range(self._partitions)}
        self._reading_on: dict[int, tuple[int, int]] = {}
        self._sure_until: dict[int, int] = {}
        self._read_at: dict[int, float] = {}
        self._looked_at = 0.0

    END = -1
    """As `start` of a read: what comes from now on."""

    def partitions(self) -> int:
        return self._partitions

    def position(self, partition: int) -> int:
        """The offset that the next read of a partition goes on from."""
        return self._reading_on[partition][1]

    def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
        self._read_at[partition] = time.monotonic()
        first, last = self._reading_on.get(partition, (0, -1))
        if not first <= start <= last:
            self._seek(partition, start)
        buffer = self._buffers[partition]
        for _ in range(FILL_ATTEMPTS):
            sure = self._position(partition) >= self._sure_until[partition]
            if buffer or (sure and time.monotonic() - self._looked_at < LOOK_S):
                break
            if not self._fill(0 if sure else FILL_MS) and not buffer and sure:
                break
        else:
            raise BrokerUnavailable(f"reading {self._name}-{partition}: no answer; is its leader up?")
        taken = [buffer.popleft() for _ in range(min(limit, len(buffer)))]
        # Between the last record and the next lie at most control records: to ask for any of them is to read on.
        first = taken[-1].offset + 1 if taken else start
        self._reading_on[partition] = first, buffer[0].offset if buffer else max(self._position(partition), first)
        return taken

    def end(self, partition: int) -> int:
        place = TopicPartition(self._name, partition)
        with mapping(f"reading {self._name}-{partition}"):
            return int(self._consumer.end_offsets([place], timeout_ms=REQUEST_TIMEOUT_MS)[place])

    def catch_up(self, partition: int) -> None:
        self._reading_on.pop(partition, None)  # a read at a new place asks for the end

    def owned(self) -> bool:
        if self._owner is None:
            return False
        with mapping(f"holding {self._name}"):
            if self._owning is None:
                self._owning = Owning(self._settings, self._name, self._owner)
            return self._owning.poll()

    def close(self) -> None:
        with consuming.closing(self._name):
            self._consumer.close(autocommit=False)
        if self._owning is not None:
            self._owning.close()

    def _seek(self, partition: int, start: int) -> None:
        place = TopicPartition(self._name, partition)
        self._buffers[partition].clear()
        with mapping(f"reading {self._name}-{partition}"):
            first = self._consumer.beginning_offsets([place], timeout_ms=REQUEST_TIMEOUT_MS)[place]
            self._sure_until[partition] = self._consumer.end_offsets([place], timeout_ms=REQUEST_TIMEOUT_MS)[place]
            start = self._sure_until[partition] if start == self.END else max(start, first)
            self._consumer.seek(place, start)
            self._consumer.resume(place)
        self._reading_on[partition] = start, start

    def _position(self, partition: int) -> int:
        position = self._consumer._subscription.assignment[TopicPartition(self._name, partition)].position
        return position.offset if position is not None else 0

    def _hold_back(self) -> None:
        """Fetch nothing more of a partition whose records are not taken, or that is not read any more."""
        paused = self._consumer.paused()
        for partition in self._reading_on:
            place = TopicPartition(self._name, partition)
            held = sum(len(record.value or b"") for record in self._buffers[partition])
            full = held >= BUFFERED_BYTES or time.monotonic() - self._read_at[partition] > RESTS_AFTER_S
            if full and place not in paused:
                self._consumer.pause(place)
            elif not full and place in paused:
                self._consumer.resume(place)
        unpark(self._consumer)

    def _fill(self, timeout_ms: int) -> bool:
        self._hold_back()
        self._looked_at = time.monotonic()
        with mapping(f"reading {self._name}"):
            try:
                batches = self._consumer.poll(timeout_ms=timeout_ms)
            except kafka_errors.OffsetOutOfRangeError:
                for partition, (_, start) in list(self._reading_on.items()):
                    self._seek(partition, start)  # retention has passed by: go on with the oldest record kept
                return True
        for place, records in batches.items():
            self._buffers[place.partition].extend(records)
        return bool(batches)
