"""What doctor makes of facts that no test server can be brought to show."""

from typing import Any

import orjson
import pytest

from stream.cli import doctor
from stream.cli.checks import Check
from stream.diagnosis import OK, WARNING, WRONG, Finding, cluster, group, ok, records, store
from stream.diagnosis.facts import (
    Cluster,
    Extent,
    Group,
    LogDir,
    Member,
    OpenTransaction,
    Partition,
    RedisFacts,
    Rights,
    TopicFacts,
)
from stream.errors import BrokerUnavailable, CannotTell, Misconfigured, StoreUnavailable
from stream.events import FORGET_HEADER, Record
from stream.ports import Committed, Marker
from stream.processing.customer import SCHEMA
from stream.processing.journal import TaskState
from tests import builders

SETTINGS = builders.settings()
NAME = SETTINGS.application.name
CLICKS, BUYS = SETTINGS.inputs
GIB = 2**30


def levels(findings: Any) -> list[str]:
    return [finding.level for finding in findings]


def topic(name: str = CLICKS, *partitions: Partition, **configs: str) -> TopicFacts:
    given = {"retention.ms": "604800000", "retention.bytes": "-1", "min.insync.replicas": "1"}
    return TopicFacts(name, partitions, given | {key.replace("_", "."): v for key, v in configs.items()}, None)


def member(instance: str | None, *tasks: int) -> Member:
    return Member(instance, "client", "10.0.0.1", {name: frozenset(tasks) for name in (CLICKS, BUYS)})


def marker(seq: int, offsets: dict[str, int] | None = None, journal_offset: int = 10, incarnation: int = 0) -> Marker:
    state = TaskState(seq=seq, incarnation=incarnation, offsets=offsets or {CLICKS: seq, BUYS: seq})
    return Marker(state, 1, journal_offset, 2)


def stamp(seq: int) -> Committed:
    return Committed({CLICKS: seq, BUYS: seq}, seq, 0)


# Brokers and topics


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (Cluster({1: "a:1"}, {"a:1": "refused"}, 1, (4, 1), None), "advertises it, takes no connection from here"),
        (Cluster({1: "a:1"}, {}, -1, (4, 1), None), "no controller"),
        (Cluster({1: "a:1"}, {}, 1, (2, 4), None), "Kafka 2.4"),
    ],
)
def test_a_cluster_that_cannot_serve_is_wrong(facts, said):
    first, *_ = cluster.brokers(facts)
    assert first.level == WRONG
    assert said in first.found


@pytest.mark.parametrize(
    ("partition", "level", "said"),
    [
        (Partition(3, -1, 3, 0), WRONG, "no leader for partition 3"),
        (Partition(3, 1, 3, 1), WRONG, "fewer replicas in sync than min.insync.replicas = 2"),
        (Partition(3, 1, 3, 2), WARNING, "replicas out of sync"),
        (Partition(3, 1, 3, 3), OK, "have a leader and all replicas"),
    ],
)
def test_partitions_are_judged_by_leader_and_replicas_in_sync(partition, level, said):
    (finding,) = cluster.partitions([topic(CLICKS, partition, min_insync_replicas="2")], 3)
    assert finding.level == level
    assert said in finding.found


def test_one_copy_where_there_could_be_more_is_a_warning():
    (first,) = cluster.partitions([topic(CLICKS, Partition(0, 1, 1, 1))], 3)
    assert (first.level, "kafka-reassign-partitions.sh" in first.remedy) == (WARNING, True)


@pytest.mark.parametrize(
    ("one", "remedy"),
    [
        (OpenTransaction((("__consumer_offsets", 3),), 7, f"{NAME}:w1", 45.0, 10.0), "application.instance 'w1' again"),
        (OpenTransaction(((CLICKS, 0),), 7, "importer", 45.0, 10.0), "its time-out has passed"),
        (OpenTransaction(((CLICKS, 0),), 7, "importer", 45.0, 900.0), "its own time-out of 15.0 min ends it"),
        (OpenTransaction(((CLICKS, 0),), 7, None, 45.0, None), "kafka-transactions.sh find-hanging"),
        (OpenTransaction(((CLICKS, 0),), None, None, None, None), "kafka-transactions.sh find-hanging"),
    ],
)
def test_a_transaction_open_for_too_long_names_who_can_end_it(one, remedy):
    (finding,) = cluster.transactions([one], SETTINGS)
    assert finding.level == WRONG
    assert remedy in finding.remedy


