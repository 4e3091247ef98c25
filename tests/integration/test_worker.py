"""The worker on a real Kafka and a real Redis, through every failure of docs/delivery.md: nothing lost, nothing twice.

Each test ends with the oracle, which looks from outside and knows what must come of the shop's records.
"""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import orjson
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import KafkaTopic
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import Counts
from tests.integration.site import PARTITIONS, both_clients, get, kinds, offsets_set, until
from tests.servers import KafkaServer

pytestmark = pytest.mark.servers

PUBLISHED = '"published a model version"'
REDIS_MISSED = '"recovering: Redis at'


# A clean run


def test_a_clean_run_counts_every_customer_exactly_and_sets_every_unusable_record_aside(site):
    site.feed()
    seen = site.finish(site.worker())
    assert len(seen.models) >= 3, "no models were published: the run shows too little"
    assert "anomaly" in kinds(seen), kinds(seen)  # which others come hangs on where ticks end, that is on the machine
    assert max(one.entry.model_version for ticks in seen.ticks.values() for one in ticks) >= 2


def test_the_oracle_sees_what_is_tampered_with(site):
    site.feed()
    seen = site.finish(site.worker())
    counts, bad = site.shop.counts, site.shop.bad

    def refuted(check: Callable[..., None], changed: Seen, *expected: Any) -> str:
        with pytest.raises(AssertionError) as raised:
            check(changed, *expected)
        return str(raised.value)

    def with_tick(place: int, entry: Any) -> Seen:
        ticks = [*seen.ticks[0]]
        ticks[place] = ticks[place]._replace(entry=entry, data=oracle.encode(entry))
        return seen._replace(ticks={**seen.ticks, 0: ticks})

    last = seen.ticks[0][-1].entry
    topic = site.settings.topics.clickstream
    cut = {**seen.ticks, 0: seen.ticks[0][:3] + seen.ticks[0][4:]}
    assert "a tick lacks" in refuted(oracle.check_the_journal_tiles_the_input, seen._replace(ticks=cut))
    early = {**last.offsets_before, topic: last.offsets_before[topic] - 1}
    assert "a gap or an overlap" in refuted(
        oracle.check_the_journal_tiles_the_input, with_tick(-1, last._replace(offsets_before=early))
    )
    assert "not read to the end" in refuted(
        oracle.check_the_journal_tiles_the_input, seen._replace(ticks={**seen.ticks, 0: seen.ticks[0][:-1]})
    )
    place, entry = next((i, one.entry) for i, one in enumerate(seen.ticks[0]) if one.entry.alerts)
    assert "another journal record" in refuted(
        oracle.check_ticks_run_again_give_the_same_bytes, with_tick(place, entry._replace(alerts=entry.alerts[1:]))
    )
    rows = entry.rows.copy()
    rows["views"][0] += 1
    assert "another journal record" in refuted(
        oracle.check_ticks_run_again_give_the_same_bytes, with_tick(place, entry._replace(rows=rows))
    )
    assert "not those of the journal" in refuted(
        oracle.check_alerts_are_those_of_the_journal, seen._replace(alerts=seen.alerts[1:])
    )
    assert "not those of the journal" in refuted(
        oracle.check_alerts_are_those_of_the_journal, seen._replace(alerts=[*seen.alerts, seen.alerts[0]])
    )
    assert seen.lineage
    assert "nobody was told" in refuted(oracle.check_lineage_is_that_of_the_versions, seen._replace(lineage=[]))
    assert "told more than once" in refuted(
        oracle.check_lineage_is_that_of_the_versions, seen._replace(lineage=[*seen.lineage, *seen.lineage])
    )
    assert "more than once" in refuted(
        oracle.check_versions_learned_each_record_once, seen._replace(models=[*seen.models, *seen.models])
    )
    shorter = {task: ticks[1:] for task, ticks in seen.ticks.items()}
    assert "events and labels" in refuted(oracle.check_versions_learned_each_record_once, seen._replace(ticks=shorter))
    customer, row = next(iter(seen.rows[0].items()))
    other = {**seen.rows, 0: {**seen.rows[0], customer: row[:-1] + bytes([row[-1] ^ 1])}}
    assert "other rows" in refuted(oracle.check_redis_is_the_journal_folded, seen._replace(rows=other))
    fewer = {**seen.rows, 0: {name: row for name, row in seen.rows[0].items() if name != customer}}
    assert "other customers" in refuted(oracle.check_redis_is_the_journal_folded, seen._replace(rows=fewer))
    dues = {**seen.dues, 0: {**seen.dues[0], customer: 1}}
    assert "other due times" in refuted(oracle.check_redis_is_the_journal_folded, seen._replace(dues=dues))
    assert "the marker" in refuted(
        oracle.check_redis_is_the_journal_folded,
        seen._replace(markers={**seen.markers, 0: {**seen.markers[0], "seq": 1}}),
    )
    assert "dead letters" in refuted(oracle.check_dead_letters, seen._replace(letters=seen.letters[1:]), bad)
    assert "dead letters" in refuted(
        oracle.check_dead_letters, seen._replace(letters=[*seen.letters, seen.letters[0]]), bad
    )
    assert "dead letters" in refuted(
        oracle.check_dead_letters, seen, [bad[0]._replace(headers=(("a", b"b"),)), *bad[1:]]
    )
    assert customer in refuted(
        oracle.check_customers, seen, counts | {customer: counts[customer]._replace(spend_minor=-1)}
    )
    nowhere = {**seen.committed, (topic, 0): (1, seen.committed[topic, 0][1])}
    assert "committed 1 of" in refuted(oracle.check_the_group_is_at_the_end, seen._replace(committed=nowhere))
    oracle.check_all(seen, counts, bad)


