"""The transactional writer. Every call of the client has a time-out: no watchdog is needed."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream.backends.kafka.admin import require_topics
from stream.backends.kafka.client import MAX_REQUEST_BYTES, REQUEST_TIMEOUT_MS
from stream.backends.kafka.outputs import judged, stamp, transactional_id
from stream.backends.librdkafka.client import connection, telling, translated
from stream.errors import OutcomeUnknown, TaskLost
from stream.ports import Offset, Outgoing, Token
from stream.settings import Settings

log = logging.getLogger(__name__)

QUEUED_RECORDS = 10_000_000
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
        self.reset()

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        producer = self._ensure()
        if not self._holds(token):
            raise TaskLost("the assignment changed while the tick ran")
        try:
            return self._transact(producer, records, offsets, token)
        except TaskLost:
            self._abort(producer)
            raise
        except KafkaException as failure:
            error = failure.args[0]
            if error.code() in STALE:
                self._abort(producer)
                raise TaskLost(f"the group refused the offsets: {error.name()}") from failure
            self._discard()
            raise judged(translated(error), records, self._largest_bytes) from failure
        except BaseException:
            self._discard()
            raise

    def reset(self) -> None:
        self._discard()
        self._ensure()

    def close(self) -> None:
        self._discard()

    def _transact(
        self, producer: Producer, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token
    ) -> list[int]:
        until = time.monotonic() + self._settings.kafka.commit_timeout_s
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
            producer.send_offsets_to_transaction(places, token.proof.metadata, _left(until))
        producer.flush(_left(until))
        if failed:
            raise KafkaException(failed[0])
        if -1 in written:
            raise OutcomeUnknown(f"the transaction had no answer for {self._settings.kafka.commit_timeout_s:g} s")
        producer.commit_transaction(_left(until))
        return written

    def _abort(self, producer: Producer) -> None:
        """End a transaction whose offsets the group refused: the client forgets them with it."""
        try:
            producer.abort_transaction(self._settings.kafka.commit_timeout_s)
        except KafkaException as error:
            log.warning("aborting a transaction: %s", error)
            self._discard()

    def _ensure(self) -> Producer:
        if self._producer is None:
            require_topics(self._settings, self._topics)
            kafka = self._settings.kafka
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
                        "transaction.timeout.ms": round(kafka.transaction_timeout_s * 1000),
                        "message.timeout.ms": round(min(2 * REQUEST_TIMEOUT_MS, kafka.transaction_timeout_s * 1000)),
                        "retry.backoff.ms": 20,
                    }
                )
                try:
                    producer.init_transactions(REQUEST_TIMEOUT_MS / 1000)
                finally:
                    producer.poll(0)  # has it say why not
            self._producer = producer
        return self._producer

    def _discard(self) -> None:
        """Forget the producer; what it left open is decided when the next one of its name begins."""
        if self._producer is not None:
            self._producer.purge(blocking=False)
            self._producer = None


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())
