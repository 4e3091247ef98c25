"""The byte format of journal records and model snapshots: a JSON header with a directory, then sections of bytes.

    magic "DL01" | u4 length of header | header (JSON) | sections

The header's `sections` maps a name to (offset, length, numpy type, shape), so a reader takes one section without
decoding the others. Nothing is ever pickled.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stream.errors import NewerSchema

MAGIC = b"DL01"
Section = bytes | NDArray[Any]


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
    """
    if data[:4] != MAGIC:
        raise NewerSchema(
            f"the record begins with {data[:4]!r}, this release reads {MAGIC!r}; upgrade Driftline, or check that "
            "nothing else writes to its topics"
        )
    header: dict[str, Any] = orjson.loads(data[8 : 8 + int.from_bytes(data[4:8], "little")])
    return header


def section(data: bytes, header: Mapping[str, Any], name: str, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """One section as a read-only array; `dtype` overrides the stored type (structured rows)."""
    offset, length, kind, shape = header["sections"][name]
    start = 8 + int.from_bytes(data[4:8], "little") + offset
    if dtype is not None:
        return np.frombuffer(data, dtype, length // dtype.itemsize, start)
    array = np.frombuffer(data, np.dtype(kind), length // np.dtype(kind).itemsize, start)
    return array.reshape(shape)


def raw(data: bytes, header: Mapping[str, Any], name: str) -> bytes:
    """One section's bytes."""
    offset, length, _, _ = header["sections"][name]
    start = 8 + int.from_bytes(data[4:8], "little") + offset
    return data[start : start + length]
