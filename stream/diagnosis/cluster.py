"""Judging the brokers and their topics."""

from collections.abc import Iterator, Mapping, Sequence

from stream import privileges
from stream.diagnosis import Finding, counted, lasting, listed, ok, size, warning, wrong
from stream.diagnosis.facts import Cluster, Extent, Group, LogDir, OpenTransaction, Place, TopicFacts
from stream.ports import Committed
from stream.settings import Settings

OLDEST_KAFKA = (2, 5)
"""Older brokers do not check the group's generation when a transaction commits offsets."""
SWEEP_S = 10.0
"""A coordinator looks for transactions to abort this often."""
SHARE_OF_RETENTION = 0.75
"""Records unread for this share of a topic's retention are about to be removed."""
LOW_SHARE, LEAST_SHARE = 0.2, 0.05
"""Free space of a disk that is a warning, and that is wrong."""


def bootstrap(refusing: Mapping[str, str]) -> Iterator[Finding]:
    """The bootstrap servers that take no connection, with the reason."""
    for address, why in refusing.items():
        yield warning(f"bootstrap server {address} takes no connection: {why}", "start it, or take it out of the list")


def brokers(cluster: Cluster) -> Iterator[Finding]:
    """Who answers, under the addresses that the cluster advertises."""
    for address, why in cluster.silent.items():
        yield wrong(
            f"broker {address}, as the cluster advertises it, takes no connection from here: {why}",
            "mend advertised.listeners of that broker, its name in DNS, or the firewall",
        )
    release = ".".join(map(str, cluster.release))
    if cluster.release < OLDEST_KAFKA:
        yield wrong(f"Kafka {release}", f"upgrade the brokers to {'.'.join(map(str, OLDEST_KAFKA))} or newer")
    if cluster.controller < 0:
        yield wrong("the cluster has no controller", "start the missing controllers")
    yield ok(f"Kafka {release}, {counted(len(cluster.brokers), 'broker')}: {listed(cluster.brokers.values())}")


def partitions(topics: Sequence[TopicFacts], broker_count: int) -> Iterator[Finding]:
    """Leaders, replicas in sync, and how many there are."""
    fine = True
    for topic in topics:
        least = int(topic.configs.get("min.insync.replicas", "1"))
        leaderless = [p.number for p in topic.partitions if p.leader < 0]
        few = [p.number for p in topic.partitions if p.in_sync < least and p.leader >= 0]
        behind = [p.number for p in topic.partitions if p.in_sync < p.replicas and p.number not in few + leaderless]
        if leaderless:
            yield wrong(f"{topic.name} has no leader for partition {listed(leaderless)}", "start the brokers it was on")
        if few:
            yield wrong(
                f"{topic.name} partition {listed(few)} has fewer replicas in sync than min.insync.replicas = {least}: "
                "nothing can be written",
                "start the missing brokers",
            )
        if behind:
            yield warning(
                f"{topic.name} partition {listed(behind)} has replicas out of sync", "look at the brokers that lag"
            )
        fine = fine and not (leaderless or few or behind)
    copies = min((p.replicas for topic in topics for p in topic.partitions), default=0)
    alone = [topic.name for topic in topics if any(p.replicas == 1 for p in topic.partitions)]
    count = f"{counted(sum(len(topic.partitions) for topic in topics), 'partition')} of {counted(len(topics), 'topic')}"
    if alone and broker_count > 1:
        yield warning(
            f"one copy only, of {broker_count} brokers that could hold more: {listed(alone)}",
            "raise their replication factor (kafka-reassign-partitions.sh)",
        )
    elif alone:
        yield warning(f"{count}, one broker, one copy of everything", "fine for trying out only")
    elif fine:
        yield ok(f"{count} have a leader and all replicas; {copies} or more copies")


def retention(
    settings: Settings,
    topics: Mapping[str, TopicFacts],
    extents: Mapping[Place, Extent],
    committed: Mapping[int, Committed | None],
    aged: Mapping[Place, int],
) -> Iterator[Finding]:
    """Whether records will be removed before they are processed.

    `aged` is the first offset of each input partition that is younger than `SHARE_OF_RETENTION` of the retention; a
    partition that keeps its records for ever is not in it.
    """
    fine = True
    for (name, partition), extent in extents.items():
        stamp = committed.get(partition)
        if name not in settings.inputs or stamp is None or name not in stamp.offsets:
            continue
        place, offset = f"{name}-{partition}", stamp.offsets[name]
        if offset < min(aged.get((name, partition), 0), extent.end):
            fine = False
            yield wrong(
                f"{place}: {counted(extent.end - offset, 'record')} waiting, the oldest for more than "
                f"{SHARE_OF_RETENTION:.0%} of the topic's retention: they will be removed before they are processed",
                f"raise retention.ms of {name} now, then find out why the workers are behind",
            )
        kept_bytes = int(topics[name].configs.get("retention.bytes", "-1"))
        if kept_bytes >= 0 and extent.end - offset > (extent.end - extent.start) / 2 > 0:
            fine = False
            yield warning(
                f"{place}: more than half of what is kept waits, and retention.bytes = {kept_bytes:,} may remove it",
                f"raise retention.bytes of {name}",
            )
    journal = topics.get(settings.topic("journal"))
    if journal and int(journal.configs.get("retention.bytes", "-1")) >= 0:
        fine = False
        yield wrong(
            f"{journal.name} has retention.bytes = {journal.configs['retention.bytes']}: the journal may lose what a "
            "rebuild of Redis needs",
            f"set retention.bytes of {journal.name} to -1",
        )
    if fine:
        kept = (
            f"{name} {_kept(topics[name])}" for name in (*settings.inputs, settings.topic("journal")) if name in topics
        )
        yield ok(f"nothing that waits is near its removal; kept: {listed(kept)}")


