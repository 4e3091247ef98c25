"""Holding the one partition of a topic in a group of its own: how one process at a time is the trainer."""

import time
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.coordinator.assignors.range import RangePartitionAssignor

from stream.backends.kafka import consuming
from stream.backends.kafka.client import connection, fenced, is_fenced
from stream.settings import Settings

POLL_EVERY_S = 0.2


class Owning(ConsumerRebalanceListener):  # type: ignore[misc]  # the client publishes no types
    """A static member that never fetches. What it holds is a hint: the transactional id is what fences."""

    def __init__(self, settings: Settings, topic: str, name: str) -> None:
        kafka, application = settings.kafka, settings.application
        self._held = False
        self._polled_at = 0.0
        self._settings = settings
        self._consumer = KafkaConsumer(
            **connection(kafka, f"driftline-{application.instance}-{name}"),
            group_id=f"{application.name}.{name}",
            group_instance_id=f"{application.name}-{application.instance}",
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=round(kafka.session_timeout_s * 1000),
            heartbeat_interval_ms=round(kafka.session_timeout_s * 1000 / 4),
        )
        # Or the first assignment may be empty and stay so.
        consuming.partition_counts(self._consumer, [topic])
        self._consumer.subscribe([topic], listener=self)

    def poll(self) -> bool:
        """Stay a member; returns whether the partition is held."""
        now = time.monotonic()
        if now - self._polled_at >= POLL_EVERY_S:
            self._polled_at = now
            consuming.poll(self._consumer, 0)
        if self._held and is_fenced(self._consumer) and self._held:  # a rebalance lets go before it stops heartbeats
            raise fenced()
        return self._held and self._consumer.group_metadata().generation_id >= 0

    def close(self) -> None:
        consuming.close_member(self._consumer, self._settings)

    def on_partitions_assigned(self, assigned: Any) -> None:
        for partition in assigned:
            self._consumer.seek(partition, 0)
        self._consumer.pause(*assigned)
        self._held = bool(assigned)

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002  there is only one
        self._held = False

    def on_partitions_lost(self, lost: Any) -> None:  # noqa: ARG002
        self._held = False
