from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream.errors import InvalidEvent
from stream.events import Event, Forget
from stream.processing.clock import Decoded, merged, raised, read, stream_time, take
from tests.builders import NOW, RULES, body, event, record

TOPICS = ("a", "b", "c")


def one(topic: str, offset: int, time_ms: int | None) -> Decoded:
    """A decoded record at this time; None for one that is no event."""
    outcome = InvalidEvent("empty", "") if time_ms is None else event(time_ms=time_ms)
    return of(outcome, topic, offset)


def of(outcome: Event | Forget | InvalidEvent, topic: str, offset: int) -> Decoded:
    """A record that decoded to this."""
    time_ms = outcome.time_ms if isinstance(outcome, Event) else 0
    return Decoded(record(None, topic=topic, offset=offset), outcome, time_ms)


def buffers(**times: list[int | None]) -> dict[str, deque[Decoded]]:
    return {topic: deque(one(topic, i, at) for i, at in enumerate(row)) for topic, row in times.items()}


def places(taken: list[Decoded]) -> list[tuple[str, int]]:
    return [(each.record.topic, each.record.offset) for each in taken]


def took(
    waiting: dict[str, deque[Decoded]],
    released: str = "",
    highs: dict[str, int] | None = None,
    max_events: int = 100,
    until_ms: int | None = None,
) -> str:
    """What is taken, as topics in their order."""
    taken = take(waiting, frozenset(released), highs or {}, max_events, until_ms)
    return "".join(each.record.topic for each in taken)


def test_a_record_is_read_to_its_event_or_to_the_reason_why_it_is_none() -> None:
    found = read(record(body()), RULES), read(record(b"{"), RULES)
    assert [type(each.outcome) for each in found] == [Event, InvalidEvent]
    assert [each.time_ms for each in found] == [NOW, 0]


def test_topics_are_taken_by_event_time_each_in_its_own_order() -> None:
    waiting = buffers(a=[1, 5, 3, 9], b=[2, 4, 8])
    assert places(take(waiting, frozenset("ab"), {}, 100)) == [
        ("a", 0),
        ("b", 0),
        ("b", 1),
        ("a", 1),
        ("a", 2),
        ("b", 2),
        ("a", 3),
    ]


def test_equal_times_are_taken_by_the_topic_s_name() -> None:
    waiting = {"b": deque([one("b", 0, 5)]), "a": deque([one("a", 0, 5)])}
    assert took(waiting, released="ab") == "ab"


def test_the_topic_that_is_ahead_waits_for_one_that_is_empty() -> None:
    waiting = buffers(a=[1, 2, 3], b=[])
    assert took(waiting, highs={"a": 0, "b": 2}) == "aa"
    assert [len(waiting["a"]), took(waiting, highs={"a": 2, "b": 2})] == [1, ""]


def test_a_topic_that_was_never_heard_of_holds_every_other() -> None:
    assert took(buffers(a=[1, 2], b=[])) == ""


def test_a_topic_that_runs_empty_holds_from_its_own_last_time_on() -> None:
    assert took(buffers(a=[1, 2, 3, 9], b=[2])) == "aab"


def test_the_high_of_a_topic_that_runs_empty_is_the_highest_it_ever_had() -> None:
    assert took(buffers(a=[1, 3, 9], b=[2]), highs={"b": 5}) == "aba"


def test_a_topic_that_has_let_go_does_not_hold() -> None:
    assert took(buffers(a=[1, 2, 3], b=[]), released="b") == "aaa"


def test_a_record_that_is_no_event_waits_for_nothing() -> None:
    assert took(buffers(a=[None, None, 5], b=[])) == "aa"


def test_a_tick_takes_no_more_than_its_events() -> None:
    waiting = buffers(a=[1, 3], b=[2, 4])
    assert took(waiting, released="ab", max_events=3) == "aba"
    assert took(waiting, released="ab", max_events=3) == "b"


def test_a_tick_ends_where_its_span_ends_but_always_takes_a_first_record() -> None:
    waiting = buffers(a=[10, 20, 30])
    assert [took(waiting, released="a", until_ms=until_ms) for until_ms in (20, 20, 20)] == ["aa", "a", ""]