def test_a_transaction_open_for_no_longer_than_its_time_out_and_the_sweep_is_ok():
    limit_s = SETTINGS.kafka.transaction_timeout_s + cluster.SWEEP_S
    one = OpenTransaction(((CLICKS, 0),), 7, "importer", limit_s, 10.0)
    assert levels(cluster.transactions([one], SETTINGS)) == [OK]


@pytest.mark.parametrize(("usable", "level"), [(30 * GIB, OK), (19 * GIB, WARNING), (4 * GIB, WRONG), (None, WARNING)])
def test_a_disk_is_judged_by_its_free_share(usable, level):
    assert levels(cluster.disks([LogDir(1, "/data", 100 * GIB, usable, "")])) == [level]


def test_a_failed_disk_is_wrong():
    assert levels(cluster.disks([LogDir(1, "/data", None, None, "KafkaStorageError")])) == [WRONG]


def test_retention_by_size_that_may_take_what_waits_is_a_warning_and_of_the_journal_wrong():
    topics = {name: topic(name, retention_bytes="1000") for name in (CLICKS, BUYS, SETTINGS.topic("journal"))}
    extents = {(CLICKS, 0): Extent(0, 100, 100, None)}
    found = list(cluster.retention(SETTINGS, topics, extents, {0: Committed({CLICKS: 40}, 4, 0)}, {(CLICKS, 0): 0}))
    assert levels(found) == [WARNING, WRONG]
    assert "retention.bytes = 1,000 may remove it" in found[0].found


@pytest.mark.parametrize(("aged", "level"), [({}, OK), ({(CLICKS, 0): 40}, OK), ({(CLICKS, 0): 41}, WRONG)])
def test_what_waits_is_judged_by_its_age_unless_it_is_kept_for_ever(aged, level):
    topics = {name: topic(name) for name in (CLICKS, BUYS, SETTINGS.topic("journal"))}
    stamps = {0: Committed({CLICKS: 40}, 4, 0)}
    extents = {(CLICKS, 0): Extent(0, 100, 100, None)}
    assert levels(cluster.retention(SETTINGS, topics, extents, stamps, aged)) == [level]


# The group


@pytest.mark.parametrize(
    ("state", "members", "level", "said"),
    [
        ("Empty", (), WARNING, "no worker runs"),
        ("PreparingRebalance", (member(f"{NAME}-a"),), WARNING, "being handed over"),
        ("Stable", (member(f"{NAME}-a", 0), member(f"{NAME}-b")), WRONG, "nobody owns task 1"),
        ("Stable", (member(f"{NAME}-a", 0, 1), member(f"{NAME}-b")), WARNING, "though there are enough tasks"),
        ("Stable", (member(f"{NAME}-a", 0), member(f"{NAME}-b", 1), member(f"{NAME}-c")), WARNING, "no more tasks"),
        ("Stable", (member(f"{NAME}-a", 0), member("other-b", 1)), WRONG, "a stranger"),
        ("Stable", (member(f"{NAME}-a", 0), member(None, 1)), WRONG, "a stranger"),
        ("Stable", (member(f"{NAME}-a", 0), member(f"{NAME}-b", 1)), OK, "2 workers, 2 tasks"),
    ],
)
def test_members_are_judged_by_who_they_are_and_what_they_own(state, members, level, said):
    first, *_ = group.members(SETTINGS, Group(NAME, state, "range", members, None), 2)
    assert first.level == level
    assert said in first.found


def test_another_assignor_and_a_torn_task_are_wrong():
    torn = Member(f"{NAME}-a", "client", "h", {CLICKS: frozenset({0, 1}), BUYS: frozenset({0})})
    found = list(group.members(SETTINGS, Group(NAME, "Stable", "roundrobin", (torn,), None), 2))
    assert levels(found) == [WRONG, WRONG]


def test_workers_without_a_trainer_are_a_warning():
    nobody = Group(f"{NAME}.trainer", "Empty", "", (), None)
    assert [group.trainer(nobody, workers).level for workers in (True, False)] == [WARNING, OK]


def judged(committed: Any, before: Marker | None, after: Marker | None, journal: Extent | None = None) -> Finding:
    first, *_ = group.tasks(
        SETTINGS,
        1,
        {0: committed},
        {0: before._replace(partitions=1)} if before else {},
        {0: after._replace(partitions=1)} if after else {},
        {(SETTINGS.topic("journal"), 0): journal} if journal else {},
    )
    return first


