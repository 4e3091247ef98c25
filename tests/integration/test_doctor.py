"""`driftline doctor` on a real Kafka and a real Redis, in order and in every kind of disorder."""

import socket
import time
from typing import Any

import orjson
import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    ResourcePattern,
    ResourceType,
)
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import KafkaQuestions
from stream.backends.kafka.offsets import members
from stream.diagnosis import OK, WARNING, WRONG
from stream.errors import Misconfigured
from stream.privileges import REDIS_COMMANDS, redis_rule
from tests.integration.site import PARTITIONS, Site, until
from tests.servers import KafkaServer, RedisServer

pytestmark = pytest.mark.servers

NOBODY = "127.0.0.1:1"


class Report:
    """What doctor said, by check."""

    def __init__(self, site: Site) -> None:
        began = time.monotonic()
        running = site.command("doctor", "--json")
        self.code = running.end()
        self.took_s = time.monotonic() - began
        self.errors, self.output = running.errors, running.output
        assert self.code in (0, 1), self.errors
        self.findings: list[dict[str, Any]] = orjson.loads(self.output)["findings"]

    def of(self, check: str, level: str) -> str:
        """What a check found at a level, with the remedies."""
        return "\n".join(
            f"{one['found']} → {one['remedy']}"
            for one in self.findings
            if (one["check"], one["level"]) == (check, level)
        )

    def all(self, level: str) -> list[tuple[str, str]]:
        return [(one["check"], one["found"]) for one in self.findings if one["level"] == level]


def worked(site: Site) -> None:
    """A whole run, ended in order."""
    site.feed()
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    site.expel("w1")


def admin(site: Site) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=site.bootstrap)


def alter(site: Site, topic: str, **configs: str) -> None:
    values = {name.replace("_", "."): value for name, value in configs.items()}
    with admin(site) as client:
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, values)])


def test_all_is_well_while_a_worker_runs_and_after_it(site):
    site.feed()
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    site.wait_for_the_end(worker)
    keys = site.redis().dbsize()
    with admin(site) as client:
        topics, groups = set(client.list_topics()), {one["group_id"] for one in client.list_groups()}

    running = Report(site)

    assert (running.all(WRONG), running.code) == ([], 0), running.findings
    assert f"{site.name}-w1 on 127.0.0.1 (tasks 0, 1, 2)" in running.of("members", OK)
    assert "0 records waiting" in running.of("lag", OK)
    assert "3 tasks level with the committed offsets" in running.of("tasks", OK)
    assert f"{len(site.shop.counts)} customers in 3 tasks, {len(site.shop.counts) + 6} keys" in running.of(
        "customers", OK
    )
    assert f"{site.name}-w1 on 127.0.0.1 learns" in running.of("trainer", OK)
    assert "version " in running.of("models", OK)
    assert "Kafka 4." in running.of("brokers", OK)
    assert "may do what a worker does" in running.of("redis rights", OK)
    assert "this user may read and write its topics and groups" in running.of("permissions", OK)
    assert "not ahead" in running.of("brokers' clocks", OK)
    assert {check for check, _ in running.all(WARNING)} <= {"partitions", "events", "brokers' disks", "local disk"}

    assert worker.stop() == 0, worker.errors
    site.expel("w1")
    ended = Report(site)
    assert (ended.all(WRONG), ended.code) == ([], 0), ended.findings
    assert "no worker runs" in ended.of("members", WARNING)

    with admin(site) as client:  # nothing was changed by asking
        assert set(client.list_topics()) == topics
        assert {one["group_id"] for one in client.list_groups()} == groups
    assert site.redis().dbsize() == keys


def test_before_anything_ran_nothing_is_wrong(site):
    report = Report(site)
    assert report.all(WRONG) == []
    assert "3 new" in report.of("tasks", OK)
    assert "the journal is empty" in report.of("journal", OK)


def test_an_unreachable_kafka_does_not_hide_the_checks_of_redis(site):
    site.set(KAFKA__BOOTSTRAP_SERVERS=NOBODY)
    report = Report(site)
    assert report.code == 1
    assert f"bootstrap server {NOBODY} takes no connection" in report.of("brokers", WARNING)
    assert "is Kafka running, and is kafka.bootstrap_servers right?" in report.of("brokers", WRONG)
    assert "noeviction" in report.of("redis memory", OK)
    assert "tasks" in report.of("not checked", WARNING)
    assert report.took_s < 20


