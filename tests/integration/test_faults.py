"""Failures of everything around the worker, on the real broker and the real Redis; docs/delivery.md lists them.

Where data flow a test ends with the oracle. What a failure held up is measured: from the moment at which the server
answers again, or from the failure itself where nothing comes back, to the next committed tick.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from kafka import KafkaAdminClient

from stream.backends.kafka import create_topics
from tests.integration.site import PARTITIONS, Running, Site, until
from tests.servers import KafkaCluster, KafkaServer, RedisServer

pytestmark = pytest.mark.servers

Delayed = Callable[[str, float], None]


def at_work(worker: Running, ticks: int = 8) -> None:
    """Until so many more ticks are committed."""
    before = len(worker.said("tick"))
    worker.wait_for(lambda: len(worker.said("tick")) >= before + ticks, f"{ticks} more ticks")


def next_tick(worker: Running, since: float) -> float:
    """Seconds from `since` (Unix) to the next committed tick."""

    def ticked() -> float:
        return next((line["at"] for line in worker.said("tick") if line["at"] > since), 0.0)

    return float(worker.wait_for(ticked, "a tick")) - since


# The broker


def test_a_broker_restarted_with_ticks_in_flight_holds_the_worker_up_and_loses_nothing(site, kafka_server, delayed):
    site.feed()
    worker = site.worker()
    at_work(worker)
    kafka_server.restart()
    delayed("broker restarted, after it answers again", next_tick(worker, time.time()))
    site.finish(worker)


def test_a_broker_killed_under_a_worker_holds_it_up_and_loses_nothing(site, kafka_server, delayed):
    site.feed(0.4)
    worker = site.worker()
    site.wait_for_the_end(worker)
    for task in range(PARTITIONS):
        site.saved(task)  # readable and applied: a node killed within a commit may freeze its last stable offset
    kafka_server.kill()
    time.sleep(1.0)
    kafka_server.start()
    began = time.time()
    site.feed()
    delayed("broker killed, after it answers again", next_tick(worker, began))
    site.finish(worker)


@pytest.mark.parametrize("silent_s", [4, 12], ids=["within the session", "beyond session and transaction"])
def test_a_commit_whose_outcome_is_unknown_is_decided_before_anything_goes_on(site, kafka_server, delayed, silent_s):
    site.set(KAFKA__COMMIT_TIMEOUT_S="2")
    site.feed()
    worker = site.worker("w1", "--freeze-at", "in-transaction:12:0.5")
    worker.wait_for(lambda: worker.said("frozen"), "frozen inside its transaction")
    kafka_server.pause()
    try:
        worker.wait_for(lambda: '"reason":"unknown"' in worker.errors, "the watchdog")
        time.sleep(silent_s - 2)
    finally:
        kafka_server.resume()
    delayed(f"outcome unknown, broker silent for {silent_s} s, after it answers again", next_tick(worker, time.time()))
    site.finish(worker)


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def on_cluster(cluster: KafkaCluster, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(cluster.bootstrap_servers, redis_url, tmp_path, replication=3)
    yield site
    site.close()


def leader(cluster: KafkaCluster, topic: str, partition: int) -> int:
    """Node id of a partition's leader, once every replica is in sync."""

    def found() -> int:
        with KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers) as admin:
            described = admin.describe_topics([topic])[0]["partitions"]
        if any(len(one["isr_nodes"]) < 3 for one in described):
            return 0
        return next(one["leader_id"] for one in described if one["partition_index"] == partition)

    return int(until(found, f"all replicas of {topic} in sync"))


def partition_of(key: str, partitions: int = 4) -> int:
    """Where a coordinator's topic keeps a group or a transactional id: Java's hash of the string."""
    value = 0
    for letter in key:
        value = (31 * value + ord(letter)) & 0xFFFFFFFF
    return (value & 0x7FFFFFFF) % partitions


def test_a_worker_goes_on_when_any_broker_of_three_is_killed(on_cluster, cluster, delayed):
    site = on_cluster
    site.feed(0.1)
    worker = site.worker()
    at_work(worker)
    site.wait_for_the_end(worker)
    for what, topic, partition, share in (
        ("leader of an input partition", site.settings.topics.clickstream, 0, 0.4),
        ("coordinator of the group", "__consumer_offsets", partition_of(site.name), 0.7),
        ("coordinator of the transactions", "__transaction_state", partition_of(f"{site.name}-w1"), 1.0),
    ):
        node = cluster.node(leader(cluster, topic, partition))
        site.feed(share)
        at_work(worker)
        node.kill()
        began = time.time()
        delayed(f"{what} killed, two brokers left", next_tick(worker, began))
        site.wait_for_the_end(worker)
        delayed(f"{what} killed, until all is committed", time.time() - began)
        node.start()
    site.finish(worker)


# Redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """One that takes 2 ms a key to read its data when it starts, and answers meanwhile that it does."""
    slow = {"key-load-delay": "2000", "loading-process-events-interval-bytes": "1024"}
    with RedisServer(appendonly=True, options=slow) as server:
        yield server


@pytest.fixture
def on_own_redis(kafka_bootstrap: str, own_redis: RedisServer, tmp_path: Path) -> Iterator[Site]:
    site = Site(kafka_bootstrap, own_redis.url, tmp_path)
    yield site
    site.close()


def until_it_says(worker: Running, words: str) -> None:
    """Until the worker's log has these words once more."""
    before = worker.errors.count(words)
    worker.wait_for(lambda: worker.errors.count(words) > before, words)


def test_a_redis_that_is_slow_full_or_still_loading_is_waited_for_and_named(on_own_redis, own_redis, delayed):
    site = on_own_redis
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    with site.redis() as client:
        client.client_pause(600)
        site.feed(0.4)
        site.wait_for_the_end(worker)
        assert "recovering" not in worker.errors, "redis.timeout_s is 1 s"

        client.client_pause(2_500)
        began = time.time()
        site.feed(0.5)
        until_it_says(worker, "redis.timeout_s is how long a call waits")
        delayed("Redis silent for 2.5 s, timeout_s 1, after it answers again", next_tick(worker, began + 2.5))

        client.config_set("maxmemory", "1")
        site.feed(0.6)
        until_it_says(worker, "raise its maxmemory")
        client.config_set("maxmemory", "0")
        delayed("Redis out of memory, after it has room", next_tick(worker, time.time()))
        site.wait_for_the_end(worker)
        client.mset({f"somebody else's {i}": os.urandom(1_500) for i in range(1_500)})
        client.bgrewriteaof()
        until(lambda: client.info("persistence")["aof_rewrites"] > 0, "its data in one file")
    site.feed(0.7)
    own_redis.kill()
    own_redis.start(wait=False)
    until_it_says(worker, "it reads its data after a start")
    own_redis.start()
    delayed("Redis loading, after it answers", next_tick(worker, time.time()))
    site.feed()
    site.finish(worker)


def test_a_redis_that_denies_a_command_stops_the_worker_with_the_grant_that_lacks(site):
    site.feed(0.1)
    with site.redis() as client:
        client.acl_setuser("narrow", enabled=True, passwords=["+narrow"], categories=["+@all"], commands=["-set"])
        try:
            site.set(REDIS__URL=site.redis_url.replace("redis://", "redis://narrow:narrow@"))
            refused = site.command("run")
            assert refused.end() == 1, refused.errors
            said = refused.errors.splitlines()[-1]
            assert "ACL SETUSER narrow +@connection +@read +@write +@scripting" in said, said
            granted = said.partition("ACL SETUSER narrow ")[2].split()
            client.execute_command("ACL", "SETUSER", "narrow", "-@all", *granted)
            site.feed()
            site.finish(site.worker())
        finally:
            client.acl_deluser("narrow")


