"""The day-two commands on a real Kafka and a real Redis: killed half-way and run again, refusing what would do harm."""

import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import orjson
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import create_topics
from stream.backends.kafka.offsets import spans
from stream.events import HISTORY_HEADER, Record
from stream.processing.customer import ROW
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import Bad, Counts, Sent
from tests.integration.site import PARTITIONS, Running, Site, kinds, offsets_set, until

pytestmark = pytest.mark.servers


def killed(site: Site, step: str, number: int, *command: str) -> None:
    """Run a command in small batches and let it die at a point of its N-th commit."""
    dying = site._start(
        ["tests.integration.command_process", "--kill-at", f"{step}:{number}", "--", *command], command[0]
    )
    assert dying.end() == -signal.SIGKILL, dying.errors


def done(site: Site, *command: str) -> str:
    """The output of a command, run in small batches, that must succeed."""
    running = site._start(["tests.integration.command_process", "--", *command], command[0])
    assert running.end() == 0, running.errors
    return running.output.decode()


def refused(site: Site, *command: str, code: int = 1) -> str:
    """What a command says that must refuse."""
    running = site.command(*command)
    assert running.end() == code, running.errors + running.output.decode()
    return running.errors


def ends(site: Site) -> dict[tuple[str, int], int]:
    """The offset after each input partition's last record: a transaction leaves more behind."""
    found = dict.fromkeys(((topic, task) for topic in site.settings.inputs for task in range(PARTITIONS)), 0)
    for topic in site.settings.inputs:
        for record in oracle.read_topic(site.settings, topic):
            found[topic, record.partition] = record.offset + 1
    return found


def go_on_with_live_events(site: Site) -> None:
    """Let the shop know where its next records will lie."""
    site.shop._offsets.update({place: span.end for place, span in spans(site.settings, site.settings.inputs).items()})


def wait_for_the_end(site: Site, worker: Running) -> None:
    expected = ends(site)
    worker.wait_for(lambda: site.committed() == expected, f"the end of the input {expected}")


def stop(site: Site, worker: Running) -> None:
    assert worker.stop() == 0, worker.errors
    site.expel("w1")


def run_to_the_end(site: Site) -> None:
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    wait_for_the_end(site, worker)
    stop(site, worker)


def check(site: Site, *again: Bad) -> Seen:
    """The oracle; `again` are unusable records that were read a second time."""
    seen = oracle.look(site.settings, PARTITIONS)
    oracle.check_all(seen, site.shop.counts, [*site.shop.bad, *again])
    return seen


def empty_redis(site: Site) -> None:
    with site.redis() as client:
        client.flushall()


def rewinds(seen: Seen) -> dict[int, list[str]]:
    return {
        task: [one.entry.code for one in ticks if oracle.is_rewind(one.entry)] for task, ticks in seen.ticks.items()
    }


# Backfill


def history(site: Site, path: Path, until: float) -> dict[bytes, str]:
    """The shop's records before a share as a file; returns the unusable lines with their reason."""
    shop = site.shop
    end = round(len(shop.records) * until)
    bad = {}
    with path.open("wb") as file:
        for sent, gain in shop._made[:end]:
            if sent.value is None or sent.reason == "misplaced":
                continue  # a file has neither
            file.write(sent.value + b"\n")
            if sent.reason:
                bad[sent.value.strip()] = sent.reason
            elif gain is not None:
                shop._count(sent, gain)
    shop.fed = end
    shop.bad.clear()
    return bad


def in_the_topics(site: Site) -> list[Record]:
    return [record for topic in site.settings.inputs for record in oracle.read_topic(site.settings, topic)]


