"""The rows of a task that are kept in memory: an array with places, the least recently used given up first."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream.processing.customer import ROW, Rows, blank, raw


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
        places = np.array([self._places.get(customer, -1) for customer in customers], np.int64)
        known = places >= 0
        raw(rows)[known] = raw(self._rows)[places[known]]
        found = [i for i in np.flatnonzero(~known).tolist() if customers[i] in loaded]
        rows[found] = np.frombuffer(b"".join([loaded[customers[i]] for i in found]), ROW)
        known[found] = True
        return rows, known

    def put(self, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]) -> None:
        """Remember these rows as the store now has them."""
        for customer in forgotten:
            place = self._places.pop(customer, None)
            if place is not None:
                self._free.append(place)
        customers = customers[-self._capacity :]
        places = []
        for customer in customers:
            place = self._places.pop(customer, None)
            if place is None:
                place = self._vacant()
            self._places[customer] = place
            places.append(place)
        raw(self._rows)[places] = raw(rows)[len(rows) - len(customers) :]

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
