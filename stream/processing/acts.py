"""A tick's events as columns of numbers: the form in which compiled loops take them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from stream.events import Event
from stream.processing.customer import CATEGORY_BUCKETS, DAY_MS, PARTS_OF_DAY

QUARTER_MS = 900_000
PART_MS = DAY_MS // PARTS_OF_DAY
KNOWN_CATEGORIES = 20_000

ACT = np.dtype(
    [
        ("who", "i8"),  # whose row
        ("kind", "i8"),  # Kind
        ("time_ms", "i8"),
        ("part_of_day", "i8"),  # local: 0 = from midnight to 3 h, … 7 = from 21 h
        ("weekend", "i8"),  # local: 1 on Saturday and Sunday
        ("message", "u8"),  # fingerprint of the message id, 0 = none
        ("order", "u8"),  # fingerprint of the order id, 0 = none
        ("amount_minor", "i8"),  # -1 = none
        ("amount", "f8"),  # in major units
        ("items", "i8"),
        ("first", "i8"),  # its categories are `categories[first:last]`
        ("last", "i8"),
        ("clamped", "i8"),
        ("history", "i8"),
    ]
)


class Acts(NamedTuple):
    """Events in their order: an array of `ACT`, and the buckets of all their categories, one event after another."""

    table: NDArray[np.void]
    categories: NDArray[np.int64]


@dataclass(slots=True)
class LocalTime:
    """Local part of day and weekend of event times; the zone's offset is looked up once a quarter of an hour.

    >>> LocalTime("America/New_York").part_of_day(1_488_412_800_000)  # 2017-03-02T00:00Z is 19:00 the day before
    6
    """

    zone: str
    _offsets: dict[int, int] = field(default_factory=dict)

    def local_ms(self, time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Milliseconds since 1970 began in the zone's own time."""
        quarters, place = np.unique(time_ms // QUARTER_MS, return_inverse=True)
        return np.asarray(time_ms + np.array([self._offset_ms(one) for one in quarters.tolist()], np.int64)[place])

    def part_of_day(self, time_ms: int) -> int:
        """0 = from midnight to 3 h, … 7 = from 21 h."""
        return int(parts_of_day(self.local_ms(np.array([time_ms])))[0])

    def _offset_ms(self, quarter: int) -> int:
        offset = self._offsets.get(quarter)
        if offset is None:
            if len(self._offsets) > 20_000:
                self._offsets.clear()
            moment = datetime.fromtimestamp(quarter * QUARTER_MS / 1000, UTC).astimezone(ZoneInfo(self.zone))
            delta = moment.utcoffset()
            offset = self._offsets[quarter] = int(delta.total_seconds() * 1000) if delta else 0
        return offset


def parts_of_day(local_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 = from midnight to 3 h, … 7 = from 21 h."""
    return np.asarray(local_ms % DAY_MS // PART_MS)


def weekends(local_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether it is Saturday or Sunday."""
    return np.asarray((local_ms // DAY_MS + 3) % 7 >= 5)  # day 0 of the epoch was a Thursday


@lru_cache(KNOWN_CATEGORIES)
def bucket(category: str) -> int:
    """The place of a category among `CATEGORY_BUCKETS`."""
    return crc32(category.encode()) % CATEGORY_BUCKETS


def acts(
    events: Sequence[Event], who: Sequence[int] | NDArray[np.int64], local: LocalTime, minor_per_major: int
) -> Acts:
    """Events as columns; `who` is the row of each event's customer."""
    table = np.zeros(len(events), ACT)
    if not events:
        return Acts(table, np.zeros(0, np.int64))
    by_field = Event(*zip(*events, strict=True))  # type: ignore[arg-type]  # each a tuple over all events
    amounts = [-1 if amount is None else amount for amount in by_field.amount_minor]  # type: ignore[union-attr]
    counts = np.array(list(map(len, by_field.categories)))
    local_ms = local.local_ms(np.array(by_field.time_ms, np.int64))
    table["who"] = who
    table["kind"] = by_field.kind
    table["time_ms"] = by_field.time_ms
    table["part_of_day"] = parts_of_day(local_ms)
    table["weekend"] = weekends(local_ms)
    table["message"] = by_field.message_hash
    table["order"] = by_field.order_hash
    table["amount_minor"] = amounts
    table["amount"] = table["amount_minor"] / minor_per_major
    table["items"] = by_field.items
    table["clamped"] = by_field.clamped
    table["history"] = by_field.history
    table["last"] = np.cumsum(counts)
    table["first"] = table["last"] - counts
    buckets = [bucket(name) for names in by_field.categories if names for name in names]
    return Acts(table, np.array(buckets, np.int64))
