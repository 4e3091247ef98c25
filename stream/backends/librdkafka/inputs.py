"""The input topics as one member of the consumer group.

librdkafka joins, sends heartbeats and fetches in threads of its own, and tells of a rebalance only inside a poll: what
a token stands on changes in the worker's thread alone.
"""

import logging
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.backends.kafka import consuming
from stream.backends.kafka import inputs as kafka_inputs
from stream.backends.kafka.admin import leave
from stream.backends.kafka.client import REQUEST_TIMEOUT_MS, fenced, mapping, unavailable
from stream.backends.kafka.inputs import CommittedOffsets, Proof, equal_counts, tasks_of
from stream.backends.kafka.offsets import known_counts, observer
from stream.backends.librdkafka.client import ClientLog, connection, heard, telling, translated
from stream.errors import BrokerUnavailable, Misconfigured
from stream.events import Record, make_record
from stream.ports import Committed, Polled, Token
from stream.settings import Settings

log = logging.getLogger(__name__)

Place = tuple[str, int]

HELD = 4_000
"""Records of a full partition that are kept here: to pause it is to throw away all that was fetched of it."""
FETCHED_RECORDS = 10_000
FETCHED_KB = 16_384
FETCH_AGAIN_MS = 10
"""The client's second of rest, once enough was fetched, would be one without records."""
ASK_AGAIN_S = 0.2
FENCED = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
"""Another client has taken this static member's place. The client tells it in the text of a fatal error."""
LASTING = (
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError._FATAL,
)
"""What a poll may find that waiting does not mend. A topic that brokers deny may be one they do not know yet."""


