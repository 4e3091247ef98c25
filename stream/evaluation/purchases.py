"""Events through the stream's own rows and churn model, a day at a time.

The rows are updated by the stream's code, event by event; examples mature, the model learns and days turn as in the
stream. What differs: ticks end with days, and the model is asked as it is, without waiting to be published.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import ChurnRisk
from online_models.purchases import FEATURES
from stream.events import Event, fingerprint
from stream.processing.acts import acts
from stream.processing.customer import DAY_MS, Rows, blank
from stream.processing.examples import mature
from stream.processing.features import churn_columns, fold
from stream.processing.names import ANOMALY_FEATURES
from stream.processing.tick import rules
from stream.settings import Settings


class Shop:
    """All customers of a log in memory, and the model that learns from them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = rules(settings)
        self._index: dict[str, int] = {}
        self._rows = blank(1024)
        self._hashes = np.zeros(1024, np.uint64)
        self._horizon_ms = round(settings.models.horizon_days * DAY_MS)
        models = settings.models
        self.model = ChurnRisk(models.horizon_days, min_labels=models.min_labels, seed=models.seed)
        self._examples: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.bool_]] = []

    @property
    def customers(self) -> list[str]:
        """Their ids, in the order in which they came."""
        return list(self._index)

    @property
    def rows(self) -> Rows:
        """Their rows, in that order."""
        return self._rows[: len(self._index)]

    def advance(self, events: Sequence[Event], now_ms: int) -> None:
        """Take in what happened up to `now_ms`, let labels mature and be learned, and let whole days turn."""
        events = [event for event in events if not event.anonymous]
        who = np.array([self._place(event.customer) for event in events], np.int64)
        met = np.unique(who)
        before = self._rows.take(met)
        columns = acts(events, who, self._rules.local, self._rules.minor_per_major)
        new = fold(self._rows, *columns, np.zeros((len(events), len(ANOMALY_FEATURES))))
        touched = np.isin(met, who[new])
        self._learn(met[touched], before[touched], now_ms)

    def _learn(self, touched: NDArray[np.int64], before: Rows, now_ms: int) -> None:
        rows = self.rows
        done = (rows["orders"] > 0) & (now_ms >= rows["example_at"] + self._horizon_ms)
        done[touched] = True
        who = np.flatnonzero(done)
        self.model.turn(now_ms // DAY_MS - 1)
        if not len(who):
            return
        after = rows.take(who)
        earlier = after.copy()
        earlier[np.searchsorted(who, touched)] = before
        minor = self._rules.minor_per_major
        now = np.full(len(who), now_ms)
        labels = mature(earlier, after, after["orders"] > 0, self._hashes[who], now, self._horizon_ms, minor)
        self._rows[who] = after
        self.model.learn_many(labels.columns, labels.churned, labels.taken_ms / DAY_MS)
        if len(labels.who):
            self._examples.append(self.model.features_many(labels.columns).astype(np.float32))
            self._labels.append(labels.churned)
        buyers = np.flatnonzero(after["orders"] > 0)
        self.model.observe(churn_columns(after[buyers], now_ms, minor), self._hashes[who[buyers]], now_ms / DAY_MS)

    def columns(self, now_ms: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Which customers have ordered, and what the model is asked about them."""
        index = np.flatnonzero(self.rows["orders"] > 0)
        return index, churn_columns(self.rows[index], now_ms, self._rules.minor_per_major)

    def examples(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Features and outcomes of all examples that have matured, in the order in which they did."""
        if not self._labels:
            return np.zeros((0, len(FEATURES))), np.zeros(0, np.bool_)
        return np.concatenate(self._examples).astype(np.float64), np.concatenate(self._labels)

    def _place(self, customer: str) -> int:
        place = self._index.get(customer)
        if place is None:
            place = self._index[customer] = len(self._index)
            if place == len(self._rows):
                self._rows = np.concatenate((self._rows, blank(place)))
                self._hashes = np.concatenate((self._hashes, np.zeros(place, np.uint64)))
            self._hashes[place] = fingerprint(customer)
        return place


def stretches(events: Sequence[Event], ends_ms: Sequence[int]) -> Iterator[tuple[list[Event], int]]:
    """Events in order of time, cut at the ends of days (excluded) and at `ends_ms` (included)."""
    if not events:
        return
    ordered = sorted(events, key=lambda event: event.time_ms)
    ends = sorted(set(ends_ms))
    place, at = 0, 0
    now = ordered[0].time_ms
    while place < len(ordered) or at < len(ends):
        midnight = (now // DAY_MS + 1) * DAY_MS
        end = min(midnight, ends[at]) if at < len(ends) else midnight
        until = end + 1 if at < len(ends) and end == ends[at] else end
        start = place
        while place < len(ordered) and ordered[place].time_ms < until:
            place += 1
        yield ordered[start:place], end
        while at < len(ends) and ends[at] <= end:
            at += 1
        now = end
