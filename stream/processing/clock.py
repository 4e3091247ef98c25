"""The one clock of a task, and the order in which its topics are read. Pure: wall time comes in as an argument."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stream.errors import InvalidEvent
from stream.events import Event, EventRules, Forget, Record, decode, forget_of


class Decoded(NamedTuple):
    """A record with what it decoded to: an event, an order to forget, or why it is neither."""

    record: Record
    outcome: Event | Forget | InvalidEvent

    @property
    def time_ms(self) -> int:
        """Event time; a record that is no event has none and waits for nothing."""
        return self.outcome.time_ms if isinstance(self.outcome, Event) else 0


Buffers = Mapping[str, deque[Decoded]]


def read(record: Record, rules: EventRules) -> Decoded:
    """Decode a record, keeping the reason where it cannot be decoded."""
    try:
        return Decoded(record, forget_of(record) or decode(record, rules))
    except InvalidEvent as invalid:
        return Decoded(record, invalid)


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
    while len(taken) < max_events:
        heads = [(buffer[0].time_ms, topic) for topic, buffer in buffers.items() if buffer]
        if not heads:
            break
        time_ms, topic = min(heads)
        if bound is not None and time_ms > bound:
            break
        if taken and ((until_ms is not None and time_ms > until_ms) or _parts(taken, buffers[topic][0])):
            break
        taken.append(buffers[topic].popleft())
        if not buffers[topic] and topic not in released:
            own = max(highs.get(topic, 0), max(one.time_ms for one in taken if one.record.topic == topic))
            bound = own if bound is None else min(bound, own)
    return taken


def _parts(taken: Sequence[Decoded], following: Decoded) -> bool:
    """Whether a tick ends between what was taken and what follows."""
    if isinstance(taken[-1].outcome, Forget):
        return not isinstance(following.outcome, Forget)
    if not isinstance(following.outcome, Event):
        return False
    before = next((one.outcome for one in reversed(taken) if isinstance(one.outcome, Event)), following.outcome)
    return before.history != following.outcome.history


def raised(highs: Mapping[str, int], taken: Iterable[Decoded]) -> dict[str, int]:
    """The highest event time seen of each topic after a tick took these records."""
    after = dict(highs)
    for one in taken:
        if one.time_ms > after.get(one.record.topic, 0):
            after[one.record.topic] = one.time_ms
    return after


def stream_time(before_ms: int, highs: Mapping[str, int], released: frozenset[str], wall_ms: int | None) -> int:
    """Stream time after a tick: monotone, the lowest high of the topics that have not let go.

    Where all have let go it is the highest of them, and follows `wall_ms` if the stream is live (None = it is not).
    """
    held = [high for topic, high in highs.items() if topic not in released]
    now = min(held) if held else max(*highs.values(), wall_ms or 0, 0)
    return max(before_ms, now)
