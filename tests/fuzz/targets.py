"""The targets: each takes any bytes, parses them as the worker would, and raises where a promise is broken.

Promised of all: the same bytes give the same answer, and what cannot be used gives the documented error and no other.
"""

import csv
import io
import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import orjson
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.record.default_records import DefaultRecordBatch
from kafka.structs import OffsetAndMetadata

from stream import adapters, settings
from stream.backends.kafka.batches import decoded
from stream.backends.kafka.inputs import stamped
from stream.backends.memory import MemoryCluster, MemoryTopic
from stream.backends.redis import RedisStore, _marker
from stream.chunks import CHUNK_HEADER, Chunks
from stream.errors import Damaged, InvalidEvent, Misconfigured, NewerSchema, RowsLost, SettingsError
from stream.events import (
    EARLIEST_MS,
    LATEST_MS,
    MAX_ID_CHARS,
    MAX_MINOR,
    MAX_NAME_CHARS,
    REASONS,
    Event,
    EventRules,
    Forget,
    Record,
)
from stream.ports import Outgoing
from stream.processing import clock, journal, tick
from stream.processing.customer import DAY_MS, ROW, ROWS, Rows, as_read, as_written
from stream.processing.tick import TickInput
from stream.processing.version import from_bytes, to_bytes
from stream.rows import RowCache
from stream.versions import Versions
from tests.builders import BUYS, CLICKS, NOW, fold, gathered
from tests.builders import settings as small_settings
from tests.fuzz.mutations import FIELD, RECORD
from tests.fuzz.seeds import (
    batch_seeds,
    chunk_seeds,
    configuration_seeds,
    event_seeds,
    file_seeds,
    journal_seeds,
    large_configurations,
    large_events,
    large_files,
    marker_seeds,
    model_topic_seeds,
    model_version_seeds,
    ready,
    rehearsed,
    row_seeds,
    snapshot,
    stamp_seeds,
    stored,
    tick_seeds,
    written,
)

