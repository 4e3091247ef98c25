"""The input topics as one member of the consumer group."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import orjson
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.range import RangePartitionAssignor

from stream.backends.kafka import consuming
from stream.backends.kafka.batches import take_whole_batches
from stream.backends.kafka.client import REQUEST_TIMEOUT_MS, connection, fenced, is_fenced, mapping, unavailable, unpark
from stream.errors import BrokerUnavailable, Misconfigured, TransactionOpen
from stream.ports import UNSTAMPED, Committed, Polled, Token
from stream.settings import Settings

log = logging.getLogger(__name__)

MAX_POLL_RECORDS = 8_000
"""More than a full tick: in one transaction are those of several tasks, and it costs the same with one."""
PARTITION_FETCH_BYTES = 4_194_304
"""More than a full tick of events: by the client's default of a quarter of it, ticks never become full."""
FETCH_BYTES = 16_777_216
GATHERED_BYTES = 65_536
"""The broker gathers so much before it answers, or `tick.max_wait_ms` long: transactions of few events cost as much."""
MAX_POLL_INTERVAL_MS = 60_000
METADATA_MAX_AGE_MS = 30_000
"""Partitions added to an input topic are noticed within this time: from then on customers change their partition."""
COMMITTED_TIMEOUT_MS = 5_000
STUCK_AFTER_S = 15.0
"""A member with no partitions for this long, although there are more partitions than members, subscribes again."""


class Proof(NamedTuple):
    """What a token stands on: our count of assignments, and the client's group metadata for the broker to check."""

    epoch: int
    metadata: Any


class _OpenTransactions(logging.Filter):
    """Notes, and mutes, what the client calls an unknown error ten times a second and does not let its caller see."""

    seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        found = any(isinstance(one, kafka_errors.UnstableOffsetCommitError) for one in arguments)
        self.seen = self.seen or found
        return not found


_open = _OpenTransactions()
logging.getLogger("kafka.coordinator.consumer").addFilter(_open)


class CommittedOffsets:
    """What a group has committed, asked by a consumer of it that waits for open transactions."""

    def __init__(self, consumer: Any, group: str, topics: Sequence[str]) -> None:
        self._consumer, self._group, self._topics = consumer, group, topics

    def read(self, task: int) -> Committed | None:
        """As `Inputs.committed`."""
        # A fetch of offsets that an earlier call gave up waiting for would be answered from the client's memory with
        # what was committed then (tests/integration/test_servers.py shows it): forget it.
        coordinator = self._consumer._coordinator
        coordinator._offset_fetch_futures.clear()
        places = [TopicPartition(topic, task) for topic in self._topics]
        _open.seen = False
        try:
            with mapping(f"reading the committed offsets of task {task} in {' and '.join(self._topics)}"):
                # In one request: between two another owner may commit.
                answer = coordinator.fetch_committed_offsets(places, timeout_ms=COMMITTED_TIMEOUT_MS)
        except BrokerUnavailable as error:
            if not _open.seen:
                raise
            raise TransactionOpen(
                f"task {task}: a transaction of the worker that had it before is still open; it ends when that worker "
                "comes back under its application.instance, or kafka.transaction_timeout_s after it began. "
                'Where it lasts, see "Stuck transaction" in docs/runbook.md'
            ) from error
        return stamped(self._group, task, {place.topic: answer.get(place) for place in places})


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client publishes no types
    """Runs on the client's I/O loop: flips state under the lock and returns; the main loop does the work."""

    def __init__(self, inputs: "KafkaInputs") -> None:
        self._inputs = inputs

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._inputs.take_over(frozenset(assigned))

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002  the range assignor revokes everything
        self._inputs.let_go()

    def on_partitions_lost(self, lost: Any) -> None:  # noqa: ARG002
        self._inputs.let_go()


