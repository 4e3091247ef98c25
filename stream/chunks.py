"""Records larger than the client takes: cut into chunks when written, put together again when read."""

from collections.abc import Mapping

from stream.errors import Damaged
from stream.ports import Outgoing

CHUNK_BYTES = 900_000
"""Largest value of one record: the client's limit is 1 MiB before compression, headers included."""
CHUNK_HEADER = "driftline-chunk"
"""Place and number of chunks, as in `0/2`."""


def chunked(topic: str, partition: int, key: bytes, data: bytes, headers: Mapping[str, bytes]) -> list[Outgoing]:
    """Records of at most `CHUNK_BYTES` that `Chunks` puts together again."""
    count = max(-(-len(data) // CHUNK_BYTES), 1)
    return [
        Outgoing(
            topic,
            partition,
            key if count == 1 else key + b"/%d" % i,
            data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES],
            (*headers.items(), (CHUNK_HEADER, b"%d/%d" % (i, count))),
        )
        for i in range(count)
    ]


def place_of(headers: tuple[tuple[str, bytes], ...]) -> tuple[int, int]:
    """Which chunk a record is, and of how many.

    Raises:
        Damaged: the header says neither.
    """
    said = dict(headers).get(CHUNK_HEADER, b"0/1")
    place, _, count = said.partition(b"/")
    if not (len(said) < 20 and place.isdigit() and count.isdigit() and int(place) < int(count)):
        raise Damaged(
            f"a record's header {CHUNK_HEADER} is {said[:40]!r}, not a place and a number as in 0/2: something else "
            'writes where only Driftline may; see "Damaged records" in docs/runbook.md'
        )
    return int(place), int(count)


class Chunks:
    """Puts the chunks of journal records together again."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> bytes | None:
        """The whole record once its last chunk has come, None before.

        Raises:
            Damaged: the header does not say which chunk it is.

        >>> chunks = Chunks()
        >>> chunks.add(b"ab", (("driftline-chunk", b"0/2"),)), chunks.add(b"cd", (("driftline-chunk", b"1/2"),))
        (None, b'abcd')
        """
        place, count = place_of(headers)
        if place == 0:
            self._parts.clear()
        elif len(self._parts) != place:
            return None  # the chunks before were removed by retention: the record is gone
        self._parts.append(value)
        if len(self._parts) < count:
            return None
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole
