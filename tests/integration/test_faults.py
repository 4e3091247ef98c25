"""Failures of everything around the worker, on the real broker and the real Redis; docs/delivery.md lists them.

Where data flow a test ends with the oracle. What a failure held up is measured: from the moment at which the server
answers again, or from the failure itself where nothing comes back, to the next committed tick.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from tests.integration.site import PARTITIONS, Running, Site, until
from tests.servers import KafkaCluster

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