def test_a_bootstrap_server_that_is_down_beside_one_that_is_up_is_named(site):
    site.set(KAFKA__BOOTSTRAP_SERVERS=f"{NOBODY},{site.bootstrap}")
    report = Report(site)
    assert (report.code, report.all(WRONG)) == (0, [])
    assert f"bootstrap server {NOBODY} takes no connection" in report.of("brokers", WARNING)


def test_an_unreachable_redis_does_not_hide_the_checks_of_kafka_and_its_password_is_never_shown(site):
    site.set(REDIS__URL="redis://somebody:geheim@127.0.0.1:1/0", KAFKA__SASL_PASSWORD="verschwiegen")
    report = Report(site)
    assert report.code == 1
    assert "is it running, and is redis.url right?" in report.of("redis", WRONG)
    assert "0 records waiting" in report.of("lag", OK)
    assert "DRIFTLINE_KAFKA__SASL_PASSWORD=***" in report.of("settings", OK)
    for secret in (b"geheim", b"verschwiegen"):
        assert secret not in report.output + report.errors.encode()


def test_servers_that_take_connections_and_do_not_answer_hold_it_up_for_seconds_only(
    site, kafka_server: KafkaServer, redis_server: RedisServer
):
    kafka_server.pause()
    redis_server.pause()
    try:
        report = Report(site)
    finally:
        kafka_server.resume()
        redis_server.resume()
    assert report.code == 1
    assert report.took_s < 40
    assert report.of("brokers", WRONG)
    assert report.of("redis", WRONG)


def test_a_wrong_password_is_told_and_not_shown(site):
    site.set(REDIS__URL=site.redis_url.replace("redis://", "redis://default:falsch@"))
    with site.redis() as client:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">richtig", "on")
    try:
        report = Report(site)
    finally:
        with redis.Redis.from_url(site.redis_url, password="richtig") as client:
            client.execute_command("ACL", "SETUSER", "default", "nopass")
    assert "check user and password in redis.url" in report.of("redis", WRONG)
    assert b"falsch" not in report.output + report.errors.encode()


def test_a_user_who_lacks_commands_and_keys_is_told_which(site):
    with site.redis() as client:
        client.execute_command("ACL", "SETUSER", "bob", "on", ">pw", "~*", "+@all", "-zadd", "-config")
        client.execute_command("ACL", "SETUSER", "eve", "on", ">pw", "~*", "+@all", "-acl", "+acl|whoami")
    try:
        site.set(REDIS__URL=site.redis_url.replace("redis://", "redis://bob:pw@"))
        assert "user 'bob' may not: ZADD" in Report(site).of("redis rights", WRONG)
        site.set(REDIS__URL=site.redis_url.replace("redis://", "redis://eve:pw@"))
        assert "may not ask what it may do" in Report(site).of("redis rights", WARNING)
    finally:
        with site.redis() as client:
            client.execute_command("ACL", "DELUSER", "bob", "eve")


def test_a_redis_user_with_doctors_privileges_sees_nothing_foreign(site):
    rule = redis_rule(site.settings, REDIS_COMMANDS["doctor"])
    with site.redis() as client:
        client.execute_command("ACL", "SETUSER", "driftline", "on", ">pw", *rule.split())
    try:
        site.set(REDIS__URL=site.redis_url.replace("redis://", "redis://driftline:pw@"))
        report = Report(site)
        with redis.Redis.from_url(site.settings.redis.url.get_secret_value()) as client:
            for command in (("GET", "foreign"), ("SET", f"{{{site.name}x:p0}}:m", "1"), ("FLUSHALL",)):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
    finally:
        with site.redis() as client:
            client.execute_command("ACL", "DELUSER", "driftline")
    assert report.all(WRONG) == []
    assert "user 'driftline' may do what a worker does" in report.of("redis rights", OK)
    assert "noeviction" in report.of("redis memory", OK)


GUARDED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


