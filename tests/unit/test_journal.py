from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream.chunks import CHUNK_BYTES, Chunks, chunked
from stream.errors import NewerSchema
from stream.processing import sections
from stream.processing.churn import Wave
from stream.processing.customer import SCHEMA, blank
from stream.processing.journal import Entry, Published, TaskState, alerts_of, decode, encode

CHUNK = "driftline-chunk"


def entry(customers: Sequence[str] = ("c-1", "c-2"), raised: int = 2, **fields: Any) -> Entry:
    """A journal entry with something in every section."""
    rows = blank(len(customers))
    rows["events"] = np.arange(len(customers)) + 1
    whole: dict[str, Any] = {
        "application": "test",
        "task": 3,
        "prev_seq": 6,
        "state": TaskState(7, 1, 99, {"b": 5, "a": 4}, {"a": 98}, 2, 1, {"anomaly": 2}, True, Wave(5, 2, 1)),
        "offsets_before": {"b": 3, "a": 4},
        "wakes": ["c-2", "Zoë"],
        "released": ["a"],
        "model_version": 4,
        "config": "c0ffee",
        "code": "decade",
        "partitions": 8,
        "customers": list(customers),
        "rows": rows,
        "forgotten": ["gone"],
        "alerts": [
            Published(f"c-{i}", f"id{i}", b'{"id":"id%d","rate":0.1,"text":"\xc3\xbc"}' % i) for i in range(raised)
        ],
        "past": [Published("c-9", "id9", b'{"id":"id9"}')],
        "who": np.array([0, 1], np.uint32),
        "uids": np.array([2**63, 1], np.uint64),
        "features": np.array([[0.5, np.nan], [1, 2]], np.float32),
        "scores": np.array([0.25, 3], np.float32),
        "label_who": np.array([1], np.uint32),
        "label_features": np.ones((1, 24), np.float32),
        "label_churned": np.array([True]),
        "label_taken_ms": np.array([1_700_000_000_000]),
    }
    return Entry(**(whole | fields))


def plain(whole: Entry) -> dict[str, Any]:
    """The entry with its arrays as bytes, for comparison."""
    return {
        name: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in whole._asdict().items()
    }


def test_an_entry_comes_back_whole() -> None:
    assert plain(decode(encode(entry()))) == plain(entry())


def test_an_entry_of_nothing_comes_back_whole() -> None:
    nothing = entry(
        (),
        0,
        state=TaskState(),
        wakes=[],
        released=[],
        forgotten=[],
        who=np.zeros(0, np.uint32),
        uids=np.zeros(0, np.uint64),
        features=np.zeros((0, 11), np.float32),
        scores=np.zeros(0, np.float32),
        label_who=np.zeros(0, np.uint32),
        label_features=np.zeros((0, 24), np.float32),
        label_churned=np.zeros(0, np.bool_),
        label_taken_ms=np.zeros(0, np.int64),
    )
    assert plain(decode(encode(nothing))) == plain(nothing)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.lists(st.text(max_size=6), unique=True, min_size=1, max_size=4), JSON, st.integers(0, 2**53))
@examples(max_examples=150, deadline=None)
def test_what_was_decoded_is_encoded_to_the_same_bytes(customers: list[str], alert: Any, number: int) -> None:
    alerts = [Published("key", "id", orjson.dumps(alert))]
    state = TaskState(number, offsets={"b": number, "a": 1}, alerted={"z": 1, "a": 2})
    data = encode(entry(customers, state=state, alerts=alerts))
    assert encode(decode(data)) == data


def test_an_alert_keeps_the_bytes_that_were_published() -> None:
    assert decode(encode(entry())).alerts == entry().alerts


def test_alerts_are_read_without_the_rest() -> None:
    data = encode(entry(raised=3))
    header = sections.unpack_header(data)
    offset, length, _, _ = header["sections"]["alerts"]
    end = 8 + int.from_bytes(data[4:8], "little") + offset + length
    assert alerts_of(data[:end]) == entry(raised=3).alerts


def test_a_record_of_a_newer_release_is_refused_with_its_version() -> None:
    header = {**sections.unpack_header(encode(entry())), "v": SCHEMA + 1}
    with pytest.raises(NewerSchema, match=f"schema {SCHEMA + 1}, this release reads 1 to {SCHEMA}; upgrade"):
        decode(sections.pack(header, {}))


def test_the_state_of_a_task_survives_json() -> None:
    state = entry().state
    assert TaskState.from_json(orjson.loads(orjson.dumps(state.to_json()))) == state


# Chunks


def fed(*parts: tuple[bytes, bytes | None]) -> list[bytes | None]:
    """What comes out after each (value, place) of one reader."""
    chunks = Chunks()
    return [chunks.add(value, () if place is None else ((CHUNK, place),)) for value, place in parts]


@given(st.integers(0, 3 * CHUNK_BYTES + 1))
@examples(max_examples=15, deadline=None)
def test_a_record_of_any_size_is_put_together_from_chunks_below_the_limit(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    records = chunked("journal", 2, b"2", data[:size], {"driftline-seq": b"5"})
    assert all(len(each.value or b"") <= CHUNK_BYTES and each.partition == 2 for each in records)
    chunks = Chunks()
    found = [chunks.add(each.value or b"", each.headers) for each in records]
    assert found == [None] * (len(records) - 1) + [data[:size]]


def test_chunks_of_one_record_have_keys_of_their_own_for_compaction() -> None:
    records = chunked("models", 0, b"version/1", bytes(2 * CHUNK_BYTES), {})
    assert [each.key for each in records] == [b"version/1/0", b"version/1/1"]


def test_a_record_without_chunk_header_is_whole() -> None:
    assert fed((b"ab", None), (b"cd", b"0/1")) == [b"ab", b"cd"]


def test_a_record_whose_first_chunk_is_gone_is_left_out() -> None:
    assert fed((b"b", b"1/3"), (b"c", b"2/3"), (b"d", b"0/2"), (b"e", b"1/2")) == [None, None, None, b"de"]
    assert fed((b"b", b"1/2"), (b"d", b"1/2")) == [None, None]


def test_a_record_that_was_broken_off_is_left_out() -> None:
    assert fed((b"a", b"0/3"), (b"b", b"1/3"), (b"c", b"0/1")) == [None, None, b"c"]


def test_a_record_whose_first_chunk_is_gone_is_not_joined_to_the_whole_one_before_it() -> None:
    assert fed((b"whole", b"0/1"), (b"rest", b"1/2")) == [b"whole", None]