def test_a_worker_that_goes_on_while_it_is_asked_is_neither_ahead_nor_behind():
    """Its store was at tick 5, then its offsets at 8, then its store at 11."""
    assert judged(stamp(8), marker(5), marker(11)).level == OK


def test_a_store_that_was_ahead_before_the_offsets_were_asked_is_refused():
    found = judged(stamp(8), marker(9), marker(9))
    assert found.level == WRONG
    assert "a worker would refuse: task 0: the store is at tick 9" in found.found


def test_a_store_still_behind_afterwards_is_told_with_what_the_journal_holds():
    kept, cut = Extent(0, 90, 90, None), Extent(40, 90, 90, None)
    assert "7 ticks behind" in judged(stamp(12), marker(5), marker(5), kept).found
    gap = judged(stamp(12), marker(5), marker(5), cut)
    assert (gap.level, "the journal begins at offset 40, after 11" in gap.found) == (WRONG, True)
    assert judged(stamp(12), None, None, cut).level == WARNING


def test_expired_offsets_are_a_warning_and_offsets_that_are_not_ours_wrong():
    assert "have expired" in judged(None, marker(5), marker(5)).found
    assert judged(Misconfigured("task 0: the offsets carry x"), marker(5), marker(5)).level == WRONG


def test_a_store_of_another_partition_count_is_refused():
    (finding,) = group.tasks(SETTINGS, 1, {0: stamp(5)}, {0: marker(5)}, {0: marker(5)}, {})
    assert "was stored with 2 partitions, the input topics have 1" in finding.found


def test_a_new_task_waits_for_what_is_kept_unless_it_starts_at_the_end():
    extents = {(name, 0): Extent(10, 30, 30, None) for name in (CLICKS, BUYS)}
    (early,) = group.lag(SETTINGS, extents, {0: None}, 1)
    (late,) = group.lag(builders.settings(kafka={"start_at": "latest"}), extents, {0: None}, 1)
    assert (early.found, late.found) == ("40 records waiting: task 0 40", "0 records waiting")


# Records and clocks


def test_a_journal_of_a_newer_release_and_of_another_application_are_wrong():
    header = {"v": SCHEMA, "schema": SCHEMA, "application": NAME, "config": SETTINGS.config_hash}
    assert levels(records.journals({0: header, 1: None}, SETTINGS)) == [OK]
    newer = header | {"v": SCHEMA + 1}
    assert levels(records.journals({0: newer}, SETTINGS)) == [WRONG]
    assert levels(records.journals({0: header | {"application": "x"}}, SETTINGS)) == [WRONG]
    assert levels(records.journals({0: header | {"config": "x"}}, SETTINGS)) == [OK, WARNING]


def test_events_of_the_future_and_stale_ones_are_warnings():
    def age(seconds: float) -> str:
        record_ms = round(builders.NOW - seconds * 1000)
        one = Record(CLICKS, 0, 0, record_ms, b"c-1", orjson.dumps(builders.body(time_ms=record_ms, userId="c-1")))
        (finding,) = records.inputs(SETTINGS, {CLICKS: [one]}, 1, builders.NOW)
        return finding.level

    assert [age(60), age(-60), age(7_200)] == [OK, WARNING, WARNING]


def test_an_order_to_forget_is_usable_and_lies_where_its_customer_belongs_or_not():
    order = Record(CLICKS, 0, 0, builders.NOW, b"c-1", None, ((FORGET_HEADER, b""),))
    assert [*records.inputs(SETTINGS, {CLICKS: [order]}, 1, builders.NOW)] == []
    (finding,) = records.inputs(SETTINGS, {CLICKS: [order._replace(partition=9_999)]}, 10_000, builders.NOW)
    assert (finding.level, "1 of its newest 1 usable records" in finding.found) == (WRONG, True)
    (finding,) = records.inputs(SETTINGS, {CLICKS: [order._replace(key=None)]}, 1, builders.NOW)
    assert (finding.level, "(1 no_customer)" in finding.found) == (WRONG, True)


def test_clocks_that_differ_are_warnings():
    now = builders.NOW
    assert [records.broker_clock(ms, now).level for ms in (now, now + 60_000, None)] == [OK, WARNING, WARNING]
    assert [store.clock(ahead_s, 5.0).level for ahead_s in (0.1, -60.0, 60.0)] == [OK, WARNING, WARNING]


