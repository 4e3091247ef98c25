"""What the day-two commands ask of the brokers: where partitions begin and end, who is in a group, where it stands."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from kafka import ConsumerGroupMetadata, KafkaConsumer, TopicPartition
from kafka.errors import CoordinatorNotAvailableError
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import consuming
from stream.backends.kafka.admin import administrator, configs_of, count_partitions
from stream.backends.kafka.client import MAX_REQUEST_BYTES, REQUEST_TIMEOUT_MS, connection, mapping
from stream.backends.kafka.inputs import Proof, text_of
from stream.diagnosis.facts import Place
from stream.errors import BrokerUnavailable, Misconfigured
from stream.ports import Token
from stream.settings import Settings

GONE = "GroupIdNotFoundError"
"""What Kafka 4 answers of a group that does not exist; before, it was an empty one."""
COPIED_CONFIGS = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes", "segment.ms")


class Span(NamedTuple):
    """The oldest offset of a partition that is kept, and the one after its newest committed record."""

    begin: int
    end: int


class Kept(NamedTuple):
    """How long a topic keeps a record: `retention.ms`, `segment.ms`, a partition's `retention.bytes`; -1 = no limit."""

    retention_ms: int
    segment_ms: int
    retention_bytes: int


def spans(settings: Settings, topics: Iterable[str]) -> dict[Place, Span]:
    """Where every partition of these topics begins and ends.

    Raises:
        Misconfigured: one of them does not exist.
    """
    with mapping("asking where partitions begin and end"), closing(observer(settings, None)) as consumer:
        present = consumer.topics()
        places = []
        for topic in topics:
            if topic not in present:
                raise Misconfigured(
                    f"the topic {topic} does not exist: run `driftline topics create`. If it does, grant this user "
                    "READ on it"
                )
            places += [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        begins = consumer.beginning_offsets(places, timeout_ms=REQUEST_TIMEOUT_MS)
        ends = consumer.end_offsets(places, timeout_ms=REQUEST_TIMEOUT_MS)
    return {(place.topic, place.partition): Span(begins[place], ends[place]) for place in places}


def committed(settings: Settings, group: str, places: Iterable[Place]) -> dict[Place, tuple[int, str]]:
    """The next offset and metadata that a group has committed, where it has; waits for its open transactions."""
    asked = [TopicPartition(*place) for place in places]
    with mapping(f"reading the offsets of group {group}"), closing(observer(settings, group)) as consumer:
        answer: Mapping[TopicPartition, OffsetAndMetadata | None] = consumer._coordinator.fetch_committed_offsets(
            asked, timeout_ms=3 * REQUEST_TIMEOUT_MS
        )
    found = {place: answer.get(place) for place in asked}
    return {(place.topic, place.partition): (one.offset, text_of(one.metadata)) for place, one in found.items() if one}


def members(settings: Settings) -> list[str]:
    """The `application.instance` of each worker in the group, also of those whose session has not timed out yet."""
    group, patience_until = settings.application.name, time.monotonic() + REQUEST_TIMEOUT_MS / 1000
    with mapping(f"describing the group {group}"), administrator(settings) as admin:
        while True:
            try:
                found = admin.describe_groups([group])[group]
                error = found["error"]
            except CoordinatorNotAvailableError as unavailable:  # a Kafka that has never had a group makes room for it
                error = str(unavailable)
            if not error or GONE in error:
                break
            # To take no answer for an empty group would let a rewind begin beside its workers.
            if time.monotonic() > patience_until:
                raise BrokerUnavailable(f"describing the group {group}: {error}; try again once its coordinator is up")
            time.sleep(0.2)
    prefix = f"{group}-"
    names = [str(member["group_instance_id"] or member["client_id"]) for member in found.get("members") or ()]
    return sorted(name.removeprefix(prefix) for name in names)


def outsider(group: str) -> Token:
    """What offsets of a group without members are committed with; its writer's name is what fences."""
    return Token(0, frozenset(), Proof(0, ConsumerGroupMetadata(group, -1, "", None)))


def kept(settings: Settings, topics: Iterable[str]) -> dict[str, Kept]:
    """How long each of these topics keeps its records."""
    wanted = ("retention.ms", "segment.ms", "retention.bytes")
    found = {}
    with mapping("asking for the topics' retention"), administrator(settings) as admin:
        present = set(admin.list_topics())
        for topic in topics:
            if topic in present:
                values = configs_of(admin, topic, wanted)
                found[topic] = Kept(*(int(values[name]) for name in wanted))
    return found


def largest_record(settings: Settings, topics: Iterable[str]) -> int:
    """What `KafkaOutputs` is to take so that what these topics take gets through to them, bytes."""
    with mapping("asking for the topics' limits"), administrator(settings) as admin:
        limits = [configs_of(admin, topic, ["max.message.bytes"])["max.message.bytes"] for topic in topics]
    return max(MAX_REQUEST_BYTES, *map(int, limits))


def exists(settings: Settings, topic: str) -> bool:
    """Whether there is a topic of that name."""
    with mapping("listing topics"), administrator(settings) as admin:
        return topic in admin.list_topics()


def create_like(settings: Settings, like: str, name: str, partitions: int) -> None:
    """Create a topic with another one's retention, limits and replication."""
    with mapping(f"creating {name}"), administrator(settings) as admin:
        configs = configs_of(admin, like, COPIED_CONFIGS)
        (described,) = admin.describe_topics([like])
        replicas = len(described["partitions"][0]["replica_nodes"])
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": replicas, "configs": configs}})


def partitions_of(settings: Settings, topics: Sequence[str]) -> list[int]:
    """How many partitions each of these topics has; they must exist."""
    with mapping("describing topics"), administrator(settings) as admin:
        return [count_partitions(admin, name) for name in topics]


def known_counts(settings: Settings, topics: Iterable[str]) -> dict[str, int]:
    """How many partitions each of these topics has, 0 where there is none of its name."""
    with mapping("looking for the input topics"), closing(observer(settings, None)) as consumer:
        return consuming.partition_counts(consumer, topics)


def observer(settings: Settings, group: str | None) -> Any:
    """A consumer that is no member; call within `mapping`."""
    return KafkaConsumer(
        **connection(settings.kafka, f"driftline-{settings.application.instance}-offsets"),
        group_id=group,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        request_timeout_ms=REQUEST_TIMEOUT_MS + 5_000,
    )
