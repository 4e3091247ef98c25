"""A rewind of a task over the in-memory ports: done once whatever is lost between, and a rebuild begins with it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import orjson
import pytest

import stream.rewind
from stream.backends.memory import MemoryCluster, MemoryInputs, MemoryOutputs, MemoryStore, MemoryTopic
from stream.errors import JournalGap, StoreAhead, StoreUnavailable
from stream.metrics import Metrics
from stream.ports import Clock, Marker, Outgoing
from stream.processing.customer import ROW, Rows
from stream.processing.journal import TaskState, decode, encode
from stream.rewind import Found, Rewind, To
from stream.settings import Settings, parse
from stream.trainer import Trainer
from stream.worker import Ports, Worker

NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


class Store(MemoryStore):
    """A store that can be told not to answer the next write."""

    deaf = False

    def apply(
        self, task: int, prev_seq: int, marker: Marker, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]
    ) -> None:
        if self.deaf:
            raise StoreUnavailable("no answer")
        super().apply(task, prev_seq, marker, customers, rows, forgotten)


class Site:
    """One task on memory, its worker and its rewind."""

    def __init__(self) -> None:
        self.settings: Settings = parse({"tick": {"idle_after_s": 0, "max_events": 3}})
        self.cluster = MemoryCluster(self.settings.inputs)
        self.store = Store()
        self.journal = MemoryTopic(self.cluster, self.settings.topic("journal"))
        self.models = MemoryTopic(self.cluster, self.settings.topic("models"), partitions=1)
        self.sent: Counter[str] = Counter()

    def send(self, count: int, customers: int = 5) -> None:
        for _ in range(count):
            number = self.sent.total()
            customer = f"c-{number % customers}"
            self.sent[customer] += 1
            at = NOW_MS + number * HOUR_MS
            body = {"event": "Product Viewed", "userId": customer, "timestamp": at, "messageId": f"m{number}"}
            self.cluster.produce(Outgoing("clickstream", 0, customer.encode(), orjson.dumps(body)), at)

    def work(self) -> None:
        """A worker that starts, reads everything, and stops."""
        cluster, clock = self.cluster, Clock(lambda: NOW_MS + 10_000 * HOUR_MS)
        ports = Ports(MemoryInputs(cluster, "w"), MemoryOutputs(cluster, "w"), self.journal, self.models, self.store)
        outputs = lambda: MemoryOutputs(cluster, "trainer")  # noqa: E731  a factory, as the worker gets it
        trainer = Trainer(self.settings, self.journal, self.models, outputs, Metrics(), clock.wall_ms)
        worker = Worker(self.settings, ports, trainer, Metrics(), clock)
        try:
            for _ in range(40):
                worker.turn()
        finally:
            worker.close()

    def rewind(self, to: To) -> Found:
        """Rewind unless it is done, as the command does; returns what was found before."""
        inputs = MemoryInputs(self.cluster, "rewind")
        try:
            token = inputs.poll(0, frozenset()).token
            assert token is not None
            outputs = MemoryOutputs(self.cluster, "rewind")
            rewind = Rewind(self.settings, inputs, outputs, self.journal, self.store, token)
            logs = {topic: self.cluster.topic(topic)[0] for topic in self.settings.inputs}
            begins, ends = ({topic: getattr(log, name) for topic, log in logs.items()} for name in ("first", "end"))
            found = rewind.look(0, begins, ends, to)
            if not rewind.is_done(found, to):
                said = rewind.refusal(found, to)
                if said:
                    raise AssertionError(said)
                rewind.run(found, to)
            return found
        finally:
            inputs.close()

    def counted(self) -> dict[str, int]:
        return {name: int(np.frombuffer(row, ROW)[0]["events"]) for name, row in self.store.scan(0)}

    @property
    def state(self) -> TaskState:
        marker, _ = self.store.load(0, ())
        assert marker is not None
        return marker.state

    def empty_the_store(self) -> None:
        self.store = Store()

    @property
    def log(self):  # type: ignore[no-untyped-def]  the journal's partition
        return self.cluster.topic(self.settings.topic("journal"))[0]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(stream.rewind, "PART_CUSTOMERS", 2)
    site = Site()
    site.send(20)
    site.work()
    assert site.counted() == site.sent
    return site


@pytest.mark.parametrize("to", [To.EARLIEST, To.STORE])
def test_a_rewind_run_again_changes_nothing(site: Site, to: To) -> None:
    site.cluster.committed = dict.fromkeys(site.cluster.committed, (0, -1, -1))  # as a tool leaves them
    site.rewind(to)
    after = site.state
    assert after.incarnation == 1
    site.rewind(to)
    assert site.state == after
    site.send(5)
    site.work()
    assert site.counted() == site.sent


def test_a_rewind_that_was_committed_and_not_applied_is_not_made_again(site: Site) -> None:
    site.store.deaf = True
    with pytest.raises(StoreUnavailable):
        site.rewind(To.EARLIEST)
    site.store.deaf = False
    end = site.log.end
    site.rewind(To.EARLIEST)
    assert (site.counted(), site.log.end) == ({}, end)


def test_an_emptied_store_is_rebuilt_from_the_rewind_on_whatever_the_journal_has_lost_before(site: Site) -> None:
    site.log.trim(3)
    site.empty_the_store()
    with pytest.raises(JournalGap):
        site.work()
    site.store.deaf = True
    with pytest.raises(StoreUnavailable):
        site.rewind(To.EARLIEST)
    site.empty_the_store()
    site.work()
    assert site.counted() == site.sent
    site.send(5)
    site.empty_the_store()
    site.work()
    assert site.counted() == site.sent


@pytest.fixture
def in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(stream.rewind, "PART_DROPPED", 2)
    return site


def broken_off(site: Site) -> None:
    """A rewind to the earliest that died before its last part."""
    site.store.deaf = True
    with pytest.raises(StoreUnavailable):
        site.rewind(To.EARLIEST)
    site.store.deaf = False
    last = decode(site.log.records.pop().value or b"")
    assert last.code == "rewind 3/3", "five customers, two a part"
    site.cluster.committed = {(topic, 0): (0, last.seq - 1, last.state.incarnation) for topic in site.settings.inputs}


@pytest.mark.parametrize("applied", [True, False])
def test_many_customers_are_dropped_in_parts_and_counted_anew_also_after_the_store_was_emptied(
    in_parts: Site, applied: bool
) -> None:
    site = in_parts
    if applied:
        site.rewind(To.EARLIEST)
        assert site.counted() == {}
    else:
        site.store.deaf = True
        with pytest.raises(StoreUnavailable):
            site.rewind(To.EARLIEST)
        site.store.deaf = False
    end = site.log.end
    site.rewind(To.EARLIEST)
    assert (site.counted(), site.log.end) == ({}, end), "it is there already"
    site.work()
    assert site.counted() == site.sent
    site.empty_the_store()
    site.work()
    assert site.counted() == site.sent


@pytest.mark.parametrize("started", [True, False])
def test_no_worker_goes_on_from_a_drop_that_was_broken_off_and_only_its_end_is_possible(
    in_parts: Site, started: bool
) -> None:
    site = in_parts
    broken_off(site)
    if started:
        with pytest.raises(JournalGap, match="part 2 of 3"):
            site.work()
    for to in (To.STORE, To.KEPT):
        with pytest.raises(AssertionError, match="was broken off; finish it: `driftline rewind --to earliest`"):
            site.rewind(to)
    site.store.deaf = True
    with pytest.raises(StoreUnavailable):
        site.rewind(To.EARLIEST)
    site.store.deaf = False
    site.rewind(To.EARLIEST)
    assert site.counted() == {}
    for _ in range(2):
        site.work()
        assert site.counted() == site.sent
        site.empty_the_store()


def test_an_empty_store_is_not_rebuilt_to_be_dropped_and_an_older_snapshot_forgets_too(in_parts: Site) -> None:
    site = in_parts
    snapshot = site.store
    site.empty_the_store()
    found = site.rewind(To.EARLIEST)
    assert found.marker is None
    site.store = snapshot
    site.work()
    assert site.counted() == site.sent


def test_a_store_and_a_journal_of_two_histories_are_told_as_such(site: Site) -> None:
    marker, _ = site.store.load(0, ())
    assert marker is not None
    site.store._markers[0] = marker._replace(state=replace(marker.state, seq=1, incarnation=4))
    with pytest.raises(AssertionError, match=r"not of one history.*rewind --to earliest"):
        site.rewind(To.STORE)
    site.rewind(To.EARLIEST)
    site.work()
    assert site.counted() == site.sent


def test_alerts_up_to_the_former_stream_time_are_held_back_after_a_rewind_to_the_earliest(site: Site) -> None:
    told_ms = site.state.stream_time_ms
    site.rewind(To.EARLIEST)
    assert (site.state.history_until_ms, site.state.stream_time_ms) == (told_ms, 0)


def test_a_rewind_to_a_store_whose_ticks_the_journal_has_lost_writes_them_all_again(site: Site) -> None:
    for _ in range(2):
        site.log.records.pop()
    site.cluster.committed = dict.fromkeys(site.cluster.committed, (3, 1, 0))
    with pytest.raises(StoreAhead):
        site.work()
    site.rewind(To.STORE)
    site.send(5)
    site.work()
    assert site.counted() == site.sent
    site.empty_the_store()
    site.work()
    assert site.counted() == site.sent


def test_where_retention_has_overtaken_the_store_it_goes_on_at_the_oldest_record_kept(site: Site) -> None:
    before = Counter(site.counted())
    site.send(10)
    log = site.cluster.topic("clickstream")[0]
    log.trim(log.end - 6)
    found = site.rewind(To.STORE)
    assert found.lost == {"clickstream": 4}
    assert site.state.offsets["clickstream"] == log.first
    end = site.log.end
    site.rewind(To.STORE)
    assert site.log.end == end, "it is there already"
    site.work()
    assert Counter(site.counted()) - before == Counter(f"c-{number % 5}" for number in range(24, 30))


def test_input_topics_made_anew_beside_the_old_journal_are_read_with_the_customers_kept(site: Site) -> None:
    for name in site.settings.inputs:
        del site.cluster.topics[name]
    site.cluster.committed.clear()  # Kafka drops a topic's offsets with it
    with pytest.raises(AssertionError, match="keep-customers"):
        site.rewind(To.STORE)
    site.rewind(To.KEPT)
    site.send(7)
    site.work()
    assert site.counted() == site.sent


def test_of_topics_that_end_before_what_was_committed_no_remedy_names_one_that_is_refused(site: Site) -> None:
    for name in site.settings.inputs:
        del site.cluster.topics[name]
    with pytest.raises(AssertionError, match=r"Restore them; or drop .*--to earliest`$"):
        site.rewind(To.STORE)
    site.rewind(To.EARLIEST)


def test_no_worker_goes_on_from_a_copy_that_was_broken_off(site: Site) -> None:
    for name in (site.settings.topic("journal"), *site.settings.inputs):
        del site.cluster.topics[name]
    site.journal = MemoryTopic(site.cluster, site.settings.topic("journal"))
    site.models = MemoryTopic(site.cluster, site.settings.topic("models"), partitions=1)
    site.cluster.committed.clear()
    with pytest.raises(StoreAhead, match="--keep-customers"):
        site.work()
    before = site.counted()
    site.rewind(To.KEPT)
    assert site.log.end == 3, "five customers, two a part"
    site.log.records.pop()  # as if it had died before the last part
    marker, _ = site.store.load(0, ())
    assert marker is not None
    site.cluster.committed = {
        (topic, 0): (0, marker.state.seq - 1, marker.state.incarnation) for topic in site.settings.inputs
    }
    site.store._markers[0] = marker._replace(state=TaskState(seq=marker.state.seq - 3, customers=5), journal_offset=900)
    with pytest.raises(JournalGap, match="part 2 of 3"):
        site.work()
    site.rewind(To.KEPT)
    assert site.log.end == 3
    site.sent.clear()
    site.empty_the_store()
    site.work()
    assert site.counted() == before


def test_what_has_never_run_is_there_already() -> None:
    site = Site()
    for to in To:
        site.rewind(to)
    assert site.log.end == 0


def test_a_task_of_the_old_schema_is_not_rewound_to_the_earliest(site: Site) -> None:
    marker, _ = site.store.load(0, ())
    assert marker is not None
    site.store._markers[0] = marker._replace(state=replace(marker.state, schema=1))
    for record in list(site.log.records):
        entry = decode(record.value or b"")
        old = encode(entry._replace(state=replace(entry.state, schema=1)))
        site.log.records[record.offset] = record._replace(value=old)
    with pytest.raises(AssertionError, match="schema_version = 2"):
        site.rewind(To.EARLIEST)
    assert site.counted() == site.sent
