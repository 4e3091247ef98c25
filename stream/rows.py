"""The rows of a task that are kept in memory: an array with places, the least recently used given up first."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream.processing.customer import ROW, Rows, blank


class RowCache:
    """At most `capacity` rows; a tick's own rows may exceed it for the length of that tick.

    Only rows that the store has applied are put here, so any of them may be given up at any time.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows = blank(min(capacity, 1_024))
        self._places: dict[str, int] = {}
        self._free = list(range(len(self._rows)))

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, customers: Sequence[str]) -> list[str]:
        """Those of the customers that are not here."""
        return [customer for customer in customers if customer not in self._places]

    def gather(self, customers: Sequence[str], loaded: Mapping[str, bytes]) -> tuple[Rows, NDArray[np.bool_]]:
        """A copy of the customers' rows, from here or from what was loaded, and which of them exist at all."""
        rows = blank(len(customers))
        known = np.zeros(len(customers), np.bool_)
        for i, customer in enumerate(customers):
            place = self._places.get(customer)
            if place is not None:
                rows[i], known[i] = self._rows[place], True
            elif customer in loaded:
                rows[i], known[i] = np.frombuffer(loaded[customer], ROW)[0], True
        return rows, known

    def put(self, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]) -> None:
        """Remember these rows as the store now has them."""
        for customer in forgotten:
            place = self._places.pop(customer, None)
            if place is not None:
                self._free.append(place)
        for i, customer in enumerate(customers[-self._capacity :], max(len(customers) - self._capacity, 0)):
            place = self._places.pop(customer, None)
            if place is None:
                place = self._vacant()
            self._places[customer] = place
            self._rows[place] = rows[i]

    def _vacant(self) -> int:
        if not self._free and len(self._rows) < self._capacity:
            size = len(self._rows)
            grown = min(size * 2, self._capacity)
            self._rows = np.concatenate((self._rows, blank(grown - size)))
            self._free = list(range(size, grown))
        if not self._free:
            oldest = next(iter(self._places))
            self._free.append(self._places.pop(oldest))
        return self._free.pop()
