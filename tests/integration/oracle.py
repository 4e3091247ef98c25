"""What must hold after any run, checked from outside: from the broker's records and Redis's keys alone.

1 each task's journal goes 1, 2, 3, … and its offset ranges tile the input
2 each tick, run again from its journal entry, gives the same bytes; a rewind does what it says and no more
3 the alerts are those of the journal, each id once, none of them about history
4 Redis is what an undisturbed run over the same ticks leaves, row for row
5 each unusable record is a dead letter once, as it came
6 each customer is known exactly
7 the group is committed at the end of the input, with the stamp of the last tick
8 each model version was published once, and learned each journal record before its offsets once
9 each version that has other segments than the one before is told of once, and no other
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import orjson
import redis
from kafka import KafkaConsumer, TopicPartition

from stream.backends.redis import connected
from stream.events import HISTORY_HEADER, EventRules, Record
from stream.processing import clock, sections, tick
from stream.processing.alerts import SEGMENT_LINEAGE
from stream.processing.customer import ROW, SCHEMA, as_read, blank
from stream.processing.journal import REWIND, Entry, TaskState, decode, encode, part_of
from stream.processing.looking import Rules
from stream.processing.tick import TickInput
from stream.processing.version import WARMING, Version, warming
from stream.settings import Settings
from stream.versions import Versions
from tests.integration.shop import Bad, Counts, Shop

ADDED = ("driftline-reason", "driftline-detail", "driftline-topic", "driftline-partition", "driftline-offset")
NULL_VALUE = "driftline-null-value"
TRUNCATED = "driftline-truncated"


class Tick(NamedTuple):
    """A journal record as read: the bytes, what they decode to, and the offset it ends at."""

    data: bytes
    entry: Entry
    offset: int


class Seen(NamedTuple):
    """Everything a run left behind. Tests change a copy to see that the checks can fail."""

    settings: Settings
    inputs: Mapping[tuple[str, int], Sequence[Record]]
    ticks: Mapping[int, Sequence[Tick]]
    alerts: Sequence[tuple[bytes, bytes]]
    lineage: Sequence[tuple[bytes, bytes]]
    letters: Sequence[Record]
    models: Sequence[Record]
    committed: Mapping[tuple[str, int], tuple[int, str] | None]
    rows: Mapping[int, Mapping[str, bytes]]
    dues: Mapping[int, Mapping[str, int]]
    markers: Mapping[int, Mapping[str, object]]


def look(settings: Settings, partitions: int) -> Seen:
    """Read what a run left: every topic with read_committed, and Redis."""
    topics = {kind: read_topic(settings, settings.topic(kind)) for kind in ("alerts", "dead_letters", "models")}
    journal = read_topic(settings, settings.topic("journal"))
    tasks = range(partitions)
    inputs: dict[tuple[str, int], list[Record]] = {(topic, task): [] for topic in settings.inputs for task in tasks}
    for topic in settings.inputs:
        for record in read_topic(settings, topic):
            inputs[topic, record.partition].append(record)
    ticks = {task: ticks_in(journal, task) for task in tasks}
    with closing(asking(settings)) as consumer:
        offsets = committed(settings, partitions, consumer)
    with connected(settings.redis) as client:
        stored = {task: _stored(client, f"{{{settings.application.name}:p{task}}}:") for task in tasks}
    return Seen(
        settings,
        inputs,
        ticks,
        *parted(topics["alerts"]),
        topics["dead_letters"],
        topics["models"],
        offsets,
        {task: rows for task, (rows, _, _) in stored.items()},
        {task: dues for task, (_, dues, _) in stored.items()},
        {task: marker for task, (_, _, marker) in stored.items()},
    )


def parted(alerts: Sequence[Record]) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """Key and value of the alerts that ticks raised, and of those that came with model versions."""
    both = [(one.key or b"", one.value or b"") for one in alerts]
    lineage = [one for one in both if orjson.loads(one[1])["data"]["kind"] == SEGMENT_LINEAGE]
    return [one for one in both if one not in lineage], lineage


def check(settings: Settings, shop: Shop) -> Seen:
    """Look, and check everything against what the shop expects."""
    seen = look(settings, shop.partitions)
    check_all(seen, shop.counts, shop.bad)
    return seen


def check_all(seen: Seen, counts: Mapping[str, Counts], bad: Sequence[Bad]) -> None:
    """All checks; each raises AssertionError with what was found."""
    check_the_journal_tiles_the_input(seen)
    check_ticks_run_again_give_the_same_bytes(seen)
    check_alerts_are_those_of_the_journal(seen)
    check_redis_is_the_journal_folded(seen)
    check_dead_letters(seen, bad)
    check_customers(seen, counts)
    check_the_group_is_at_the_end(seen)
    check_versions_learned_each_record_once(seen)
    check_lineage_is_that_of_the_versions(seen)


def check_the_journal_tiles_the_input(seen: Seen) -> None:
    for task, ticks in seen.ticks.items():
        first = ticks[0].entry.seq if ticks and part_of(ticks[0].entry.code) else 1  # a new Kafka begins with a copy
        seqs = [one.entry.seq for one in ticks]
        assert seqs == list(range(first, first + len(ticks))), f"task {task}: a tick lacks"
        offsets = dict.fromkeys(seen.settings.inputs, 0)
        stream_time_ms = 0
        for _, entry, _ in ticks:
            where = f"task {task}, tick {entry.seq}"
            assert (entry.task, entry.prev_seq) == (task, entry.seq - 1), where
            if is_rewind(entry):
                assert entry.seq == first or dict(entry.offsets_before) == offsets, where
                offsets, stream_time_ms = dict(entry.state.offsets), entry.state.stream_time_ms
                continue
            assert dict(entry.offsets_before) == offsets, f"{where}: a gap or an overlap"
            assert all(entry.state.offsets[topic] >= offsets[topic] for topic in offsets), where
            assert entry.state.stream_time_ms >= stream_time_ms, f"{where}: stream time went back"
            offsets, stream_time_ms = dict(entry.state.offsets), entry.state.stream_time_ms
        ends = {topic: end_of(seen.inputs[topic, task]) for topic in seen.settings.inputs}
        assert offsets == ends, f"task {task}: not read to the end"


def check_ticks_run_again_give_the_same_bytes(seen: Seen) -> None:
    configs = {config: _configured(seen, config) for config in {one.entry.config for one in _ticks_of(seen)}}
    numbers = {one.entry.model_version for one in _ticks_of(seen)}
    versions = _versions(seen, numbers) | {WARMING: warming(seen.settings.models)}
    assert numbers <= set(versions), f"versions {sorted(numbers - set(versions))} were never published"
    for task, ticks in seen.ticks.items():
        stored: dict[str, bytes] = {}
        state = replace(TaskState(), schema=ticks[0].entry.state.schema if ticks else SCHEMA)
        for data, entry, _ in ticks:
            if is_rewind(entry):
                check_a_rewind(entry, state, stored)
                _fold(stored, entry)
                state = entry.state
                continue
            assert entry.code == tick.CODE, "the code was changed while the test ran"
            event_rules, rules = configs[entry.config]
            taken = [
                clock.read(record, event_rules)
                for name, end in entry.state.offsets.items()
                for record in between(seen.inputs[name, task], entry.offsets_before[name], end)
            ]
            merged = clock.merged(taken, seen.settings.inputs)
            before = TickInput(
                task,
                entry.partitions,
                replace(state, offsets=entry.offsets_before, incarnation=entry.state.incarnation),
                merged,
                entry.wakes,
                entry.released,
                entry.state.stream_time_ms,
                entry.state.live,
                versions[entry.model_version],
            )
            customers = tick.touched(merged, entry.wakes)
            rows, known = blank(len(customers)), np.zeros(len(customers), np.bool_)
            for i, customer in enumerate(customers):
                if customer in stored:
                    rows[i], known[i] = np.frombuffer(stored[customer], ROW)[0], True
            result = tick.run(before, customers, rows, known, rules).entry
            again = encode(result)
            where = f"task {task}, tick {entry.seq}"
            assert again == data, f"{where}: run again it gives another journal record: {_difference(data, again)}"
            _fold(stored, result)
            state = result.state


def _ticks_of(seen: Seen) -> list[Tick]:
    """All ticks; a rewind is none."""
    return [one for ticks in seen.ticks.values() for one in ticks if not is_rewind(one.entry)]


def _configured(seen: Seen, config: str) -> tuple[EventRules, Rules]:
    """What a tick stamped with this configuration was run by: its text lies beside the models."""
    texts = [one.value for one in seen.models if one.key == f"config/{config}".encode() and one.value]
    assert texts, f"the text behind configuration {config} was not kept"
    settings = Settings.from_config_text(texts[0])
    assert settings.config_hash == config
    return settings.event_rules, tick.rules(settings)


def is_rewind(entry: Entry) -> bool:
    """Whether an entry was written by `driftline rewind`."""
    return entry.code == REWIND or part_of(entry.code) is not None


def check_a_rewind(entry: Entry, before: TaskState, stored: Mapping[str, bytes]) -> None:
    """Customers dropped and the beginning, or nothing changed but the incarnation, or a part of a copy of all rows."""
    where = f"task {entry.task}, rewind {entry.seq}"
    made = (entry.alerts, entry.past, entry.uids, entry.label_churned, entry.wakes, entry.released)
    assert all(len(one) == 0 for one in made), f"{where} made something"
    part, count = part_of(entry.code) or (0, 0)
    after = entry.state
    if part:
        assert not entry.forgotten, where
        assert not set(entry.customers) & set(stored) or part == 1, f"{where}: a row twice"
        if part > 1:
            assert after == replace(before, seq=entry.seq), where
        if part == count:
            known = {*(stored if count > 1 else ()), *entry.customers}
            assert len(known) == after.customers, f"{where}: {len(known)} rows of {after.customers}"
        return
    assert not len(entry.customers), where
    dropped = TaskState(
        seq=entry.seq,
        incarnation=before.incarnation + 1,
        offsets=dict.fromkeys(after.offsets, 0),
        schema=before.schema,
        # Alerts of events came with their own time, which runs ahead of the clock that waits for both topics.
        history_until_ms=max(before.stream_time_ms, before.history_until_ms, *before.highs.values()),
    )
    kept = replace(before, seq=entry.seq, incarnation=before.incarnation + 1)
    assert (after == dropped and set(entry.forgotten) == set(stored)) or (after == kept and not entry.forgotten), (
        f"{where}: from {before} with {len(stored)} customers to {after}, {len(entry.forgotten)} forgotten"
    )


def _check_same(found: Counter[Any], wanted: Counter[Any], what: str) -> None:
    more, less = found - wanted, wanted - found
    assert not more, f"{what}; only found: {list(more)[:3]}"
    assert not less, f"{what}; not found: {list(less)[:3]}"


def check_alerts_are_those_of_the_journal(seen: Seen) -> None:
    journalled = [alert for ticks in seen.ticks.values() for one in ticks for alert in one.entry.alerts]
    of_journal = Counter((alert.key.encode(), alert.value) for alert in journalled)
    _check_same(Counter(seen.alerts), of_journal, "the alerts are not those of the journal")

    past = {alert.id for ticks in seen.ticks.values() for one in ticks for alert in one.entry.past}
    told = past & {orjson.loads(value)["id"] for _, value in seen.alerts}
    assert not told, f"published although they are about history: {told}"
    marked = {
        f"{one.topic}-{one.partition}-{one.offset}"
        for records in seen.inputs.values()
        for one in records
        if HISTORY_HEADER in dict(one.headers)
    }
    told_data = [orjson.loads(value)["data"] for _, value in seen.alerts]
    told_of = [one for one in told_data if one["derived_from"]["cause"] in marked]
    assert not told_of, f"published although what caused it is marked as history: {told_of}"
    changes = Counter(
        (one["customer_id"], one["kind"], one["derived_from"]["cause"], one["from"], one["to"]) for one in told_data
    )
    again = [one for one, count in changes.items() if count > 1]
    assert not again, f"told more than once, if under another incarnation: {again}"
    ids = Counter(orjson.loads(value)["id"] for _, value in seen.alerts)
    assert ids.total() == len(ids), f"published more than once: {[one for one, count in ids.items() if count > 1]}"


def check_redis_is_the_journal_folded(seen: Seen) -> None:
    for task, ticks in seen.ticks.items():
        stored: dict[str, bytes] = {}
        for one in ticks:
            _fold(stored, one.entry)
        found = seen.rows[task]
        assert set(found) == set(stored), f"task {task}: other customers than in the journal"
        schema = ticks[-1].entry.state.schema if ticks else 0
        differ = [customer for customer in stored if _row(found[customer]) != stored[customer]]
        assert all(int.from_bytes(data[:2], "little") <= schema for data in found.values()), f"task {task}: newer rows"
        assert not differ, f"task {task}: other rows than in the journal: {differ}"
        dues = {customer: int(np.frombuffer(row, ROW)[0]["due"]) for customer, row in stored.items()}
        assert seen.dues[task] == dues, f"task {task}: other due times than in the rows"
        if not ticks:
            continue
        last = ticks[-1].entry.state
        assert seen.markers[task]["seq"] == last.seq, f"task {task}: the marker is not at the last tick"
        assert seen.markers[task]["state"] == orjson.loads(orjson.dumps(last.to_json())), f"task {task}: other state"


def check_dead_letters(seen: Seen, bad: Sequence[Bad]) -> None:
    found = []
    for letter in seen.letters:
        added = {name: value.decode() for name, value in letter.headers if name in ADDED}
        assert set(added) == set(ADDED), f"dead letter without {set(ADDED) - set(added)}"
        assert added["driftline-detail"]
        original = tuple(one for one in letter.headers if one[0] not in (*ADDED, NULL_VALUE, TRUNCATED))
        value = None if (NULL_VALUE, b"1") in letter.headers else letter.value
        if TRUNCATED in dict(letter.headers):
            value = _whole(seen, letter, added)
        place = added["driftline-topic"], int(added["driftline-partition"]), int(added["driftline-offset"])
        found.append(Bad(*place, letter.key, value, original, added["driftline-reason"]))
    _check_same(Counter(found), Counter(bad), "the dead letters are not the unusable records")


def _whole(seen: Seen, letter: Record, added: Mapping[str, str]) -> bytes | None:
    """The value of a record too large for a dead letter: what the letter holds is its beginning."""
    place = added["driftline-topic"], int(added["driftline-partition"])
    value = next(one.value for one in seen.inputs[place] if one.offset == int(added["driftline-offset"]))
    assert value is not None
    assert len(value) == int(dict(letter.headers)[TRUNCATED])
    assert letter.value == value[: len(letter.value or b"")]
    return value


def check_customers(seen: Seen, counts: Mapping[str, Counts]) -> None:
    found = {}
    for rows in seen.rows.values():
        for customer, data in rows.items():
            row = np.frombuffer(_row(data), ROW)[0]
            assert customer not in found, f"{customer} is known to two tasks"
            found[customer] = Counts(int(row["events"]), int(row["orders"]), int(row["spend_minor"]))
    differ = {customer: (found.get(customer), counts.get(customer)) for customer in {*found, *counts}}
    differ = {customer: pair for customer, pair in differ.items() if pair[0] != pair[1]}
    assert not differ, f"customers are known otherwise than they lived (found, expected): {differ}"


def check_the_group_is_at_the_end(seen: Seen) -> None:
    for (topic, task), records in seen.inputs.items():
        if not seen.ticks[task]:
            continue
        last = seen.ticks[task][-1].entry.state
        stamp = seen.committed[topic, task]
        assert stamp is not None, f"{topic}-{task}: nothing is committed"
        assert stamp[0] == end_of(records), f"{topic}-{task}: committed {stamp[0]} of {end_of(records)}"
        assert orjson.loads(stamp[1]) == {"seq": last.seq, "inc": last.incarnation}, f"{topic}-{task}: {stamp[1]}"


def between(records: Sequence[Record], start: int, end: int) -> Sequence[Record]:
    """The records from one offset up to another; what a transaction leaves beside its records has offsets too."""
    first = bisect_left(records, start, key=lambda record: record.offset)
    return records[first : bisect_left(records, end, key=lambda record: record.offset)]


def end_of(records: Sequence[Record]) -> int:
    """The offset after the last record."""
    return records[-1].offset + 1 if records else 0


def check_versions_learned_each_record_once(seen: Seen) -> None:
    published = Counter(one.key for one in seen.models if (one.key or b"").startswith(b"version/") and one.value)
    assert published.total() == len(published), f"a model version was published more than once: {published}"
    numbers = {int(key.split(b"/")[1]) for key in published}
    for number, version in _versions(seen, numbers).items():
        before = [
            one.entry
            for task, ticks in seen.ticks.items()
            for one in ticks
            if one.offset <= version.journal.get(task, 0)
        ]
        events, labels = sum(len(one.features) for one in before), sum(len(one.label_churned) for one in before)
        learned = version.learned["events"], version.learned["labels"]
        assert learned == (events, labels), f"version {number} learned {learned} events and labels of {events, labels}"


def check_lineage_is_that_of_the_versions(seen: Seen) -> None:
    """One alert for each version that has other segments than the one before, saying what they are."""
    numbers = {int((one.key or b"").split(b"/")[1]) for one in seen.models if (one.key or b"").startswith(b"version/")}
    versions = _versions(seen, numbers)
    history_until_ms = max(
        (one.entry.state.history_until_ms for ticks in seen.ticks.values() for one in ticks), default=0
    )
    found: dict[str, dict[str, Any]] = {}
    for key, value in seen.lineage:
        data = orjson.loads(value)["data"]
        assert key == seen.settings.application.name.encode()
        assert data["to"] not in found, f"{data['to']} is told more than once"
        found[data["to"]] = data
    for number, version in versions.items():
        before = versions.get(version.parent)
        ids = before.segments.ids.tolist() if before else []
        data = found.pop(f"version {number}", None)
        if data is not None:
            assert data["segments"] == [version.segment(one) for one in version.segments.ids.tolist()]
            assert data["changes"]
        elif version.journal and version.stream_time_ms > history_until_ms:  # else it learned elsewhere, or history
            assert ids == version.segments.ids.tolist(), f"version {number} has other segments, and nobody was told"
    assert not found, f"told of versions that were never published: {sorted(found)}"


class _Kept:
    """Records as a topic that can only be read."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
        return [one for one in self._records if one.partition == partition and one.offset >= start][:limit]


