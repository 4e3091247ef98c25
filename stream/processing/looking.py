"""What the deciders of one tick look at together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.processing.customer import Rows
from stream.processing.update import LocalTime
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

    `known` marks rows that existed before, `anonymous` those without a userId, `causes` says per row which event (or
    due time) made the tick look, `evidence` holds the message ids behind it. `now_ms` is stream time per row: never
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
    causes: Sequence[str]
    evidence: Sequence[tuple[str, ...]]
