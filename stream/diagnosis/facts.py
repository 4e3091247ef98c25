"""What the servers say when they are asked: plain values, nothing judged."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Place = tuple[str, int]
"""A topic and a partition of it."""


class Cluster(NamedTuple):
    """`brokers` by id with their address; `silent` are addresses that take no connection, with the reason."""

    brokers: Mapping[int, str]
    silent: Mapping[str, str]
    controller: int
    release: tuple[int, ...]
    allowed: frozenset[str] | None


class Partition(NamedTuple):
    """`leader` is negative where there is none."""

    number: int
    leader: int
    replicas: int
    in_sync: int


class TopicFacts(NamedTuple):
    """A topic; `allowed` are the operations that this user may do, None = the broker does not say."""

    name: str
    partitions: tuple[Partition, ...]
    configs: Mapping[str, str]
    allowed: frozenset[str] | None


class Extent(NamedTuple):
    """Offsets of a partition: oldest record kept, last stable offset, end; `newest_ms` is the highest timestamp."""

    start: int
    stable: int
    end: int
    newest_ms: int | None


class Member(NamedTuple):
    """A member of a group and the partitions of each topic that it was assigned."""

    instance: str | None
    client: str
    host: str
    assigned: Mapping[str, frozenset[int]]


class Group(NamedTuple):
    """`state` is empty where Kafka knows no such group."""

    name: str
    state: str
    assignor: str
    members: tuple[Member, ...]
    allowed: frozenset[str] | None


class OpenTransaction(NamedTuple):
    """A transaction that holds readers up; `name` is the transactional id, None = no coordinator tells it.

    `age_s` None = it cannot be told; `timeout_s` is after how long its coordinator aborts it.
    """

    places: tuple[Place, ...]
    producer: int | None
    name: str | None
    age_s: float | None
    timeout_s: float | None


class LogDir(NamedTuple):
    """A directory of a broker's logs; sizes None = the broker is too old to say; `error` empty = none."""

    broker: int
    path: str
    total_bytes: int | None
    usable_bytes: int | None
    error: str


class RedisFacts(NamedTuple):
    """`info` is the server's INFO, `clock_ahead_s` its clock less ours."""

    info: Mapping[str, Any]
    ping_s: float
    clock_ahead_s: float


class Rights(NamedTuple):
    """What a Redis user may not do; `unasked` says why the rest could not be asked, empty = all was."""

    user: str
    denied: tuple[str, ...]
    unasked: str
