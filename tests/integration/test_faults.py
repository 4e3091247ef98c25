"""Failures of everything around the worker, on the real broker and the real Redis; docs/delivery.md lists them.

Where data flow a test ends with the oracle. What a failure held up is measured: from the moment at which the server
answers again, or from the failure itself where nothing comes back, to the next committed tick.
"""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn

import orjson
import pytest
import redis
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    ResourcePattern,
    ResourceType,
)

from stream.backends.kafka import KafkaTopic, create_topics
from stream.events import Event, EventRules
from stream.processing import clock
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import DAY_MS, HOUR_MS, Counts, Sent, Shop
from tests.integration.site import PARTITIONS, Running, Site, both_clients, get, partition_of, until
from tests.servers import KafkaCluster, KafkaServer, RedisServer, ServerUnavailable
from tests.servers.server import free_port

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


@both_clients
def test_a_broker_restarted_with_ticks_in_flight_holds_the_worker_up_and_loses_nothing(site, kafka_server, delayed):
    site.feed()
    worker = site.worker()
    at_work(worker)
    kafka_server.restart()
    delayed("broker restarted, after it answers again", next_tick(worker, time.time()))
    site.finish(worker)


@both_clients
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


@both_clients
@pytest.mark.parametrize(
    "silent_s",
    [
        pytest.param(4, id="within the session"),
        pytest.param(12, id="beyond session and transaction"),
    ],
)
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


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def on_cluster(cluster: KafkaCluster, redis_url: str, tmp_path: Path, client: str) -> Iterator[Site]:
    site = Site(cluster.bootstrap_servers, redis_url, tmp_path, replication=3, KAFKA__CLIENT=client)
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


@both_clients
def test_a_worker_goes_on_when_any_broker_of_three_is_killed(on_cluster, cluster, delayed):
    site = on_cluster
    site.feed(0.1)
    worker = site.worker()
    site.wait_for_the_end(worker)
    for what, topic, partition, share in (
        ("leader of an input partition", site.settings.topics.clickstream, 0, 0.4),
        ("coordinator of the group", "__consumer_offsets", partition_of(site.name), 0.7),
        ("coordinator of the transactions", "__transaction_state", partition_of(f"{site.name}:w1"), 1.0),
    ):
        node = cluster.node(leader(cluster, topic, partition))
        site.feed(share)
        at_work(worker, 4)
        node.kill()
        began = time.time()
        took_s = next_tick(worker, began)
        delayed(f"{what} killed, two brokers left", took_s)
        assert took_s < site.settings.kafka.commit_timeout_s, "a transaction hung until its watchdog"
        site.wait_for_the_end(worker)
        node.start()
    site.finish(worker)


def test_the_end_of_a_topic_is_asked_of_a_new_leader_while_the_former_one_lives(on_cluster, cluster):
    topic = on_cluster.settings.topic("journal")
    place = TopicPartition(topic, 0)
    with closing(KafkaTopic(on_cluster.settings, topic)) as journal:
        assert journal.end(0) == 0
        former = leader(cluster, topic, 0)
        with KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers) as admin:
            admin.alter_partition_reassignments({place: [*({1, 2, 3} - {former}), former]})

            def moved() -> bool:
                admin.elect_leaders(0, {topic: [0]}, raise_errors=False)  # those that are named first
                return leader(cluster, topic, 0) != former

            until(moved, "another leader")
        assert journal.end(0) == 0


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
            assert "ACL SETUSER narrow ~{" in said, said
            granted = said.partition("ACL SETUSER narrow ")[2].split()
            client.execute_command("ACL", "SETUSER", "narrow", "-@all", *granted)
            site.feed()
            worker = site.worker()
            site.set(REDIS__URL=site.redis_url)  # the oracle looks at more than a worker may
            site.finish(worker)
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


@both_clients
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


@both_clients
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


@both_clients
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


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[KafkaServer, str]]:
    """A Kafka with a second address, where the user `worker` may do what no access list says otherwise."""
    server, address = KafkaServer(), f"127.0.0.1:{free_port()}"
    plain = f"PLAINTEXT://{server.bootstrap_servers},SASL://{address}"
    server.changed = {
        "listeners": f"{plain},CONTROLLER://127.0.0.1:{server.controller_port}",
        "advertised.listeners": plain,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule required "
        'user_worker="secret";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",
    }
    with server:
        yield server, address


