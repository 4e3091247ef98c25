"""Questions to the brokers for `driftline doctor`: every call answers within seconds, none changes anything.

A group or a transactional id that Kafka does not know is not asked about: finding its coordinator would make a broker
create its internal topics.
"""

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.protocol.consumer import IsolationLevel

from stream.backends.kafka.client import connection, mapping
from stream.backends.kafka.inputs import stamped
from stream.backends.kafka.outputs import transactional_id
from stream.backends.kafka.topic import KafkaTopic
from stream.diagnosis.facts import (
    Cluster,
    Extent,
    Group,
    LogDir,
    Member,
    OpenTransaction,
    Partition,
    Place,
    TopicFacts,
)
from stream.errors import CannotTell, Misconfigured
from stream.events import Record
from stream.ports import Committed
from stream.settings import Settings

ANSWER_MS = 5_000
CONNECT_S = 2.0
CONFIGS = ("retention.ms", "retention.bytes", "message.timestamp.type", "min.insync.replicas")
UNFINISHED = ("Ongoing", "PrepareCommit", "PrepareAbort")
OFFSETS_TOPIC = "__consumer_offsets"


class KafkaQuestions:
    """One client that asks, connected at the first question.

    Raises, from every question: `BrokerUnavailable` without an answer, `CannotTell` where the broker refuses to answer
    or is too old, `Misconfigured` for a wrong password and the like.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: KafkaAdminClient | None = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def refusing(self) -> dict[str, str]:
        """The bootstrap servers that take no connection, with the reason."""
        return _silent([server.strip() for server in self._settings.kafka.bootstrap_servers.split(",")])

    def cluster(self) -> Cluster:
        admin = self._admin()
        with _asking("describing the cluster"):
            found = admin.describe_cluster()
            release = tuple(admin.get_broker_version_data(found["brokers"][0]["broker_id"]).broker_version)
        addresses = {one["broker_id"]: f"{one['host']}:{one['port']}" for one in found["brokers"]}
        silent = _silent(list(addresses.values()))
        return Cluster(addresses, silent, found["controller_id"], release, _operations(found))

    def topics(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        """Those of the topics that exist; one that this user may not describe has no partitions."""
        admin = self._admin()
        with _asking("describing topics"):
            answers = admin.describe_topics(list(names))
            found = {one["name"]: one for one in answers if not one["error_code"]}
            configs = self._configs(list(found))
        denied = kafka_errors.TopicAuthorizationFailedError.errno
        hidden = [one["name"] for one in answers if one["error_code"] == denied]
        return {name: TopicFacts(name, (), {}, frozenset()) for name in hidden} | {
            name: TopicFacts(
                name,
                tuple(
                    Partition(p["partition_index"], p["leader_id"], len(p["replica_nodes"]), len(p["isr_nodes"]))
                    for p in sorted(one["partitions"], key=lambda p: p["partition_index"])
                ),
                configs[name],
                _operations(one),
            )
            for name, one in found.items()
        }

    def _configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        wanted = [ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(CONFIGS)) for name in names]
        answer = self._admin().describe_configs(wanted, config_filter="all").get("topic", {}) if wanted else {}
        return {name: {key: str(one["value"]) for key, one in answer.get(name, {}).items()} for name in names}

    def extents(self, places: Sequence[Place]) -> dict[Place, Extent]:
        """Offsets of partitions that exist."""
        admin, asked = self._admin(), [TopicPartition(*place) for place in places]

        def ask(spec: Any, isolation: Any = IsolationLevel.READ_UNCOMMITTED) -> dict[TopicPartition, Any]:
            answer: dict[TopicPartition, Any] = admin.list_partition_offsets(
                dict.fromkeys(asked, spec), isolation_level=isolation, timeout_ms=ANSWER_MS
            )
            return answer

        with _asking("asking for offsets"):
            starts, ends = ask(OffsetSpec.EARLIEST), ask(OffsetSpec.LATEST)
            stable = ask(OffsetSpec.LATEST, IsolationLevel.READ_COMMITTED)
            newest = ask(OffsetSpec.MAX_TIMESTAMP)
        return {
            tuple(place): Extent(
                starts[place].offset,
                stable[place].offset,
                ends[place].offset,
                newest[place].timestamp if newest[place].timestamp >= 0 else None,
            )
            for place in asked
        }

    def since(self, times: Mapping[Place, int]) -> dict[Place, int]:
        """The first offset of each partition not older than a time; a partition that has none is left out."""
        asked = {TopicPartition(*place): time_ms for place, time_ms in times.items()}
        with _asking("asking for offsets by time"):
            found = self._admin().list_partition_offsets(asked, timeout_ms=ANSWER_MS)
        return {tuple(place): one.offset for place, one in found.items() if one.offset >= 0}

    def group(self, name: str) -> Group:
        admin = self._admin()
        with _asking(f"describing the group {name}"):
            if name not in {one["group_id"] for one in admin.list_groups()}:
                return Group(name, "", "", (), None)
            found = admin.describe_groups([name])[name]
        if found["error"]:
            raise CannotTell(f"describing the group {name}: {found['error']}")
        members = tuple(_member(one) for one in found["members"])
        return Group(name, found["group_state"], found["protocol_data"], members, _operations(found))

    def committed(self, partitions: int) -> dict[int, Committed | Misconfigured | None]:
        """Each task's committed offsets; the error in their place where they do not carry the stamp of one tick."""
        admin, group = self._admin(), self._settings.application.name
        with _asking("reading the committed offsets"):
            if group not in {one["group_id"] for one in admin.list_groups()}:
                return dict.fromkeys(range(partitions))
            places = [TopicPartition(topic, task) for topic in self._settings.inputs for task in range(partitions)]
            found = admin.list_group_offsets({group: places})[group]
        stamps: dict[int, Committed | Misconfigured | None] = {}
        for task in range(partitions):
            answers = {topic: found.get(TopicPartition(topic, task)) for topic in self._settings.inputs}
            kept = {topic: stamp if stamp and stamp.offset >= 0 else None for topic, stamp in answers.items()}
            try:
                stamps[task] = stamped(group, task, kept)
            except Misconfigured as error:
                stamps[task] = error
        return stamps

    def open_transactions(self, extents: Mapping[Place, Extent], now_ms: int) -> list[OpenTransaction]:
        """Transactions that hold up readers of these partitions, or of this application's committed offsets."""
        admin = self._admin()
        with _asking("describing transactions"):
            listings = [one for some in admin.list_transactions(state_filters=UNFINISHED).values() for one in some]
            described = admin.describe_transactions([one.transactional_id for one in listings]) if listings else {}
            found = []
            for name, one in described.items():
                ours = name.startswith(transactional_id(self._settings, ""))
                places = tuple(
                    sorted(
                        tuple(place)
                        for place in one.topic_partitions
                        if tuple(place) in extents or (ours and place.topic == OFFSETS_TOPIC)
                    )
                )
                if places and one.state.value in UNFINISHED:
                    age_s = (now_ms - one.transaction_start_time_ms) / 1000
                    timeout_s = one.transaction_timeout_ms / 1000
                    found.append(OpenTransaction(places, one.producer_id, name, age_s, timeout_s))
            known = {place for one in found for place in one.places}
            held = [TopicPartition(*place) for place, one in extents.items() if one.stable < one.end]
            return found + self._unknown([place for place in held if tuple(place) not in known], now_ms)

    def _unknown(self, held: Sequence[TopicPartition], now_ms: int) -> list[OpenTransaction]:
        """What holds partitions up without a coordinator that knows of it; a commit may just have ended it."""
        if not held:
            return []
        time.sleep(1.0)
        again = self.extents([tuple(place) for place in held])
        stuck = [place for place in held if again[tuple(place)].stable < again[tuple(place)].end]
        found = []
        for place, state in self._admin().describe_producers(stuck).items():
            begun = [one for one in state.active_producers if one.current_transaction_start_offset >= 0]
            for one in begun:
                age_s = (now_ms - one.last_timestamp) / 1000
                found.append(OpenTransaction((tuple(place),), one.producer_id, None, age_s, None))
            if not begun:
                found.append(OpenTransaction((tuple(place),), None, None, None, None))
        return found

    def newest_transaction_ms(self, names: Sequence[str]) -> int | None:
        """When a coordinator, by its own clock, last began a transaction of one of these transactional ids."""
        admin = self._admin()
        with _asking("describing transactions"):
            listed = {one.transactional_id for some in admin.list_transactions().values() for one in some}
            known = sorted(listed.intersection(names))
            begun = [one.transaction_start_time_ms for one in admin.describe_transactions(known).values()]
        return max((one for one in begun if one > 0), default=None)

    def log_dirs(self) -> list[LogDir]:
        with _asking("describing the brokers' disks"):
            answer = self._admin().describe_log_dirs({self._settings.inputs[0]: [0]})
        return [
            LogDir(
                one["broker"],
                path["log_dir"],
                _known(path.get("total_bytes")),
                _known(path.get("usable_bytes")),
                kafka_errors.for_code(path["error_code"]).__name__ if path["error_code"] else "",
            )
            for one in answer
            for path in one["log_dirs"]
        ]

    def newest(self, topic: str, extents: Mapping[Place, Extent], count: int) -> dict[int, Sequence[Record]]:
        """Up to `count` committed records from the end of each partition that holds any."""
        held = {place[1]: one for place, one in extents.items() if place[0] == topic and one.stable > one.start}
        if not held:
            return {}
        reader = KafkaTopic(self._settings, topic)
        try:
            return {
                partition: reader.read(partition, max(one.start, one.stable - count), count)
                for partition, one in held.items()
            }
        finally:
            reader.close()

    def _admin(self) -> KafkaAdminClient:
        if self._client is None:
            name = f"driftline-{self._settings.application.instance}-doctor"
            patience = {"bootstrap_timeout_ms": ANSWER_MS, "request_timeout_ms": ANSWER_MS}
            with _asking("connecting"):
                self._client = KafkaAdminClient(**connection(self._settings.kafka, name) | patience)
        return self._client