def _versions(seen: Seen, numbers: set[int]) -> dict[int, Version]:
    topic: Any = _Kept(seen.models)
    return Versions(topic).read(sorted(numbers))


def asking(settings: Settings) -> KafkaConsumer:
    """A consumer that asks for the group's offsets without joining it."""
    return KafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=settings.application.name,
        isolation_level="read_committed",
        enable_auto_commit=False,
        reconnect_backoff_max_ms=1_000,  # the broker may have been away for long
    )


def committed(
    settings: Settings, partitions: int, consumer: KafkaConsumer
) -> dict[tuple[str, int], tuple[int, str] | None]:
    """The group's committed offset and metadata of each input partition."""
    # An answer that an earlier call did not wait for would be taken for today's.
    consumer._coordinator._offset_fetch_futures.clear()
    places = [TopicPartition(topic, task) for topic in settings.inputs for task in range(partitions)]
    found = {place: consumer.committed(place, metadata=True, timeout_ms=20_000) for place in places}
    return {
        tuple(place): None if stamp is None else (stamp.offset, stamp.metadata.rstrip("\0"))  # librdkafka's last byte
        for place, stamp in found.items()
    }


def read_topic(settings: Settings, name: str) -> list[Record]:
    """Every committed record of a topic, partition by partition."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        places = [TopicPartition(name, partition) for partition in sorted(consumer.partitions_for_topic(name))]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        found: dict[int, list[Record]] = {place.partition: [] for place in places}
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=500).values():
                for one in batch:
                    headers = tuple(one.headers or ())
                    found[one.partition].append(
                        Record(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, headers)
                    )
        return [record for partition in sorted(found) for record in found[partition]]
    finally:
        consumer.close()


def ticks_of(settings: Settings, task: int) -> list[Tick]:
    """A task's journal."""
    return ticks_in(read_topic(settings, settings.topic("journal")), task)