def test_a_backfill_killed_half_way_is_written_once_and_nothing_about_the_past_is_told(site, tmp_path):
    path = tmp_path / "history.jsonl"
    bad = history(site, path, 0.7)
    for step, number, written in (("before-commit", 2, 50), ("in-transaction", 3, 150), ("after-commit", 2, 250)):
        killed(site, step, number, "backfill", str(path))
        begun = len(in_the_topics(site))
        assert begun == written, f"died {step}"
    said = done(site, "backfill", str(path))
    lines = path.read_bytes().count(b"\n")
    assert f"wrote {lines - begun:,} events" in said
    assert f"all {lines:,} events" in done(site, "backfill", str(path))
    written = in_the_topics(site)
    marks = [dict(record.headers)[HISTORY_HEADER].decode().partition(":") for record in written]
    assert sorted(int(ordinal) for _, _, ordinal in marks) == list(range(lines))
    assert len({digest for digest, _, _ in marks}) == 1
    for record in written:
        if record.key is None:
            headers = record.headers
            site.shop.bad.append(Bad(*record[:3], None, record.value, headers, bad[record.value]))
    go_on_with_live_events(site)

    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    wait_for_the_end(site, worker)
    past = oracle.look(site.settings, PARTITIONS)
    assert past.alerts == [], "what is past was told"
    assert sum(len(one.entry.past) for ticks in past.ticks.values() for one in ticks) > 0

    site.feed()
    wait_for_the_end(site, worker)
    assert f"all {lines:,} events" in done(site, "backfill", str(path)), "live events may come once all is in"
    assert worker.stop() == 0, worker.errors
    assert kinds(check(site)), "what happens after the history is to be told"


def test_a_backfill_refuses_what_would_be_out_of_order_or_nonsense(site, tmp_path):
    path, other = tmp_path / "history.jsonl", tmp_path / "other.jsonl"
    history(site, path, 0.2)
    other.write_bytes(path.read_bytes() + b"{}\n")
    nonsense = tmp_path / "nonsense.jsonl"
    nonsense.write_bytes(b"{broken\n" * 20 + path.read_bytes()[: path.read_bytes().index(b"\n") + 1])
    assert "20 of the first 21 lines" in refused(site, "backfill", str(nonsense), code=2)
    assert "name each file once" in refused(site, "backfill", str(path), str(path), code=2)
    site.set(KAFKA__START_AT="latest")
    assert "kafka.start_at" in refused(site, "backfill", str(path))
    site.set(KAFKA__START_AT="earliest", TOPICS__PURCHASES="nowhere")
    assert "driftline topics create" in refused(site, "backfill", str(path))
    site.set(TOPICS__PURCHASES=f"{site.name}.buys")
    assert in_the_topics(site) == [], "nothing was to be written"

    killed(site, "after-commit", 2, "backfill", str(path))
    assert "history of other files" in refused(site, "backfill", str(other))
    site.feed(0.3)
    assert "live events came while" in refused(site, "backfill", str(path))


def test_a_backfill_behind_live_events_is_refused(site, tmp_path):
    path = tmp_path / "history.jsonl"
    history(site, path, 0.2)
    site.shop.fed = 0
    site.feed(0.2)
    before = len(in_the_topics(site))
    said = refused(site, "backfill", str(path))
    assert "holds live events" in said
    assert "new topics" in said
    assert len(in_the_topics(site)) == before


def test_a_history_that_is_in_is_not_refused_for_live_events_in_a_partition_it_has_nothing_in(site, tmp_path):
    path = tmp_path / "history.jsonl"
    event = {"event": "Product Viewed", "userId": "c-001", "timestamp": "2024-05-01T10:00:00Z"}
    path.write_bytes(b"".join(orjson.dumps(event | {"messageId": f"m{i}"}) + b"\n" for i in range(3)))
    assert "wrote 3 events" in done(site, "backfill", str(path))
    site.feed(0.2)
    assert "all 3 events" in done(site, "backfill", str(path))
    path.write_bytes(path.read_bytes() + orjson.dumps(event | {"messageId": "m3"}) + b"\n")
    assert "history of other files" in refused(site, "backfill", str(path))


def large_records(site: Site, *topics: str) -> None:
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        large = {"max.message.bytes": "10485760"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, large) for name in topics])


