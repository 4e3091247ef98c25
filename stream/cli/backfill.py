"""Write a shop's history, from files, into the input topics: it counts, and nothing about the past is told.

Files are JSON Lines (Segment) or CSV, each in order of time; several are merged by event time. Killed half-way, the
same command goes on where it was; run again at the end, it says that all is in.
"""

import argparse
import hashlib
import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import orjson

from stream.adapters import records
from stream.backends.kafka import KafkaOutputs, KafkaTopic
from stream.backends.kafka.offsets import Kept, Span, committed, kept, largest_record, spans
from stream.cli.batches import batches, commit
from stream.cli.progress import progress
from stream.diagnosis.facts import Place
from stream.errors import InvalidEvent, Misconfigured, SettingsError
from stream.events import HISTORY_HEADER, EventRules, Kind, Record, decode
from stream.ports import Outgoing, Topic
from stream.processing.placement import key_of, partition_of
from stream.settings import Settings
from stream.trainer import NO_GROUP

SAMPLE = 1_000
UNUSABLE_SHARE = 0.5
LOOK_BACK = 500
NEW_TOPICS = (
    "Name new topics in topics.clickstream and topics.purchases and a new application.name, run "
    "`driftline topics create` and this command again, then point the producers at the new topics"
)


class Line(NamedTuple):
    """One line of the files as it is written: `customer` is None and `reason` set where it is no event."""

    purchase: bool
    customer: str | None
    value: bytes
    reason: str = ""
    redated: bool = False


class Found(NamedTuple):
    """What the input topics hold: the highest ordinal written, -1 = none; where live events lie behind it, or alone."""

    reached: int
    live_behind: Sequence[str]
    live_first: Sequence[str]


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="events: JSON Lines (Segment) or CSV")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Write what is not in yet."""
    digest, files, count = _read_through(arguments.files)
    rules = settings.event_rules
    _check_sample(list(islice(_lines(files, rules), SAMPLE)))
    places = spans(settings, settings.inputs)
    partitions = _partitions(settings, places)
    _check_start(settings, places)
    largest = largest_record(settings, settings.inputs)
    with ExitStack() as stack:
        # First of all: what an earlier run left open is aborted before the topics are read.
        outputs = stack.enter_context(closing(KafkaOutputs(settings, "backfill", largest_bytes=largest)))
        topics = {
            name: stack.enter_context(closing(KafkaTopic(settings, name))) for name in dict.fromkeys(settings.inputs)
        }
        found = _found(topics, spans(settings, settings.inputs), digest)
        lines = enumerate(_lines(files, rules))
        parts = batches(islice(lines, found.reached + 1, None), lambda one: len(one[1].value))
        first = next(parts, None)
        if first is None:
            print(f"all {found.reached + 1:,} events of these files are in already; nothing was written")
            return 0
        if found.live_first:
            raise Misconfigured(
                f"{found.live_first[0]} holds live events: history written behind them would count as late. "
                f"{NEW_TOPICS}"
            )
        if found.live_behind:
            raise Misconfigured(
                f"live events came while the history was being written ({', '.join(found.live_behind)}), after "
                f"{found.reached + 1:,} of its events: the rest would count as late. {NEW_TOPICS}"
            )
        keeps = kept(settings, settings.inputs)
        print(_deadline(keeps), file=sys.stderr)
        written = Written()
        with progress("writing", count, found.reached + 1) as advance:
            for batch in chain([first], parts):
                _write(outputs, settings, partitions, digest, batch, written)
                advance(len(batch))
    _say(written, keeps)
    return 0


@dataclass
class Written:
    """What one run has written; `ends` are where each partition's next record is to lie if nobody else writes."""

    topics: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    bytes_of: Counter[Place] = field(default_factory=Counter)
    redated: int = 0
    foreign: int = 0
    ends: dict[Place, int] = field(default_factory=dict)