# A worker dies


@both_clients
@pytest.mark.parametrize("step", ["before-commit", "in-transaction", "before-apply", "mid-apply"])
def test_a_worker_killed_at_any_point_goes_on_exactly_when_restarted(site, step):
    site.feed()
    killed = site.worker("w1", "--kill-at", f"{step}:12")
    assert killed.end() == -signal.SIGKILL, killed.errors
    assert killed.said("tick"), "it was to die in the middle"
    seen = site.finish(site.worker("w1"))
    assert seen.alerts


def test_a_worker_killed_again_and_again_goes_on_exactly(site):
    site.feed()
    for step in ("mid-apply", "in-transaction", "before-apply"):
        killed = site.worker("w1", "--kill-at", f"{step}:3")
        assert killed.end() == -signal.SIGKILL, killed.errors
    site.finish(site.worker("w1"))


def test_sigterm_ends_a_worker_with_0_within_seconds_and_a_restart_goes_on_exactly(site):
    site.feed()
    worker = site.worker()
    worker.wait_for(lambda: len(worker.said("tick")) > 10, "some ticks")
    began = time.monotonic()
    assert worker.stop() == 0, worker.errors
    assert time.monotonic() - began < 5
    assert site.committed() != site.shop.ends(), "it was to stop in the middle"
    site.finish(site.worker())


@both_clients
@pytest.mark.parametrize("away", [KafkaServer.kill, KafkaServer.pause])
def test_a_worker_told_to_stop_while_kafka_is_away_ends_with_0_within_seconds(site, kafka_server, away):
    site.set(KAFKA__LEAVE_ON_STOP="true")
    site.feed(0.2)
    worker = site.command("run")
    site.wait_for_the_end(worker)
    away(kafka_server)
    try:
        time.sleep(2)
        began = time.monotonic()
        assert worker.stop(40) == 0, worker.errors
        assert time.monotonic() - began < 15
        assert "its tasks wait for the session time-out" in worker.errors
    finally:
        kafka_server.start()
    site.finish(site.worker())


# Redis fails


def test_a_redis_emptied_while_the_worker_is_down_is_rebuilt_from_the_journal(site):
    site.feed(0.6)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with site.redis() as client:
        client.flushall()
    site.feed()
    site.finish(site.worker())


def test_a_redis_emptied_twice_while_the_worker_runs_is_rebuilt_from_the_journal(site):
    site.feed(0.2)
    worker = site.worker()
    site.wait_for_the_end(worker)
    for share in (0.3, 0.5):
        with site.redis() as client:
            client.flushall()
        site.feed(share)
        site.wait_for_the_end(worker)
    site.feed()
    site.finish(worker)


def test_a_redis_killed_for_seconds_holds_the_worker_up_and_loses_nothing(site, redis_server):
    site.feed(0.4)
    worker = site.worker()
    worker.wait_for(lambda: len(worker.said("tick")) > 10, "some ticks")
    for share in (0.7, 1.0):
        redis_server.kill()
        site.feed(share)
        before = worker.errors.count(REDIS_MISSED)
        worker.wait_for(lambda before=before: worker.errors.count(REDIS_MISSED) > before, "Redis missed")
        ticks = len(worker.said("tick"))
        redis_server.start()
        worker.wait_for(lambda ticks=ticks: len(worker.said("tick")) > ticks, "ticks after the outage")
    site.finish(worker)