def test_records_of_ten_megabytes_are_filled_in_and_repartitioned_where_the_topics_take_them(site, tmp_path):
    path, source, target = tmp_path / "history.jsonl", site.settings.topics.clickstream, f"{site.name}.other"
    event = {"event": "Product Viewed", "userId": "c-001", "timestamp": "2024-05-01T10:00:00Z"}
    notes = {"properties": {"note": "x" * 10_400_000}}
    path.write_bytes(b"".join(orjson.dumps(event | notes | {"messageId": f"m{i}"}) + b"\n" for i in range(3)))
    said = refused(site, "backfill", str(path))
    assert "the largest record has 10,400," in said
    assert f"Raise max.message.bytes of {source}" in said
    large_records(site, *site.settings.inputs)
    assert "wrote 3 events" in done(site, "backfill", str(path))

    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.create_topics({target: {"num_partitions": 5, "replication_factor": 1}})
    command = ("repartition", source, target, "--partitions", "5")
    assert f"Raise max.message.bytes of {target}" in refused(site, *command)
    large_records(site, target)
    assert "copied 3 records" in done(site, *command)
    assert {one.value for one in oracle.read_topic(site.settings, target)} == set(path.read_bytes().splitlines())


# Forget


def task_of(site: Site, customer: str) -> int | None:
    with site.redis() as client:
        found = [task for task in range(PARTITIONS) if client.exists(f"{{{site.name}:p{task}}}:c:{customer}")]
    assert len(found) < 2
    return found[0] if found else None


def test_a_customer_is_forgotten_and_what_remains_is_said(site):
    site.feed(0.5)
    shop = site.shop
    worker = site.worker()
    site.wait_for_the_end(worker)
    later = [sent.value for sent, gain in shop._made[shop.fed - 5 :]]
    # Refunds of orders that are forgotten take nothing back, and the shop does not know that.
    names = [
        name
        for name, one in shop.counts.items()
        if one.orders > 2
        and not any(b"Refunded" in (v or b"") and name.encode() in (v or b"") for v in later)
        and sum(name.encode() in (v or b"") for v in later[5:])
        and not any(name.encode() in (v or b"") for v in later[:5])
    ]
    gone, queued = names[:2]
    assert task_of(site, gone) is not None
    said = site.ask("forget", gone).decode()
    assert said.startswith(f"forgotten: {gone}\n")
    for topic in (*site.settings.inputs, site.settings.topic("journal"), site.settings.topic("alerts")):
        assert topic in said
    assert "retention.ms" in said
    assert task_of(site, gone) is None
    stop(site, worker)

    said = site.ask("forget", queued, "--wait-s", "0.5").decode()
    assert said.startswith("queued")
    assert task_of(site, queued) is not None
    assert "knew of no such customer" in site.ask("forget", "nobody", "--wait-s", "0").decode()
    assert "1 to 200 characters" in refused(site, "forget", "", code=2)
    run_to_the_end(site)
    assert task_of(site, queued) is None
    del shop.counts[gone], shop.counts[queued]
    check(site)

    go_on_with_live_events(site)
    site.feed()
    run_to_the_end(site)
    assert {gone, queued} <= set(shop.counts), "they were to come back"
    check(site)


def test_a_customer_whose_events_no_worker_has_read_yet_is_forgotten_all_the_same(site):
    site.feed(0.3)
    shop = site.shop
    gone = next(name for name, one in shop.counts.items() if one.orders)
    said = site.ask("forget", gone, "--wait-s", "0").decode()
    assert said.startswith(f"queued: {gone}")
    assert "knew of no such customer" in said
    run_to_the_end(site)
    assert task_of(site, gone) is None
    del shop.counts[gone]
    check(site)


# Rewind


