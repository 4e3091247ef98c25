"""Whole batches against the client's own decoding of the same bytes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from stream.backends.kafka.batches import WholeBatches
from stream.errors import Misconfigured
from stream.events import Record

PLACE = TopicPartition("clicks", 3)
NONE, GZIP, LZ4 = 0, 1, 3

BYTES = st.none() | st.binary(max_size=300) | st.just(b"x" * 20_000)
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)
RECORDS = st.lists(
    st.tuples(st.integers(0, 2**45), st.none() | st.binary(max_size=200), BYTES, HEADERS), min_size=1, max_size=8
)


def batch(
    records: list[tuple[int, Any, Any, list[tuple[str, Any]]]], first: int = 0, codec: int = NONE, producer: int = -1
) -> bytes:
    """A batch of these records as brokers store it, the first at offset `first`."""
    known = producer >= 0
    builder = DefaultRecordBatchBuilder(2, codec, known, producer, 0 if known else -1, 0 if known else -1, 1_000_000)
    for i, (timestamp_ms, key, value, headers) in enumerate(records):
        builder.append(i, timestamp_ms, key, value, headers)
    data = builder.build()
    data[:8] = first.to_bytes(8, "big")  # not covered by the checksum, as the broker writes it
    return bytes(data)


def unpacked(kind: Any, data: bytes, start: int = 0, **how: Any) -> Any:
    return kind(start, PLACE, MemoryRecords(data), **how)


def as_ours(one: Any) -> Record:
    headers = tuple((key, value if value is not None else b"") for key, value in one.headers)
    return Record(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, headers)


def taken(kind: Any, data: bytes, start: int, step: int, **how: Any) -> list[tuple[list[Record], int, int]]:
    """What `step` records at a time come to: the records, the next offset and the leader's epoch after each step."""
    found, part = [], unpacked(kind, data, start, **how)
    while part:
        records = [one if isinstance(one, Record) else as_ours(one) for one in part.take(step)]
        found.append((records, part.next_fetch_offset, part.leader_epoch))
    return found


@given(st.lists(RECORDS, min_size=1, max_size=3), st.sampled_from([NONE, GZIP, LZ4]), st.integers(0, 30))
@examples(max_examples=150, deadline=None)
def test_batches_are_decoded_as_the_client_decodes_them(batches: list[Any], codec: int, start: int) -> None:
    data, first = b"", 5
    for records in batches:
        data += batch(records, first, codec)
        first += len(records) + 2
    for step in (1, 3, 100):
        assert taken(WholeBatches, data, start, step) == taken(Fetcher.PartitionRecords, data, start, step)


@pytest.mark.parametrize("aborted", [[], [0], [0, 1], [1]])
def test_aborted_transactions_are_left_out_as_the_client_leaves_them_out(aborted: list[int]) -> None:
    class Aborted:
        def __init__(self, producer_id: int, first_offset: int) -> None:
            self.producer_id, self.first_offset = producer_id, first_offset

    written = [(1_000, b"k", b"v", [])] * 2
    data = b"".join(batch(written, 2 * i, producer=i % 2) for i in range(6))
    how = {
        "isolation_level": IsolationLevel.READ_COMMITTED,
        "aborted_transactions": [Aborted(producer, 4) for producer in aborted],
    }
    ours, theirs = (taken(kind, data, 0, 100, **how) for kind in (WholeBatches, Fetcher.PartitionRecords))
    assert ours == theirs
    assert [one.offset for one in ours[0][0]] == [
        offset for offset in range(12) if offset < 4 or offset // 2 % 2 not in aborted
    ]


def test_a_batch_that_was_damaged_on_the_way_is_refused() -> None:
    data = bytearray(batch([(1_000, b"k", b"value", [])]))
    data[-3] ^= 1
    with pytest.raises(kafka_errors.CorruptRecordError, match="offset 0 fails its crc"):
        unpacked(WholeBatches, bytes(data)).take(10)


@given(st.binary(max_size=80), st.integers(0, 5))
@examples(max_examples=300, deadline=None)
def test_whatever_lies_in_a_batch_is_decoded_or_refused(data: bytes, count: int) -> None:
    whole = bytearray(batch([(1_000, b"k", b"value", [("h", b"1")])])[:61] + data)
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    whole[57:61] = count.to_bytes(4, "big")
    outcomes = []
    for kind in (WholeBatches, Fetcher.PartitionRecords):
        try:
            part = unpacked(kind, bytes(whole), check_crcs=False)
            outcomes.append([one if isinstance(one, Record) else as_ours(one) for one in part.take(10)])
        except kafka_errors.CorruptRecordError:
            outcomes.append([])
        except UnicodeDecodeError:
            assert kind is not WholeBatches
            return
    assert outcomes[0] == outcomes[1][: len(outcomes[0])]


def test_a_header_whose_name_is_no_text_stops_nobody() -> None:
    data = batch([(1_000, b"k", b"v", [("ab", b"1")])]).replace(b"\x04ab", b"\x04\xffb")
    (record,) = unpacked(WholeBatches, data, check_crcs=False).take(10)
    assert record.headers == ((r"\xffb", b"1"),)


def test_records_from_before_kafka_0_11_are_refused_with_what_to_do() -> None:
    builder = MemoryRecordsBuilder(1, NONE, 1_000)
    builder.append(1_000, b"k", b"v", [])
    builder.close()
    with pytest.raises(Misconfigured, match=r"clicks-3 holds records in a format from before Kafka 0\.11"):
        unpacked(WholeBatches, bytes(builder.buffer())).take(10)