def _kept(topic: TopicFacts) -> str:
    kept_ms = topic.configs.get("retention.ms")
    if kept_ms is None:
        return "for a time that this user may not ask"
    return lasting(int(kept_ms) / 1000) if int(kept_ms) >= 0 else "for ever"


def transactions(open_ones: Sequence[OpenTransaction], settings: Settings) -> Iterator[Finding]:
    """Transactions that hold readers up for longer than they should."""
    limit_s = settings.kafka.transaction_timeout_s + SWEEP_S
    fine = True
    for one in open_ones:
        where = listed((f"{topic}-{partition}" for topic, partition in one.places), 3)
        if one.age_s is not None and one.age_s <= limit_s:
            continue
        fine = False
        age = "for a time that cannot be told" if one.age_s is None else f"for {lasting(one.age_s)}"
        who = f"transactional id {one.name!r}" if one.name else "a producer that no coordinator names"
        number = "" if one.producer is None else f" (producer id {one.producer})"
        yield wrong(
            f"a transaction of {who}{number} holds {where} open {age}: readers wait at its beginning",
            _unstick(one, where, settings),
        )
    if fine:
        count = f"; {len(open_ones)} open, none for long" if open_ones else ""
        yield ok(f"none is open for longer than {lasting(limit_s)}{count}")


def _unstick(one: OpenTransaction, where: str, settings: Settings) -> str:
    if one.name is None:
        return f"find and abort it: kafka-transactions.sh find-hanging, then abort (of {where})"
    if one.age_s is not None and one.timeout_s is not None and one.age_s > one.timeout_s + SWEEP_S:
        by_itself = "its time-out has passed, look at the coordinator; kafka-transactions.sh abort ends it"
    else:
        by_itself = f"its own time-out of {lasting(one.timeout_s or 0)} ends it"
    name = settings.application.name
    if one.name.startswith(f"{name}:"):
        instance = one.name.removeprefix(f"{name}:")
        return f"start the worker of application.instance {instance!r} again: that aborts it; else {by_itself}"
    return f"stop that producer, or start it again; else {by_itself}"


def permissions(
    settings: Settings, topics: Sequence[TopicFacts], groups: Sequence[Group], unnamed: Sequence[str]
) -> Iterator[Finding]:
    """Operations that a worker needs and the user lacks; `unnamed` says what could not be asked."""
    needed = {(grant.kind, grant.name): {*grant.operations, "DESCRIBE"} for grant in privileges.worker(settings)}
    fine, untold = True, list(unnamed)
    for topic in topics:
        if ("topic", topic.name) not in needed:
            continue
        if topic.allowed is None:
            untold.append(f"topic {topic.name}")
        elif lacking := sorted(needed["topic", topic.name] - topic.allowed):
            fine = False
            yield wrong(f"this user lacks {listed(lacking)} on topic {topic.name}", "grant it (kafka-acls.sh --add)")
    for group in groups:
        if group.allowed is None:
            untold.append(f"group {group.name}")
        elif lacking := sorted(needed["group", group.name] - group.allowed):
            fine = False
            yield wrong(f"this user lacks {listed(lacking)} on group {group.name}", "grant it (kafka-acls.sh --add)")
    note = f"; cannot be asked without writing: {listed(untold)}" if untold else ""
    if fine:
        yield ok(f"this user may read and write its topics and groups{note}")


def disks(dirs: Sequence[LogDir]) -> Iterator[Finding]:
    """Free space where the brokers keep their logs."""
    fine = True
    for one in dirs:
        where = f"broker {one.broker}, {one.path}"
        if one.error:
            fine = False
            yield wrong(f"{where}: {one.error}", "mend or replace that disk")
        elif one.total_bytes and one.usable_bytes is not None:
            share = one.usable_bytes / one.total_bytes
            if share < LOW_SHARE:
                fine = False
                make = wrong if share < LEAST_SHARE else warning
                yield make(
                    f"{where}: {size(one.usable_bytes)} free of {size(one.total_bytes)} ({share:.0%})",
                    "make room: a broker whose disk is full stops",
                )
    told = [one for one in dirs if one.total_bytes and one.usable_bytes is not None]
    if fine and told:
        least = min(told, key=lambda one: (one.usable_bytes or 0) / (one.total_bytes or 1))
        yield ok(f"brokers: at least {size(least.usable_bytes or 0)} free of {size(least.total_bytes or 0)}")
    elif fine:
        yield warning("the brokers do not say how full their disks are", "look there")
