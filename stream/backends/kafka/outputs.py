"""The transactional writer, with a watchdog: the client's transaction calls may wait for ever."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka.admin import require_topics
from stream.backends.kafka.client import (
    MAX_REQUEST_BYTES,
    REQUEST_TIMEOUT_MS,
    connection,
    keep_requests,
    mapped,
    mapping,
)
from stream.errors import DriftlineError, Misconfigured, OutcomeUnknown, TaskLost
from stream.ports import Offset, Outgoing, Token
from stream.settings import Settings

log = logging.getLogger(__name__)

WAKE_S = 0.5
"""kafka-python 3.0.12's sender sleeps on where a partition was refused: woken, it tells who waits for the commit."""
STALE = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.RebalanceInProgressError,
)
"""The group has moved on; the transaction can be aborted."""

TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


def transactional_id(settings: Settings, name: str) -> str:
    """Of a worker's instance or a part of the application; no name holds a colon, so two applications never meet."""
    return f"{settings.application.name}:{name}"


def stamp(offset: Offset) -> str:
    """What is committed with an offset: the tick, and whose it was."""
    return orjson.dumps({"seq": offset.seq, "inc": offset.incarnation}).decode()


class KafkaOutputs:
    """One producer under a fixed transactional id, so that a restart aborts what its predecessor left open.

    `topics` are those it will write: with one missing or closed to this user there is no producer, but
    `Misconfigured`. A record of more than `largest_bytes` before compression is refused.
    """

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
        self._producer: KafkaProducer | None = None
        self.reset()

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        producer = self._ensure()
        if not self._holds(token):
            raise TaskLost("the assignment changed while the tick ran")
        answer: list[Any] = []
        thread = threading.Thread(
            target=self._transact, args=(producer, records, offsets, token, answer), name="transaction", daemon=True
        )
        thread.start()
        until = time.monotonic() + self._settings.kafka.commit_timeout_s
        while thread.is_alive() and time.monotonic() < until:
            thread.join(min(WAKE_S, until - time.monotonic()))
            producer._sender.wakeup()
        if not answer:
            self._discard()
            raise OutcomeUnknown(f"the transaction had no answer for {self._settings.kafka.commit_timeout_s:g} s")
        if isinstance(answer[0], Exception):
            self._judge(producer, answer[0], records)
        return list(answer[0])

    def reset(self) -> None:
        self._discard()
        self._ensure()

    def close(self) -> None:
        self._discard()

    def _transact(
        self,
        producer: KafkaProducer,
        records: Sequence[Outgoing],
        offsets: Sequence[Offset],
        token: Token,
        answer: list[Any],
    ) -> None:
        try:
            producer.begin_transaction()
            futures = [
                producer.send(one.topic, one.value, one.key, list(one.headers), one.partition, one.timestamp_ms)
                for one in records
            ]
            if offsets:
                stamped = {
                    TopicPartition(one.topic, one.task): OffsetAndMetadata(one.next_offset, stamp(one), -1)
                    for one in offsets
                }
                if not self._holds(token):
                    raise kafka_errors.CommitFailedError("the assignment changed before the offsets were sent")
                producer.send_offsets_to_transaction(stamped, token.proof.metadata)
            # kafka-python 3.0.12 commits without the records that it has not sent, or has given up: each is asked for.
            producer.flush()
            written = [future.get(timeout=0).offset for future in futures]
            producer.commit_transaction()
            answer.append(written)
        except Exception as error:
            refused = producer._transaction_manager.last_error
            # Where the refusal came before the next call, the client wraps its text into an error without a kind.
            answer.append(refused if refused is not None and type(error) is kafka_errors.KafkaError else error)

    def _judge(self, producer: KafkaProducer, error: Exception, records: Sequence[Outgoing]) -> None:
        """Raise what the main loop should do about a failed transaction."""
        if isinstance(error, STALE):
            aborting = threading.Thread(target=_abort, args=(producer,), name="abort", daemon=True)
            aborting.start()
            aborting.join(self._settings.kafka.commit_timeout_s)
            # kafka-python 3.0.12 would send the refused offsets again with the next transaction, as a member that
            # the broker knows: the offsets of a task that another worker owns by then would go back.
            self._discard()
            raise TaskLost(f"the group refused the offsets: {type(error).__name__}") from error
        self._discard()
        if not isinstance(error, kafka_errors.KafkaError):
            raise error  # a fault of ours: doing the same again would not mend it
        raise judged(error, records, self._largest_bytes) from error

    def _ensure(self) -> KafkaProducer:
        if self._producer is None:
            require_topics(self._settings, self._topics)
            kafka = self._settings.kafka
            with mapping(f"opening the transactional producer {self._name}"):
                producer = KafkaProducer(
                    **connection(kafka, f"driftline-{self._name}"),
                    transactional_id=self._name,
                    acks="all",
                    compression_type="lz4",
                    linger_ms=5,
                    batch_size=1_000_000,
                    max_request_size=self._largest_bytes,
                    max_block_ms=REQUEST_TIMEOUT_MS,
                    request_timeout_ms=REQUEST_TIMEOUT_MS,
                    delivery_timeout_ms=2 * REQUEST_TIMEOUT_MS,
                    transaction_timeout_ms=round(kafka.transaction_timeout_s * 1000),
                    retry_backoff_ms=5,  # at 100 every transaction would wait 100 ms for the one before it
                )
                keep_requests(producer)
                try:
                    producer.init_transactions()
                except BaseException:
                    _close(producer)
                    raise
            self._producer = producer
        return self._producer

    def _discard(self) -> None:
        """Throw the producer away without waiting for it: closing may hang where a transaction call does."""
        producer, self._producer = self._producer, None
        if producer is not None:
            closing = threading.Thread(target=_close, args=(producer,), name="closing", daemon=True)
            closing.start()
            closing.join(1.0)


def judged(error: kafka_errors.KafkaError, records: Sequence[Outgoing], largest_bytes: int) -> DriftlineError:
    """What is raised of a transaction that failed otherwise than for its token."""
    if isinstance(error, TOO_LARGE):
        largest = max(records, key=lambda one: len(one.value or b""))
        return Misconfigured(
            f"{type(error).__name__}: {error}; the largest record has {len(largest.value or b''):,} bytes and goes "
            f"to {largest.topic}, this writer takes up to {largest_bytes:,}. Raise max.message.bytes of "
            f"{largest.topic} above that record and start again"
        )
    ours = mapped(error, "writing a tick")
    return ours if isinstance(ours, Misconfigured) else OutcomeUnknown(f"{type(error).__name__}: {error}")


def _abort(producer: KafkaProducer) -> None:
    try:
        producer.abort_transaction()
    except kafka_errors.KafkaError as error:
        log.warning("aborting a transaction: %s", error)


def _close(producer: KafkaProducer) -> None:
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaError as error:
        log.debug("closing a producer: %s", error)
