"""Forget one customer: their record ends, and begins anew should they come back.

The order goes into both input topics, behind what they did before: either may hold events that no worker has read
yet. The worker that reads it ends the record.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta

from stream.backends.kafka import KafkaOutputs
from stream.backends.kafka.offsets import Kept, kept, partitions_of
from stream.backends.redis import RedisStore
from stream.cli.batches import commit
from stream.errors import Misconfigured, SettingsError
from stream.events import ANONYMOUS, FORGET_HEADER, MAX_ID_CHARS
from stream.ports import Outgoing, Store
from stream.processing.placement import is_placed
from stream.settings import Settings
from stream.trainer import NO_GROUP

LOOK_EVERY_S = 0.2


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("id", help="customer id: a userId, or anon: and an anonymousId")
    parser.add_argument(
        "--wait-s", type=float, default=60.0, metavar="N", help="longest wait for a worker to have done it, s (60)"
    )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Send the order and wait until it is carried out; without a record too, as events may lie unread."""
    customer: str = arguments.id
    if not 0 < len(customer) <= len(ANONYMOUS) + MAX_ID_CHARS:
        raise SettingsError(f"a customer id has 1 to {MAX_ID_CHARS} characters, this one has {len(customer)}")
    with closing(RedisStore(settings)) as store:
        known = [task for task in store.tasks() if store.load(task, [customer])[1]]
        tasks = sorted({*known, *_placed(settings, customer)})
        places = _order(settings, tasks, customer)
        until = time.monotonic() + arguments.wait_s
        while not (done := all(_past(store, *place) for place in places)):
            if time.monotonic() >= until:
                break
            time.sleep(LOOK_EVERY_S)
        back = done and any(store.load(task, [customer])[1] for task in tasks)
    if not done:
        print(f"queued: {customer} is forgotten as soon as a worker reads the order; none has within the wait")
    elif back:
        print(f"forgotten: {customer}, who has been met again since; what came in from then on is kept")
    else:
        print(f"forgotten: {customer}")
    if not known:
        print(
            f"application {settings.application.name} knew of no such customer: the order is for events that no worker "
            "had read. If the id was mistyped, nobody is forgotten"
        )
    print(_remains(settings))
    return 0


def _placed(settings: Settings, customer: str) -> list[int]:
    """The tasks that events of the customer may lie in."""
    first, second = partitions_of(settings, settings.inputs)
    if first != second:
        raise Misconfigured(
            f"the input topics have {first} and {second} partitions, no worker works on them: copy one with "
            "`driftline repartition SRC DST` first"
        )
    return [task for task in range(first) if is_placed(customer, task, first, settings.kafka.partitioner)]


def _order(settings: Settings, tasks: Sequence[int], customer: str) -> list[tuple[int, str, int]]:
    """Write the order into both topics of these tasks; returns task, topic and offset of each."""
    # Without a value: a release that does not know the header sets it aside instead of counting it as an event.
    header = (FORGET_HEADER, b"1")
    places = [(task, topic) for task in tasks for topic in settings.inputs]
    orders = [Outgoing(topic, task, customer.encode(), None, (header,)) for task, topic in places]
    with closing(KafkaOutputs(settings, "forget")) as outputs:
        offsets = commit(outputs, orders, (), NO_GROUP, "to forget twice does no harm")
    return [(task, topic, offset) for (task, topic), offset in zip(places, offsets, strict=True)]


def _past(store: Store, task: int, topic: str, offset: int) -> bool:
    """Whether the store has come past the order."""
    marker, _ = store.load(task, ())
    return marker is not None and marker.state.offsets.get(topic, 0) > offset


def _remains(settings: Settings) -> str:
    """Where the customer may still be found, and until when."""
    now = datetime.now(UTC)
    ours = [settings.topic("journal"), settings.topic("alerts"), settings.topic("dead_letters")]
    lines = ["what remains, and until when at the latest:"]
    for topic, keep in kept(settings, [*settings.inputs, *ours]).items():
        lines.append(f"  {topic:32} {_until(keep, now)}")
    lines.append(
        "models: the trainer takes the customer out of its sample as it reads the journal; older versions hold "
        "their numbers under\n  a hash of the id until they are compacted away. The sample of events is numbers "
        "without an id.\nwhat subscribers of the alerts hold is theirs to delete"
    )
    return "\n".join(lines)


def _until(keep: Kept, now: datetime) -> str:
    if keep.retention_ms < 0:
        return "for ever (retention.ms = -1): set one, or delete the records yourself"
    # A segment is deleted once its newest record is old enough, and takes records for up to segment.ms.
    last = now + timedelta(milliseconds=keep.retention_ms + keep.segment_ms)
    days = 86_400_000
    return (
        f"{last:%Y-%m-%d %H:%M} UTC (retention.ms {keep.retention_ms / days:.3g} d, "
        f"segment.ms {keep.segment_ms / days:.3g} d)"
    )