def test_a_redis_that_does_not_answer_while_it_is_rebuilt_is_rebuilt_in_the_end(site, redis_server):
    site.feed(0.6)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with site.redis() as client:
        client.flushall()
    worker = site.worker()
    worker.wait_for(lambda: any(site.seq(task) > 0 for task in range(PARTITIONS)), "the rebuilding begun", 30)
    redis_server.kill()
    worker.wait_for(lambda: REDIS_MISSED in worker.errors, "Redis missed")
    redis_server.start()
    site.feed()
    site.finish(worker)


def test_a_redis_rolled_back_is_brought_level_from_the_journal(site):
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    saved, before = site.saved(), site.seq()
    site.feed(0.6)
    site.wait_for_the_end(worker)
    until(lambda: site.seq() > before, "ticks to lose")
    site.restore(saved)
    assert site.seq() == before
    site.feed()
    site.finish(worker)
    assert "this worker at" in worker.errors, "the worker was to notice"


def test_a_redis_rolled_back_to_where_it_was_last_brought_level_is_brought_level_again(site):
    site.feed(0.2)
    worker = site.worker()
    site.wait_for_the_end(worker)
    kept = [site.saved()]
    site.feed(0.3)
    site.wait_for_the_end(worker)
    kept.append(site.saved())
    for saved, share in zip(kept, (0.4, 0.5), strict=True):
        site.restore(saved)
        site.feed(share)
        site.wait_for_the_end(worker)
    site.finish(worker)


# Several workers


@both_clients
def test_a_stopped_workers_tasks_go_to_the_other_one_and_a_joining_one_takes_its_share(site):
    site.feed(0.3)
    first, second = site.worker("a"), site.worker("b")
    for worker in (first, second):
        worker.wait_for(lambda worker=worker: any(line["tasks"] for line in worker.said("ready")), "tasks")
    site.wait_for_the_end(first)
    both = first.said("ready")[-1]["tasks"] + second.said("ready")[-1]["tasks"]
    assert sorted(both) == [0, 1, 2]
    site.feed(0.5)
    assert first.stop() == 0, first.errors
    second.wait_for(lambda: second.said("ready")[-1]["tasks"] == [0, 1, 2], "all tasks")
    site.feed(0.7)
    site.wait_for_the_end(second)
    third = site.worker("c")
    third.wait_for(lambda: any(line["tasks"] for line in third.said("ready")), "tasks")
    site.feed()
    site.wait_for_the_end(third)
    assert third.said("tick"), "the joining worker was to take its share"
    assert third.stop() == 0, third.errors
    site.finish(second)


def test_workers_restarted_in_turn_under_a_steady_stream_lose_and_repeat_nothing(site):
    site.feed(0.3)
    workers = {name: site.worker(name) for name in "abc"}
    for worker in workers.values():
        worker.wait_for(lambda worker=worker: any(line["tasks"] for line in worker.said("ready")), "tasks")
    with ThreadPoolExecutor() as pool:
        feeding = pool.submit(lambda: [site.feed(0.3 + 0.01 * step) or time.sleep(0.2) for step in range(70)])
        for name, worker in workers.items():
            assert worker.stop() == 0, worker.errors
            workers[name] = site.worker(name)
            workers[name].wait_for(
                lambda name=name: any(line["tasks"] for line in workers[name].said("ready")), "tasks"
            )
        assert not feeding.done(), "the stream was to outlast the restarts"
        feeding.result()
    *others, last = workers.values()
    site.wait_for_the_end(last)
    for worker in others:
        assert worker.said("tick"), "each was to go on with its share"
        assert worker.stop() == 0, worker.errors
    site.finish(last)


@both_clients
def test_a_trainer_frozen_while_another_publishes_goes_on_from_the_newest_version(site):
    site.feed(0.5)
    first = site.worker("a")
    first.wait_for(lambda: PUBLISHED in first.errors, "a version")
    site.wait_for_the_end(first)
    first.process.send_signal(signal.SIGSTOP)
    second = site.worker("b")
    site.feed(0.75)
    second.wait_for(lambda: PUBLISHED in second.errors, "a version of the other")
    first.process.send_signal(signal.SIGCONT)
    site.wait_for_the_end(second)
    assert second.stop() == 0, second.errors
    site.expel("b")
    own = first.errors.count(PUBLISHED)
    site.feed()
    first.wait_for(lambda: first.errors.count(PUBLISHED) > own, "the trainer back at work")
    site.finish(first)


@both_clients
def test_a_worker_slower_than_the_longest_poll_interval_does_not_commit_what_it_had_begun(site):
    site.feed()
    worker = site.worker("w1", "--freeze-at", "before-commit:9:10", "--max-poll-s", "7")
    worker.wait_for(lambda: worker.said("thawed"), "thawed")
    site.finish(worker)
    lost = [line for line in worker.errors.splitlines() if '"reason":"stale"' in line]
    assert lost, "the tick was to be refused"