RULES = EventRules("USD", {"EUR": 1.08})
FOLDER = Path(mkdtemp(prefix="driftline-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


@dataclass(frozen=True)
class Target:
    """`seeds` are real values, and some that are known to be hard; `large` those that a fuzzer is not to grow."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    large: Callable[[], Sequence[bytes]] = tuple
    max_bytes: int = 8_192
    loops: int = 0
    """Where compiled loops take what was parsed: one in so many inputs is run uncompiled too, which checks bounds."""


class BrokenError(AssertionError):
    """A promise that an input broke."""


def promise(kept: bool, what: str) -> None:
    """Raise unless it was kept: `assert` is stripped by -O."""
    if not kept:
        raise BrokenError(what)


# Events


def record_of(data: bytes, offset: int = 0, topic: str = CLICKS) -> Record:
    """`value FIELD key FIELD header FIELD header's value FIELD timestamp`; a value of one NUL is none."""
    parts = data.split(FIELD, 4)
    value, key, name, said, time = parts + [b""] * (5 - len(parts))
    headers = ((name.decode(errors="backslashreplace"), said),) if len(parts) > 2 else ()
    timestamp_ms = int(time) if time.isdigit() and len(time) < 19 else NOW
    return Record(
        topic, 0, offset, timestamp_ms, key if len(parts) > 1 else None, None if value == b"\0" else value, headers
    )


def events(data: bytes) -> None:
    """A record becomes an event within its bounds, an order to forget, or a dead letter with a reason of the list."""
    record = record_of(data)
    outcome = clock.read(record, RULES).outcome
    again = clock.read(record, RULES).outcome
    if isinstance(outcome, InvalidEvent):
        promise(isinstance(again, InvalidEvent) and str(outcome) == str(again), "another reason for the same bytes")
        promise(outcome.reason in REASONS, f"no such reason: {outcome.reason}")
        promise(
            len(outcome.detail) < 400 and outcome.detail.isprintable(), f"a detail no log takes: {outcome.detail!r}"
        )
        outcome.detail.encode()
        return
    promise(outcome == again, "another event from the same bytes")
    if isinstance(outcome, Forget):
        promise(0 < len(outcome.customer) <= MAX_ID_CHARS + 5, "a customer's id out of bounds")
    else:
        in_bounds(outcome)


def in_bounds(event: Event) -> None:
    """What everything behind relies on."""
    ids = [event.customer.removeprefix("anon:"), event.message_id or "-"]
    promise(all(0 < len(one) <= MAX_ID_CHARS and one.isprintable() for one in ids if one), f"an id: {ids}")
    promise(bool(event.customer) and event.anonymous == event.customer.startswith("anon:"), "whose event it is")
    promise(len(event.name) <= MAX_NAME_CHARS and event.name.isprintable(), f"a name: {event.name!r}")
    promise(EARLIEST_MS <= event.time_ms <= LATEST_MS, f"a time: {event.time_ms}")
    promise(event.amount_minor is None or 0 <= event.amount_minor <= MAX_MINOR, f"an amount: {event.amount_minor}")
    promise(0 <= event.items < 2**31, f"items: {event.items}")
    promise(all(0 < len(name) <= MAX_NAME_CHARS for name in event.categories), "a category")
    promise(all(0 <= one < 2**64 for one in (event.message_hash, event.order_hash)), "a fingerprint")
    "".join((event.customer, event.name, *event.categories)).encode()


# A whole tick


@cache
def tick_rules() -> Any:
    return tick.rules(rehearsed().settings)


def whole_tick(data: bytes) -> None:
    """Every record is counted, a duplicate, forgotten or a dead letter; the journal replays byte by byte."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's: a number out of its range
        ticks(data)


def ticks(data: bytes) -> None:
    partitions = 2 if data[:1] == b"2" else 1
    records = [record_of(one, i, (CLICKS, BUYS)[i % 2]) for i, one in enumerate(data[1:].split(RECORD)[:40])]
    rows, state = dict(stored()), journal.TaskState(5, stream_time_ms=NOW - DAY_MS, customers=2)
    read = [clock.read(one, rehearsed().settings.event_rules) for one in records]
    seen, dead = 0, []
    for part in parts(read):
        by_offset = sorted(part, key=lambda one: (one.record.topic, one.record.offset))
        promise(clock.merged(by_offset, (CLICKS, BUYS)) == part, "run again, its records come in another order")
        stream_time_ms = max([state.stream_time_ms, *(one.time_ms for one in part)])
        given = TickInput(0, partitions, state, part, [], [], stream_time_ms, True, ready())
        state, letters = ticked(given, rows)
        seen, dead = seen + len(part), dead + letters
    promise(seen == len(records), "a record was left behind")
    promise(
        all(any(letter is record for record in records) for letter in dead),
        "a dead letter is not the record as it came",
    )
    later = state.stream_time_ms + 40 * DAY_MS
    ticked(TickInput(0, partitions, state, [], sorted(rows), [], later, True, ready()), rows)


def parts(read: list[clock.Decoded]) -> list[list[clock.Decoded]]:
    """What the worker's clock makes ticks of."""
    buffers = {CLICKS: deque[clock.Decoded](), BUYS: deque[clock.Decoded]()}
    for one in read:
        buffers[one.record.topic].append(one)
    found = []
    while part := clock.take(buffers, frozenset((CLICKS, BUYS)), {}, 15):
        found.append(part)
    return found


def ticked(given: TickInput, rows: dict[str, bytes]) -> tuple[journal.TaskState, list[Record]]:
    """Run one tick, hold it against its promises, and apply it."""
    customers = tick.touched(given.decoded, given.wakes)
    result = tick.run(given, customers, *gathered(rows, customers), tick_rules())
    counted = sum(result.counts.get(kind, 0) for kind in KINDS)
    dead = {id(letter.record) for letter in result.dead_letters}
    asked = sum(isinstance(one.outcome, Forget) and id(one.record) not in dead for one in given.decoded)
    promise(
        counted + result.counts.get("duplicate", 0) + len(dead) + asked == len(given.decoded),
        f"of {len(given.decoded)} records: {dict(result.counts)}, {len(dead)} dead letters, {asked} asked to forget",
    )
    entry = result.entry
    data = journal.encode(entry)
    promise(journal.encode(journal.decode(data)) == data, "the journal does not come back as it was written")
    again = tick.run(given, customers, *gathered(rows, customers), tick_rules())
    promise(journal.encode(again.entry) == data, "the same tick gave another journal")
    sane(entry.rows)
    for alert in (*entry.alerts, *entry.past):
        promise(
            "NaN" not in alert.value.decode() and isinstance(orjson.loads(alert.value), dict),
            "an alert that is no JSON",
        )
    fold(rows, entry)
    promise(entry.state.customers == len(rows), f"{entry.state.customers} customers counted, {len(rows)} rows")
    return entry.state, [letter.record for letter in result.dead_letters]


KINDS = ("view", "search", "cart_add", "cart_remove", "checkout", "order", "refund", "other")


def sane(rows: Rows) -> None:
    """Only `churn` may be NaN, nothing infinite, no count below zero."""
    for name in rows.dtype.names or ():
        values = rows[name]
        if values.dtype.kind == "f":
            promise(
                bool(np.isfinite(values).all()) or (name == "churn" and not np.isinf(values).any()), f"{name}: {values}"
            )
        elif name not in ("segment", "candidate", "spend_minor"):
            promise(bool((values.astype(np.float64) >= 0).all()), f"{name} below zero: {values}")


# What we wrote ourselves, and somebody damaged


def journal_record(data: bytes) -> None:
    """A journal record is an entry that is written as it was read, or refused with its own error."""
    for read in (journal.label_of, journal.alerts_of):
        with suppress(NewerSchema, Damaged):
            read(data)
    try:
        entry = journal.decode(data)
    except (NewerSchema, Damaged) as refused:
        promise(len(str(refused)) < 1_000, f"an error no log takes, of {len(str(refused))} characters")
        return
    journal.part_of(entry.code) if entry.code.startswith("rewind") else None
    rows = len(entry.customers)
    promise(len(entry.rows) == rows and entry.rows.dtype == ROW, "rows that are not the customers'")
    promise(len(entry.who) == len(entry.uids) == len(entry.features) == len(entry.scores), "events of several lengths")
    everybody = rows + len(entry.forgotten)
    promise(all(int(who.max(initial=0)) < max(everybody, 1) for who in (entry.who, entry.label_who)), "nobody's event")
    again = journal.encode(entry)
    promise(journal.encode(journal.decode(again)) == again, "what was read is written otherwise")


def chunk_records(data: bytes) -> None:
    """Chunks in any order and with any header come to whole records, to nothing, or to the error of damaged ones."""
    chunks, size = Chunks(), 0
    for one in data.split(RECORD)[:50]:
        value, _, header = one.partition(FIELD)
        size += len(value)
        try:
            whole = chunks.add(value, ((CHUNK_HEADER, header),) if FIELD in one else ())
        except Damaged:
            continue
        promise(whole is None or len(whole) <= size, "more came out than went in")


def model_topic(data: bytes) -> None:
    """Records of the models topic with any key and header: the newest whole version, or the error of damaged ones."""
    cluster = MemoryCluster((), 1)
    topic = MemoryTopic(cluster, "models", partitions=1)
    whole = snapshot()
    third = -(-len(whole) // 3)
    for one in data.split(RECORD)[:30]:
        key, header, value = ([*one.split(FIELD, 2), b"", b""])[:3]
        given = {b"0": whole[:third], b"1": whole[third : 2 * third], b"2": whole[2 * third :], b"*": whole, b"": None}
        headers = ((CHUNK_HEADER, header),) if header else ()
        cluster.produce(Outgoing("models", 0, key, given.get(value, value), headers), NOW)
    for read in (lambda: Versions(topic).refresh(), lambda: Versions(topic).read([3])):
        with suppress(NewerSchema, Damaged):
            read()


def model_version(data: bytes) -> None:
    """A snapshot is a version whose arrays are those that were written, or refused."""
    try:
        version = from_bytes(data)
    except (NewerSchema, Damaged) as refused:
        promise(len(str(refused)) < 1_000, f"an error no log takes, of {len(str(refused))} characters")
        return
    promise(from_bytes(to_bytes(version, {})).number == version.number, "a version that cannot be written again")
    rows = np.linspace(-3, 3, 5 * len(version.anomaly.features or ())).reshape(5, -1)
    if version.anomaly.ready:
        promise(bool(np.isfinite(version.anomaly.score_many(rows)).all()), "a score that is none")


def store_row(data: bytes) -> None:
    """A row out of Redis is one of `ROW`, or refused; in older schemas it is migrated, and written as it was."""
    store = redis_store()
    try:
        row = store._row("c-1", data)
    except (NewerSchema, RowsLost):
        return
    promise(len(row) == ROW.itemsize, f"a row of {len(row)} bytes")
    rows, known = RowCache(1_000).gather(["c-1", "c-2"], {"c-1": row})
    promise(known.tolist() == [True, False] and rows[:1].tobytes() == row, "the cache changed it")
    schema = int.from_bytes(data[:2], "little")
    kept = as_written(as_read(row, max(ROWS)), schema)
    common = [name for name in kept.dtype.names or () if name in (ROW.names or ())]
    before = np.frombuffer(data[2:], ROWS[schema])
    promise(all(kept[name].tobytes() == before[name].tobytes() for name in common), "migrating changed what it keeps")


@cache
def redis_store() -> RedisStore:
    """It connects at its first call of the server, which is never made."""
    return RedisStore(small_settings())


def store_marker(data: bytes) -> None:
    """A marker out of Redis is one with whole numbers in it, or refused."""
    try:
        marker = _marker(data)
    except (NewerSchema, Damaged) as refused:
        promise(len(str(refused)) < 1_000, f"an error no log takes, of {len(str(refused))} characters")
        return
    promise(marker is not None, "no marker out of something")
    assert marker is not None
    numbers = (
        *marker[1:],
        marker.state.seq,
        marker.state.incarnation,
        marker.state.stream_time_ms,
        *marker.state.offsets.values(),
    )
    promise(all(type(number) is int for number in numbers), f"a number that is none: {numbers}")
    again = written(marker)  # what its schema does not have is left out
    promise(written(_marker(again) or marker) == again, "written otherwise than it was read")


def stamps(data: bytes) -> None:
    """Committed offsets carry the stamp of one tick, or are refused."""
    texts = [one.decode(errors="backslashreplace") for one in data.split(FIELD)[:3]]
    found = {f"t{i}": OffsetAndMetadata(i, text, -1) for i, text in enumerate(texts)}
    try:
        committed = stamped("group", 0, found | {"t9": None})
    except Misconfigured:
        return
    promise(
        committed is not None and type(committed.seq) is int and type(committed.incarnation) is int,
        "a stamp without number",
    )


# Batches from a broker


def batch(data: bytes) -> None:
    """The bytes of a batch are records, or an error of the client's kind; its checksum is passed by on purpose."""
    if len(data) < 61:
        return
    whole = DefaultRecordBatch(bytearray(data))
    if whole.magic != 2 or whole.compression_type != 0 or not 0 <= whole.records_count <= 10_000:
        return  # refused, or uncompressed by the client, before ours begins
    try:
        records = list(decoded(TopicPartition("clicks", 3), whole))
    except kafka_errors.CorruptRecordError:
        return
    promise(len(records) == whole.records_count, "a record too many or too few")
    promise(sum(len(one.key or b"") + len(one.value or b"") for one in records) <= len(data), "more than there was")


# Files and settings


def files(data: bytes) -> None:
    """Every line of a file of events is a record, or a part of one; every record an event or a dead letter."""
    suffix = (".jsonl", ".csv", ".tsv")[data[0] % 3 if data else 0]
    content = data[1:]
    path = FOLDER / f"events{suffix}"
    path.write_bytes(content)
    try:
        adapters.is_event_log(path)
        log = True
    except SettingsError:
        log = False
    try:
        records = list(adapters.records(path, "file"))
    except SettingsError as refused:
        promise(suffix != ".jsonl" and len(str(refused)) < 20_000, f"refused: {str(refused)[:200]}")
        return
    for record in records:
        outcome = clock.read(record, RULES).outcome
        promise(not isinstance(outcome, InvalidEvent) or outcome.reason in REASONS, "a reason that is none")
        if isinstance(outcome, Event):
            in_bounds(outcome)
    if suffix == ".jsonl":
        lines = [line for line in io.BytesIO(content) if line.strip().removeprefix(adapters.BOM)]
        promise(len(records) == len(lines), f"{len(lines)} lines, {len(records)} records")
        return
    promise(log, "read, although it is no CSV")
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    rows = [row for row in list(csv.reader(text, delimiter="\t" if suffix == ".tsv" else ","))[1:] if any(row)]
    bodies = [orjson.loads(record.value or b"") for record in records]
    held = sum(len(one["properties"]["products"]) if one["event"] in adapters.ORDERS else 1 for one in bodies)
    promise(held == len(rows), f"{len(rows)} rows, {held} in records")


def configuration(data: bytes) -> None:
    """A file and an environment are settings whose ticks can be told again from their text, or refused in one error."""
    content, *lines = data.split(FIELD)
    path = FOLDER / "driftline.toml"
    path.write_bytes(content)
    # What an environment can hold: no NUL, and bytes beyond UTF-8 as surrogates.
    pairs = [line.decode(errors="surrogateescape").replace("\0", "").partition("=") for line in lines[:20]]
    try:
        found = settings.load(path, {name: value for name, _, value in pairs})
    except SettingsError as refused:
        promise(len(str(refused)) < 20_000, f"an error of {len(str(refused))} characters")
        str(refused).encode()
        return
    again = settings.Settings.from_config_text(found.config_text)
    promise(again.config_hash == found.config_hash, "the text behind the hash gives another")
    promise(all(math.isfinite(rate) for rate in found.application.rates.values()), "a rate that is none")
    found.shown_redis_url.encode()


TARGETS: dict[str, Target] = {
    "events": Target(events, event_seeds, large_events),
    "tick": Target(whole_tick, tick_seeds, loops=100),
    "journal": Target(journal_record, journal_seeds, max_bytes=65_536),
    "chunks": Target(chunk_records, chunk_seeds),
    "models": Target(model_topic, model_topic_seeds),
    "version": Target(model_version, model_version_seeds, max_bytes=400_000, loops=100),
    "rows": Target(store_row, row_seeds),
    "marker": Target(store_marker, marker_seeds),
    "stamps": Target(stamps, stamp_seeds),
    "batches": Target(batch, batch_seeds, loops=1),
    "files": Target(files, file_seeds, large_files),
    "settings": Target(configuration, configuration_seeds, large_configurations),
}