# Redis


@pytest.mark.parametrize(
    ("info", "level"), [({"role": "slave"}, WRONG), ({"role": "master", "loading": 1}, WRONG), ({"role": "master"}, OK)]
)
def test_a_redis_that_cannot_be_written_is_wrong(info, level):
    first, *_ = store.server(RedisFacts(info, 0.001, 0.0), "redis://x")
    assert first.level == level


@pytest.mark.parametrize(
    ("used", "most", "policy", "level"),
    [
        (10, 0, "noeviction", OK),
        (10, 100, "noeviction", OK),
        (81, 100, "noeviction", WARNING),
        (96, 100, "noeviction", WRONG),
        (10, 100, "volatile-lru", WRONG),
        (10, 100, None, WARNING),
    ],
)
def test_memory_is_judged_by_policy_and_share(used, most, policy, level):
    (finding,) = store.memory({"used_memory": used, "maxmemory": most}, policy)
    assert finding.level == level


@pytest.mark.parametrize(
    ("info", "saves", "expected"),
    [
        ({"aof_enabled": 1}, "", [OK]),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "", [WRONG, OK]),
        ({"aof_enabled": 0, "rdb_last_bgsave_status": "err"}, "3600 1", [WRONG, OK]),
        ({"aof_enabled": 0}, "", [WARNING]),
        ({"aof_enabled": 0}, None, [WARNING]),
    ],
)
def test_persistence_is_judged_by_what_is_on_and_its_last_write(info, saves, expected):
    assert levels(store.persistence(info, saves)) == expected


def test_rights_that_cannot_be_asked_are_a_warning():
    assert levels(store.rights(Rights("bob", (), "may not ask"))) == [WARNING]


# The order of asking


class Fake:
    """Checks that answer as told, in place of the real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.checks: list[Check] = []
        monkeypatch.setattr(doctor, "CHECKS", self.checks)
        monkeypatch.setattr(doctor, "AGAIN_AFTER_S", 0.01)

    def add(self, name: str, *needs: str, failing: Exception | None = None, wait_s: float = 0.0) -> None:
        def ask(_: object) -> list[Finding]:
            self.asked.append(name)
            if wait_s:
                doctor.time.sleep(wait_s)
            if failing is not None:
                raise failing
            return [ok(name)]

        self.checks.append(Check(name, frozenset(needs), ask))

    def run(self) -> list[tuple[str, str]]:
        return [(name, finding.level) for name, finding in doctor.examine(None)]  # type: ignore[arg-type]


def test_a_server_that_does_not_answer_is_asked_nothing_more_and_the_other_is(monkeypatch):
    fake = Fake(monkeypatch)
    fake.add("brokers", doctor.KAFKA, failing=BrokerUnavailable("connecting: no answer; is Kafka running?"))
    fake.add("topics", doctor.KAFKA)
    fake.add("redis", doctor.REDIS)
    fake.add("tasks", doctor.KAFKA, doctor.REDIS)
    assert fake.run() == [("brokers", WRONG), ("redis", OK), ("not checked", WARNING)]
    assert fake.asked == ["brokers", "brokers", "redis"]  # the first twice: it might have been a blip


def test_a_check_that_hangs_is_left_and_its_server_asked_nothing_more(monkeypatch):
    fake = Fake(monkeypatch)
    monkeypatch.setattr(doctor, "CHECK_S", 0.1)
    fake.add("redis", doctor.REDIS, wait_s=0.5)
    fake.add("customers", doctor.REDIS)
    fake.add("brokers", doctor.KAFKA)
    assert fake.run() == [("redis", WRONG), ("brokers", OK), ("not checked", WARNING)]


def test_what_a_server_refuses_to_say_and_a_fault_of_the_check_itself_are_warnings(monkeypatch):
    fake = Fake(monkeypatch)
    fake.add("disks", doctor.KAFKA, failing=CannotTell("describing the disks: this user lacks the permission"))
    fake.add("faulty", doctor.KAFKA, failing=ZeroDivisionError("x"))
    fake.add("memory", doctor.REDIS, failing=StoreUnavailable("Redis: gone; is it running?"))
    fake.add("topics", doctor.KAFKA, failing=Misconfigured("a wrong password; check it"))
    assert fake.run() == [("disks", WARNING), ("faulty", WARNING), ("memory", WRONG), ("topics", WRONG)]