def test_no_rewind_while_a_worker_works(site):
    site.set(KAFKA__SESSION_TIMEOUT_S="30")
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    for to in ("earliest", "store"):
        said = refused(site, "rewind", "--to", to, "--yes")
        assert "has members: w1" in said
        assert "wait 30 s" in said
    assert worker.stop() == 0
    assert "has members: w1" in refused(site, "rewind", "--to", "earliest", "--yes"), "its session is not over yet"
    site.expel("w1")
    assert "give --yes" in refused(site, "rewind", "--to", "earliest", code=2)
    assert "there already" in done(site, "rewind", "--to", "store")
    assert "count everything twice" in refused(site, "rewind", "--to", "earliest", "--keep-customers", "--yes")
    assert rewinds(check(site)) == {0: [], 1: [], 2: []}


def test_a_rewind_to_the_earliest_killed_half_way_counts_everything_anew_and_tells_nothing_twice(site):
    site.feed(0.6)
    run_to_the_end(site)
    before = check(site)
    bad = list(site.shop.bad)
    for step, number in (("in-transaction", 1), ("after-commit", 1), ("before-commit", 2)):
        killed(site, step, number, "rewind", "--to", "earliest", "--yes")
    done(site, "rewind", "--to", "earliest", "--yes")
    assert "there already" in done(site, "rewind", "--to", "earliest", "--yes")
    with site.redis() as client:
        assert client.keys(f"{{{site.name}:*:c:*") == []
    run_to_the_end(site)
    again = check(site, *bad)
    assert rewinds(again) == {task: ["rewind"] for task in range(PARTITIONS)}, "each task once"
    assert set(again.alerts) >= set(before.alerts)
    told = {orjson.loads(value)["time"] for _, value in before.alerts}
    fresh = [orjson.loads(value) for _, value in set(again.alerts) - set(before.alerts)]
    assert all(one["time"] > min(told) and one["data"]["derived_from"]["incarnation"] == 1 for one in fresh)

    empty_redis(site)
    site.feed()
    run_to_the_end(site)
    assert len(check(site, *bad).alerts) >= len(again.alerts)


def test_a_rewind_that_was_frozen_while_a_worker_started_changes_nothing_more(site):
    site.feed(0.3)
    run_to_the_end(site)
    command = ("--stop-at", "before-commit:2", "--", "rewind", "--to", "earliest", "--yes")
    frozen = site._start(["tests.integration.command_process", *command], "rewind")
    frozen.wait_for(lambda: "reached" in frozen.errors, "the second task's commit")
    bad = [one for one in site.shop.bad if one.partition == 0]
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready") and worker.said("ready")[-1]["tasks"] == [0, 1, 2], "all tasks")
    site.feed(0.6)
    site.wait_for_the_end(worker)
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.end() == 1, frozen.errors
    assert "has members: w1" in frozen.errors
    site.feed()
    site.wait_for_the_end(worker)
    stop(site, worker)
    assert rewinds(check(site, *bad)) == {0: ["rewind"], 1: [], 2: []}


def test_a_rewind_to_the_earliest_says_what_retention_has_removed(site):
    site.feed(0.5)
    run_to_the_end(site)
    counts = dict(site.shop.counts)
    place = TopicPartition(site.settings.topics.clickstream, 1)
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.delete_records({place: 40})
    assert f"40 of {place.topic}-1" in refused(site, "rewind", "--to", "earliest", code=2)
    done(site, "rewind", "--to", "earliest", "--yes")
    worker = site.worker()
    wait_for_the_end(site, worker)
    stop(site, worker)
    assert_fewer(site, counts)


def events_of(site: Site) -> dict[str, int]:
    """How many events of each customer were counted."""
    seen = oracle.look(site.settings, PARTITIONS)
    return {
        name: int(np.frombuffer(oracle._row(data), ROW)[0]["events"])
        for rows in seen.rows.values()
        for name, data in rows.items()
    }


def assert_fewer(site: Site, counts: Mapping[str, Counts]) -> None:
    """Nothing is counted twice, and some events are gone."""
    events = events_of(site)
    assert all(count <= counts[name].events for name, count in events.items())
    assert sum(events.values()) < sum(one.events for one in counts.values())


