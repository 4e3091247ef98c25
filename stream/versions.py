"""Model versions in their compacted topic: keys, chunks, and the newest one that is whole."""

from collections.abc import Iterator, Sequence

from stream.chunks import place_of
from stream.events import Record
from stream.ports import Topic
from stream.processing import sections
from stream.processing.version import Version, from_bytes

KEY = "version/"
CONFIG_KEY = "config/"


class Versions:
    """Follows the models topic.

    `published_ms` maps each version still kept to its record's timestamp, `configs` to the text behind each
    configuration hash.
    """

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._position = 0
        self._parts: dict[int, dict[int, bytes]] = {}
        self._latest: tuple[int, bytes] | None = None
        self._deleted: dict[int, int] = {}
        self.newest: Version | None = None
        self.published_ms: dict[int, int] = {}
        self.chunks: dict[int, list[bytes]] = {}
        self.configs: dict[str, bytes] = {}

    def refresh(self) -> Version | None:
        """Read what is new; returns the newest whole version, None while there is none."""
        self.follow()
        if self._latest is not None:  # kept until it is decoded: a read that fails half-way is tried again
            self.newest, self._latest = from_bytes(self._latest[1]), None
        return self.newest

    def follow(self) -> None:
        """Read what is new, and decode none of it."""
        while records := self._topic.read(0, self._position, 100):
            self._position = records[-1].offset + 1
            for record in records:
                key = _key(record)
                if key.startswith(CONFIG_KEY) and record.value is not None:
                    self.configs[key.removeprefix(CONFIG_KEY)] = record.value
            for number, record in _of_versions(records):
                if record.value is None:
                    if self._delete(number, record.offset):
                        break
                elif record.offset >= self._deleted.get(number, 0):
                    self.chunks.setdefault(number, []).append(record.key or b"")
                    self.published_ms[number] = record.timestamp_ms
                    whole = _joined(self._parts, number, record)
                    self._latest = self._latest if whole is None else (number, whole)

    def _delete(self, number: int, offset: int) -> bool:
        """Forget a version; returns whether the topic is to be read anew, for the one before it.

        The newest is deleted by operators alone, because nobody can read it.
        """
        for kept in (self._parts, self.published_ms, self.chunks):
            kept.pop(number, None)
        if self._latest is None or self._latest[0] != number:
            return False
        self._latest = None
        if self.newest is not None:
            return False
        self._deleted[number] = offset
        self._position = 0
        for kept in (self._parts, self.published_ms, self.chunks):
            kept.clear()
        return True

    def read(self, numbers: Sequence[int]) -> dict[int, Version]:
        """Versions by number, for running old ticks again; those that are gone are left out."""
        found: dict[int, Version] = {}
        parts: dict[int, dict[int, bytes]] = {}
        position = 0
        while records := self._topic.read(0, position, 100):
            position = records[-1].offset + 1
            for number, record in _of_versions(records):
                data = _joined(parts, number, record) if number in numbers and record.value is not None else None
                if data is not None:
                    found[number] = from_bytes(data)
        return found


def _of_versions(records: Sequence[Record]) -> Iterator[tuple[int, Record]]:
    """The records of versions among others, with the version's number."""
    for record in records:
        key = _key(record)
        if key.startswith(KEY):
            with sections.reading(f"the key {key[:80]!r} of a model version"):
                number = int(key.split("/")[1])
            yield number, record


def _key(record: Record) -> str:
    return (record.key or b"").decode(errors="backslashreplace")


def _joined(parts: dict[int, dict[int, bytes]], number: int, record: Record) -> bytes | None:
    """Put a chunk to the others of its version; the whole once it is complete."""
    place, count = place_of(record.headers)
    mine = parts.setdefault(number, {})
    mine[place] = record.value or b""
    if len(mine) < count or any(i not in mine for i in range(count)):
        return None
    whole = parts.pop(number)
    return b"".join(whole[i] for i in range(count))