def ticks_in(journal: Sequence[Record], task: int) -> list[Tick]:
    found: list[Tick] = []
    parts: list[bytes] = []
    for record in journal:
        if record.partition != task:
            continue
        place, _, count = dict(record.headers)["driftline-chunk"].partition(b"/")
        assert int(place) == len(parts), f"a chunk of the journal lacks at offset {record.offset}"
        parts.append(record.value or b"")
        if len(parts) == int(count):
            data = b"".join(parts)
            parts = []
            found.append(Tick(data, decode(data), record.offset + 1))
    assert not parts, "the journal ends within a record"
    return found


def _stored(client: "redis.Redis[bytes]", prefix: str) -> tuple[dict[str, bytes], dict[str, int], Mapping[str, object]]:
    """Rows, due times and marker of one task, as they lie in Redis."""
    start = f"{prefix}c:"
    keys = sorted(client.scan_iter(f"{prefix}*", count=1_000))
    customers = [key.decode().removeprefix(start) for key in keys if key.decode().startswith(start)]
    values = client.mget([start + customer for customer in customers]) if customers else []
    dues = {name.decode(): int(score) for name, score in client.zrange(f"{prefix}due", 0, -1, withscores=True)}
    marker = client.hgetall(f"{prefix}m")
    body = orjson.loads(marker[b"body"]) if marker else {}
    if marker:
        assert int(marker[b"seq"]) == body["state"]["seq"]
    assert len(keys) == len(customers) + bool(dues) + bool(marker), "keys that nobody knows"
    return dict(zip(customers, values, strict=True)), dues, body | {"seq": int(marker.get(b"seq", 0))}


def _difference(data: bytes, again: bytes) -> str:
    """Where two journal records differ: fields of the header, and sections."""
    before, after = sections.unpack_header(data), sections.unpack_header(again)
    fields = [f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    differ = [
        name for name in before["sections"] if sections.raw(data, before, name) != sections.raw(again, after, name)
    ]
    return f"{'; '.join(fields)} sections {differ}"


def _fold(stored: dict[str, bytes], entry: Entry) -> None:
    stored |= {customer: entry.rows[i].tobytes() for i, customer in enumerate(entry.customers)}
    for customer in entry.forgotten:
        stored.pop(customer, None)


def _row(data: bytes) -> bytes:
    """A row of any schema as one of the newest."""
    return as_read(data[2:], int.from_bytes(data[:2], "little")).tobytes()