class KafkaInputs:
    """A static member with the range assignor: the only one that keeps a task's partitions together.

    `isolation_level` is `read_committed` although the inputs need not be transactional: it makes `committed` wait for
    the open transaction of a task's former owner. Offsets are never committed here, only in `KafkaOutputs`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.topics: tuple[str, ...] = settings.inputs
        self._lock = threading.Lock()
        self._epoch = 0
        self._stable = False
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._sought: set[TopicPartition] = set()
        self._idle_since = time.monotonic()
        kafka = settings.kafka
        self._group = settings.application.name
        self._unanswered = False
        with mapping("joining the consumer group"):
            self._consumer = KafkaConsumer(
                **connection(kafka, f"driftline-{settings.application.instance}"),
                group_id=self._group,
                group_instance_id=f"{self._group}-{settings.application.instance}",
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                partition_assignment_strategy=[RangePartitionAssignor],
                max_poll_records=MAX_POLL_RECORDS,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
                fetch_max_bytes=FETCH_BYTES,
                fetch_min_bytes=GATHERED_BYTES,
                fetch_max_wait_ms=settings.tick.max_wait_ms,
                max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
                metadata_max_age_ms=METADATA_MAX_AGE_MS,
                session_timeout_ms=round(kafka.session_timeout_s * 1000),
                heartbeat_interval_ms=round(kafka.session_timeout_s * 1000 / 4),
                request_timeout_ms=REQUEST_TIMEOUT_MS + 5_000,
                # In a session the broker says where a partition ends only when that changes, and the client forgets it
                # with the assignment: a silent topic would hold the other one up after a rebalance.
                enable_incremental_fetch_sessions=False,
            )
            take_whole_batches(self._consumer)
            self._offsets = CommittedOffsets(self._consumer, self._group, self.topics)
            self._answered: dict[TopicPartition, tuple[int, float]] = {}
            self._note_answers()
            try:
                # The metadata must be here before the group is joined, or the leader assigns no partitions for ever.
                self.partitions = equal_counts(consuming.partition_counts(self._consumer, self.topics))
                self._consumer.subscribe(list(self.topics), listener=_Listener(self))
            except BaseException:
                self._consumer.close(autocommit=False)
                raise

    def poll(self, timeout_s: float, full: frozenset[tuple[str, int]]) -> Polled:
        epoch = self._epoch
        self._apply_pauses(full)
        with mapping("polling the input topics"):
            batches = consuming.poll(self._consumer, round(timeout_s * 1000))
        token = self._token()
        # A rebalance stops heartbeats too, but only after it has revoked the assignment, which ends the token.
        if token is not None and is_fenced(self._consumer) and self.holds(token):
            raise fenced()
        if self._epoch != epoch:
            return Polled((), token)  # of the assignment before: they are read again after recovery
        self._watch_for_lockup(token)
        self._watch_for_silence()
        return Polled(list(chain.from_iterable(batches.values())), token)

    def committed(self, task: int) -> Committed | None:
        return self._offsets.read(task)

    def start(self, task: int, offsets: Mapping[str, int] | None) -> Mapping[str, int]:
        partitions = {topic: TopicPartition(topic, task) for topic in self.topics}
        with mapping(f"seeking task {task}"):
            if offsets is None:
                ask = self._consumer.beginning_offsets if self._starts_early() else self._consumer.end_offsets
                found = ask(list(partitions.values()), timeout_ms=REQUEST_TIMEOUT_MS)
                offsets = {topic: found[partition] for topic, partition in partitions.items()}
        with suppress(KeyError, ValueError):  # revoked meanwhile: the next poll says so
            for topic, partition in partitions.items():
                self._consumer.seek(partition, offsets[topic])
                self._sought.add(partition)
        return offsets

    def ends(self, task: int) -> Mapping[str, int]:
        partitions = {topic: TopicPartition(topic, task) for topic in self.topics}
        with mapping(f"asking for the ends of task {task}"):
            found = self._consumer.end_offsets(list(partitions.values()), timeout_ms=REQUEST_TIMEOUT_MS)
        return {topic: found[partition] for topic, partition in partitions.items()}

    def ended(self, task: int, since: float = 0.0) -> frozenset[str]:
        ended = set()
        for topic in self.topics:
            partition = TopicPartition(topic, task)
            # A transaction still open at the tail keeps the position below the end: the topic has not ended then.
            with suppress(KeyError, kafka_errors.IllegalStateError):
                high = self._consumer.highwater(partition)
                position = self._consumer._subscription.assignment[partition].position
                if partition in self._sought and None not in (high, position) and position.offset >= high:
                    asked, at = self._answered.get(partition, (-1, 0.0))
                    if asked == position.offset and at >= since:
                        ended.add(topic)
        return frozenset(ended)

    def heard_ends(self, task: int) -> Mapping[str, int]:
        ends = {}
        for topic in self.topics:
            partition = TopicPartition(topic, task)
            with suppress(KeyError, kafka_errors.IllegalStateError):
                end = self._consumer.highwater(partition)
                if partition in self._sought and end is not None:
                    ends[topic] = int(end)
        return ends

    def close(self) -> None:
        consuming.close_member(self._consumer, self._settings)

    def take_over(self, assigned: frozenset[TopicPartition]) -> None:
        """A new assignment: nothing of it is fetched before each task has been recovered and sought.

        Runs on the client's I/O loop, so it calls nothing that waits, and nothing of the client under our lock.
        """
        for partition in assigned:
            self._consumer.seek(partition, 0)  # so that the client does not fetch and trust offsets of its own
        self._consumer.pause(*assigned)
        with self._lock:
            self._epoch += 1
            self._assigned, self._stable, self._sought = assigned, True, set()

    def let_go(self) -> None:
        """A rebalance has begun: whatever is in flight must not be committed."""
        with self._lock:
            self._epoch += 1
            self._assigned, self._stable, self._sought = frozenset(), False, set()

    def holds(self, token: Token) -> bool:
        """Whether the token is still that of the present assignment."""
        return token == self._token()

    def _token(self) -> Token | None:
        """Membership and assignment of one moment. A negative generation is a membership already lost."""
        with self._lock:
            epoch, assigned, stable = self._epoch, self._assigned, self._stable
        metadata = self._consumer.group_metadata()
        if not stable or epoch != self._epoch or metadata.generation_id < 0 or not metadata.member_id:
            return None
        if self._silent_s() > self._settings.kafka.session_timeout_s:
            return None  # the client goes on calling itself a member; the group has given it up by now, or is frozen
        tasks = tasks_of(assigned, self.topics, self.partitions, self._group)
        return Token(metadata.generation_id, tasks, Proof(epoch, metadata))

    def _note_answers(self) -> None:
        """Note from which offset each partition was last asked for records, and when the answer came.

        The client keeps the end that it was told with them: of a partition that was paused meanwhile, or whose leader
        is away, that may be long ago.
        """
        fetcher = self._consumer._fetcher
        handle = fetcher._handle_fetch_response

        def noting(node: Any, offsets: Mapping[TopicPartition, int], sent: float, response: Any) -> None:
            handle(node, offsets, sent, response)
            now = time.monotonic()
            for topic in response.responses:
                for one in topic.partitions:
                    partition = TopicPartition(topic.topic, one.partition_index)
                    if one.error_code == 0:
                        self._answered[partition] = offsets[partition], now

        fetcher._handle_fetch_response = noting

    def _apply_pauses(self, full: frozenset[tuple[str, int]]) -> None:
        with suppress(KeyError):  # revoked meanwhile
            paused = self._consumer.paused()
            for partition in self._assigned:
                wanted = partition not in self._sought or (partition.topic, partition.partition) in full
                if wanted and partition not in paused:
                    self._consumer.pause(partition)
                elif not wanted and partition in paused:
                    self._consumer.resume(partition)
        unpark(self._consumer)

    def _silent_s(self) -> float:
        """How long the group has answered no heartbeat."""
        heartbeat = self._consumer._coordinator.heartbeat
        return time.monotonic() - float(max(heartbeat.last_receive, heartbeat.last_reset))

    def _watch_for_silence(self) -> None:
        """Say once that a broker that only keeps silent is the cause: a poll of it looks like a shop without events."""
        unanswered = self._stable and self._silent_s() > self._settings.kafka.session_timeout_s
        if unanswered and not self._unanswered:
            found = f"Kafka has answered no heartbeat for {self._silent_s():.0f} s: no task is worked on until it does"
            log.warning("%s", unavailable(found))
        self._unanswered = unanswered

    def _watch_for_lockup(self, token: Token | None) -> None:
        now = time.monotonic()
        if token is None or token.tasks or now - self._idle_since < STUCK_AFTER_S:
            self._idle_since = now if token is None or token.tasks else self._idle_since
            return
        self._idle_since = now
        self._consumer.subscribe(list(self.topics), listener=_Listener(self))

    def _starts_early(self) -> bool:
        return self._settings.kafka.start_at == "earliest"


def equal_counts(counts: Mapping[str, int]) -> int:
    """The number of partitions that each input topic has.

    Raises:
        Misconfigured: one does not exist, or they differ.
    """
    missing = [topic for topic, count in counts.items() if count == 0]
    if missing:
        raise Misconfigured(
            f"the input topic {' and '.join(missing)} does not exist: create it, or run `driftline topics create`. "
            "If it does, grant this user READ on it"
        )
    if len(set(counts.values())) != 1:
        raise Misconfigured(
            f"the input topics have {dict(counts)} partitions; a customer's events must lie in the same partition "
            "number of each, so the counts must be equal: copy one into a new topic with "
            "`driftline repartition SRC DST`, or delete it while it is empty and run `driftline topics create`"
        )
    return next(iter(counts.values()))


def tasks_of(assigned: Iterable[tuple[str, int]], topics: Sequence[str], partitions: int, group: str) -> frozenset[int]:
    """The tasks that an assignment makes up.

    Raises:
        Misconfigured: partitions were added, or a task came without all its topics.
    """
    places = [(topic, partition) for topic, partition in assigned]
    tasks = frozenset(partition for _, partition in places)
    if any(task >= partitions for task in tasks):
        raise Misconfigured(
            f"the input topics had {partitions} partitions when this worker started, now partition "
            f"{max(tasks)} is assigned: partitions were added, and customers move away from their rows. Copy the "
            "input into topics of the former partition count and name those in topics.*, or give the application a "
            "new name and feed it its history"
        )
    if len(places) != len(tasks) * len(topics):
        raise Misconfigured(
            f"the group assigned {sorted(places)}: a task came without all its topics. Let nothing else join the "
            f"consumer group {group}"
        )
    return tasks


def text_of(metadata: str | None) -> str:
    """What was committed with an offset, without the zero byte that librdkafka puts behind it."""
    return (metadata or "").rstrip("\0")


def stamped(group: str, task: int, found: Mapping[str, Any]) -> Committed | None:
    """What a task's committed offsets say, from its `offset` and `metadata` by topic; None where there is none.

    Raises:
        Misconfigured: the metadata are not the stamp of one tick.
    """
    offsets = {topic: stamp.offset for topic, stamp in found.items() if stamp is not None}
    if not offsets:
        return None
    stamps = {text_of(stamp.metadata) for stamp in found.values() if stamp is not None}
    if "" in stamps:
        return Committed(offsets, UNSTAMPED, UNSTAMPED)
    try:
        (stamp,) = stamps
        values = orjson.loads(stamp)
        if type(values["seq"]) is not int or type(values["inc"]) is not int:
            raise TypeError
        return Committed(offsets, values["seq"], values["inc"])
    except (ValueError, KeyError, TypeError):
        raise Misconfigured(
            f"task {task}: the offsets of group {group} carry {sorted(map(str, stamps))}, not the "
            "stamp of one tick; something other than Driftline committed them. Use an application.name of its own"
        ) from None
