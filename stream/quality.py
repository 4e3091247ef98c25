"""When bad input is a misconfiguration: the worker stops instead of filling the dead letters."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.errors import Misconfigured, TooManyDeadLetters
from stream.processing.placement import is_placed
from stream.processing.tick import TickResult
from stream.settings import Settings

MISPLACED_SHARE = 0.01
MISPLACED_AFTER = 1_000
LOOK_AT = 200
"""Known customers whose partition is checked after a start; each costs a few microseconds."""


class Quality:
    """Counts what was unusable since this worker started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._latest: deque[bool] = deque(maxlen=settings.dead_letters.window)
        self._met = 0
        self._looked_at = 0
        self._misplaced: set[str] = set()

    def check_placement(self, task: int, partitions: int, customers: Sequence[str], known: NDArray[np.bool_]) -> None:
        """Look at the first known customers of a tick, before it is run: they were placed where they belong.

        Raises:
            Misconfigured: they lie in a partition that `kafka.partitioner` does not put them in.
        """
        for customer, is_known in zip(customers, known.tolist(), strict=True):
            if self._looked_at >= LOOK_AT:
                return
            if not is_known:
                continue
            self._looked_at += 1
            partitioner = self._settings.kafka.partitioner
            if not is_placed(customer, task, partitions, partitioner):
                raise Misconfigured(
                    f"customers of task {task} were placed there by another partitioner than kafka.partitioner = "
                    f"{partitioner}; set it to the producers' partitioner, as all workers of this application have it"
                )

    def check(self, result: TickResult) -> None:
        """Take note of a committed tick.

        Raises:
            TooManyDeadLetters: more than `dead_letters.max_share` of the last records could not be used.
            Misconfigured: too many customers lie in a partition that `kafka.partitioner` does not put them in.
        """
        letters, limit = result.dead_letters, self._settings.dead_letters
        usable = len(result.entry.who) + result.counts.get("duplicate", 0)
        self._latest.extend([True] * len(letters) + [False] * usable)
        self._met += result.met
        if len(self._misplaced) < MISPLACED_AFTER:
            self._misplaced.update(result.misplaced)
        share = sum(self._latest) / max(len(self._latest), 1)
        too_many = bool(letters) and len(self._latest) == limit.window and share > limit.max_share
        misplaced = len(self._misplaced)
        seen = self._met + misplaced
        mostly_misplaced = too_many and len(result.misplaced) > len(letters) / 2
        if mostly_misplaced or (seen >= MISPLACED_AFTER and misplaced > MISPLACED_SHARE * seen):
            raise Misconfigured(
                f"{misplaced} of {seen} new customers lie in a partition that kafka.partitioner = "
                f"{self._settings.kafka.partitioner} does not put them in; set it to the producers' partitioner, or "
                "have them key records by customer id"
            )
        if too_many:
            record, reason, detail, _ = letters[-1]
            shown = detail if self._settings.log.customers == "plain" else "its header driftline-detail says what"
            raise TooManyDeadLetters(
                f"{share:.0%} of the last {limit.window} records could not be used; the last one, "
                f"{record.topic}-{record.partition}-{record.offset}: {reason}: {shown}. "
                "Mend the producer, or raise dead_letters.max_share"
            )
