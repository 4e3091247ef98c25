"""The transactional writer, with a watchdog: the client's time-outs do not hold where it waits for a coordinator."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream.backends.kafka.admin import require_topics
from stream.backends.kafka.client import MAX_REQUEST_BYTES, REQUEST_TIMEOUT_MS
from stream.backends.kafka.outputs import judged, stamp, transactional_id
from stream.backends.librdkafka.client import connection, heard, telling, translated
from stream.errors import OutcomeUnknown, TaskLost
from stream.ports import Offset, Outgoing, Token
from stream.settings import Settings

log = logging.getLogger(__name__)

QUEUED_RECORDS = 10_000_000
LOOK_S = 0.05
SHAKEN_S = 3.0
"""What a transaction is still given once a connection has failed: the client may wait for a coordinator it gave up."""
STALE = (KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS)
"""The group has moved on; the transaction can be aborted."""


class LibrdkafkaOutputs:
    """One producer under a fixed transactional id, as `KafkaOutputs` is."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        holds: Callable[[Token], bool] = lambda _: True,
        topics: Sequence[str] = (),
        largest_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._name = transactional_id(settings, name)
        self._largest_bytes = largest_bytes
        self._holds = holds
        self._producer: Producer | None = None
        self._shaken = False
        self.reset()

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        producer = self._ensure()
        producer.poll(0)
        if self._shaken:
            # librdkafka 2.16 keeps the coordinator that it had found, and waits for ever for one that was given up.
            self.reset()
            producer = self._ensure()
        if not self._holds(token):
            raise TaskLost("the assignment changed while the tick ran")
        answer: list[list[int] | Exception] = []
        thread = threading.Thread(
            target=self._transact, args=(producer, records, offsets, token, answer), name="transaction", daemon=True
        )
        began = time.monotonic()
        thread.start()
        self._watch(thread, producer)
        if not answer:
            self._discard()
            raise OutcomeUnknown(f"the transaction had no answer for {time.monotonic() - began:.1f} s")
        if isinstance(answer[0], list):
            return answer[0]
        error = answer[0]
        if isinstance(error, TaskLost):
            raise error
        self._discard()
        if isinstance(error, SystemError):  # what a fatal error becomes that is told among delivery reports
            raise OutcomeUnknown(f"{error.__cause__ or error}") from error
        if not isinstance(error, KafkaException):
            raise error  # a fault of ours: doing the same again would not mend it
        raise judged(translated(error.args[0]), records, self._largest_bytes) from error

    def reset(self) -> None:
        self._discard()
        self._ensure()

    def close(self) -> None:
        self._discard()

    def _watch(self, thread: threading.Thread, producer: Producer) -> None:
        """Wait for a transaction's end: for `commit_timeout_s`, and less where a connection fails meanwhile."""
        until = time.monotonic() + self._settings.kafka.commit_timeout_s
        while thread.is_alive() and time.monotonic() < until:
            thread.join(LOOK_S)
            with suppress(KafkaException, SystemError):  # the transaction meets it too
                producer.poll(0)  # tells of connections, where the transaction's own thread has not been told
            if self._shaken:
                until = min(until, time.monotonic() + SHAKEN_S)

    def _transact(
        self,
        producer: Producer,
        records: Sequence[Outgoing],
        offsets: Sequence[Offset],
        token: Token,
        answer: list[list[int] | Exception],
    ) -> None:
        try:
            answer.append(self._written(producer, records, offsets, token))
        except Exception as error:
            stale = isinstance(error, TaskLost)
            if isinstance(error, KafkaException) and error.args[0].code() in STALE:
                error, stale = TaskLost(f"the group refused the offsets: {error.args[0].name()}"), True
            if stale:
                try:
                    producer.abort_transaction()  # the client forgets the offsets with it
                except KafkaException as failure:
                    log.warning("aborting a transaction: %s", failure)
                    self._shaken = True
            answer.append(error)

    def _written(
        self, producer: Producer, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token
    ) -> list[int]:
        written = [-1] * len(records)
        failed: list[KafkaError] = []

        def delivered(i: int, error: KafkaError | None, message: Message) -> None:
            if error is None:
                written[i] = int(message.offset() or 0)
            else:
                failed.append(error)

        producer.begin_transaction()
        for i, one in enumerate(records):
            producer.produce(
                one.topic,
                one.value,
                one.key,
                -1 if one.partition is None else one.partition,
                on_delivery=partial(delivered, i),
                timestamp=one.timestamp_ms or 0,
                headers=[*one.headers],
            )
        if offsets:
            places = [TopicPartition(one.topic, one.task, one.next_offset, stamp(one)) for one in offsets]
            if not self._holds(token):
                raise TaskLost("the assignment changed before the offsets were sent")
            producer.send_offsets_to_transaction(places, token.proof.metadata)
        producer.flush()
        if failed:
            raise KafkaException(failed[0])
        producer.commit_transaction()
        return written

    def _ensure(self) -> Producer:
        if self._producer is None:
            require_topics(self._settings, self._topics)
            kafka = self._settings.kafka
            transaction_ms = round(kafka.transaction_timeout_s * 1000)
            with telling(f"opening the transactional producer {self._name}"):
                producer = Producer(
                    connection(kafka, f"driftline-{self._name}")
                    | {
                        "transactional.id": self._name,
                        "acks": "all",
                        "compression.type": "lz4",
                        "linger.ms": 5,
                        "batch.size": 1_000_000,
                        "message.max.bytes": self._largest_bytes,
                        "partitioner": "murmur2_random",
                        "queue.buffering.max.messages": QUEUED_RECORDS,
                        "transaction.timeout.ms": transaction_ms,
                        # Neither may be longer than a transaction.
                        "message.timeout.ms": transaction_ms,
                        "socket.timeout.ms": min(REQUEST_TIMEOUT_MS, transaction_ms),
                        "retry.backoff.ms": 20,
                        "error_cb": self._hear,
                    }
                )
                try:
                    producer.init_transactions(REQUEST_TIMEOUT_MS / 1000)
                finally:
                    producer.poll(0)  # has it say why not
            self._producer, self._shaken = producer, False
        return self._producer

    def _hear(self, error: KafkaError) -> None:
        heard(error)
        self._shaken = True

    def _discard(self) -> None:
        """Forget the producer; what it left open is decided when the next one of its name begins."""
        if self._producer is not None:
            self._producer.purge(blocking=False)
            self._producer = None
