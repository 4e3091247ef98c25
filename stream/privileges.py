"""What Driftline's users of Kafka and of Redis need, and nothing more.

The one place: docs/security.md is written from it, doctor and errors go by it, and tests grant exactly this on real
servers that deny all else.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from stream.settings import Settings

Kind = Literal["topic", "group", "transactional id", "cluster"]
ALL_TOPICS = ("alerts", "dead_letters", "journal", "models")


class Grant(NamedTuple):
    """Operations on one resource, or on all whose names begin with `name` (`prefixed`).

    READ, WRITE, ALTER and DELETE bring DESCRIBE with them.
    """

    kind: Kind
    name: str
    operations: tuple[str, ...]
    why: str
    prefixed: bool = False


def worker(settings: Settings) -> list[Grant]:
    """What a worker, its trainer included, needs of Kafka."""
    name = settings.application.name
    alerts, letters, journal, models = _ours(settings)
    return [
        *(Grant("topic", topic, ("READ",), "input") for topic in settings.inputs),
        Grant("topic", alerts, ("WRITE",), "alerts"),
        Grant("topic", letters, ("WRITE",), "records that cannot be used"),
        Grant("topic", journal, ("READ", "WRITE"), "a record per tick; recovery and the trainer read it"),
        Grant("topic", models, ("READ", "WRITE"), "model versions, read by every worker and written by the trainer"),
        Grant("group", name, ("READ",), "the workers"),
        Grant("group", f"{name}.trainer", ("READ",), "which of them is the trainer"),
        Grant("transactional id", f"{name}:", ("WRITE",), "one per worker, one of the trainer", prefixed=True),
    ]


def commands(settings: Settings, source: str = "SRC", target: str = "DST") -> Mapping[str, Sequence[Grant]]:
    """What each command needs of Kafka that talks to it; `source` and `target` are those of `repartition`."""
    name, inputs = settings.application.name, settings.inputs
    alerts, letters, journal, models = ours = _ours(settings)
    every = [*inputs, *ours]

    def writing(part: str) -> Grant:
        return Grant("transactional id", f"{name}:{part}", ("WRITE",), "")

    def on(topics: Sequence[str], *operations: str) -> list[Grant]:
        return [Grant("topic", topic, operations, "") for topic in topics]

    return {
        "topics create": on(every, "CREATE", "DESCRIBE"),
        "topics check": [*on(inputs, "DESCRIBE"), *on(ours, "DESCRIBE", "DESCRIBE_CONFIGS")],
        "doctor": [
            *worker(settings),
            *on(every, "DESCRIBE_CONFIGS"),
            Grant("cluster", "kafka-cluster", ("DESCRIBE",), ""),
        ],
        "alerts": on([alerts], "READ"),
        "customer": on([models], "READ"),
        "customers export": on([models], "READ"),
        "backfill": [*on(inputs, "READ", "WRITE", "DESCRIBE_CONFIGS"), writing("backfill")],
        "forget": [
            *on(inputs, "WRITE", "DESCRIBE_CONFIGS"),
            *on([journal, alerts, letters], "DESCRIBE", "DESCRIBE_CONFIGS"),
            writing("forget"),
        ],
        "rewind": [
            *on(inputs, "READ"),
            *on([journal], "READ", "WRITE"),
            Grant("group", name, ("READ",), ""),
            writing("rewind"),
        ],
        "repartition": [
            *on([source], "READ", "DESCRIBE_CONFIGS"),
            *on([target], "CREATE", "READ", "WRITE", "DESCRIBE_CONFIGS"),
            *on([topic for topic in inputs if topic != source], "DESCRIBE"),
            Grant("group", name, ("DESCRIBE",), ""),
            Grant("group", f"{name}.repartition.{target}", ("READ",), ""),
            writing(f"repartition.{target}"),
        ],
    }


def _ours(settings: Settings) -> tuple[str, str, str, str]:
    topic = settings.topic
    return topic("alerts"), topic("dead_letters"), topic("journal"), topic("models")


LOOKING = ("hget", "mget", "zmscore", "multi", "exec")
REDIS_WORKER = (
    *LOOKING,
    *("evalsha", "script|load", "set", "del", "hmget", "hset", "hdel", "zadd", "zrem", "zrangebyscore"),
)
"""Commands of a worker, those within its script included; it does nothing without one of them."""
REDIS_ASIDE = ("config|get", "select")
"""To refuse a Redis that evicts (without it a warning), and for a database other than 0.

Not `client|setinfo`, which the client does without: before 7.2 Redis refuses a rule that names it.
"""
REDIS_CLUSTER = ("cluster|slots", "command")
"""Of a cluster, besides: which node has which keys, and which of a command's words are keys."""
REDIS_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "customer": (*LOOKING, "scan"),
    "customers export": (*LOOKING, "scan", "zscan"),
    "forget": (*LOOKING, "scan"),
    "rewind": (*REDIS_WORKER, "config|get", "zscan"),
    "doctor": (
        *REDIS_WORKER,
        *("config|get", "scan", "zcard", "zscore", "zrandmember", "info", "time", "acl|whoami", "acl|dryrun"),
    ),
}
"""Commands of Redis by command of Driftline; the others do not talk to it."""


def redis_keys(settings: Settings) -> str:
    """The keys of an application, as a pattern."""
    return f"{{{settings.application.name}:p*}}:*"


def redis_rule(settings: Settings, commands: Sequence[str], *, writes: bool = True) -> str:
    """What follows `ACL SETUSER NAME` so that a user may use these commands on the application's keys."""
    pattern = f"{'~' if writes else '%R~'}{redis_keys(settings)}"
    return " ".join([pattern, *(f"+{command}" for command in commands)])