def test_a_rewind_to_the_store_killed_half_way_mends_offsets_that_a_tool_has_reset(site):
    site.feed(0.5)
    run_to_the_end(site)
    offsets_set(site, {TopicPartition(*place): OffsetAndMetadata(0, "", -1) for place in site.committed()})
    worker = site.worker()
    assert worker.end() == 1
    assert "StoreAhead" in worker.errors
    site.expel("w1")
    for step, number in (("in-transaction", 1), ("after-commit", 1), ("before-commit", 2)):
        killed(site, step, number, "rewind", "--to", "store")
    done(site, "rewind", "--to", "store")
    assert "there already" in done(site, "rewind", "--to", "store")
    site.feed()
    run_to_the_end(site)
    assert rewinds(check(site)) == {task: ["rewind"] for task in range(PARTITIONS)}, "each task once"
    empty_redis(site)
    run_to_the_end(site)
    check(site)


def test_what_retention_removed_unread_is_named_and_a_rewind_to_the_store_goes_on_behind_it(site):
    site.feed(0.4)
    run_to_the_end(site)
    counts = {name: one.events for name, one in site.shop.counts.items()}
    site.feed(0.8)
    topic = site.settings.topics.clickstream
    place = TopicPartition(topic, 1)
    read, end = site.committed()[topic, 1], site.shop.ends()[topic, 1]
    assert end - read > 5
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.delete_records({place: end - 2})
    worker = site.worker()
    assert worker.end() == 1
    assert "`driftline rewind --to store`" in worker.errors
    site.expel("w1")
    said = refused(site, "rewind", "--to", "store", code=2)
    assert f"removed {end - 2 - read:,} records" in said
    assert f"of {place.topic}-1" in said
    killed(site, "in-transaction", 1, "rewind", "--to", "store", "--yes")
    assert "rewound 1 tasks" in done(site, "rewind", "--to", "store", "--yes")
    assert "there already" in done(site, "rewind", "--to", "store")
    worker = site.worker()
    site.wait_for_the_end(worker)
    stop(site, worker)
    after = events_of(site)
    assert all(after[name] >= count for name, count in counts.items()), "the customers were to be kept"
    # An unusable record that is lost makes no dead letter, and no event.
    lost = sum(one.events for one in site.shop.counts.values()) - sum(after.values())
    assert 0 < lost <= end - 2 - read


def new_kafka(site: Site) -> None:
    """All topics and the group as on a Kafka that has never seen this application."""
    names = [
        *site.settings.inputs,
        *(site.settings.topic(kind) for kind in ("alerts", "dead_letters", "journal", "models")),
    ]
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.delete_topics(names)
        until(lambda: not set(names) & set(admin.list_topics()), "the topics to be gone")

        def no_group() -> bool:
            with suppress(KafkaError):
                admin.delete_groups([site.name])
            return all(one["group_id"] != site.name for one in admin.list_groups())

        until(no_group, "the group to be gone", 30)

    def created() -> bool:
        with suppress(Exception):
            create_topics(site.settings, PARTITIONS, 1)
            return len(spans(site.settings, names)) == 5 * PARTITIONS + 1
        return False

    until(created, "the topics anew", 30)
    site.shop._offsets.clear()
    site.shop.bad.clear()


def test_a_redis_that_has_outlived_its_kafka_is_kept_and_the_new_journal_holds_it_whole(site):
    site.feed(0.5)
    run_to_the_end(site)
    check(site)
    new_kafka(site)
    worker = site.worker()
    assert worker.end() == 1
    assert "rewind --to earliest --keep-customers" in worker.errors
    site.expel("w1")
    assert "--to earliest --keep-customers" in refused(site, "rewind", "--to", "store")
    for step, number in (("in-transaction", 3), ("after-commit", 2)):
        killed(site, step, number, "rewind", "--to", "earliest", "--keep-customers", "--yes")
    worker = site.worker()
    assert worker.end() == 1
    assert "broken off at part 4" in worker.errors
    site.expel("w1")
    killed(site, "before-commit", 9, "rewind", "--to", "earliest", "--keep-customers", "--yes")
    done(site, "rewind", "--to", "earliest", "--keep-customers", "--yes")
    assert "there already" in done(site, "rewind", "--to", "earliest", "--keep-customers", "--yes")
    site.feed()
    run_to_the_end(site)
    seen = check(site)
    for task, codes in rewinds(seen).items():
        assert len(codes) > 2, "so many customers were to be more than two parts"
        assert codes == [f"rewind {part + 1}/{len(codes)}" for part in range(len(codes))], task
    empty_redis(site)
    run_to_the_end(site)
    check(site)


