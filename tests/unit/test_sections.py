from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stream.errors import NewerSchema
from stream.processing.customer import ROW, blank
from stream.processing.sections import MAGIC, pack, raw, section, unpack_header

TYPES = st.sampled_from(["<f8", "<f4", "<i8", "<u8", "<i4", "|u1", "|b1"]).map(np.dtype)
ARRAYS = TYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)))
HEADERS = st.dictionaries(st.text(max_size=5).filter(lambda name: name != "sections"), st.integers(0, 2**53))


@given(HEADERS, st.dictionaries(st.text(max_size=8), ARRAYS | st.binary(max_size=20), max_size=5))
@examples(max_examples=150, deadline=None)
def test_every_section_comes_back_as_it_was_packed(header: dict[str, int], packed: dict[str, Any]) -> None:
    data = pack(header, packed)
    found = unpack_header(data)
    assert {name: value for name, value in found.items() if name != "sections"} == header
    assert list(found["sections"]) == sorted(packed)
    for name, given_ in packed.items():
        if isinstance(given_, bytes):
            assert raw(data, found, name) == given_
        else:
            back = section(data, found, name)
            assert (back.dtype, back.shape, back.tobytes()) == (given_.dtype, given_.shape, given_.tobytes())


def test_an_array_of_any_memory_order_comes_back_the_same() -> None:
    given_ = np.arange(24, dtype=np.float32).reshape(4, 6)
    packed = {"columns": given_.T, "every_other": given_[:, ::2], "fortran": np.asfortranarray(given_)}
    data = pack({}, packed)
    found = {name: section(data, unpack_header(data), name) for name in packed}
    assert all(np.array_equal(found[name], packed[name]) for name in packed)


def test_rows_are_read_with_their_type() -> None:
    rows = blank(3)
    rows["events"] = (1, 2, 3)
    data = pack({}, {"before": b"x", "rows": rows.tobytes(), "after": b"y"})
    assert section(data, unpack_header(data), "rows", ROW).tobytes() == rows.tobytes()


def test_the_same_content_is_the_same_bytes_in_whatever_order_the_header_was_written() -> None:
    packed = {"labels": np.zeros(2)}
    assert pack({"b": 1, "a": {"d": 1, "c": 2}}, packed) == pack({"a": {"c": 2, "d": 1}, "b": 1}, packed)


def test_a_section_is_read_only() -> None:
    data = pack({}, {"labels": np.zeros(2)})
    with pytest.raises(ValueError, match="read-only"):
        section(data, unpack_header(data), "labels")[0] = 1.0


def test_sections_lie_where_the_directory_says() -> None:
    data = pack({"seq": 7}, {"a": b"abc", "b": np.zeros((2, 3), np.float32)})
    assert data.startswith(MAGIC)
    assert unpack_header(data) == {"seq": 7, "sections": {"a": [0, 3, None, None], "b": [3, 24, "<f4", [2, 3]]}}
    assert data.endswith(b"abc" + bytes(24))


@pytest.mark.parametrize("data", [b"", b"DL", b"DL02" + bytes(20), b"{}"])
def test_bytes_of_another_format_are_refused_with_what_they_begin_with(data: bytes) -> None:
    with pytest.raises(NewerSchema, match="upgrade Driftline") as caught:
        unpack_header(data)
    assert repr(data[:4]) in str(caught.value)