@both_clients
@pytest.mark.parametrize(
    ("kind", "name", "remedy"),
    [
        (ResourceType.TOPIC, "{0}.clicks", "DESCRIBE and READ on the topic"),
        (ResourceType.TOPIC, "{0}.alerts", "grant this user WRITE"),
        (ResourceType.GROUP, "{0}", "READ on the consumer groups"),
        (ResourceType.TRANSACTIONAL_ID, "{0}:w1", "WRITE on the transactional ids"),
    ],
    ids=["input", "alerts", "group", "transactional id"],
)
def test_a_permission_that_lacks_stops_the_worker_with_its_name(
    guarded, redis_url, tmp_path, client, kind, name, remedy
):
    server, address = guarded
    site = Site(server.bootstrap_servers, redis_url, tmp_path, KAFKA__CLIENT=client)
    try:
        site.feed(0.3)
        pattern = ResourcePattern(kind, name.format(site.name))
        may_see = ACL("User:worker", "*", ACLOperation.DESCRIBE, ACLPermissionType.ALLOW, pattern)
        with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
            admin.create_acls([may_see])
        site.set(
            KAFKA__BOOTSTRAP_SERVERS=address,
            KAFKA__SECURITY_PROTOCOL="SASL_PLAINTEXT",
            KAFKA__SASL_MECHANISM="PLAIN",
            KAFKA__SASL_USERNAME="worker",
            KAFKA__SASL_PASSWORD="secret",
        )
        refused = site.command("run")
        assert refused.end() == 1, refused.errors
        said = refused.errors.splitlines()[-1]
        assert pattern.resource_name in said, said
        assert remedy in said, said
    finally:
        site.close()


# Large records


def test_records_of_ten_megabytes_are_counted_or_set_aside_cut_off(site):
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        large = {"max.message.bytes": "10485760"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, large) for name in site.settings.inputs])
    site.feed()
    clicks, size = site.settings.topics.clickstream, 10_400_000
    now_ms = time.time_ns() // 1_000_000
    event = {"event": "Product Viewed", "messageId": "large", "userId": "c-000", "timestamp": now_ms}
    good = orjson.dumps(event | {"properties": {"note": "x" * size}})
    for value, gain in ((good, ("c-000", Counts(1))), (b"{" * size, None)):
        reason = None if gain else "undecodable"
        site.shop.send(
            site.bootstrap,
            Sent(now_ms, clicks, site.shop.place("c-000"), b"c-000", value, (("h", b"1"),), reason),
            gain,
            max_request_size=11_000_000,
        )
    seen = site.finish(site.worker())
    assert [one for one in seen.letters if dict(one.headers).get("driftline-truncated")]


def test_a_worker_killed_with_a_tick_of_several_journal_records_goes_on_exactly(site):
    site.set(TICK__MAX_EVENTS="10000", TICK__MAX_SPAN_HOURS="168", MODELS__HORIZON_DAYS="28")
    site.shop = Shop(*site.settings.inputs, partitions=PARTITIONS, customers=6_000, days=2.0)
    site.feed()
    killed = site.worker("w1", "--kill-at", "in-transaction:1")
    assert killed.end() == -signal.SIGKILL, killed.errors
    seen = site.finish(site.worker())
    assert max(len(one.data) for ticks in seen.ticks.values() for one in ticks) > 900_000


# Disks