def allow(site: Site, kind: ResourceType, name: str, operation: ACLOperation, user: str = "User:ANONYMOUS") -> None:
    """A rule for a topic or a transactional id, which denies all that no rule for it names."""
    with admin(site) as client:
        client.create_acls([ACL(user, "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))])


def test_a_kafka_user_who_lacks_permissions_is_told_which(redis_url, tmp_path):
    with KafkaServer(GUARDED) as server:
        site = Site(server.bootstrap_servers, redis_url, tmp_path)
        site.asking.close()
        journal, models = site.settings.topic("journal"), site.settings.topic("models")
        allow(site, ResourceType.TOPIC, journal, ACLOperation.READ)
        allow(site, ResourceType.TOPIC, models, ACLOperation.CREATE)
        found = Report(site).of("permissions", WRONG)

        producer = KafkaProducer(bootstrap_servers=site.bootstrap, transactional_id="hidden")
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(site.settings.topics.clickstream, b"{}", partition=0).get(10)
        allow(site, ResourceType.TRANSACTIONAL_ID, "hidden", ACLOperation.WRITE, "User:somebody")
        place = (site.settings.topics.clickstream, 0)
        kafka = KafkaQuestions(site.settings)
        (one,) = kafka.open_transactions(kafka.extents([place]), round(time.time() * 1000))
        kafka.close()
        producer.close(timeout=0)
        assert members(site.settings) == [], "a group that does not exist has no members"
        allow(site, ResourceType.GROUP, site.name, ACLOperation.READ, "User:somebody")
        with pytest.raises(Misconfigured, match="describing the group"):
            members(site.settings)
    assert f"this user lacks WRITE on topic {journal}" in found
    assert f"this user lacks DESCRIBE, READ, WRITE on topic {models}" in found
    assert site.settings.topics.clickstream not in found
    assert (one.places, one.name, one.producer is None) == ((place,), None, False)
    assert one.age_s is not None
    assert 0 <= one.age_s < 30


def test_missing_topics_are_named_with_the_command_that_creates_them(site):
    with admin(site) as client:
        client.delete_topics([site.settings.topic("journal"), site.settings.topics.purchases])
    time.sleep(1)
    report = Report(site)
    assert report.code == 1
    for topic in (site.settings.topic("journal"), site.settings.topics.purchases):
        assert f"{topic} does not exist → run `driftline topics create`" in report.of("topics", WRONG)
    assert "noeviction" in report.of("redis memory", OK)


def led(site: Site, topic: str) -> bool:
    with admin(site) as client:
        (found,) = client.describe_topics([topic])
    return all(part["leader_id"] >= 0 for part in found["partitions"])


def test_unfit_topics_and_a_redis_that_evicts_are_wrong(site):
    alerts = site.settings.topic("alerts")
    until(lambda: led(site, alerts), "leaders of a topic that has just been created")
    alter(site, site.settings.topic("journal"), retention_ms="60000", retention_bytes="1000000")
    alter(site, alerts, min_insync_replicas="2")
    with site.redis() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        report = Report(site)
    finally:
        with site.redis() as client:
            client.config_set("maxmemory-policy", "noeviction")
    assert "retention.ms is 60000, should be 604800000" in report.of("topics", WRONG)
    assert "retention.bytes = 1000000: the journal may lose" in report.of("retention", WRONG)
    assert "fewer replicas in sync than min.insync.replicas = 2" in report.of("partitions", WRONG)
    assert "maxmemory-policy is allkeys-lru" in report.of("redis memory", WRONG)


def test_records_that_wait_until_retention_removes_them_are_told(site):
    worked(site)
    topic = site.settings.topics.clickstream
    with KafkaProducer(bootstrap_servers=site.bootstrap) as producer:
        producer.send(topic, b"{}", partition=1)
    time.sleep(3)
    alter(site, topic, retention_ms="3000")  # a broker removes what is older every five minutes only
    report = Report(site)
    assert f"{topic}-1: 1 record waiting, the oldest for more than 75% of the topic's retention" in report.of(
        "retention", WRONG
    )
    assert "1 record waiting: task 1 1" in report.of("lag", OK)


def commit(site: Site, offset: int, metadata: str = "") -> None:
    """As an operator's tool commits: from outside of the group."""
    place = TopicPartition(site.settings.topics.clickstream, 0)
    site.asking.commit({place: OffsetAndMetadata(offset, metadata, -1)})


def test_offsets_reset_by_a_tool_are_told_as_a_worker_would(site):
    worked(site)
    commit(site, 3)
    assert "carry no tick: somebody reset the group's offsets with a tool" in Report(site).of("tasks", WRONG)


def test_offsets_out_of_range_and_of_another_tick_are_told(site):
    worked(site)
    stamp = orjson.dumps({"seq": site.seq(0), "inc": 0}).decode()
    commit(site, 10_000_000, stamp)
    report = Report(site)
    assert "committed at 10,000,000, beyond its end" in report.of("lag", WRONG)
    assert "somebody changed the group's offsets" in report.of("tasks", WRONG)


def test_records_removed_before_they_were_processed_are_told(site):
    worked(site)
    topic = site.settings.topics.clickstream
    with KafkaProducer(bootstrap_servers=site.bootstrap) as producer:
        for _ in range(4):
            producer.send(topic, b"{}", partition=1)
    end = site.shop.ends()[topic, 1]
    with admin(site) as client:
        client.delete_records({TopicPartition(topic, 1): end + 3})
    said = Report(site).of("lag", WRONG)
    assert f"committed at {end:,}, but the oldest record kept is {end + 3:,}: 3 were removed" in said
    assert "`driftline rewind --to store`" in said


def test_a_store_ahead_of_kafka_is_told_as_a_worker_would_and_one_behind_is_replayed(site):
    worked(site)
    saved = site.saved(1)
    site.feed()
    marker = f"{{{site.name}:p0}}:m"
    with site.redis() as client:
        body = orjson.loads(client.hget(marker, "body"))
        body["state"]["seq"] += 5
        client.hset(marker, mapping={"seq": body["state"]["seq"], "body": orjson.dumps(body)})
        lacking = f"{{{site.name}:p2}}:*"
        client.delete(*client.scan_iter(lacking, count=1_000))
    report = Report(site)
    assert "a worker would refuse: task 0: the store is at tick" in report.of("tasks", WRONG)
    assert "Kafka lost data, or somebody reset the offsets" in report.of("tasks", WRONG)
    assert "task 2: the store is" in report.of("tasks", WARNING)
    assert "ticks behind the committed offsets" in report.of("tasks", WARNING)
    site.restore(saved, 1)


def test_customers_whose_rows_something_deleted_are_told(site):
    worked(site)
    with site.redis() as client:
        rows = list(client.scan_iter(f"{{{site.name}:p0}}:c:*", count=1_000))
        client.delete(*rows[: len(rows) // 2])
    assert "sampled customers have no row" in Report(site).of("customers", WRONG)


def test_a_transaction_that_was_left_open_is_told_with_its_producer(site):
    worked(site)
    topic = site.settings.topics.clickstream
    strangers = f"{site.name}.importer"
    producer = KafkaProducer(
        bootstrap_servers=site.bootstrap, transactional_id=strangers, transaction_timeout_ms=60_000
    )
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"{}", partition=0).get(10)
        assert "1 open, none for long" in Report(site).of("transactions", OK)
        site.set(KAFKA__TRANSACTION_TIMEOUT_S="1")
        time.sleep(11)
        found = Report(site).of("transactions", WRONG)
        assert f"a transaction of transactional id {strangers!r}" in found
        assert f"{topic}-0 open for " in found
        assert "stop that producer, or start it again; else its own time-out of 1.0 min ends it" in found
    finally:
        producer.abort_transaction()
        producer.close()


def test_a_stranger_in_the_group_is_told(site):
    with KafkaConsumer(
        site.settings.topics.clickstream, bootstrap_servers=site.bootstrap, group_id=site.name, client_id="curious"
    ) as stranger:
        deadline = time.monotonic() + 20
        while not stranger.assignment():
            assert time.monotonic() < deadline
            stranger.poll(timeout_ms=500)
        assert "a stranger is in group" in Report(site).of("members", WRONG)


def test_misplaced_and_unusable_events_are_told(site):
    topic = site.settings.topics.purchases
    body = {"type": "track", "event": "Order Completed", "messageId": "m", "userId": "c-1", "properties": {}}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with KafkaProducer(bootstrap_servers=site.bootstrap) as producer:
        for partition in range(PARTITIONS):
            producer.send(topic, orjson.dumps(body | {"timestamp": now}), partition=partition)
        for _ in range(5):
            producer.send(topic, b"no json", partition=0)
    report = Report(site)
    assert "5 of its newest 8 records cannot be used (5 undecodable)" in report.of("events", WRONG)
    assert (
        "2 of its newest 3 usable records lie in a partition that murmur2 does not put their customer in"
        in report.of("events", WRONG)
    )
    assert f"{site.settings.topics.clickstream} is empty" in report.of("events", WARNING)


def test_a_port_that_something_else_holds_is_told_and_a_worker_at_it_is_recognised(site):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        site.set(HTTP__PORT=str(held.getsockname()[1]))
        assert "something that is no worker listens" in Report(site).of("http", WRONG)
    site.feed()
    worker = site.command("run")
    worker.wait_for(lambda: '"recovered"' in worker.errors, "recovered")
    site.wait_for_the_end(worker)
    report = Report(site)
    assert "a worker answers at" in report.of("http", OK)
    assert report.all(WRONG) == []


def test_the_lines_for_people_say_the_same_and_end_with_the_count(site):
    site.set(KAFKA__BOOTSTRAP_SERVERS=NOBODY)
    running = site.command("doctor")
    assert running.end() == 1
    lines = running.output.decode().splitlines()
    assert any(line.startswith("wrong    brokers") and " → is Kafka running" in line for line in lines)
    assert lines[-1].startswith("1 wrong, ")
