"""What an administrator does: our topics are created and checked, a member leaves its group."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove

from stream.backends.kafka.client import MAX_REQUEST_BYTES, connection, mapping
from stream.errors import DriftlineError, Misconfigured
from stream.settings import Settings

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
LEAVE_MS = 3_000
"""A process that ends asks a broker that does not answer no longer than this."""


class TopicCheck(NamedTuple):
    """One topic as it is; `faults` say what is wrong with it and what to do."""

    name: str
    partitions: int
    faults: tuple[str, ...]


def create_topics(settings: Settings, partitions: int, replication: int) -> list[str]:
    """Create what is missing, inputs included; returns the names created. Existing topics are left as they are."""
    with mapping("creating topics"), administrator(settings) as admin:
        present = set(admin.list_topics())
        counts = {name: count_partitions(admin, name) for name in settings.inputs if name in present}
        partitions = next(iter(counts.values()), partitions)
        inputs: dict[str, tuple[int, Mapping[str, str]]] = {name: (partitions, {}) for name in settings.inputs}
        wanted = inputs | _ours(settings, partitions)
        missing = {name: spec for name, spec in wanted.items() if name not in present}
        if missing:
            admin.create_topics(
                {
                    name: {"num_partitions": count, "replication_factor": replication, "configs": dict(configs)}
                    for name, (count, configs) in missing.items()
                }
            )
        return sorted(missing)


def check_topics(settings: Settings) -> list[TopicCheck]:
    """Every topic the worker needs, with what is wrong with it."""
    with mapping("checking topics"), administrator(settings) as admin:
        present = set(admin.list_topics())
        counts = {name: count_partitions(admin, name) if name in present else 0 for name in settings.inputs}
        needed = max(counts.values())
        checks = []
        for name, count in counts.items():
            faults = []
            if not count:
                faults.append("does not exist: run `driftline topics create`")
            elif count != needed:
                faults.append(
                    f"has {count} partitions, the other input topic {needed}: run `driftline repartition {name} DST`"
                )
            checks.append(TopicCheck(name, count, tuple(faults)))
        for name, (expected, configs) in _ours(settings, needed).items():
            if name not in present:
                checks.append(TopicCheck(name, 0, ("does not exist: run `driftline topics create`",)))
                continue
            count = count_partitions(admin, name)
            faults = []
            exact = name in (settings.topic("journal"), settings.topic("models"))
            if exact and count != expected:
                faults.append(
                    f"has {count} partitions, needs {expected}: delete it while it is empty and create it again"
                )
            actual = configs_of(admin, name, configs)
            faults += [
                f"{key} is {actual[key]}, should be {value}" for key, value in configs.items() if actual[key] != value
            ]
            checks.append(TopicCheck(name, count, tuple(faults)))
        return checks


def require_topics(settings: Settings, names: Sequence[str]) -> None:
    """Raise `Misconfigured` where one of these does not exist or may not be written, as far as the broker tells.

    Asked at the start, as an alerts topic may be written for the first time after days.
    """
    if not names:
        return
    with mapping("looking for the topics to write"), administrator(settings) as admin:
        found = {one["name"]: one for one in admin.describe_topics(list(names)) if not one["error_code"]}
    if missing := sorted(set(names) - set(found)):
        raise Misconfigured(
            f"the topic {' and '.join(missing)} does not exist: run `driftline topics create`. If it does, grant this "
            "user DESCRIBE and WRITE on it"
        )
    unsaid = ["WRITE"]  # an old broker does not tell: the first refused record will
    if closed := sorted(name for name, one in found.items() if "WRITE" not in (one["authorized_operations"] or unsaid)):
        raise Misconfigured(
            f"the topic {' and '.join(closed)} may not be written: grant this user WRITE on it (docs/security.md has "
            "the whole list), or set kafka.sasl_username to one who has it"
        )


def leave(settings: Settings, group: str, instance: str, member: str | None = None) -> None:
    """Take a static member out of its group for good; one that only closes keeps its place until its session ends.

    `instance` alone is whoever has that name now; with the id that the group gave this `member` the broker refuses
    once another has taken its place.
    """
    patience = {"bootstrap_timeout_ms": LEAVE_MS, "request_timeout_ms": LEAVE_MS}
    try:
        with mapping(f"leaving the consumer group {group}"), administrator(settings, **patience) as admin:
            answers = admin.remove_group_members(group, [MemberToRemove(member, instance)])
    except DriftlineError as error:
        log.warning("its tasks wait for the session time-out: %s", error)
        return
    for error_type in answers.values():
        if error_type is not kafka_errors.NoError:
            log.warning("%s did not leave the group %s: %s", instance, group, error_type.__name__)


def _ours(settings: Settings, partitions: int) -> dict[str, tuple[int, Mapping[str, str]]]:
    journal_ms = str(round(settings.journal.retention_days * DAY_MS))
    large = {"max.message.bytes": str(MAX_REQUEST_BYTES)}
    month = str(30 * DAY_MS)
    return {
        settings.topic("alerts"): (partitions, {"cleanup.policy": "delete", "retention.ms": month}),
        settings.topic("dead_letters"): (partitions, {"cleanup.policy": "delete", "retention.ms": month, **large}),
        settings.topic("journal"): (partitions, {"cleanup.policy": "delete", "retention.ms": journal_ms, **large}),
        settings.topic("models"): (1, {"cleanup.policy": "compact", **large}),
    }


def administrator(settings: Settings, **more: Any) -> KafkaAdminClient:
    """A client for one use, in a `with`; call within `mapping`."""
    return KafkaAdminClient(**connection(settings.kafka, f"driftline-{settings.application.instance}-admin") | more)


def count_partitions(admin: KafkaAdminClient, name: str) -> int:
    """How many partitions a topic has.

    Raises:
        Misconfigured: it cannot be described.
    """
    (topic,) = admin.describe_topics([name])
    if topic.get("error_code"):
        raise Misconfigured(f"the topic {name} cannot be described: error {topic['error_code']}")
    return len(topic["partitions"])


def configs_of(admin: KafkaAdminClient, name: str, wanted: Iterable[str]) -> dict[str, str]:
    """A topic's settings of these names, defaults of the broker included.

    Raises:
        Misconfigured: this user may not read them.
    """
    resource = ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(wanted))
    found = admin.describe_configs([resource], config_filter="all")
    values = next(iter(found.values()))[name]
    if missing := [key for key in wanted if key not in values]:
        raise Misconfigured(
            f"the topic {name} does not tell {', '.join(missing)}; grant this user DESCRIBE_CONFIGS on it"
        )
    return {key: str(values[key]["value"]) for key in wanted}