@pytest.fixture
def small_disk(tmp_path: Path, did_not_run: Callable[..., NoReturn]) -> Iterator[Path]:
    """A file system of 48 MB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        did_not_run("a full disk", ServerUnavailable("no small file system can be mounted", "Run as root on Linux."))
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room; deleting the file makes room."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    return ballast


def test_a_kafka_whose_disk_is_full_is_waited_for_and_once_it_has_room_nothing_lacks(
    small_disk, redis_url, tmp_path, delayed
):
    with KafkaServer(data=small_disk / "kafka") as server:
        site = Site(server.bootstrap_servers, redis_url, tmp_path)
        try:
            site.set(KAFKA__COMMIT_TIMEOUT_S="5")
            site.feed()
            worker = site.worker()
            at_work(worker)
            ballast = fill(small_disk)
            worker.wait_for(lambda: "is Kafka running" in worker.errors or "had no answer" in worker.errors, "missed")
            ballast.unlink()
            server.kill()
            server.start()
            delayed("Kafka's disk full, after it is restarted with room", next_tick(worker, time.time()))
            site.finish(worker)
        finally:
            site.close()


def test_a_redis_whose_disk_is_full_is_waited_for_and_once_it_has_room_nothing_lacks(
    small_disk, kafka_bootstrap, tmp_path, delayed
):
    with RedisServer(appendonly=True, data=small_disk) as server:
        site = Site(kafka_bootstrap, server.url, tmp_path)
        try:
            site.feed(0.4)
            worker = site.worker()
            site.wait_for_the_end(worker)
            ballast = fill(small_disk)
            site.feed(0.7)
            until_it_says(worker, "make room on its disk")
            ballast.unlink()
            delayed("Redis's disk full, after it has room", next_tick(worker, time.time()))
            site.feed()
            site.finish(worker)
        finally:
            site.close()


# Time


def check_no_timer_overtook_a_queue(seen: Seen) -> None:
    """Nobody is looked at for being silent while records of theirs from before that moment are still unread."""
    for task, ticks in seen.ticks.items():
        queued = [
            (topic, record.offset, event.customer, event.time_ms)
            for topic in seen.settings.inputs
            for record in seen.inputs[topic, task]
            if isinstance(event := clock.read(record, EventRules("USD")).outcome, Event)
        ]
        for _, entry, _ in ticks:
            woken, now_ms = set(entry.wakes), entry.state.stream_time_ms
            overtaken = [
                one for one in queued if one[2] in woken and one[3] < now_ms and one[1] >= entry.state.offsets[one[0]]
            ]
            assert not overtaken, f"task {task}, tick {entry.seq} at {now_ms}: {overtaken}"


def test_while_one_topic_lags_three_hours_no_timer_overtakes_its_orders_and_a_silent_one_lets_go(site, delayed):
    idle_s = 5.0
    site.set(TICK__IDLE_AFTER_S=str(idle_s), TICK__MAX_SPAN_HOURS="1")
    purchases, clicks = site.settings.topics.purchases, site.settings.topics.clickstream
    site.shop.hold_back(purchases, 3 * HOUR_MS)
    site.feed(0.3)
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")

    def behind(topic: str) -> int:
        committed, ends = site.committed(), site.shop.ends()
        return sum(ends[place] - committed[place] for place in ends if place[0] == topic)

    for share in (0.5, 0.7, 0.85):
        worker.wait_for(lambda: behind(purchases) == 0, "all orders read")
        assert behind(clicks) > 0, "the topic that is ahead was to wait"
        site.feed(share)
    site.feed()
    site.wait_for_the_end(worker)

    now_ms, key = time.time_ns() // 1_000_000, site.shop.place("c-000")
    for topic, name, time_ms in ((purchases, "last order", now_ms), (clicks, "last view", now_ms + 2)):
        body = {"event": "Product Viewed", "messageId": name, "userId": "c-000", "timestamp": time_ms}
        site.shop.send(site.bootstrap, Sent(time_ms, topic, key, b"c-000", orjson.dumps(body)), ("c-000", Counts(1)))
    worker.wait_for(lambda: behind(purchases) == 0, "the order read")
    began = time.time()
    site.wait_for_the_end(worker)
    waited_s = time.time() - began
    assert idle_s - 2 < waited_s < idle_s + 2
    delayed(f"a topic falls silent, idle_after_s {idle_s:g}", waited_s)
    check_no_timer_overtook_a_queue(site.finish(worker))


def test_a_clock_days_ahead_is_clamped_and_counted_and_nobody_goes_silent(site):
    site.feed()
    ahead_s = site.settings.tick.max_ahead_s
    now_ms = time.time_ns() // 1_000_000
    for customer in ("c-000", "c-001", "c-002", "c-003"):
        for days in (1, 5, 400):
            body = {"event": "Product Viewed", "messageId": f"{customer} in {days} days", "userId": customer}
            value = orjson.dumps(body | {"timestamp": now_ms + days * DAY_MS})
            place = site.shop.place(customer)
            sent = Sent(now_ms, site.settings.topics.clickstream, place, customer.encode(), value)
            site.shop.send(site.bootstrap, sent, (customer, Counts(1)))
    run = site.command("run")
    line = run.wait_for(lambda: [one for one in run.errors.splitlines() if '"http_port"' in one], "the port")
    site.wait_for_the_end(run)
    clamped = [
        line
        for line in get(orjson.loads(line[0])["http_port"], "/metrics")[1].splitlines()
        if line.startswith('driftline_events_adjusted_total{reason="clamped"}')
    ]
    assert clamped == ['driftline_events_adjusted_total{reason="clamped"} 12.0']
    assert run.stop() == 0, run.errors
    seen = oracle.check(site.settings, site.shop)
    last_ms = max(ticks[-1].entry.state.stream_time_ms for ticks in seen.ticks.values())
    assert last_ms <= time.time_ns() // 1_000_000 + ahead_s * 1000
    check_no_timer_overtook_a_queue(seen)


def test_history_of_years_ago_keeps_its_own_time_though_its_records_are_new(site):
    site.shop = Shop(*site.settings.inputs, partitions=PARTITIONS, days_ago=3_300)
    site.feed()
    seen = site.finish(site.worker())
    last_ms = max(sent.time_ms for sent in site.shop.records)
    for ticks in seen.ticks.values():
        assert not any(one.entry.state.live for one in ticks)
        assert ticks[-1].entry.state.stream_time_ms <= last_ms, "silence followed the wall clock"
    assert seen.alerts
    check_no_timer_overtook_a_queue(seen)


def test_lost_orders_of_all_customers_are_one_wave_a_day_and_not_an_alert_each(site):
    site.set(
        ALERTS__WAVE_MIN="1",
        ALERTS__WAVE_SHARE="0.001",
        ALERTS__CHURN_ENTER="0.4",  # a model that learns in time sees that it is the shop, and says little more
        ALERTS__CHURN_RISEN="0",
        MODELS__HORIZON_DAYS="2",
        TICK__MAX_SPAN_HOURS="2",
        TICK__MAX_EVENTS="2000",
    )
    site.shop = Shop(*site.settings.inputs, partitions=PARTITIONS, customers=450, days=24.0, garbage=False)
    site.shop.lose_orders(days=6.0)
    site.feed()
    seen = site.finish(site.worker())
    waves = 0
    for task, ticks in seen.ticks.items():
        of_day: Counter[str] = Counter()
        for _, entry, _ in ticks:
            alerts = [orjson.loads(alert.value) for alert in entry.alerts]
            kinds = {alert["data"]["kind"] for alert in alerts}
            of_day.update(alert["time"][:10] for alert in alerts if alert["data"]["kind"] == "churn_wave")
            assert not {"churn_wave", "churn_risk"} <= kinds, f"task {task}, tick {entry.seq}"
        assert max(of_day.values(), default=0) <= 1, f"task {task}: {of_day}"
        waves += sum(of_day.values())
    assert waves, "no wave was noticed"


# Two workers


@both_clients
@pytest.mark.parametrize("step", ["before-commit", "in-transaction", "before-apply", "mid-apply"])
def test_a_worker_frozen_at_any_point_while_another_takes_over_changes_nothing_when_it_thaws(site, step, delayed):
    site.set(KAFKA__TRANSACTION_TIMEOUT_S="6")
    site.feed()
    frozen = site.worker("a", "--freeze-at", f"{step}:5:1")
    frozen.wait_for(lambda: frozen.said("frozen"), "frozen", 30)
    frozen.process.send_signal(signal.SIGSTOP)
    began, lines = time.time(), len(frozen.lines())
    assert not frozen.said("thawed"), "the signal came too late"
    other = site.worker("b")
    delayed(f"a worker frozen {step}, until another goes on (session and transaction 6 s)", next_tick(other, began))
    at_work(other)
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for(lambda: frozen.said("recovering", lines), "the loss noticed", 30)
    site.wait_for_the_end(other)
    assert frozen.stop() == 0, frozen.errors
    site.finish(other)


@both_clients
def test_the_tasks_of_a_worker_that_leaves_for_good_go_on_at_once(site, delayed):
    site.set(KAFKA__LEAVE_ON_STOP="true")
    site.feed(0.3)
    first, second = site.worker("a"), site.worker("b")
    for worker in (first, second):
        worker.wait_for(lambda worker=worker: any(line["tasks"] for line in worker.said("ready")), "tasks")
    site.wait_for_the_end(first)
    began = time.time()
    assert first.stop() == 0, first.errors
    second.wait_for(lambda: second.said("ready")[-1]["tasks"] == [0, 1, 2], "all tasks")
    took_s = time.time() - began
    delayed("a worker told to stop with leave_on_stop, session 6 s", took_s)
    assert took_s < 4
    site.feed()
    site.finish(second)
