from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafka_murmur2

from stream.processing.placement import is_placed, murmur2, partition_of

PARTITIONERS = ["murmur2", "crc32"]


@given(st.binary(max_size=40))
@example(b"")
@examples(max_examples=300, deadline=None)
def test_murmur2_is_that_of_the_kafka_client(key: bytes) -> None:
    assert murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_numbers_of_kafka_s_own_test(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


@given(st.text(max_size=30), st.integers(1, 50))
@examples(max_examples=200, deadline=None)
def test_a_key_lies_where_its_producer_s_client_puts_it(key: str, partitions: int) -> None:
    data = key.encode()
    assert (partition_of(key, partitions, "murmur2"), partition_of(key, partitions, "crc32")) == (
        (kafka_murmur2(data) & 0x7FFFFFFF) % partitions,
        crc32(data) % partitions,
    )


@given(st.text(max_size=30), st.integers(1, 50), st.sampled_from(PARTITIONERS))
@examples(max_examples=200, deadline=None)
def test_a_customer_is_placed_in_one_partition_only(key: str, partitions: int, partitioner: str) -> None:
    customer = "c" + key
    placed = [task for task in range(partitions) if is_placed(customer, task, partitions, partitioner)]
    assert placed == [partition_of(customer, partitions, partitioner)]


@given(st.text(max_size=30), st.sampled_from(PARTITIONERS))
@examples(max_examples=100, deadline=None)
def test_an_anonymous_customer_may_be_keyed_with_or_without_the_prefix(key: str, partitioner: str) -> None:
    placed = {task for task in range(16) if is_placed(f"anon:{key}", task, 16, partitioner)}
    assert placed == {partition_of(f"anon:{key}", 16, partitioner), partition_of(key, 16, partitioner)}


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_with_one_partition_everything_is_placed(partitioner: str) -> None:
    assert is_placed("anybody", 0, 1, partitioner)
