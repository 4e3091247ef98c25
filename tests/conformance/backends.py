"""What every backend promises: the contract of stream/ports.py, as classes to be run on each implementation.

A test module subclasses them and has a fixture `cluster`: an empty `Cluster` of its own for each test.
"""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import pytest

from stream.chunks import Chunks, chunked
from stream.errors import OutcomeUnknown, RowsLost, TaskLost
from stream.events import Record
from stream.ports import Committed, Inputs, Marker, Offset, Outgoing, Outputs, Polled, Store, Token, Topic
from stream.processing.customer import ROW, Rows, blank
from stream.processing.journal import TaskState
from tests.builders import BUYS, CLICKS, NOW

PARTITIONS = 4
EVERY_TASK = frozenset(range(PARTITIONS))
NOTHING: frozenset[tuple[str, int]] = frozenset()
PATIENCE_S = 20.0


class Cluster(Protocol):
    """Brokers and a store: two input topics and a topic of our own of `PARTITIONS` partitions each, all empty."""

    inputs: tuple[str, str]
    journal: str

    def make_inputs(self, instance: str = "one", start_at: str = "earliest") -> Inputs: ...

    def make_outputs(self, name: str, inputs: Inputs) -> Outputs: ...

    def make_topic(self, name: str) -> Topic: ...

    def make_store(self) -> Store: ...

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        """Write a record with the timestamp `NOW`."""

    def flush(self) -> None:
        """Returns when what was produced can be read."""

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        """What retention does."""

    def take_out(self, customer: str) -> None:
        """Delete a customer's row of task 0 from the store, behind its back."""


def many(cluster: Cluster, topic: str, partition: int, count: int, first: int = 0) -> None:
    """Produce `count` records whose values are their offsets."""
    for i in range(first, first + count):
        cluster.produce(topic, partition, b"k", b"%d" % i)
    cluster.flush()


def poll_until(
    inputs: Inputs, done: Callable[[list[Record]], object], full: frozenset[tuple[str, int]] = NOTHING
) -> tuple[list[Record], Token | None]:
    """Poll until `done` of all records so far; returns these and the last token."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while True:
        polled = inputs.poll(0.2, full)
        records += polled.records
        if done(records):
            return records, polled.token
        assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s: {len(records)} records, token {polled.token}"


def poll_for(inputs: Inputs, seconds: float = 0.6) -> list[Record]:
    """All records of a while in which none may be expected."""
    until = time.monotonic() + seconds
    records: list[Record] = []
    while time.monotonic() < until:
        records += inputs.poll(0.1, NOTHING).records
    return records


def join(inputs: Inputs, tasks: Iterable[int] = EVERY_TASK) -> Token:
    """Poll until these tasks are assigned; returns the token."""
    wanted, held = frozenset(tasks), list[Token]()

    def assigned(_: object) -> bool:
        polled = inputs.poll(0.3, NOTHING)
        assert not polled.records
        held[:] = [polled.token] if polled.token is not None and polled.token.tasks == wanted else []
        return bool(held)

    poll_until(inputs, assigned)
    return held[0]


@contextmanager
def polling(inputs: Inputs) -> Iterator[list[Polled]]:
    """Polls in a thread of its own, as another process would; the list holds what each poll answered."""
    answers: list[Polled] = []
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            answers.append(inputs.poll(0.1, NOTHING))
            time.sleep(0.01)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


class Shared(NamedTuple):
    """Two members with their tokens. The first one polls on in a thread: `heard` is what it was answered, `before` its
    token while it was alone."""

    first: Inputs
    second: Inputs
    heard: list[Polled]
    before: Token
    ours: Token
    theirs: Token

    def delivered(self) -> list[Record]:
        """What the first member was given."""
        return [record for polled in self.heard for record in polled.records]


@contextmanager
def shared(cluster: Cluster, started: frozenset[int] = frozenset()) -> Iterator[Shared]:
    """A member that has started these tasks, and a second one with which it then shares all tasks."""
    first = cluster.make_inputs("one")
    before = join(first)
    for task in started:
        first.start(task, None)
    second = cluster.make_inputs("two")
    with polling(first) as heard:
        theirs: list[Token] = []

        def split(_: object) -> bool:
            token = second.poll(0.3, NOTHING).token
            ours = heard[-1].token if heard else None
            theirs[:] = [t for t in (ours, token) if t is not None and 0 < len(t.tasks) < PARTITIONS]
            return len(theirs) == 2 and theirs[0].generation == theirs[1].generation

        poll_until(second, split)
        yield Shared(first, second, heard, before, *theirs)


def by_partition(records: Iterable[Record]) -> dict[tuple[str, int], list[int]]:
    """Offsets per partition, in the order delivered."""
    found = defaultdict(list)
    for record in records:
        found[record.topic, record.partition].append(record.offset)
    return dict(found)


def read_all(topic: Topic, partition: int, count: int, start: int = 0, limit: int = 100) -> list[Record]:
    """Read on from `start`, step by step, until `count` records have come."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < count:
        read = topic.read(partition, start, limit)
        assert len(read) <= limit
        records += read
        start = read[-1].offset + 1 if read else start
        assert time.monotonic() < deadline, f"{len(records)} of {count} records after {PATIENCE_S:g} s"
    return records


