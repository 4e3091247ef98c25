"""Fetched batches decoded as a whole, into our own records.

kafka-python decodes record by record and costs as much as the rest of the way to the tick. Here one compiled loop finds
where each record of a batch lies; transactions, checksums, compression and positions stay the client's (3.0.12).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from numpy.typing import NDArray

from online_models.compiled import compiled
from stream.errors import Misconfigured
from stream.events import Record, make_record

BROKEN = -1


def compile_loops() -> None:
    """Compile what decoding needs, or load it."""
    data = np.frombuffer(b"\0", np.uint8)
    locate(data, 0, np.zeros((0, 8), np.int64))
    _varint(data, 0)


def take_whole_batches(consumer: Any) -> None:
    """Let a consumer's `poll` give `Record`s."""
    consumer._fetcher.PartitionRecords = WholeBatches


class WholeBatches(Fetcher.PartitionRecords):  # type: ignore[misc]  # the client publishes no types
    """The batches of one partition out of one fetch."""

    def _unpack_records(self, place: TopicPartition, records: Any, *_deserializers: Any) -> Iterator[Record]:
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                raise kafka_errors.CorruptRecordError(f"a batch of {place} at offset {batch.base_offset} fails its crc")
            if batch.magic != 2:
                raise Misconfigured(
                    f"{place.topic}-{place.partition} holds records in a format from before Kafka 0.11; copy them into "
                    "a new topic, or let them expire"
                )
            self.leader_epoch = batch.leader_epoch
            if not self._is_hidden(batch):
                self.records_read += batch.records_count
                self.bytes_read += batch.size_in_bytes
                for record in decoded(place, batch):
                    self.next_fetch_offset = record.offset + 1
                    yield record
            self.next_fetch_offset = batch.next_offset  # the last record may have been removed by compaction
        self.drain()

    def _is_hidden(self, batch: Any) -> bool:
        """Whether a batch is of an aborted transaction, or of the broker's own control records."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


def decoded(place: TopicPartition, batch: Any) -> Iterator[Record]:
    """The records of a batch; a header's null value, which the client reads and refuses to write, as an empty one.

    Raises:
        CorruptRecordError: it is not what it says.
    """
    batch._maybe_uncompress()
    data = bytes(batch._buffer)
    fields = np.zeros((batch.records_count, 8), np.int64)
    if locate(np.frombuffer(data, np.uint8), batch._pos, fields) == BROKEN:
        raise kafka_errors.CorruptRecordError(f"a batch of {place} at offset {batch.base_offset} is not as it says")
    fields[:, 0] += batch.base_offset
    fields[:, 1] += batch.first_timestamp
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        fields[:, 1] = batch.max_timestamp
    topic, partition = place.topic, place.partition
    for offset, time_ms, key, key_end, value, value_end, headers, count in fields.tolist():
        yield make_record(
            (
                topic,
                partition,
                offset,
                time_ms,
                None if key < 0 else data[key:key_end],
                None if value < 0 else data[value:value_end],
                _headers(data, headers, count) if count else (),
            )
        )


@compiled
def locate(data: NDArray[np.uint8], position: int, fields: NDArray[np.int64]) -> int:
    """Fill a row per record: offset and time as differences, where key, value and headers lie (-1 = null), headers.

    Returns the end of the last record, which must be that of the data, else `BROKEN`.
    """
    for i in range(len(fields)):
        size, position = _varint(data, position)
        end = position + size
        if position < 0 or size < 1 or end > len(data):
            return BROKEN
        fields[i, 1], position = _varint(data, position + 1)  # after a byte of attributes that nothing uses
        fields[i, 0], position = _varint(data, position)
        for column in (2, 4):
            length, position = _varint(data, position)
            if position < 0 or position + length > end:
                return BROKEN
            fields[i, column] = position if length >= 0 else -1
            position += max(length, 0)
            fields[i, column + 1] = position
        fields[i, 7], position = _varint(data, position)
        count = fields[i, 7]
        if position < 0 or count < 0 or 2 * count > end - position or (count == 0 and position != end):
            return BROKEN
        fields[i, 6] = position
        position = end
    return position if position == len(data) else BROKEN


@compiled
def _varint(data: NDArray[np.uint8], position: int) -> tuple[int, int]:
    """A number in Kafka's zigzag form, and the position after it; position -1 where the data ends, or it was before."""
    value, shift = np.int64(0), 0
    while 0 <= position < len(data) and shift < 64:
        byte = np.int64(data[position])
        value |= (byte & 0x7F) << np.int64(shift)
        position += 1
        if byte < 0x80:
            return int((value >> np.int64(1)) & 0x7FFFFFFFFFFFFFFF ^ -(value & 1)), position
        shift += 7
    return 0, -1


def _headers(data: bytes, position: int, count: int) -> tuple[tuple[str, bytes], ...]:
    found = []
    view = np.frombuffer(data, np.uint8)
    for _ in range(count):
        size, position = _varint(view, position)
        key = data[position : position + size].decode(errors="backslashreplace")  # any client may write any bytes
        size, position = _varint(view, position + size)
        found.append((key, data[position : position + max(size, 0)]))
        position += max(size, 0)
    return tuple(found)