class LibrdkafkaInputs:
    """A static member with the range assignor, as `KafkaInputs` is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.topics: tuple[str, ...] = settings.inputs
        self._group = settings.application.name
        self._instance = f"{self._group}-{settings.application.instance}"
        self._epoch = 0
        self._assigned: frozenset[Place] = frozenset()
        self._member = b""
        self._forget()
        self._shaken = self._outdone = False
        self._config = connection(settings.kafka, f"driftline-{settings.application.instance}")
        self._config |= {"group.id": self._group}
        # Asked by the default client, which says why it is not let in; librdkafka would only not answer.
        self.partitions = equal_counts(known_counts(settings, self.topics))
        # librdkafka 2.16 reads past the end of what is committed with an offset where it did not commit that itself.
        with mapping("asking for committed offsets"):
            self._asking = observer(settings, self._group)
        self._offsets = CommittedOffsets(self._asking, self._group, self.topics)
        with telling("joining the consumer group"):
            self._join()

    def _join(self) -> None:
        kafka = self._settings.kafka
        session_ms = round(kafka.session_timeout_s * 1000)
        self._consumer = Consumer(
            self._config
            | {
                "error_cb": self._hear,
                "logger": ClientLog(self._shake),
                "group.instance.id": self._instance,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "partition.assignment.strategy": "range",
                "max.poll.interval.ms": max(kafka_inputs.MAX_POLL_INTERVAL_MS, session_ms),
                "topic.metadata.refresh.interval.ms": kafka_inputs.METADATA_MAX_AGE_MS,
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": session_ms // 4,
                "check.crcs": True,
                "enable.partition.eof": True,
                "queued.min.messages": FETCHED_RECORDS,
                "queued.max.messages.kbytes": FETCHED_KB,
                "fetch.queue.backoff.ms": FETCH_AGAIN_MS,
                "max.partition.fetch.bytes": kafka_inputs.PARTITION_FETCH_BYTES,
                "fetch.max.bytes": kafka_inputs.FETCH_BYTES,
                "fetch.min.bytes": kafka_inputs.GATHERED_BYTES,
                "fetch.wait.max.ms": self._settings.tick.max_wait_ms,
            }
        )
        self._consumer.subscribe(
            list(self.topics), on_assign=self._take_over, on_revoke=self._let_go, on_lost=self._lose
        )

    def poll(self, timeout_s: float, full: frozenset[Place]) -> Polled:
        epoch = self._epoch
        with telling("polling the input topics"):
            self._begin()
            self._pause(full)
            at_hand = any(records and place not in full for place, records in self._held.items())
            # Asked for many records with a time-out, the client would wait for that many.
            first = self._consumer.poll(0 if at_hand else timeout_s)
            messages = []
            if first is not None:  # a message without a value is as good as false
                messages = [first, *self._consumer.consume(kafka_inputs.MAX_POLL_RECORDS - 1, 0)]
            if any(map(Message.error, messages)):
                messages = self._without_events(messages)
            if self._outdone:
                self._join_again()
                return Polled((), None)
            records = recorded(messages)
        token = self._token()
        if self._epoch != epoch:
            return Polled((), token)  # of the assignment before: they are read again after recovery
        if len(self._heard) < len(self._from):
            self._heard |= {(record.topic, record.partition) for record in records}
        return Polled(self._not_full(records, full) if full or self._held else records, token)

    def committed(self, task: int) -> Committed | None:
        return self._offsets.read(task)

    def start(self, task: int, offsets: Mapping[str, int] | None) -> Mapping[str, int]:
        if offsets is None:
            side = 0 if self._settings.kafka.start_at == "earliest" else 1
            offsets = {topic: self._ends(topic, task)[side] for topic in self.topics}
        for place in ((topic, task) for topic in self.topics):
            if place in self._assigned:
                self._starting[place] = offsets[place[0]]
                self._held.pop(place, None)
        return offsets

    def ends(self, task: int) -> Mapping[str, int]:
        return {topic: self._ends(topic, task)[1] for topic in self.topics}

    def ended(self, task: int, since: float = 0.0) -> frozenset[str]:
        return frozenset(topic for topic in self.topics if self._has_ended((topic, task), since))

    def heard_ends(self, task: int) -> Mapping[str, int]:
        return {topic: self._end(topic, task) for topic in self.topics if (topic, task) in self._heard}

    def holds(self, token: Token) -> bool:
        """Whether the token is still that of the present assignment."""
        return token == self._token()

    def close(self) -> None:
        try:
            member = self._consumer.consumer_group_metadata()
        except RuntimeError:
            return  # closed already
        with consuming.closing("what asks for offsets"):
            self._asking.close(autocommit=False)
        with consuming.closing(f"a member of the group {self._group}"), telling("closing"):
            self._consumer.close()
        if self._settings.kafka.leave_on_stop and (member_id := member_of(member)):
            leave(self._settings, self._group, self._instance, member_id)

    # Called by the client, inside a poll

    def _take_over(self, consumer: Consumer, assigned: Sequence[TopicPartition]) -> None:
        """A new assignment: nothing of it is fetched before each task has been recovered and started."""
        self._forget()
        self._epoch += 1
        self._assigned = frozenset((place.topic, place.partition) for place in assigned)
        self._shaken = False
        consumer.assign([])
        with suppress(RuntimeError):  # closing: it is told to nobody
            self._member = consumer.consumer_group_metadata()

    def _let_go(self, consumer: Consumer, _revoked: Sequence[TopicPartition]) -> None:
        """A rebalance has begun: whatever is in flight must not be committed."""
        self._forget()
        self._epoch += 1
        self._assigned, self._member = frozenset(), b""
        consumer.unassign()

    def _lose(self, consumer: Consumer, lost: Sequence[TopicPartition]) -> None:
        log.warning("%s", unavailable("the group has given this member up, or answers no heartbeat"))
        self._let_go(consumer, lost)

    def _hear(self, error: KafkaError) -> None:
        heard(error)
        self._shaken = True

    def _shake(self) -> None:
        self._shaken = True

    def _join_again(self) -> None:
        """Go on as a new client under the old name.

        librdkafka 2.16 that has lost its coordinator joins as a new member while a heartbeat of the old one is still to
        be sent, and takes its answer for another client's. Was it another one, then that one is told so.
        """
        log.warning("the consumer fenced itself when it lost its coordinator: it joins again")
        self._forget()
        self._epoch += 1
        self._assigned, self._member = frozenset(), b""
        self._outdone = self._shaken = False
        self._consumer.close()
        self._join()

    # What is known of places

    def _forget(self) -> None:
        """Nothing is known of any place any more."""
        self._starting: dict[Place, int] = {}
        self._from: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._heard: set[Place] = set()
        self._held: defaultdict[Place, list[Record]] = defaultdict(list)
        self._asked: dict[Place, float] = {}
        self._said: dict[Place, tuple[int, float]] = {}

    def _token(self) -> Token | None:
        """Membership and assignment of one moment. Another generation than that of the assignment is one lost."""
        if not self._member or self._consumer.consumer_group_metadata() != self._member:
            return None
        tasks = tasks_of(self._assigned, self.topics, self.partitions, self._group)
        return Token(generation_of(self._member), tasks, Proof(self._epoch, self._member))

    def _begin(self) -> None:
        """Have the client fetch from where tasks were started; the others go on from where they are.

        Not by seeking: librdkafka 2.16 may go back to the offset of its own choice half a second after a seek.
        """
        if not self._starting:
            return
        self._consumer.resume(_partitions(self._paused))
        self._paused.clear()
        for place in self._consumer.position(_partitions(self._from)):
            if place.offset >= 0:  # else nothing was read since it was told where from
                self._from[place.topic, place.partition] = place.offset
        self._from |= self._starting
        self._starting.clear()
        self._said.clear()
        self._asked = dict.fromkeys(self._from, time.monotonic())
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._from.items()])

    def _pause(self, full: frozenset[Place]) -> None:
        rest = {place for place, held in self._held.items() if len(held) >= HELD}
        pausing, resuming = rest - self._paused, self._paused - rest - full
        if pausing:
            self._consumer.pause(_partitions(pausing))
        if resuming:
            self._consumer.resume(_partitions(resuming))
        self._paused = (self._paused | pausing) - resuming

    def _not_full(self, records: Sequence[Record], full: frozenset[Place]) -> list[Record]:
        """What is to be delivered of these and of what is held; the rest is held."""
        for record in records:
            self._held[record.topic, record.partition].append(record)
        return [record for place in list(self._held) if place not in full for record in self._held.pop(place)]

    def _without_events(self, messages: Iterable[Message]) -> list[Message]:
        """Records alone; an end is noted, an error that waiting does not mend is raised."""
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
                continue
            if error.code() == KafkaError._PARTITION_EOF:
                place: Any = message.topic(), message.partition()
                if place in self._from:
                    self._said[place] = int(message.offset() or 0), self._asked[place]
                    self._heard.add(place)
            elif FENCED in error.str():
                if not self._shaken:
                    raise fenced()
                self._outdone = True
            elif error.code() in LASTING:
                raise translated(error, message.topic() or self._group)
            else:
                heard(error)
        return records

    def _has_ended(self, place: Place, since: float) -> bool:
        """An end is told once: to hear of it again the partition is sought to where it is, which asks its leader."""
        offset, at = self._said.get(place, (-1, 0.0))
        if offset < 0 or place in self._starting or self._held.get(place) or self._end(*place) != offset:
            return False
        if at < since and self._asked[place] < since:
            with suppress(KafkaException):  # given up meanwhile: the next poll says so
                self._consumer.seek(TopicPartition(*place, offset))
                self._from[place], self._asked[place] = offset, time.monotonic()
        return at >= since

    def _end(self, topic: str, partition: int) -> int:
        """As last heard, what belongs to open transactions included; nobody is asked."""
        return int(self._consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)[1])

    def _ends(self, topic: str, partition: int) -> tuple[int, int]:
        patience_until = time.monotonic() + REQUEST_TIMEOUT_MS / 1000
        while True:  # a leader that has moved is not looked for by the client
            left_s = max(patience_until - time.monotonic(), 0.1)
            try:
                with telling(f"asking where {topic}-{partition} ends"):
                    found = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), left_s)
                    if found is None:
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                    return found
            except BrokerUnavailable:
                if time.monotonic() > patience_until:
                    raise
                time.sleep(ASK_AGAIN_S)


def _partitions(places: Iterable[Place]) -> list[TopicPartition]:
    return [TopicPartition(*place) for place in places]


def generation_of(member: bytes) -> int:
    """The generation in a consumer's group metadata as librdkafka writes them (`CGMDv2`): after seven bytes of name."""
    name, generation = struct.unpack_from("=7si", member)
    if name != b"CGMDv2:":
        raise Misconfigured(f"confluent-kafka writes group metadata as {name!r}: `pip install '.[librdkafka]'`")
    return int(generation)


def member_of(member: bytes) -> str:
    """The id that the group gave this member; empty while it is none."""
    return member[11:].split(b"\0")[1].decode()


def recorded(messages: Sequence[Message]) -> list[Record]:
    """Records of messages, column by column: most of it without a line of Python for each.

    Raises:
        Misconfigured: one has a header that cannot be read.
    """
    found: list[Any] = []
    try:
        found.extend(map(Message.headers, messages))
    except (SystemError, UnicodeDecodeError) as error:  # the first is the second, as the client raises it
        odd = messages[len(found)]
        raise Misconfigured(
            f"the record {odd.topic()}-{odd.partition()}-{odd.offset()} has a header key that is not UTF-8, which "
            "confluent-kafka cannot read; set kafka.client to kafka-python"
        ) from error
    columns: tuple[Any, ...] = (
        map(Message.topic, messages),
        map(Message.partition, messages),
        map(Message.offset, messages),
        map(itemgetter(1), map(Message.timestamp, messages)),
        map(Message.key, messages),
        map(Message.value, messages),
        [tuple((key, value or b"") for key, value in one) if one else () for one in found],
    )
    return list(map(make_record, zip(*columns, strict=True)))
