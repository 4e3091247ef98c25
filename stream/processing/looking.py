"""What the deciders of one tick look at together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.events import Event, Record
from stream.processing.acts import LocalTime
from stream.processing.customer import Rows
from stream.processing.version import Version
from stream.settings import Settings

Hold = Callable[[str, str], None]
"""Called with (kind, reason) for every alert that is held back."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings in the form that processing uses."""

    settings: Settings
    local: LocalTime
    minor_per_major: int

    @property
    def currency(self) -> str:
        return self.settings.application.currency


@dataclass(frozen=True, slots=True)
class Looking:
    """The customers a tick touched: `rows` are changed in place by the deciders, `before` is as the tick found them.

    `known` marks rows that existed before, `anonymous` those without a userId, `latest` says per row which of the
    tick's `events` (and their `records`) is its last, -1 where it has none. `now_ms` is stream time per row: never
    before the row's own last event. `hours` of stream time went by in the tick, at least 1; a step longer
    than a day is a hole in the stream and counts as 1.
    """

    task: int
    hours: int
    rules: Rules
    version: Version
    customers: Sequence[str]
    before: Rows
    rows: Rows
    known: NDArray[np.bool_]
    anonymous: NDArray[np.bool_]
    now_ms: NDArray[np.int64]
    stream_time_ms: int
    events: Sequence[Event]
    records: Sequence[Record]
    latest: NDArray[np.int64]

    def cause(self, index: int) -> str:
        """Which event, or which stream time, made the tick look at a row."""
        place = int(self.latest[index])
        return f"due-{self.stream_time_ms}" if place < 0 else self.records[place].place

    def evidence(self, index: int) -> list[str]:
        """The message ids behind it."""
        place = int(self.latest[index])
        message_id = self.events[place].message_id if place >= 0 else None
        return [message_id] if message_id else []