# What an operator sees


@pytest.mark.parametrize("stamped", [True, False], ids=["stamp kept", "stamp gone"])
def test_a_worker_refuses_offsets_that_an_operator_has_reset(site, stamped):
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    before = oracle.committed(site.settings, PARTITIONS, site.asking)
    # The operators' tools write offsets without metadata.
    offsets_set(
        site,
        {
            TopicPartition(*place): OffsetAndMetadata(max(offset - 20, 0), metadata if stamped else "", -1)
            for place, (offset, metadata) in before.items()
        },
    )
    refused = site.worker()
    assert refused.end() == 1, refused.errors
    assert "StoreAhead" in refused.errors
    assert "offsets" in refused.errors
    offsets_set(site, {TopicPartition(*place): OffsetAndMetadata(*stamp, -1) for place, stamp in before.items()})
    site.feed()
    site.finish(site.worker())


def test_a_worker_whose_offsets_have_expired_goes_on_from_its_store(site):
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    site.expel("w1")

    def gone() -> bool:
        places = [TopicPartition(*place) for place in site.committed()]
        with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin, suppress(KafkaError):
            admin.delete_group_offsets(site.name, places)
        return not any(site.committed().values())

    until(gone, "the offsets to be gone", 30)
    site.feed()
    site.finish(site.worker())


def test_too_many_dead_letters_stop_the_worker_and_name_the_setting(site):
    site.set(DEAD_LETTERS__WINDOW="50")
    site.send(site.settings.topics.clickstream, [(i % PARTITIONS, b"k", b"{broken") for i in range(90)])
    run = site.command("run")
    assert run.end() == 1, run.errors
    assert "dead_letters.max_share" in run.errors.splitlines()[-1], run.errors


def test_a_wrong_partitioner_stops_the_worker_and_is_named(site):
    site.set(KAFKA__PARTITIONER="crc32", TICK__MAX_EVENTS="500")
    customers = [f"m-{i}" for i in range(1_800)]
    bodies = [orjson.dumps({"event": "Product Viewed", "messageId": name, "userId": name}) for name in customers]
    places = [site.shop.place(name) for name in customers]
    rows = [(p, name.encode(), body) for p, name, body in zip(places, customers, bodies, strict=True)]
    site.send(site.settings.topics.clickstream, rows)
    run = site.command("run")
    assert run.end() == 1, run.errors
    assert "kafka.partitioner" in run.errors.splitlines()[-1], run.errors


def test_the_commands_show_a_running_worker_its_customers_and_its_alerts(site):
    site.feed()
    run = site.command("run")
    line = run.wait_for(lambda: [one for one in run.errors.splitlines() if '"http_port"' in one], "the port")
    port = orjson.loads(line[0])["http_port"]
    run.wait_for(lambda: get(port, "/readyz")[0] == 200, "readiness")
    assert get(port, "/livez")[0] == 200
    site.wait_for_the_end(run)
    events = sum(one.events for one in site.shop.counts.values())

    def counted() -> float:
        lines = get(port, "/metrics")[1].splitlines()
        return sum(float(one.split()[-1]) for one in lines if one.startswith("driftline_events_total{"))

    run.wait_for(lambda: counted() == events, f"{events} events in the metrics")
    assert run.stop() == 0, run.errors
    seen = oracle.check(site.settings, site.shop)

    customer = next(name for name, one in site.shop.counts.items() if one.orders > 2)
    known = orjson.loads(site.ask("customer", customer, "--json"))
    assert {"customer_id", "events", "orders", "spend_minor", "first_seen", "last_seen", "due"} <= set(known)
    assert (known["customer_id"], set(known["churn"]) >= {"probability", "horizon_days"}) == (customer, True)
    assert "rate" in known["anomaly"]
    assert known["segment"] is None or {"id", "name"} <= set(known["segment"])
    assert Counts(known["events"], known["orders"], known["spend_minor"]) == site.shop.counts[customer]

    printed = site.ask("alerts", "--from-beginning", "--until-end").splitlines()
    assert sorted(printed) == sorted(value for _, value in [*seen.alerts, *seen.lineage])
    assert printed


# What the guarantees rest on


def test_a_topic_read_again_from_the_same_offset_answers_the_same_records(site):
    site.feed(0.2)
    topic = KafkaTopic(site.settings, site.settings.topics.clickstream)
    try:
        first = [one.offset for one in topic.read(0, 0, 10)]
        assert [one.offset for one in topic.read(0, 0, 10)] == first
        assert [one.offset for one in topic.read(0, 10, 10)] == list(range(10, 20))
        assert [one.offset for one in topic.read(0, 10, 10)] == list(range(10, 20))
    finally:
        topic.close()
