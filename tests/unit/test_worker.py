"""The worker's loop over the in-memory ports: what one bad clock, one bad answer or one lost write may not do."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import orjson
import pytest

from stream import chunks
from stream.backends.memory import (
    MemoryCluster,
    MemoryInputs,
    MemoryOutputs,
    MemoryPartition,
    MemoryStore,
    MemoryTopic,
)
from stream.errors import BrokerUnavailable, Damaged, Misconfigured, StoreUnavailable
from stream.events import Record
from stream.metrics import Metrics
from stream.ports import Clock, Committed, Outgoing
from stream.processing.customer import ROW
from stream.processing.journal import decode
from stream.processing.names import ANOMALY_FEATURES
from stream.processing.version import to_bytes
from stream.recovery import Recovery
from stream.settings import Settings, parse
from stream.trainer import Trainer
from stream.versions import Versions
from stream.worker import TURN_TICKS, Ports, Worker
from tests.builders import shop

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


class Flaky(MemoryTopic):
    """A topic whose reads fail as often as it is told, after they have reached the broker."""

    failures = 0

    def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailable("no answer")
        return super().read(partition, start, limit)


class Site:
    """One worker on memory, with a wall clock of its own."""

    def __init__(self, **models: object) -> None:
        self.settings: Settings = parse(
            {"tick": {"idle_after_s": 0}, "models": models, "kafka": {"start_at": "earliest"}}
        )
        self.wall_ms = NOW_MS
        self.cluster = MemoryCluster(self.settings.inputs)
        self.store = MemoryStore()
        self.models = Flaky(self.cluster, self.settings.topic("models"), partitions=1)
        self.journal = MemoryTopic(self.cluster, self.settings.topic("journal"))
        self.worker = self.start()

    def trainer(self) -> Trainer:
        outputs = lambda: MemoryOutputs(self.cluster, "trainer")  # noqa: E731  a factory, as the worker gets it
        return Trainer(self.settings, self.journal, self.models, outputs, Metrics(), lambda: self.wall_ms)

    def start(self, settings: Settings | None = None) -> Worker:
        settings = settings or self.settings
        ports = Ports(
            MemoryInputs(self.cluster, "one", settings.kafka.start_at),
            MemoryOutputs(self.cluster, "one"),
            self.journal,
            self.models,
            self.store,
        )
        self.worker = Worker(settings, ports, self.trainer(), Metrics(), Clock(lambda: self.wall_ms))
        return self.worker

    def send(
        self, topic: str, customer: str, time_ms: int, stamp_ms: int | None = None, value: bytes | None = None
    ) -> None:
        body = {"type": "track", "event": "Product Viewed", "userId": customer, "timestamp": time_ms}
        record = Outgoing(topic, 0, customer.encode(), value or orjson.dumps(body))
        self.cluster.produce(record, stamp_ms if stamp_ms is not None else time_ms)

    def run(self, turns: int = 12) -> None:
        for _ in range(turns):
            self.worker.turn()

    def customers(self) -> list[str]:
        return sorted(customer for customer, _ in self.store.scan(0))


def test_one_producer_with_a_clock_years_ahead_does_not_make_all_customers_silent() -> None:
    site = Site()
    for customer in ("c-1", "c-2", "c-3"):
        site.send("clickstream", customer, NOW_MS - DAY_MS)
    site.run()
    site.send("clickstream", "c-4", NOW_MS + 1_100 * DAY_MS)
    site.run()
    assert site.customers() == ["c-1", "c-2", "c-3", "c-4"]
    marker, _ = site.store.load(0, ())
    assert marker is not None
    assert marker.state.stream_time_ms <= NOW_MS + 300_000


def test_a_timestamp_in_microseconds_is_a_dead_letter_and_the_stream_goes_on() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS * 1_000, stamp_ms=NOW_MS * 1_000)
    site.send("clickstream", "c-2", NOW_MS)
    site.run()
    assert site.customers() == ["c-2"]
    (letter,) = site.cluster.topic(site.settings.topic("dead_letters"))[0].read(0, 10)
    assert dict(letter.headers)["driftline-reason"] == b"invalid_time"


def test_timers_follow_the_wall_clock_also_when_the_last_record_could_not_be_used() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.send("clickstream", "c-1", NOW_MS, value=b"garbage")
    site.run()
    site.wall_ms += 5 * DAY_MS
    site.run()
    marker, _ = site.store.load(0, ())
    assert marker is not None
    assert marker.state.stream_time_ms >= NOW_MS + 3 * DAY_MS


def test_a_record_too_large_for_any_topic_of_ours_is_cut_and_says_so() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS, value=b"x" * 3_000_000)
    site.run()
    (letter,) = site.cluster.topic(site.settings.topic("dead_letters"))[0].read(0, 10)
    assert dict(letter.headers)["driftline-truncated"] == b"3000000"
    assert len(letter.value or b"") < 2_000_000


def test_a_task_that_starts_at_the_latest_record_keeps_its_place_over_a_restart() -> None:
    site = Site()
    latest = site.settings.model_copy(update={"kafka": site.settings.kafka.model_copy(update={"start_at": "latest"})})
    site.send("clickstream", "before", NOW_MS)
    site.start(latest)
    site.run()
    site.worker.close()
    site.send("clickstream", "meanwhile", NOW_MS)
    site.start(latest)
    site.run()
    assert site.customers() == ["meanwhile"]


def test_a_first_tick_lost_by_the_store_after_offsets_expired_is_replayed() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    before, _ = site.store.load(0, ())
    assert before is not None
    site.worker.close()
    site.cluster.committed.clear()
    site.start()
    site.send("clickstream", "c-2", NOW_MS)
    site.run()
    site.worker.close()
    site.store._markers[0] = before  # the first tick of the new incarnation is committed and not applied
    del site.store._rows[0]["c-2"]
    site.start()
    site.run()
    after, _ = site.store.load(0, ())
    assert after is not None
    assert (after.state.incarnation, after.state.seq) == (1, before.state.seq + 2)  # the first pins the offsets
    assert site.customers() == ["c-1", "c-2"]


def test_a_store_behind_the_journal_is_brought_level_also_when_the_offsets_have_expired() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    before, rows = site.store.load(0, ["c-1"])
    assert before is not None
    site.send("clickstream", "c-1", NOW_MS + 1_000)
    site.run()
    site.worker.close()
    site.cluster.committed.clear()
    site.store._markers[0], site.store._rows[0]["c-1"] = before, rows["c-1"]  # killed before it was applied
    site.start()
    site.run()
    entries = [decode(record.value or b"") for record in site.journal.read(0, 0, 100)]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1)), "a tick was run twice"
    assert [entry.state.incarnation for entry in entries][-1] == 1
    (row,) = site.store.load(0, ["c-1"])[1].values()
    assert np.frombuffer(row, ROW)["events"][0] == 2


def test_an_emptied_store_without_offsets_is_rebuilt_from_the_journal() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    site.worker.close()
    site.cluster.committed.clear()
    site.store = MemoryStore()
    site.start()
    site.send("clickstream", "c-2", NOW_MS)
    site.run()
    assert site.customers() == ["c-1", "c-2"]
    assert 0 in {task for _, task in site.cluster.committed}, "the offsets are not committed again"


def test_topics_that_were_renamed_are_told_by_name() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    site.worker.close()
    site.cluster.committed.clear()
    site.cluster.inputs = ("clicks", "buys")
    site.start()
    with pytest.raises(Misconfigured, match="has read the topics clickstream and purchases, the settings name buys"):
        site.run()


def test_each_worker_keeps_the_text_behind_the_configuration_it_stamps() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    site.worker.close()
    alerts = site.settings.alerts.model_copy(update={"max_per_day": 7})
    other = site.settings.model_copy(update={"alerts": alerts})
    site.start(other)
    site.send("clickstream", "c-2", NOW_MS)
    site.run()
    versions = Versions(site.models)
    versions.refresh()
    assert set(versions.configs) == {site.settings.config_hash, other.config_hash}
    again = Settings.from_config_text(versions.configs[other.config_hash])
    assert (again.alerts, again.config_hash) == (other.alerts, other.config_hash)


def test_a_trainer_whose_journal_was_created_anew_learns_it_from_its_beginning() -> None:
    site = Site(reference_events=100, publish_min_events=100)
    for number in range(300):
        site.send("clickstream", f"c-{number % 40}", NOW_MS + number)
        if number % 30 == 29:
            site.run(4)
    assert site.worker.version.journal[0] > 1
    kept = site.cluster.topic(site.settings.topic("journal"))[0].read(0, 1)
    site.cluster.topics[site.settings.topic("journal")] = [MemoryPartition()]
    site.journal = MemoryTopic(site.cluster, site.settings.topic("journal"))
    site.cluster.topic(site.settings.topic("journal"))[0].append(kept[0])
    trainer = site.trainer()
    assert trainer.step()
    assert trainer._done == {0: 1}


def test_what_waits_for_a_restarted_worker_is_told_before_its_trainer_takes_over() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS - DAY_MS)
    site.run()
    site.send("clickstream", "c-2", NOW_MS - DAY_MS)
    worker = site.start()
    while site.customers() != ["c-1", "c-2"]:
        assert worker._trainer._outputs is None
        worker.turn()
    site.run(1)
    assert worker._trainer._outputs is not None


def test_of_many_tasks_that_are_behind_a_turn_takes_a_few_and_the_next_one_those_that_waited() -> None:
    site, tasks = Site(), 11
    settings = parse({"tick": {"idle_after_s": 0, "max_events": 10}, "kafka": {"start_at": "earliest"}})
    site.cluster = MemoryCluster(settings.inputs, tasks)
    site.journal = MemoryTopic(site.cluster, settings.topic("journal"))
    site.models = Flaky(site.cluster, settings.topic("models"), partitions=1)
    for number in range(2_000):
        body = orjson.dumps({"event": "Product Viewed", "userId": f"c-{number % 300}", "timestamp": NOW_MS - DAY_MS})
        site.cluster.produce(Outgoing("clickstream", None, b"c-%d" % (number % 300), body), NOW_MS - DAY_MS)
    worker, seqs = site.start(settings), [[0] * tasks]
    while max(seqs[-1]) < 8:  # nobody has come to the end
        worker.turn()
        seqs.append([worker._tasks[task].state.seq if task in worker._tasks else 0 for task in range(tasks)])
    assert max(sum(after) - sum(before) for before, after in pairwise(seqs)) == TURN_TICKS
    assert max(max(at) - min(at) for at in seqs) == 1


def test_a_trainer_keeps_up_with_full_ticks_however_many_steps_its_versions_take() -> None:
    site = Site(first_customers=50, publish_max_events=2_500)
    worker = site.start(
        site.settings.model_copy(update={"tick": parse({"tick": {"idle_after_s": 0, "max_span_hours": 168}}).tick})
    )
    for records in shop(customers=300, days=200).values():
        for one in records:
            site.cluster.produce(Outgoing(one.topic, 0, one.key, one.value, one.headers), one.timestamp_ms)
    behind = []
    for _ in range(2_000):
        worker.turn()
        done = sum(offset for offset, *_ in site.cluster.committed.values())
        behind.append(done - worker._trainer._learned["events"])
        if done == sum(len(site.cluster.topic(topic)[0].read(0, 10**6)) for topic in site.settings.inputs):
            break
    assert worker.version.segments.ready
    assert max(behind) < 4_000, behind
    assert len(behind) > 10


@pytest.mark.parametrize(("factor", "sooner"), [(1.0, False), (4.0, True)])
def test_a_version_comes_sooner_where_events_are_unlike_the_last_one(factor: float, sooner: bool) -> None:
    trainer = Site(publish_min_events=500).trainer()
    rows = np.random.default_rng(0).gamma(2.0, 1.0, (3600, len(ANOMALY_FEATURES)))
    trainer._learner = replace(trainer._learner, learned={"events": 100_000})
    trainer._learner.anomaly.learn_many(rows[:3000])
    trainer._learner.anomaly.refit()
    trainer._learner.anomaly.learn_many(rows[3000:] * factor)
    trainer._learned["events"] = 100_499
    assert not trainer._enough()
    trainer._learned["events"] = 100_600
    assert trainer._enough() == sooner


def test_an_owner_that_commits_while_a_task_is_compared_does_not_look_like_a_kafka_that_lost_ticks() -> None:
    site = Site()
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    owner = site.worker

    class Overtaken(MemoryInputs):
        """The owner commits a tick right after these offsets were read."""

        def committed(self, task: int) -> Committed | None:
            before = super().committed(task)
            site.send("clickstream", "c-2", NOW_MS)
            for _ in range(5):
                owner.turn()
            return before

    ports = Ports(
        MemoryInputs(site.cluster, "one"), MemoryOutputs(site.cluster, "one"), site.journal, site.models, site.store
    )
    owner = Worker(site.settings, ports, site.trainer(), Metrics(), Clock(lambda: site.wall_ms))
    for _ in range(3):
        owner.turn()
    late = Recovery(0, 1, site.settings, Overtaken(site.cluster, "successor"), site.store, site.journal, 1, lambda: 0.0)
    assert late.step() is not None


def test_a_take_over_that_fails_half_way_is_begun_again_and_no_version_number_is_published_twice() -> None:
    site = Site(reference_events=100, publish_min_events=100)
    for number in range(400):
        site.send("clickstream", f"c-{number % 40}", NOW_MS + number)
    site.run(40)
    published = [record.key for record in site.models.read(0, 0, 1_000) if (record.key or b"").startswith(b"version/")]
    assert published
    successor = site.trainer()
    site.models.failures = 1
    with pytest.raises(BrokerUnavailable):
        successor.step()
    for _ in range(10):
        successor.step()
    again = [record.key for record in site.models.read(0, 0, 1_000) if (record.key or b"").startswith(b"version/")]
    assert again == published


def test_a_version_that_was_read_is_adopted_although_the_next_read_failed() -> None:
    site = Site(reference_events=100, publish_min_events=100)
    for number in range(300):
        site.send("clickstream", f"c-{number % 40}", NOW_MS + number)
    site.run(40)

    class FailsSecond(MemoryTopic):
        reads = 0

        def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
            self.reads += 1
            if self.reads == 2:
                raise BrokerUnavailable("no answer")
            return super().read(partition, start, limit)

    versions = Versions(FailsSecond(site.cluster, site.settings.topic("models"), partitions=1))
    with pytest.raises(BrokerUnavailable):
        versions.refresh()
    newest = versions.refresh()
    assert newest is not None
    assert newest.number == site.worker.version.number


def test_a_version_larger_than_a_record_is_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    site = Site(reference_events=100, publish_min_events=100)
    for number in range(300):
        site.send("clickstream", f"c-{number % 40}", NOW_MS + number)
    site.run(40)
    assert site.worker.version.number > 0
    versions = Versions(site.models)
    versions.refresh()
    assert len(versions.chunks[site.worker.version.number]) > 1
    assert list(versions.read([site.worker.version.number])) == [site.worker.version.number]


@pytest.mark.parametrize("published_after", [False, True])
def test_a_damaged_version_that_was_deleted_as_its_error_says_holds_nobody_up(published_after: bool) -> None:
    site = Site(reference_events=100, publish_min_events=100)
    for number in range(300):
        site.send("clickstream", f"c-{number % 40}", NOW_MS + number)
        if number % 30 == 29:
            site.run(4)
    topic, good = site.settings.topic("models"), site.worker.version
    key = b"version/%08d" % (good.number + 1)
    whole = to_bytes(replace(good, number=good.number + 1), {})
    for place, part in enumerate((whole[:-1], b"?")):
        header = (("driftline-chunk", b"%d/2" % place),)
        site.cluster.produce(Outgoing(topic, 0, key + b"/%d" % place, part, header), NOW_MS)
    with pytest.raises(Damaged, match="Damaged records"):
        Versions(site.models).refresh()
    site.cluster.produce(Outgoing(topic, 0, key + b"/0", None), NOW_MS)
    if published_after:
        site.cluster.produce(Outgoing(topic, 0, key, whole), NOW_MS)
    versions = Versions(site.models)
    newest = versions.refresh()
    assert newest is not None
    assert newest.number == good.number + published_after
    assert versions.chunks.get(good.number + 1, []) == [key] * published_after
    site.start()
    for number in range(300):
        site.send("clickstream", f"c-{number % 40}", NOW_MS + 1_000 + number)
    site.run(40)
    assert site.worker.version.number > newest.number


def test_a_worker_that_is_not_ready_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    assert "not a member" in (site.worker.waiting or "")
    site.send("clickstream", "c-1", NOW_MS)
    site.run()
    assert site.worker.ready

    def no_answer(*_: object) -> None:
        raise StoreUnavailable("Redis at redis://r: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(site.store, "load", no_answer)
        site.send("clickstream", "c-2", NOW_MS)
        site.run(2)
        assert site.worker.waiting == "recovering tasks [0]: Redis at redis://r: no answer"
    site.worker._retry_at = 0.0
    site.run()
    assert site.worker.ready