@contextmanager
def _asking(doing: str) -> Iterator[None]:
    """As `mapping`, but what the broker will not say is no reason to ask nothing else."""
    try:
        with mapping(doing):
            try:
                yield
            except kafka_errors.AuthorizationError as error:
                raise CannotTell(f"{doing}: {type(error).__name__}; this user lacks the permission") from error
            except (kafka_errors.UnsupportedVersionError, kafka_errors.IncompatibleBrokerVersion) as error:
                raise CannotTell(f"{doing}: the broker is too old to say") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CannotTell(f"{doing}: an answer that is not understood ({type(error).__name__}: {error})") from error


def _silent(addresses: Sequence[str]) -> dict[str, str]:
    """Those that take no TCP connection, with the reason; all are tried at once, as a name's look-up may take long."""
    found = dict.fromkeys(addresses, f"no answer within {CONNECT_S:g} s")

    def attempt(address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
            found.pop(address)
        except (OSError, ValueError) as error:
            found[address] = getattr(error, "strerror", None) or str(error)

    threads = [threading.Thread(target=attempt, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    until = time.monotonic() + CONNECT_S + 0.5
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    return dict(found)


def _operations(described: Mapping[str, Any]) -> frozenset[str] | None:
    allowed = described.get("authorized_operations")
    return None if allowed is None else frozenset(allowed)


def _member(one: Mapping[str, Any]) -> Member:
    assignment = one["member_assignment"] or {"assigned_partitions": ()}
    assigned = {part["topic"]: frozenset(part["partitions"]) for part in assignment["assigned_partitions"]}
    return Member(one.get("group_instance_id"), one["client_id"], one["client_host"].lstrip("/"), assigned)


def _known(count: int | None) -> int | None:
    return count if count is not None and count >= 0 else None