def test_a_redis_failed_over_to_a_replica_that_lagged_is_brought_level_from_the_journal(
    kafka_bootstrap, tmp_path, delayed
):
    with (
        RedisServer(appendonly=True, options={"unixsocket": f"{tmp_path}/first.sock"}) as first,
        RedisServer(appendonly=True, options={"unixsocket": f"{tmp_path}/second.sock"}) as second,
        redis.Redis.from_url(first.url) as primary,
        redis.Redis.from_url(second.url) as replica,
    ):
        # The name that redis.url has: a failover makes it lead to another server.
        name = tmp_path / "redis.sock"
        name.symlink_to(tmp_path / "first.sock")
        site = Site(kafka_bootstrap, f"unix://{name}", tmp_path)
        try:
            replica.replicaof("127.0.0.1", first.port)
            until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica in step")
            site.feed(0.3)
            worker = site.worker()
            site.wait_for_the_end(worker)
            until(lambda: primary.wait(1, 1_000) == 1, "the replica in step")
            replica.replicaof("127.0.0.1", 1)  # it hears of nothing more
            behind = site.seq()
            site.feed(0.7)
            site.wait_for_the_end(worker)
            until(lambda: site.seq() > behind, "ticks to lose")

            replica.replicaof("NO", "ONE")
            primary.replicaof("127.0.0.1", second.port)
            (tmp_path / "new").symlink_to(tmp_path / "second.sock")
            (tmp_path / "new").rename(name)
            began = time.time()
            assert site.seq() == behind, "the replica was to lag"
            site.feed()
            delayed("Redis failed over to a replica that lagged", next_tick(worker, began))
            assert "point redis.url at the primary" in worker.errors, "its connection led to the former primary"
            site.finish(worker)
        finally:
            site.close()


# One without the other


def test_a_redis_without_its_kafka_is_refused_with_the_command_that_keeps_its_customers(site, tmp_path):
    site.feed(0.5)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with KafkaServer() as other:
        moved = Site(other.bootstrap_servers, site.redis_url, tmp_path, name=site.name)
        try:
            refused = moved.command("run")
            assert refused.end() == 1, refused.errors
            said = refused.errors.splitlines()[-1]
            assert "This Redis belongs to another Kafka" in said, said
            assert "`driftline rewind --to earliest --keep-customers`" in said, said
        finally:
            moved.close()
    site.feed()
    site.finish(site.worker())


def test_input_topics_created_anew_are_refused_with_the_command_that_keeps_the_customers(site):
    site.feed(0.5)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.delete_topics(list(site.settings.inputs))
        until(lambda: not set(site.settings.inputs) & set(admin.list_topics()), "the topics gone")
    create_topics(site.settings, PARTITIONS, 1)
    refused = site.command("run")
    assert refused.end() == 1, refused.errors
    said = refused.errors.splitlines()[-1]
    assert f"{site.settings.topics.clickstream}-" in said, said
    assert "`driftline rewind --to earliest --keep-customers`" in said, said


# Topics and permissions


@pytest.mark.parametrize("kind", ["alerts", "models"])
def test_a_topic_that_is_missing_stops_a_worker_before_it_reads_anything(site, kind):
    topic = site.settings.topic(kind)
    delete(site, topic)
    refused = site.command("run")
    assert refused.end() == 1, refused.errors
    said = refused.errors.splitlines()[-1]
    assert topic in said, said
    assert "`driftline topics create`" in said, said


def delete(site: Site, topic: str) -> None:
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics(), f"{topic} gone")


def test_a_topic_deleted_under_a_worker_stops_it_and_once_created_again_nothing_lacks(site, delayed):
    site.set(KAFKA__COMMIT_TIMEOUT_S="5")
    site.feed(0.5)
    worker = site.worker()
    site.wait_for_the_end(worker)
    topic = site.settings.topic("dead_letters")
    delete(site, topic)
    site.shop.bad.clear()  # with their topic
    began = time.time()
    site.feed()
    assert worker.end() == 1, worker.errors
    delayed("a topic deleted, until the worker says so", time.time() - began)
    said = worker.errors.splitlines()[-1]
    assert f"the topic {topic} does not exist: run `driftline topics create`" in said, said
    assert site.command("topics", "create").end() == 0
    site.finish(site.worker())


@pytest.mark.parametrize("topics", [1, 2], ids=["to one input", "to both inputs"])
def test_partitions_added_to_an_input_under_a_worker_stop_it(site, topics, delayed):
    site.feed(0.2)
    worker = site.worker("w1", "--metadata-s", "2")
    site.wait_for_the_end(worker)
    began = time.time()
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.create_partitions(dict.fromkeys(site.settings.inputs[:topics], PARTITIONS + 2))
    assert worker.end() == 1, worker.errors
    delayed(f"partitions added to {topics} input(s), metadata 2 s old at most", time.time() - began)
    assert "partitions were added" in worker.errors.splitlines()[-1], worker.errors
    again = site.command("run")
    assert again.end() == 1, again.errors
    assert "partitions" in again.errors.splitlines()[-1], again.errors