def test_the_highs_are_the_highest_times_taken() -> None:
    taken = [one("a", 0, 7), one("a", 1, 3), one("b", 0, None), one("c", 0, 2)]
    assert raised({"a": 5, "c": 9}, taken) == {"a": 7, "c": 9}


@pytest.mark.parametrize(
    ("before", "highs", "released", "wall_ms", "after"),
    [
        (0, {"a": 7, "b": 5}, "", None, 5),
        (6, {"a": 7, "b": 5}, "", None, 6),
        (0, {"a": 7, "b": 5}, "b", None, 7),
        (0, {"a": 7, "b": 5}, "ab", None, 7),
        (0, {"a": 7, "b": 5}, "ab", 9, 9),
        (0, {"a": 7, "b": 5}, "ab", 3, 7),
        (0, {"a": 7, "b": 5}, "a", 9, 5),
        (8, {"a": 7}, "a", None, 8),
        (0, {}, "", None, 0),
    ],
)
def test_stream_time_is_the_lowest_high_of_the_topics_that_hold_and_never_goes_back(
    before: int, highs: dict[str, int], released: str, wall_ms: int | None, after: int
) -> None:
    assert stream_time(before, highs, frozenset(released), wall_ms) == after


class Turn(NamedTuple):
    """What happens before a tick: records that arrive, topics that let go, and the tick's bounds."""

    arrivals: list[tuple[str, int | None]]
    released: frozenset[str]
    max_events: int
    span: int | None


TURNS = st.lists(
    st.builds(
        Turn,
        st.lists(st.tuples(st.sampled_from(TOPICS), st.none() | st.integers(1, 30)), max_size=12),
        st.sets(st.sampled_from(TOPICS)).map(frozenset),
        st.integers(1, 8),
        st.none() | st.integers(0, 10),
    ),
    max_size=12,
)


@given(TURNS)
@examples(max_examples=400, deadline=None)
def test_whatever_arrives_when_a_tick_comes_back_from_its_records_in_its_order(turns: list[Turn]) -> None:
    waiting = {topic: deque[Decoded]() for topic in TOPICS}
    ends, highs, now_ms = dict.fromkeys(TOPICS, 0), dict.fromkeys(TOPICS, 0), 0
    for turn in turns:
        for topic, time_ms in turn.arrivals:
            waiting[topic].append(one(topic, ends[topic], time_ms))
            ends[topic] += 1
        heads = [row[0].time_ms for row in waiting.values() if row]
        reach = max((each.time_ms for each in waiting["a"]), default=0)
        until_ms = None if turn.span is None else max(now_ms, min(heads, default=0)) + turn.span
        left = {topic: len(row) for topic, row in waiting.items()}
        taken = take(waiting, turn.released, highs, turn.max_events, until_ms)

        by_partition = sorted(taken, key=lambda each: (each.record.topic, each.record.offset))
        assert places(merged(by_partition, TOPICS)) == places(taken)
        assert len(taken) <= turn.max_events
        assert until_ms is None or all(each.time_ms <= until_ms for each in taken[1:])
        assert {topic: len(row) for topic, row in waiting.items()} == {
            topic: count - sum(each.record.topic == topic for each in taken) for topic, count in left.items()
        }
        if "a" not in turn.released:
            others = [each.time_ms for each in taken if each.record.topic != "a"]
            assert max(others, default=0) <= max(highs["a"], reach)
        highs = raised(highs, taken)
        later = stream_time(now_ms, highs, turn.released, None)
        assert later >= now_ms
        now_ms = later


def test_history_and_what_is_live_share_no_tick() -> None:
    past = event(time_ms=1)._replace(history=True)
    outcomes = [past, InvalidEvent("empty", ""), past._replace(time_ms=2), event(time_ms=3), event(time_ms=4)]
    waiting = {"a": deque(of(each, "a", i) for i, each in enumerate(outcomes))}
    assert [took(waiting, "a") for _ in range(3)] == ["aaa", "aa", ""]


def test_orders_to_forget_end_their_tick_and_what_follows_begins_anew() -> None:
    outcomes = [event(time_ms=1), Forget("c-1"), Forget("c-2"), event(time_ms=1), Forget("c-1")]
    waiting = {"a": deque(of(each, "a", i) for i, each in enumerate(outcomes))}
    assert [took(waiting, "a") for _ in range(3)] == ["aaa", "aa", ""]
