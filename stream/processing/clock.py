"""The one clock of a task, and the order in which its topics are read. Pure: wall time comes in as an argument."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from stream.errors import InvalidEvent
from stream.events import Event, EventRules, Forget, Record, decode, forget_of


class Decoded(NamedTuple):
    """A record with what it decoded to: an event, an order to forget, or why it is neither.

    `time_ms` is the event time; a record that is no event has none (0) and waits for nothing.
    """

    record: Record
    outcome: Event | Forget | InvalidEvent
    time_ms: int


_make_decoded: Callable[[tuple[Record, Event, int]], Decoded] = partial(tuple.__new__, Decoded)  # see `make_record`
Buffers = Mapping[str, deque[Decoded]]


def read(record: Record, rules: EventRules) -> Decoded:
    """Decode a record, keeping the reason where it cannot be decoded."""
    try:
        if record.headers and (forget := forget_of(record)):
            return Decoded(record, forget, 0)
        event = decode(record, rules)
        return _make_decoded((record, event, event.time_ms))
    except InvalidEvent as invalid:
        return Decoded(record, invalid, 0)


def merged(decoded: Iterable[Decoded], topics: tuple[str, ...]) -> list[Decoded]:
    """Records in the order in which a tick takes them: by event time, each topic in its own order.

    A tick that is run again from its offset ranges comes back in the order in which it first ran.
    """
    buffers = {topic: deque[Decoded]() for topic in topics}
    for one in decoded:
        buffers[one.record.topic].append(one)
    return take(buffers, frozenset(topics), dict.fromkeys(topics, 0), sum(map(len, buffers.values())))


def take(
    buffers: Buffers,
    released: frozenset[str],
    highs: Mapping[str, int],
    max_events: int,
    until_ms: int | None = None,
) -> list[Decoded]:
    """Remove from the buffers the records of the next tick, in order.

    A topic that is ahead waits: nothing later than the highest time seen of an empty topic is taken, unless that
    topic has let go (`released`: read to its end and silent). `until_ms` ends a tick that would cover too much
    stream time; the first record is always taken. History and what is live do not share a tick, as only the latter
    is told; an order to forget ends its tick, so that what follows it begins anew.
    """
    taken: list[Decoded] = []
    bound = min(
        (highs.get(topic, 0) for topic in buffers if not buffers[topic] and topic not in released), default=None
    )
    heads = [(buffer[0].time_ms, topic) for topic, buffer in buffers.items() if buffer]
    heapify(heads)
    history: bool | None = None
    forgetting = False
    while heads and len(taken) < max_events:
        time_ms, topic = heads[0]
        if bound is not None and time_ms > bound:
            break
        buffer = buffers[topic]
        outcome = buffer[0].outcome
        if type(outcome) is Event:
            parts = forgetting or (history is not None and history != outcome.history)
        else:
            parts = forgetting and not isinstance(outcome, Forget)
        if taken and (parts or (until_ms is not None and time_ms > until_ms)):
            break
        if type(outcome) is Event:
            history, forgetting = outcome.history, False
        else:
            forgetting = isinstance(outcome, Forget)
        taken.append(buffer.popleft())
        if buffer:
            heapreplace(heads, (buffer[0].time_ms, topic))
            continue
        heappop(heads)
        if topic not in released:
            own = max(highs.get(topic, 0), max(one.time_ms for one in taken if one.record.topic == topic))
            bound = own if bound is None else min(bound, own)
    return taken


def raised(highs: Mapping[str, int], taken: Iterable[Decoded]) -> dict[str, int]:
    """The highest event time seen of each topic after a tick took these records."""
    after = dict(highs)
    for record, _, time_ms in taken:
        if time_ms > after.get(record.topic, 0):
            after[record.topic] = time_ms
    return after


def stream_time(before_ms: int, highs: Mapping[str, int], released: frozenset[str], wall_ms: int | None) -> int:
    """Stream time after a tick: monotone, the lowest high of the topics that have not let go.

    Where all have let go it is the highest of them, and follows `wall_ms` if the stream is live (None = it is not).
    """
    held = [high for topic, high in highs.items() if topic not in released]
    now = min(held) if held else max(*highs.values(), wall_ms or 0, 0)
    return max(before_ms, now)