def _read_through(paths: Sequence[Path]) -> tuple[str, list[tuple[str, Path]], int]:
    """The digest of all files, each file with its own in an order that does not hang on the command line, and lines."""
    found: dict[str, Path] = {}
    lines = 0
    for path in paths:
        hashed = hashlib.blake2b(digest_size=8)
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    hashed.update(block)
                    lines += block.count(b"\n")
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
        same = found.setdefault(hashed.hexdigest(), path)
        if same is not path:
            raise SettingsError(f"{path} and {same} hold the same; name each file once")
    files = sorted(found.items())
    return hashlib.blake2b("".join(each for each, _ in files).encode(), digest_size=8).hexdigest(), files, lines


def _lines(files: Sequence[tuple[str, Path]], rules: EventRules) -> Iterator[Line]:
    """Every event of the files, merged by the time each file has reached: always the same lines in the same order."""
    # A CSV's message ids come from the file's contents, not from its name.
    sources = [records(path, digest) for digest, path in files]
    return (_line(record, rules) for record in heapq.merge(*sources, key=lambda record: record.timestamp_ms))


def _line(record: Record, rules: EventRules) -> Line:
    value = record.value or b""
    try:
        event = decode(record, rules)
    except InvalidEvent as invalid:
        return Line(False, None, value, invalid.reason)
    purchase = event.kind in (Kind.ORDER, Kind.REFUND)
    try:
        # The worker sees the time of sending in place of the file's: a line that is mis-dated or has no time of its own
        # would move the shop's clock to today.
        redated = decode(record._replace(timestamp_ms=0), rules).time_ms != event.time_ms
    except InvalidEvent:
        redated = True
    if redated:
        at = datetime.fromtimestamp(event.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
        value = orjson.dumps(orjson.loads(value) | {"timestamp": at, "originalTimestamp": at})
    return Line(purchase, event.customer, value, "", redated)


def _check_sample(sample: Sequence[Line]) -> None:
    if not sample:
        raise SettingsError("the files hold no events")
    reasons = Counter(line.reason for line in sample if line.reason)
    if reasons.total() > UNUSABLE_SHARE * len(sample):
        shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        raise SettingsError(
            f"{reasons.total():,} of the first {len(sample):,} lines are no usable events ({shown}); nothing was "
            "written. `driftline replay --dead-letters FILE` says of each line what to mend"
        )


def _partitions(settings: Settings, places: Iterable[Place]) -> int:
    counts = Counter(topic for topic, _ in places)
    first, second = settings.inputs
    if counts[first] != counts[second]:
        raise Misconfigured(
            f"the input topics have {dict(counts)} partitions, they must be equal: delete one that is empty and run "
            "`driftline topics create`, or copy one with `driftline repartition SRC DST`"
        )
    return counts[first]


def _check_start(settings: Settings, places: Mapping[Place, Span]) -> None:
    if settings.kafka.start_at == "latest" and not committed(settings, settings.application.name, places):
        raise Misconfigured(
            "kafka.start_at is latest: a worker would begin behind the history and never read it; set it to earliest"
        )


def _found(topics: Mapping[str, Topic], places: Mapping[Place, Span], digest: str) -> Found:
    """How far an earlier run came.

    Raises:
        Misconfigured: the topics hold another history, behind which this one would be out of order.
    """
    reached, live_behind, live_first = -1, [], []
    for (name, partition), span in places.items():
        oldest = topics[name].read(partition, span.begin, 1)
        if not oldest:
            continue
        if _mark(oldest[0]) is None:
            live_first.append(f"{name}-{partition} from offset {oldest[0].offset} on")
            continue
        newest, behind = _newest(topics[name], partition, span)
        theirs, _, ordinal = newest.partition(":")
        if theirs != digest or not ordinal.isdecimal():
            raise Misconfigured(
                f"{name}-{partition} holds the history of other files (mark {newest!r}, these files are {digest}): a "
                f"second history behind it would be out of order. Name all files in one command. {NEW_TOPICS}"
            )
        reached = max(reached, int(ordinal))
        if behind:
            live_behind.append(f"{behind:,} in {name}-{partition}")
    return Found(reached, live_behind, live_first)


def _newest(topic: Topic, partition: int, span: Span) -> tuple[str, int]:
    """The mark of the newest record of a history, and how many records came behind it."""
    width = LOOK_BACK
    while True:
        position, mark, behind = max(span.end - width, span.begin), None, 0
        while position < span.end and (batch := topic.read(partition, position, LOOK_BACK)):
            position = batch[-1].offset + 1
            for record in batch:
                found = _mark(record)
                mark, behind = (found, 0) if found is not None else (mark, behind + 1)
        if mark is not None or span.end - width <= span.begin:
            return mark or "", behind
        width *= 4


def _mark(record: Record) -> str | None:
    return next((value.decode(errors="replace") for name, value in record.headers if name == HISTORY_HEADER), None)


def _write(
    outputs: KafkaOutputs,
    settings: Settings,
    partitions: int,
    digest: str,
    batch: Sequence[tuple[int, Line]],
    written: Written,
) -> None:
    """Commit a batch whole: what is written is always all lines up to some ordinal."""
    clickstream, purchases = settings.inputs
    sending = []
    for ordinal, line in batch:
        # A line that is no event goes in as it is: the worker sets it aside as a dead letter, with the reason.
        partition, key = ordinal % partitions, b""
        if line.customer is not None:
            key = key_of(line.customer).encode()
            partition = partition_of(key.decode(), partitions, settings.kafka.partitioner)
        topic = purchases if line.purchase else clickstream
        headers = ((HISTORY_HEADER, f"{digest}:{ordinal}".encode()),)
        sending.append(Outgoing(topic, partition, key or None, line.value, headers))
        written.topics[topic] += 1
        written.bytes_of[topic, partition] += len(line.value)
        written.redated += line.redated
        if line.reason:
            written.reasons[line.reason] += 1
    offsets = commit(outputs, sending, (), NO_GROUP)
    for one, offset in zip(sending, offsets, strict=True):
        place = one.topic, one.partition or 0
        written.foreign += offset - written.ends.get(place, offset)
        written.ends[place] = offset + 1
    for place in {(one.topic, one.partition or 0) for one in sending}:
        written.ends[place] += 1  # the marker that ends the transaction


def _deadline(keeps: Mapping[str, Kept]) -> str:
    """When what no worker has read begins to be deleted."""
    limited = {name: keep.retention_ms for name, keep in keeps.items() if keep.retention_ms >= 0}
    if not limited:
        return "the input topics keep their records for ever"
    name, least_ms = min(limited.items(), key=lambda one: one[1])
    until = datetime.now(UTC) + timedelta(milliseconds=least_ms)
    return (
        f"{name} keeps a record for {least_ms / 86_400_000:.3g} days (retention.ms): what no worker has read by "
        f"{until:%Y-%m-%d %H:%M} UTC is deleted"
    )


def _say(written: Written, keeps: Mapping[str, Kept]) -> None:
    """What was written on standard output; what to look out for on standard error."""
    topics = ", ".join(f"{count:,} into {name}" for name, count in sorted(written.topics.items()))
    print(f"wrote {written.topics.total():,} events of the past: {topics}")
    warnings = []
    if written.reasons:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in written.reasons.most_common())
        warnings.append(f"{written.reasons.total():,} lines are no usable events ({reasons}): they become dead letters")
    if written.redated:
        warnings.append(
            f"{written.redated:,} events had no time of their own, or one far ahead: given their line's place"
        )
    if written.foreign:
        warnings.append(
            f"{written.foreign:,} records of others came between: history written behind live events counts as late"
        )
    for (name, partition), size in written.bytes_of.items():
        if 0 <= keeps[name].retention_bytes < size:
            warnings.append(
                f"{name}-{partition} was given {size:,} bytes and keeps {keeps[name].retention_bytes:,} "
                "(retention.bytes): raise it before workers start, or the oldest are deleted unread"
            )
    for warning in warnings:
        print(f"driftline: {warning}", file=sys.stderr)
    print(
        f"next: start workers (driftline run). Alerts up to the end of the history are journalled, not published; "
        f"driftline customers export shows who is at risk\n{_deadline(keeps)}"
    )