# Repartition


def renamed(site: Site, name: str, **topics: str) -> None:
    """A new application over other input topics."""
    site.name = name
    site.set(APPLICATION__NAME=name, **topics)
    create_topics(site.settings, PARTITIONS, 1)
    site.asking.close()
    site.asking = oracle.asking(site.settings)


def where_copied(site: Site, source: str, target: str) -> list[Bad]:
    """The unusable records of a topic as they lie in its copy."""
    found: dict[tuple[bytes, bytes | None, int], list[Record]] = {}
    for record in oracle.read_topic(site.settings, target):
        found.setdefault((record.key or b"", record.value, record.partition), []).append(record)
    bad = []
    for one in site.shop.bad:
        if one.topic == source:
            record = found[one.key or b"", one.value, one.partition % PARTITIONS].pop(0)
            bad.append(Bad(target, record.partition, record.offset, record.key, one.value, one.headers, one.reason))
        else:
            bad.append(one)
    return bad


def test_unequal_topics_are_repartitioned_and_a_new_application_counts_every_customer_exactly(site):
    """The purchases lie in two partitions, the clicks in three."""
    source, target = f"{site.name}.few", f"{site.name}.equal"
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.create_topics({source: {"num_partitions": 2, "replication_factor": 1}})
    shop = site.shop

    def moved(sent: Sent) -> Sent:
        if sent.topic != shop.purchases:
            return sent
        partition = sent.partition % 2 if sent.reason else (murmur2(sent.key) & 0x7FFFFFFF) % 2
        return sent._replace(topic=source, partition=partition)

    shop._made = [(moved(sent), gain) for sent, gain in shop._made]
    site.set(TOPICS__PURCHASES=source)
    site.feed()
    worker = site.worker()
    assert worker.end() == 1
    assert "driftline repartition SRC DST" in worker.errors
    assert f"driftline repartition {source} DST" in site_check(site)
    assert "the same topic" in refused(site, "repartition", source, source, code=2)
    assert "no topic nowhere" in refused(site, "repartition", "nowhere", target, code=2)

    for step, number in (("before-commit", 2), ("in-transaction", 2), ("after-commit", 2)):
        killed(site, step, number, "repartition", source, target)
    done(site, "repartition", source, target)
    assert "already; nothing was written" in done(site, "repartition", source, target)
    before = oracle.read_topic(site.settings, source)
    after = oracle.read_topic(site.settings, target)

    def of(records: list[Record]) -> Counter[tuple[bytes, bytes | None, int, object]]:
        return Counter((one.key or b"", one.value, one.timestamp_ms, one.headers) for one in records)

    assert of(after) == of(before), "every record once, as it was"
    assert {one.partition for one in after} == {0, 1, 2}
    for customer in ("c-001", "c-017", "c-042"):
        assert [one.value for one in after if one.key == customer.encode()] == [
            one.value for one in before if one.key == customer.encode()
        ], "the order of a customer"
    bad = where_copied(site, source, target)
    shop.bad[:] = bad
    renamed(site, f"{site.name}n", TOPICS__PURCHASES=target)
    run_to_the_end(site)
    check(site)


ANONYMOUS = "anon:c3"
"""With the prefix and without it, in another partition, of three as of five."""


def site_check(site: Site) -> str:
    running = site.command("topics", "check")
    assert running.end() == 1
    return running.output.decode()


