"""What our consumers share: how long topics are asked for, how a group is joined, and how a member closes."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from stream.backends.kafka.admin import leave
from stream.backends.kafka.client import mapping
from stream.errors import DriftlineError
from stream.settings import Settings

log = logging.getLogger(__name__)

JOIN_MS = 500
TOLD_WITHIN_S = 5.0
ASK_AGAIN_S = 0.2


def partition_counts(consumer: Any, topics: Iterable[str]) -> dict[str, int]:
    """How many partitions each topic has; 0 where the brokers know of none for `TOLD_WITHIN_S`.

    A broker that has just started, or is short of breath, answers for a moment as if it had no topics.
    """
    patience_until = time.monotonic() + TOLD_WITHIN_S
    while True:
        counts = {topic: len(consumer.partitions_for_topic(topic) or ()) for topic in topics}
        if all(counts.values()) or time.monotonic() > patience_until:
            return counts
        time.sleep(ASK_AGAIN_S)


def poll(consumer: Any, timeout_ms: int) -> Any:
    """Poll; while the group is still to be joined, do only that, for at most `JOIN_MS`.

    kafka-python 3.0.12 begins a join anew if it ended between two polls: one that is polled briefly may never join, and
    each of its attempts is a rebalance of the whole group. A join that only new metadata had asked for it does not even
    begin anew: the member stays without partitions and without heartbeats, for ever. And a poll that has joined goes on
    to wait for records, of partitions that nobody has sought yet.
    """
    coordinator = consumer._coordinator
    if coordinator.rejoining:
        coordinator.request_rejoin()
    if coordinator.need_rejoin():
        coordinator.poll(timeout_ms=max(timeout_ms, JOIN_MS))
        return {}
    return consumer.poll(timeout_ms=timeout_ms)


def close_member(consumer: Any, settings: Settings) -> None:
    """Close a static member; with `kafka.leave_on_stop` it leaves its group for good."""
    me = consumer.group_metadata()
    with closing(f"a member of the group {me.group_id}"):
        consumer.close(autocommit=False)
    if settings.kafka.leave_on_stop and me.member_id:  # without an id it would be whoever has the name that leaves
        leave(settings, me.group_id, me.group_instance_id, me.member_id)


@contextmanager
def closing(what: str) -> Iterator[None]:
    """Log what could not be closed, its broker being away: everything else still is, and the process ends in order."""
    try:
        with mapping(f"closing {what}"):
            yield
    except DriftlineError as error:
        log.warning("not closed in order: %s", error)
