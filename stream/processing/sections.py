"""The byte format of journal records and model snapshots: a JSON header with a directory, then sections of bytes.

    magic "DL01" | u4 length of header | header (JSON) | sections

The header's `sections` maps a name to (offset, length, numpy type, shape), so a reader takes one section without
decoding the others. Nothing is ever pickled.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stream.errors import Damaged, NewerSchema

MAGIC = b"DL01"
Section = bytes | NDArray[Any]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Bytes of ours are read here: whatever they hold that no release writes is `Damaged`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise Damaged(
            f"{what} is not as Driftline writes it ({found[:200]}): it was cut or changed, or something else writes "
            'where only Driftline may; see "Damaged records" in docs/runbook.md'
        ) from error


def pack(header: Mapping[str, Any], sections: Mapping[str, Section]) -> bytes:
    """One record. `header` must be JSON; arrays keep their type and shape, structured ones as raw bytes.

    >>> unpack_header(pack({"seq": 7}, {"labels": np.zeros((2, 3))}))["seq"]
    7
    """
    directory: dict[str, Any] = {}
    blobs: list[bytes] = []
    offset = 0
    for name, section in sections.items():
        if isinstance(section, bytes):
            blob, kind, shape = section, None, None
        else:
            blob, kind, shape = np.ascontiguousarray(section).tobytes(), section.dtype.str, section.shape
        directory[name] = [offset, len(blob), kind, shape]
        blobs.append(blob)
        offset += len(blob)
    head = orjson.dumps({**header, "sections": directory}, option=orjson.OPT_SORT_KEYS)
    return b"".join((MAGIC, len(head).to_bytes(4, "little"), head, *blobs))


def unpack_header(data: bytes) -> dict[str, Any]:
    """The header alone, `sections` included.

    Raises:
        NewerSchema: the bytes do not begin as this release writes them.
        Damaged: there is no header.
    """
    if data[:4] != MAGIC:
        raise NewerSchema(
            f"the record begins with {data[:4]!r}, this release reads {MAGIC!r}; upgrade Driftline, or check that "
            "nothing else writes to its topics"
        )
    with reading("a header"):
        header = orjson.loads(data[8 : 8 + int.from_bytes(data[4:8], "little")])
        if type(header) is not dict or type(header["sections"]) is not dict:
            raise ValueError("no object with sections")
        return header


def section(data: bytes, header: Mapping[str, Any], name: str, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """One section as a read-only array; `dtype` overrides the stored type (structured rows).

    Raises ValueError and its like where the directory does not fit the bytes: call it within `reading`.
    """
    start, length, kind, shape = _place(data, header, name)
    if dtype is not None:
        return np.frombuffer(data, dtype, length // dtype.itemsize, start)
    stored = np.dtype(kind)
    if stored.kind not in "biuf" or length % stored.itemsize:
        raise ValueError(f"section {name} is {length} bytes of {kind}")
    return np.frombuffer(data, stored, length // stored.itemsize, start).reshape(shape)


def raw(data: bytes, header: Mapping[str, Any], name: str) -> bytes:
    """One section's bytes; raises as `section` does."""
    start, length, _, _ = _place(data, header, name)
    return data[start : start + length]


def _place(data: bytes, header: Mapping[str, Any], name: str) -> tuple[int, int, Any, Any]:
    offset, length, kind, shape = header["sections"][name]
    start = 8 + int.from_bytes(data[4:8], "little") + offset
    if min(offset, length) < 0 or start + length > len(data):
        raise ValueError(f"section {name} ends at {start + length}, the record at {len(data)}")
    return start, length, kind, shape
