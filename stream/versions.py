"""Model versions in their compacted topic: keys, chunks, and the newest one that is whole."""

from collections.abc import Mapping, Sequence

from stream.ports import Outgoing, Topic
from stream.processing.version import Version, from_bytes
from stream.recovery import CHUNK_HEADER

CHUNK_BYTES = 900_000
"""Largest value of one record: the client's limit is 1 MiB before compression, headers included."""
KEY = "version/"
CONFIG_KEY = "config/"


def chunked(topic: str, partition: int, key: bytes, data: bytes, headers: Mapping[str, bytes]) -> list[Outgoing]:
    """Records of at most `CHUNK_BYTES` that `recovery.Chunks` puts together again."""
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


class Versions:
    """Follows the models topic. `published_ms` maps each version still kept to its record's timestamp."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._position = 0
        self._parts: dict[int, dict[int, bytes]] = {}
        self._latest: bytes | None = None
        self.newest: Version | None = None
        self.published_ms: dict[int, int] = {}
        self.chunks: dict[int, list[bytes]] = {}

    def refresh(self) -> Version | None:
        """Read what is new; returns the newest whole version, None while there is none."""
        while records := self._topic.read(0, self._position, 100):
            self._position = records[-1].offset + 1
            for record in records:
                key = (record.key or b"").decode()
                if not key.startswith(KEY):
                    continue
                number = int(key.split("/")[1])
                if record.value is None:
                    self.published_ms.pop(number, None)
                    self.chunks.pop(number, None)
                    continue
                self.chunks.setdefault(number, []).append(record.key or b"")
                self.published_ms[number] = record.timestamp_ms
                place, _, count = dict(record.headers)[CHUNK_HEADER].partition(b"/")
                parts = self._parts.setdefault(number, {})
                parts[int(place)] = record.value
                if len(parts) == int(count):
                    self._latest = b"".join(parts[i] for i in sorted(parts))
                    del self._parts[number]
        if self._latest is not None:  # kept until it is decoded: a read that fails half-way is tried again
            self.newest, self._latest = from_bytes(self._latest), None
        return self.newest

    def read(self, numbers: Sequence[int]) -> dict[int, Version]:
        """Versions by number, for running old ticks again; those that are gone are left out."""
        found: dict[int, Version] = {}
        parts: dict[int, dict[int, bytes]] = {}
        position = 0
        while records := self._topic.read(0, position, 100):
            position = records[-1].offset + 1
            for record in records:
                key = (record.key or b"").decode()
                if not key.startswith(KEY) or record.value is None or int(key.split("/")[1]) not in numbers:
                    continue
                number = int(key.split("/")[1])
                place, _, count = dict(record.headers)[CHUNK_HEADER].partition(b"/")
                parts.setdefault(number, {})[int(place)] = record.value
                if len(parts[number]) == int(count):
                    found[number] = from_bytes(b"".join(parts[number][i] for i in sorted(parts[number])))
        return found
