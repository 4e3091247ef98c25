"""Copy an input topic into one with another partition count, or by another partitioner: SRC into DST.

Every record goes where its customer belongs, with its headers, value and timestamp, in the order of its customer.
Killed half-way, the same command goes on where it was.
"""

import argparse
import heapq
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import chain

import orjson

from stream.backends.kafka import KafkaOutputs, KafkaTopic
from stream.backends.kafka.offsets import (
    Span,
    committed,
    create_like,
    exists,
    kept,
    largest_record,
    members,
    outsider,
    partitions_of,
    spans,
)
from stream.cli.batches import batches, commit
from stream.cli.progress import progress
from stream.diagnosis.facts import Place
from stream.errors import InvalidEvent, Misconfigured, SettingsError
from stream.events import HISTORY_HEADER, Forget, Record
from stream.ports import Offset, Outgoing
from stream.processing import clock
from stream.processing.clock import Decoded
from stream.processing.placement import is_placed, key_of, partition_of
from stream.settings import Settings

READ = 2_000
SAMPLE = 1_000


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("source", metavar="SRC", help="the topic as it is")
    parser.add_argument("target", metavar="DST", help="the topic to be; created with SRC's retention if it is missing")
    parser.add_argument(
        "--partitions", type=int, metavar="N", help="partitions of DST (default: those of the other input topic)"
    )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Copy what is not copied yet."""
    source, target = arguments.source, arguments.target
    if source == target:
        raise SettingsError("SRC and DST are the same topic; name a new one for DST")
    if not exists(settings, source):
        raise SettingsError(f"there is no topic {source}")
    (width,) = partitions_of(settings, [source])
    partitions = arguments.partitions or _partitions_of_the_other(settings, source, target)
    if partitions < 1:
        raise SettingsError(f"--partitions is {partitions}; give at least 1")
    copy = Copy(settings, source, target, width, partitions)
    with ExitStack() as stack:
        topic = stack.enter_context(closing(KafkaTopic(settings, source)))
        if width == partitions and copy.fits(topic):
            raise Misconfigured(
                f"{source} has {width} partitions already, and its first customers lie where "
                f"{settings.kafka.partitioner} puts them: there is nothing to mend"
            )
        copy.prepare()
        largest = largest_record(settings, [target])
        # What an earlier run left open is aborted before anything is read.
        outputs = stack.enter_context(closing(KafkaOutputs(settings, f"repartition.{target}", largest_bytes=largest)))
        return copy.run(topic, outputs)


def _partitions_of_the_other(settings: Settings, source: str, target: str) -> int:
    others = [name for name in settings.inputs if name not in (source, target)]
    if len(others) != 1:
        raise SettingsError(
            f"neither {source} nor {target} is an input topic ({', '.join(settings.inputs)}); give --partitions N"
        )
    if not exists(settings, others[0]):
        raise SettingsError(f"the other input topic, {others[0]}, does not exist; create it, or give --partitions N")
    return partitions_of(settings, others)[0]


class Copy:
    """One topic's way into another; its position is committed in a group of its own, with each batch."""

    def __init__(self, settings: Settings, source: str, target: str, width: int, partitions: int) -> None:
        self._settings = settings
        self._source, self._target = source, target
        self._width, self._partitions = width, partitions
        self._group = f"{settings.application.name}.repartition.{target}"
        self._rules = settings.event_rules

    def fits(self, topic: KafkaTopic) -> bool:
        """Whether the first customers lie where they belong."""
        seen = 0
        for partition in range(self._width):
            for record in topic.read(partition, 0, SAMPLE):
                outcome = clock.read(record, self._rules).outcome
                if not isinstance(outcome, InvalidEvent):
                    seen += 1
                    if not is_placed(outcome.customer, partition, self._partitions, self._settings.kafka.partitioner):
                        return False
        return seen > 0

    def prepare(self) -> None:
        """Create the target, or check that it is fit to be one."""
        settings, source, target = self._settings, self._source, self._target
        if not exists(settings, target):
            create_like(settings, source, target, self._partitions)
            return
        (found,) = partitions_of(settings, [target])
        if found != self._partitions:
            raise Misconfigured(
                f"{target} has {found} partitions, not {self._partitions}; name a new topic for DST, or give "
                f"--partitions {found} if that is meant"
            )
        keeps = kept(settings, [source, target])
        longest, least = (keeps[name].retention_ms for name in (source, target))
        if 0 <= least < (longest if longest >= 0 else least + 1):
            raise Misconfigured(
                f"{target} keeps a record for {least} ms (retention.ms), {source} for {longest}: records keep their "
                f"timestamps, and old ones would be deleted before they are read. Raise it to that of {source}"
            )

    def run(self, topic: KafkaTopic, outputs: KafkaOutputs) -> int:
        settings, source = self._settings, self._source
        places = spans(settings, [source])
        stamps = committed(settings, self._group, places)
        # Each batch is stamped with how many records are written with it.
        before = max((orjson.loads(metadata)["seq"] for _, metadata in stamps.values()), default=0)
        starts = {partition: stamps.get((source, partition), (0, ""))[0] for partition in range(self._width)}
        # Members first: what they commit between the two is read as committed.
        working = members(settings) if source in settings.inputs else []
        read = {
            place[1]: offset for place, (offset, _) in committed(settings, settings.application.name, places).items()
        }
        ends = {
            number: min(span.end, read.get(number, 0)) if working else span.end for (_, number), span in places.items()
        }
        parts = batches(self._records(topic, starts, ends), lambda record: len(record.value or b""))
        first = next(parts, None)
        if first is not None:
            self._check_target(before)
        elif before:
            print(f"{self._target} holds what there is to copy of {source} already; nothing was written")
        counts = Counter[str](written=before)
        total = sum(max(ends[number] - max(start, places[source, number].begin), 0) for number, start in starts.items())
        with progress(f"copying {source}", total) as advance:
            for batch in chain([first] if first is not None else [], parts):
                self._write(outputs, batch, read, counts)
                advance(len(batch))
        if counts["copied"] or not before:
            print(
                f"copied {counts['copied']:,} records of {source} into {self._target}, {self._partitions} "
                f"partitions: {counts['history']:,} processed before and marked as history, {counts['unusable']:,} "
                "unusable ones, left to become dead letters"
            )
        self._say_next()
        left = sum(span.end - max(ends[number], span.begin) for (_, number), span in places.items())
        self._say_who_works(working, left)
        return 0

    def _records(self, topic: KafkaTopic, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Record]:
        """What is to be copied, each partition in its own order, the oldest timestamp first."""
        each = [_partition(topic, number, starts[number], ends[number]) for number in starts]
        return heapq.merge(*each, key=lambda record: record.timestamp_ms)

    def _check_target(self, before: int) -> None:
        places = spans(self._settings, [self._target])
        if not before and any(span.end > span.begin for span in places.values()):
            count, whose = self._count(places), "none of them"
        elif before:
            count, whose = self._count(places), f"{before:,} of them"
        else:
            return
        if count > before:
            raise Misconfigured(
                f"{self._target} holds {count:,} records, this copy wrote {whose}: what is copied behind the others "
                "would be out of order. Name a new topic for DST"
            )

    def _count(self, places: Mapping[Place, Span]) -> int:
        with closing(KafkaTopic(self._settings, self._target)) as topic:
            return sum(1 for (_, number), span in places.items() for _ in _partition(topic, number, 0, span.end))

    def _write(self, outputs: KafkaOutputs, batch: list[Record], read: Mapping[int, int], counts: Counter[str]) -> None:
        nexts = {record.partition: record.offset + 1 for record in batch}
        sending = [one for record in batch for one in self._copies(record, read.get(record.partition, 0), counts)]
        counts["copied"] += len(batch)
        counts["written"] += len(sending)
        offsets = [Offset(self._source, number, at, counts["written"], 0) for number, at in nexts.items()]
        commit(outputs, sending, offsets, outsider(self._group))

    def _copies(self, record: Record, read_to: int, counts: Counter[str]) -> list[Outgoing]:
        """The record where it belongs. Its timestamp is kept: an event without a time of its own happened then."""
        decoded, headers = clock.read(record, self._rules), record.headers
        key, places = copied_to(decoded, self._partitions, self._settings.kafka.partitioner)
        if isinstance(decoded.outcome, InvalidEvent):
            counts["unusable"] += 1
        elif record.offset < read_to and all(name != HISTORY_HEADER for name, _ in headers):
            counts["history"] += 1
            headers = (*headers, (HISTORY_HEADER, b"1"))
        return [Outgoing(self._target, place, key, record.value, headers, record.timestamp_ms) for place in places]

    def _say_next(self) -> None:
        settings, name = self._settings, self._settings.application.name
        role = "purchases" if self._source == settings.topics.purchases else "clickstream"
        print(
            f"next: 1. stop the producers of {self._source}, then the workers of {name}, and run this command again\n"
            "   for the rest\n"
            f'2. set topics.{role} = "{self._target}" and a new application.name: the customers of {name} lie by the\n'
            "   old partitions, so its Redis keys, journal and models cannot be kept (an application that has never\n"
            "   processed anything keeps its name)\n"
            f"3. driftline topics create, start workers, point the producers at {self._target}. What the topics\n"
            "   no longer hold is not known to the new application; what is marked as history counts and is not told\n"
            "   again"
        )

    def _say_who_works(self, working: list[str], left: int) -> None:
        settings = self._settings
        if working:
            print(
                f"driftline: {', '.join(working)} still work, so only what they have processed was copied: they tell "
                f"of the rest, {left:,} records by now, and it would be told again. It is copied by the run after they "
                f"are stopped (a stopped worker stays a member for kafka.session_timeout_s, "
                f"{settings.kafka.session_timeout_s:g} s)",
                file=sys.stderr,
            )
        elif self._source in settings.inputs and (late := members(settings)):
            print(
                f"driftline: {', '.join(late)} started meanwhile: what they process of this may be told again. Stop "
                "them and begin again with a new DST",
                file=sys.stderr,
            )


def copied_to(decoded: Decoded, partitions: int, partitioner: str) -> tuple[bytes | None, list[int]]:
    """A record's key in a topic of `partitions`, and the partitions it is written to.

    An event goes where its key belongs. An order to forget goes wherever its customer's events may: those of an
    anonymous one are keyed with our prefix or without it.
    """
    record, outcome, _ = decoded
    if isinstance(outcome, InvalidEvent):
        # The client refuses a record with neither key nor value.
        return b"" if record.key is None and record.value is None else record.key, [record.partition % partitions]
    customer = outcome.customer
    if isinstance(outcome, Forget):
        return record.key, [place for place in range(partitions) if is_placed(customer, place, partitions, partitioner)]
    text = customer if record.key == customer.encode() else key_of(customer)
    return text.encode(), [partition_of(text, partitions, partitioner)]


def _partition(topic: KafkaTopic, number: int, start: int, end: int) -> Iterator[Record]:
    """A partition's records from `start` up to `end`."""
    while records := topic.read(number, start, READ):
        for record in records:
            if record.offset >= end:
                return
            yield record
        start = records[-1].offset + 1