def test_what_was_processed_before_a_repartition_counts_and_is_not_told_again(site):
    site.set(KAFKA__SESSION_TIMEOUT_S="60")  # frozen, the worker is to stay a member
    site.feed(0.6)
    run_to_the_end(site)
    before = check(site)
    assert before.alerts
    shop, topics = site.shop, {}
    assert "there is nothing to mend" in refused(site, "repartition", shop.purchases, f"{site.name}.new")

    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    site.wait_for_the_end(worker)
    worker.process.send_signal(signal.SIGSTOP)
    site.feed(0.8)
    committed = site.committed()
    for role, source in (("CLICKSTREAM", shop.clickstream), ("PURCHASES", shop.purchases)):
        topics[f"TOPICS__{role}"] = target = f"{source}5"
        read = sum(one.offset < committed[one[:2]] for one in oracle.read_topic(site.settings, source))
        running = site._start(
            ["tests.integration.command_process", "--", "repartition", source, target, "--partitions", "5"], "copy"
        )
        assert running.end() == 0, running.errors
        assert "w1 still work, so only what they have processed was copied" in running.errors
        assert len(oracle.read_topic(site.settings, target)) == read
    worker.process.send_signal(signal.SIGCONT)
    site.wait_for_the_end(worker)
    stop(site, worker)
    assert "knew of no such customer" in site.ask("forget", ANONYMOUS, "--wait-s", "0").decode()
    run_to_the_end(site)

    for source in site.settings.inputs:
        target = f"{source}5"
        assert ": 0 processed before" not in done(site, "repartition", source, target, "--partitions", "5")
        assert "already; nothing was written" in done(site, "repartition", source, target, "--partitions", "5")
        orders = [one for one in oracle.read_topic(site.settings, target) if one.key == ANONYMOUS.encode()]
        assert len({one.partition for one in orders}) == 2, "one for each key of their events"
        assert len(orders) == 4, "it lay in two partitions"
    name = site.name
    renamed(site, f"{name}n", **topics)
    worker = site.worker()
    expected = ends_of(site, 5)
    worker.wait_for(lambda: oracle_committed(site, 5) == expected, f"the end of the input {expected}")
    assert worker.stop() == 0, worker.errors
    seen = oracle.look(site.settings, 5)
    oracle.check_the_journal_tiles_the_input(seen)
    oracle.check_ticks_run_again_give_the_same_bytes(seen)
    oracle.check_alerts_are_those_of_the_journal(seen)
    oracle.check_redis_is_the_journal_folded(seen)
    strays = sum(one.reason == "misplaced" for one in shop.bad)  # now they lie where they belong
    oracle.check_customers(seen, shop.counts | ({"stray-1": Counts(strays)} if strays else {}))
    oracle.check_the_group_is_at_the_end(seen)
    assert seen.alerts == [], "told again"
    assert sum(len(one.entry.past) for ticks in seen.ticks.values() for one in ticks) > 0


def ends_of(site: Site, partitions: int) -> dict[tuple[str, int], int]:
    found = dict.fromkeys(((topic, task) for topic in site.settings.inputs for task in range(partitions)), 0)
    for record in in_the_topics(site):
        found[record.topic, record.partition] = record.offset + 1
    return found


def oracle_committed(site: Site, partitions: int) -> dict[tuple[str, int], int]:
    found = oracle.committed(site.settings, partitions, site.asking)
    return {place: stamp[0] if stamp else 0 for place, stamp in found.items()}


def test_a_repartition_into_a_topic_that_holds_something_else_is_refused(site):
    site.feed(0.2)
    target = f"{site.name}.other"
    with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin:
        admin.create_topics({target: {"num_partitions": 5, "replication_factor": 1}})
    source = site.shop.clickstream
    assert "has 5 partitions, not 4" in refused(site, "repartition", source, target, "--partitions", "4")
    killed(site, "after-commit", 1, "repartition", source, target, "--partitions", "5")
    site.send(target, [(0, b"c-1", b"{}")])
    assert "holds 51 records, this copy wrote 50" in refused(site, "repartition", source, target, "--partitions", "5")