def stamps(cluster: Cluster, next_offset: int, seq: int, task: int = 0, incarnation: int = 0) -> list[Offset]:
    """The same next offset in each input topic of a task."""
    return [Offset(topic, task, next_offset, seq, incarnation) for topic in cluster.inputs]


def note(cluster: Cluster, value: bytes = b"tick", partition: int = 0) -> Outgoing:
    """A record for our topic."""
    return Outgoing(cluster.journal, partition, b"k", value)


class InputsContract:
    """Inputs: one member of a group over the input topics."""

    def test_a_new_task_starts_at_the_offsets_it_is_told(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 0, 3)
        inputs = cluster.make_inputs()
        join(inputs)
        assert inputs.start(0, {clicks: 1, buys: 0}) == {clicks: 1, buys: 0}
        assert by_partition(poll_until(inputs, lambda got: len(got) >= 2)[0]) == {(clicks, 0): [1, 2]}

    def test_a_new_task_without_offsets_starts_at_the_earliest_record_kept(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 0, 5)
        cluster.remove_before(clicks, 0, 3)
        inputs = cluster.make_inputs()
        join(inputs)
        assert inputs.start(0, None) == {clicks: 3, buys: 0}
        assert by_partition(poll_until(inputs, lambda got: len(got) >= 2)[0]) == {(clicks, 0): [3, 4]}

    def test_a_new_task_without_offsets_starts_at_the_end_where_the_settings_say_latest(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 0, 3)
        inputs = cluster.make_inputs(start_at="latest")
        join(inputs)
        assert inputs.start(0, None) == {clicks: 3, buys: 0}
        many(cluster, clicks, 0, 1, first=3)
        assert by_partition(poll_until(inputs, bool)[0]) == {(clicks, 0): [3]}

    def test_a_record_without_a_value_or_with_an_empty_one_is_delivered_alone_as_among_others(
        self, cluster: Cluster
    ) -> None:
        clicks, _ = cluster.inputs
        inputs = cluster.make_inputs()
        join(inputs)
        inputs.start(0, None)
        for value in (None, b""):
            cluster.produce(clicks, 0, b"k", value)
            cluster.flush()
            (record,) = poll_until(inputs, bool)[0]
            assert record.value == value

    def test_the_ends_of_a_task_lie_after_its_newest_records(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 1, 3)
        many(cluster, buys, 0, 2)
        inputs = cluster.make_inputs()
        assert inputs.ends(0) == {clicks: 0, buys: 2}
        assert inputs.ends(1) == {clicks: 3, buys: 0}

    def test_nothing_of_a_task_is_delivered_before_it_was_started(self, cluster: Cluster) -> None:
        clicks, _ = cluster.inputs
        for task in EVERY_TASK:
            many(cluster, clicks, task, 2)
        inputs = cluster.make_inputs()
        join(inputs)
        assert poll_for(inputs) == []
        inputs.start(1, None)
        records, _ = poll_until(inputs, lambda got: len(got) >= 2)
        assert by_partition([*records, *poll_for(inputs)]) == {(clicks, 1): [0, 1]}

    def test_a_record_comes_with_its_key_value_headers_timestamp_and_offset(self, cluster: Cluster) -> None:
        clicks, _ = cluster.inputs
        headers = (("h", b"1"), ("h", b"2"))
        cluster.produce(clicks, 2, b"key", b"value", headers)
        cluster.produce(clicks, 2, None, b"no key")
        cluster.produce(clicks, 2, b"no value", None)
        cluster.flush()
        inputs = cluster.make_inputs()
        join(inputs)
        inputs.start(2, None)
        assert poll_until(inputs, lambda got: len(got) >= 3)[0] == [
            Record(clicks, 2, 0, NOW, b"key", b"value", headers),
            Record(clicks, 2, 1, NOW, None, b"no key"),
            Record(clicks, 2, 2, NOW, b"no value", None),
        ]

    def test_a_full_partition_waits_while_the_others_go_on_and_is_then_read_on(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        for topic in cluster.inputs:
            many(cluster, topic, 0, 10)
        inputs = cluster.make_inputs()
        join(inputs)
        inputs.start(0, {clicks: 4, buys: 0})
        full = frozenset({(clicks, 0)})
        others, _ = poll_until(inputs, lambda got: len(got) >= 10, full)
        assert by_partition(others) == {(buys, 0): list(range(10))}
        assert by_partition(poll_until(inputs, lambda got: len(got) >= 6)[0]) == {(clicks, 0): list(range(4, 10))}

    def test_partitions_full_now_and_then_lose_repeat_and_reorder_nothing(self, cluster: Cluster) -> None:
        draw, each = random.Random(7), 1_500
        pairs = [(topic, task) for topic in cluster.inputs for task in EVERY_TASK]
        for topic, task in pairs:
            many(cluster, topic, task, each)
        inputs = cluster.make_inputs()
        join(inputs)
        for task in EVERY_TASK:
            inputs.start(task, None)
        got: list[Record] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(got) < each * len(pairs):
            full = frozenset(pair for pair in pairs if draw.random() < 0.7)
            records = inputs.poll(0.02, full).records
            assert full.isdisjoint((record.topic, record.partition) for record in records)
            got += records
            assert time.monotonic() < deadline, {pair: len(seen) for pair, seen in by_partition(got).items()}
        assert by_partition(got) == {pair: list(range(each)) for pair in pairs}

    def test_a_topic_has_ended_only_when_every_record_of_it_was_delivered(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 0, 2_500)
        inputs = cluster.make_inputs()
        join(inputs)
        assert inputs.ended(0) == frozenset()
        inputs.start(0, None)
        got: list[Record] = []

        def done(records: list[Record]) -> bool:
            got[:] = records
            assert (clicks in inputs.ended(0)) <= (len(got) == 2_500)
            return inputs.ended(0) == {clicks, buys}

        poll_until(inputs, done)
        many(cluster, clicks, 0, 1, first=2_500)
        poll_until(inputs, bool)
        poll_until(inputs, lambda _: inputs.ended(0) == {clicks, buys})

    def test_the_end_of_a_topic_is_told_once_it_is_read(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 0, 3)
        inputs = cluster.make_inputs()
        join(inputs)
        assert inputs.heard_ends(0) == {}
        inputs.start(0, None)
        poll_until(inputs, lambda _: inputs.ended(0) == {clicks, buys})
        assert inputs.heard_ends(0) == {clicks: 3, buys: 0}
        many(cluster, clicks, 0, 2, first=3)
        poll_until(inputs, lambda _: inputs.heard_ends(0)[clicks] == 5)

    def test_a_full_topic_with_records_left_has_not_ended(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        many(cluster, clicks, 0, 1)
        inputs = cluster.make_inputs()
        join(inputs)
        inputs.start(0, None)
        poll_until(inputs, lambda _: buys in inputs.ended(0), frozenset({(clicks, 0)}))
        assert inputs.ended(0) == {buys}

    def test_the_sole_member_has_no_token_or_one_with_every_task(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        assert inputs.partitions == PARTITIONS
        tokens: list[Token | None] = []

        def joined(_: object) -> bool:
            tokens.append(inputs.poll(0.1, NOTHING).token)
            return tokens[-1] is not None

        poll_until(inputs, joined)
        assert all(token.tasks == EVERY_TASK and token.generation >= 0 for token in tokens if token is not None)

    def test_a_second_member_shares_the_tasks_and_both_get_a_new_generation(self, cluster: Cluster) -> None:
        with shared(cluster) as (_, _, _, before, ours, theirs):
            assert ours.tasks | theirs.tasks == EVERY_TASK
            assert not ours.tasks & theirs.tasks
            assert ours.generation == theirs.generation > before.generation

    def test_each_task_comes_with_all_its_topics_and_only_once_started_again(self, cluster: Cluster) -> None:
        pairs = {(topic, task) for topic in cluster.inputs for task in EVERY_TASK}
        for topic, task in pairs:
            many(cluster, topic, task, 1)
        with shared(cluster) as both:
            assert both.delivered() == []
            for inputs, token in ((both.first, both.ours), (both.second, both.theirs)):
                for task in token.tasks:
                    inputs.start(task, None)
            records, _ = poll_until(
                both.second, lambda got: len(got) >= PARTITIONS and len(both.delivered()) >= PARTITIONS
            )
            given = [set(by_partition(got)) for got in (both.delivered(), records)]
            assert given == [{pair for pair in pairs if pair[1] in token.tasks} for token in (both.ours, both.theirs)]
            assert len(records) == len(both.delivered()) == PARTITIONS

    def test_a_task_that_a_rebalance_leaves_where_it_was_waits_to_be_started_again(self, cluster: Cluster) -> None:
        clicks, _ = cluster.inputs
        with shared(cluster, started=EVERY_TASK) as both:
            for task in EVERY_TASK:
                many(cluster, clicks, task, 1)
            assert poll_for(both.second) == []
            assert both.delivered() == []
            kept = min(both.ours.tasks)
            both.first.start(kept, None)
            poll_until(both.second, lambda _: both.delivered())
            assert by_partition(both.delivered()) == {(clicks, kept): [0]}

    def test_a_task_that_was_never_committed_has_no_offsets(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        join(inputs)
        assert inputs.committed(0) is None


class OutputsContract:
    """Outputs: one transactional writer."""

    def test_a_commit_writes_records_and_offsets_and_returns_the_offsets_of_the_records(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token, outputs, topic = join(inputs), cluster.make_outputs("one", inputs), cluster.make_topic(cluster.journal)
        headers = (("h", b"x"),)
        sent = [note(cluster, b"a")._replace(headers=headers), note(cluster, b"b", 3), note(cluster, b"c")]
        offsets = outputs.commit(sent, stamps(cluster, 7, seq=1) + stamps(cluster, 9, seq=4, task=2), token)
        a, c = read_all(topic, 0, 2)
        (b,) = read_all(topic, 3, 1)
        assert [(r.offset, r.key, r.value, r.headers) for r in (a, b, c)] == [
            (offsets[0], b"k", b"a", headers),
            (offsets[1], b"k", b"b", ()),
            (offsets[2], b"k", b"c", ()),
        ]
        assert inputs.committed(0) == Committed(dict.fromkeys(cluster.inputs, 7), 1, 0)
        assert inputs.committed(2) == Committed(dict.fromkeys(cluster.inputs, 9), 4, 0)
        assert inputs.committed(1) is None

    def test_committed_gives_back_the_last_offsets_tick_and_incarnation(self, cluster: Cluster) -> None:
        clicks, buys = cluster.inputs
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        for seq in (1, 2, 3):
            both = [Offset(clicks, 0, 10 * seq, seq, 5), Offset(buys, 0, seq, seq, 5)]
            outputs.commit([note(cluster)], both, token)
            assert inputs.committed(0) == Committed({clicks: 10 * seq, buys: seq}, seq, 5)

    def test_a_commit_without_offsets_writes_its_records(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        (offset,) = outputs.commit([note(cluster)], [], token)
        assert [r.offset for r in read_all(cluster.make_topic(cluster.journal), 0, 1)] == [offset]
        assert inputs.committed(0) is None

    def test_a_record_is_of_the_time_of_writing_unless_it_brings_its_own(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        outputs.commit([note(cluster), note(cluster)._replace(timestamp_ms=NOW - 7)], [], token)
        written, own = read_all(cluster.make_topic(cluster.journal), 0, 2)
        assert written.timestamp_ms != NOW - 7
        assert own.timestamp_ms == NOW - 7

    def test_a_token_of_an_old_generation_is_refused_nothing_is_visible_and_the_writer_goes_on(
        self, cluster: Cluster
    ) -> None:
        with shared(cluster) as (first, _, _, old, ours, _):
            outputs = cluster.make_outputs("one", first)
            task = min(ours.tasks)
            with pytest.raises(TaskLost):
                outputs.commit([note(cluster, b"stale")], stamps(cluster, 7, 1, task), old)
            topic = cluster.make_topic(cluster.journal)
            assert topic.read(0, 0, 10) == []
            assert first.committed(task) is None
            outputs.commit([note(cluster, b"fresh")], stamps(cluster, 8, 1, task), ours)
            assert [record.value for record in read_all(topic, 0, 1)] == [b"fresh"]
            assert first.committed(task) == Committed(dict.fromkeys(cluster.inputs, 8), 1, 0)

    def test_a_second_writer_of_the_same_name_fences_the_first(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token, first = join(inputs), cluster.make_outputs("one", inputs)
        first.commit([note(cluster, b"first")], stamps(cluster, 1, 1), token)
        second = cluster.make_outputs("one", inputs)
        with pytest.raises((TaskLost, OutcomeUnknown)):
            first.commit([note(cluster, b"zombie")], stamps(cluster, 2, 2), token)
        assert inputs.committed(0) == Committed(dict.fromkeys(cluster.inputs, 1), 1, 0)
        second.commit([note(cluster, b"second")], stamps(cluster, 3, 2), token)
        values = [record.value for record in read_all(cluster.make_topic(cluster.journal), 0, 2)]
        assert values == [b"first", b"second"]

    def test_after_a_reset_a_fenced_writer_commits_again(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        cluster.make_outputs("one", inputs)
        with pytest.raises((TaskLost, OutcomeUnknown)):
            outputs.commit([note(cluster, b"zombie")], stamps(cluster, 1, 1), token)
        outputs.reset()
        outputs.commit([note(cluster, b"owner")], stamps(cluster, 2, 1), token)
        assert [record.value for record in read_all(cluster.make_topic(cluster.journal), 0, 1)] == [b"owner"]
        assert inputs.committed(0) == Committed(dict.fromkeys(cluster.inputs, 2), 1, 0)

    def test_committed_knows_what_another_writer_has_committed_since(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token = join(inputs)
        assert inputs.committed(0) is None
        for seq, name in enumerate(("other", "third", "other"), start=1):
            cluster.make_outputs(name, inputs).commit([note(cluster)], stamps(cluster, seq, seq), token)
            assert inputs.committed(0) == Committed(dict.fromkeys(cluster.inputs, seq), seq, 0)


class TopicContract:
    """Topic: committed records of a topic of ours, by offset."""

    def test_it_reads_from_the_beginning_the_middle_and_the_end(self, cluster: Cluster) -> None:
        many(cluster, cluster.journal, 1, 20)
        topic = cluster.make_topic(cluster.journal)
        assert topic.partitions() == PARTITIONS
        for start, limit, expected in ((0, 5, range(5)), (12, 100, range(12, 20)), (20, 10, ()), (19, 10, (19,))):
            assert [record.offset for record in topic.read(1, start, limit)] == list(expected)
        assert topic.read(0, 0, 10) == []

    def test_a_record_comes_whole(self, cluster: Cluster) -> None:
        cluster.produce(cluster.journal, 1, b"key", b"value", (("h", b"1"),))
        cluster.produce(cluster.journal, 1, b"tombstone", None)
        cluster.flush()
        assert cluster.make_topic(cluster.journal).read(1, 0, 10) == [
            Record(cluster.journal, 1, 0, NOW, b"key", b"value", (("h", b"1"),)),
            Record(cluster.journal, 1, 1, NOW, b"tombstone", None),
        ]

    def test_the_same_place_read_again_gives_the_same_records(self, cluster: Cluster) -> None:
        many(cluster, cluster.journal, 0, 20)
        topic = cluster.make_topic(cluster.journal)
        assert [[record.offset for record in topic.read(0, 4, 3)] for _ in range(3)] == [[4, 5, 6]] * 3

    def test_a_jump_back_and_forth_reads_each_place(self, cluster: Cluster) -> None:
        many(cluster, cluster.journal, 0, 50)
        topic = cluster.make_topic(cluster.journal)
        for start in (30, 0, 40, 3, 31, 33, 0, 48):
            assert [r.offset for r in topic.read(0, start, 3)] == list(range(start, min(start + 3, 50))), start

    def test_small_steps_over_many_commits_skip_and_repeat_nothing(self, cluster: Cluster) -> None:
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        for i in range(40):
            outputs.commit([note(cluster, b"%d" % i)], [], token)
        records = read_all(cluster.make_topic(cluster.journal), 0, 40, limit=7)
        assert [int(record.value or b"") for record in records] == list(range(40))

    def test_partitions_read_in_turns_do_not_mix(self, cluster: Cluster) -> None:
        for partition in range(PARTITIONS):
            many(cluster, cluster.journal, partition, 30)
        topic = cluster.make_topic(cluster.journal)
        for start in range(0, 30, 10):
            for partition in range(PARTITIONS):
                read = topic.read(partition, start, 10)
                assert [(r.partition, r.offset) for r in read] == [(partition, start + i) for i in range(10)]

    def test_what_is_committed_after_the_end_was_reached_is_read_on(self, cluster: Cluster) -> None:
        many(cluster, cluster.journal, 0, 2)
        topic = cluster.make_topic(cluster.journal)
        assert len(topic.read(0, 0, 10)) == 2
        assert topic.read(0, 2, 10) == []
        many(cluster, cluster.journal, 0, 3, first=2)
        assert [record.offset for record in read_all(topic, 0, 3, start=2)] == [2, 3, 4]

    def test_records_removed_by_retention_are_skipped(self, cluster: Cluster) -> None:
        many(cluster, cluster.journal, 0, 10)
        cluster.remove_before(cluster.journal, 0, 6)
        topic = cluster.make_topic(cluster.journal)
        assert [record.offset for record in topic.read(0, 0, 2)] == [6, 7]
        assert [record.offset for record in topic.read(0, 3, 100)] == [6, 7, 8, 9]

    def test_a_reader_that_retention_overtakes_goes_on_with_the_oldest_record_kept(self, cluster: Cluster) -> None:
        many(cluster, cluster.journal, 0, 3)
        topic = cluster.make_topic(cluster.journal)
        assert [record.offset for record in topic.read(0, 0, 10)] == [0, 1, 2]
        many(cluster, cluster.journal, 0, 7, first=3)
        cluster.remove_before(cluster.journal, 0, 8)
        assert [record.offset for record in read_all(topic, 0, 2, start=3)] == [8, 9]

    def test_a_value_larger_than_a_record_may_be_comes_in_chunks_that_fit_together(self, cluster: Cluster) -> None:
        data = random.Random(3).randbytes(2_500_000)
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        records = chunked(cluster.journal, 0, b"0", data, {"driftline-seq": b"1"})
        assert len(records) == 3
        outputs.commit(records, stamps(cluster, 1, 1), token)
        chunks = Chunks()
        read = read_all(cluster.make_topic(cluster.journal), 0, 3)
        whole = [chunks.add(record.value or b"", record.headers) for record in read]
        assert whole[:2] == [None, None]
        assert whole[2] == data


def rows_of(dues: Sequence[int]) -> Rows:
    """Rows that differ, with these due times."""
    rows = blank(len(dues))
    rows["due"] = dues
    rows["events"] = range(len(dues))
    return rows


def marker(seq: int, incarnation: int = 0, generation: int = 1) -> Marker:
    """A marker at that tick with something in every field."""
    state = TaskState(seq, incarnation, NOW, {CLICKS: seq, BUYS: 2**40}, {CLICKS: NOW}, 5, 3, {"churn_risk": 2}, True)
    return Marker(state, generation, 10 * seq, PARTITIONS)


def apply(store: Store, at: Marker, dues: Mapping[str, int], forgotten: Sequence[str] = (), prev: int = -1) -> Rows:
    """Apply customers with their due times as the tick that follows the one before; returns their rows."""
    rows = rows_of(list(dues.values()))
    store.apply(0, at.state.seq - 1 if prev < 0 else prev, at, list(dues), rows, forgotten)
    return rows


ODD_IDS = ("a b", "{tag}", "a:b", "c:", "Łódź 🛒", "}{", "x" * 300, "%s*?[a]", "a\nb", "0")


class StoreContract:
    """Store: customers and how far each task has been applied."""

    def test_of_an_unknown_task_it_has_no_marker_and_no_rows(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        assert store.load(0, ["a"]) == (None, {})
        assert store.load(0, []) == (None, {})
        assert list(store.scan(0)) == []
        assert store.due(0, NOW, 10) == []

    def test_it_gives_back_the_same_bytes_and_the_same_marker(self, cluster: Cluster) -> None:
        rows = apply(cluster.make_store(), marker(1), {"a": NOW, "b": NOW + 1})
        found = cluster.make_store().load(0, ["b", "unknown", "a"])
        assert found == (marker(1), {"a": rows[0].tobytes(), "b": rows[1].tobytes()})
        assert len(found[1]["a"]) == ROW.itemsize

    def test_tasks_do_not_meet(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        apply(store, marker(1), {"a": NOW})
        assert store.load(1, ["a"]) == (None, {})
        assert store.due(1, NOW, 10) == []

    def test_a_tick_applied_again_changes_nothing(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        apply(store, marker(1), {"a": 1})
        rows = apply(store, marker(2), {"a": 2, "b": 3})
        apply(store, marker(1), {"a": 99, "c": 99})
        apply(store, marker(2), {"a": 99, "c": 99}, forgotten=["b"])
        assert store.load(0, ["a", "b", "c"]) == (marker(2), {"a": rows[0].tobytes(), "b": rows[1].tobytes()})
        assert store.due(0, 100, 10) == ["a", "b"]

    def test_a_tick_without_customers_moves_the_marker(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        apply(store, marker(1), {})
        assert store.load(0, []) == (marker(1), {})

    @pytest.mark.parametrize("prev", [0, 2, 3])
    def test_a_gap_is_refused_and_writes_nothing(self, cluster: Cluster, prev: int) -> None:
        store = cluster.make_store()
        rows = apply(store, marker(1), {"a": 1})
        with pytest.raises(TaskLost):
            apply(store, marker(4), {"a": 9, "b": 9}, forgotten=["a"], prev=prev)
        assert store.load(0, ["a", "b"]) == (marker(1), {"a": rows[0].tobytes()})
        assert store.due(0, 100, 10) == ["a"]

    def test_a_first_tick_that_does_not_follow_nothing_is_refused(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        with pytest.raises(TaskLost):
            apply(store, marker(4), {"a": 1})
        assert store.load(0, ["a"]) == (None, {})

    @pytest.mark.parametrize(
        ("incarnation", "generation", "refused"),
        [(2, 4, True), (1, 99, True), (2, 5, False), (2, 6, False), (3, 1, False)],
    )
    def test_an_owner_before_the_one_it_knows_is_refused(
        self, cluster: Cluster, incarnation: int, generation: int, refused: bool
    ) -> None:
        store = cluster.make_store()
        apply(store, marker(1, incarnation=2, generation=5), {"a": 1})
        if refused:
            with pytest.raises(TaskLost):
                apply(store, marker(2, incarnation, generation), {"a": 2})
            with pytest.raises(TaskLost):
                apply(store, marker(1, incarnation, generation), {"a": 2})
        else:
            apply(store, marker(2, incarnation, generation), {"a": 2})
        assert store.due(0, 1, 10) == (["a"] if refused else [])

    def test_a_forgotten_customer_vanishes_from_rows_and_due_times(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        apply(store, marker(1), dict.fromkeys(("a", "b"), 1))
        apply(store, marker(2), {}, forgotten=["a", "never known"])
        assert sorted(store.load(0, ["a", "b"])[1]) == ["b"]
        assert [customer for customer, _ in store.scan(0)] == ["b"]
        assert store.due(0, 100, 10) == ["b"]
        apply(store, marker(3), {"a": 7})
        assert store.due(0, 100, 10) == ["b", "a"]

    def test_a_row_that_somebody_took_out_is_missed_and_a_discarded_task_is_applied_anew(
        self, cluster: Cluster
    ) -> None:
        store = cluster.make_store()
        rows = apply(store, marker(1), {"a": 1, "b": 2})
        cluster.take_out("b")
        assert list(store.load(0, ["a", "nobody"])[1]) == ["a"]
        with pytest.raises(RowsLost):
            store.load(0, ["a", "b", "nobody"])
        store.discard(0)
        assert store.load(0, ())[0] is None
        apply(store, marker(1), {"a": 1, "b": 2})
        found, back = store.load(0, ["a", "b"])
        assert (found, back["b"]) == (marker(1), rows[1].tobytes())

    def test_due_customers_come_earliest_first_up_to_the_time_and_the_limit(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        apply(store, marker(1), {"late": NOW + 1, "second": NOW, "first": -5, "third": NOW})
        assert store.due(0, NOW, 10) == ["first", "second", "third"]
        assert store.due(0, NOW, 2) == ["first", "second"]
        assert store.due(0, NOW - 1, 10) == ["first"]
        assert store.due(0, NOW + 1, 10) == ["first", "second", "third", "late"]
        assert store.due(0, NOW + 1, 0) == []

    def test_a_customer_is_due_at_the_last_time_applied_only(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        for seq, due in enumerate((5, 50, 20, 20, 8), start=1):
            apply(store, marker(seq), {"a": due, "b": 10})
            expected = sorted([(due, "a"), (10, "b")])
            assert [store.due(0, until, 10) for until in (7, 15, 30, 60)] == [
                [name for at, name in expected if at <= until] for until in (7, 15, 30, 60)
            ]

    def test_a_tick_of_thousands_of_customers_is_applied_whole(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        names = [f"c-{i}" for i in range(1_300)]
        apply(store, marker(1), dict.fromkeys(names, 1))
        rows = apply(store, marker(2), {name: i for i, name in enumerate(names[:1_201])}, forgotten=names[1_201:])
        expected = {name: rows[i].tobytes() for i, name in enumerate(names[:1_201])}
        assert store.load(0, names) == (marker(2), expected)
        assert dict(store.scan(0)) == expected
        assert store.due(0, NOW, 5_000) == names[:1_201]

    def test_a_customer_id_may_be_any_text(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        rows = apply(store, marker(1), {name: i for i, name in enumerate(ODD_IDS)})
        expected = {name: rows[i].tobytes() for i, name in enumerate(ODD_IDS)}
        assert store.load(0, ODD_IDS)[1] == expected
        assert dict(store.scan(0)) == expected
        assert store.due(0, 100, 100) == list(ODD_IDS)
        apply(store, marker(2), {}, forgotten=ODD_IDS)
        assert list(store.scan(0)) == []

    def test_large_numbers_survive(self, cluster: Cluster) -> None:
        store = cluster.make_store()
        last = 2**52
        apply(store, marker(1), {"a": last})
        assert store.due(0, last, 1) == ["a"]
        assert store.due(0, last - 1, 1) == []
