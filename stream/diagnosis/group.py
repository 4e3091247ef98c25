"""Judging the consumer group and the tasks: who works, how far they are, and whether the store agrees."""

from collections.abc import Iterator, Mapping

from stream.diagnosis import Finding, counted, listed, ok, warning, wrong
from stream.diagnosis.facts import Extent, Group, Member, Place
from stream.errors import Misconfigured, Refused, StoreAhead
from stream.ports import Committed, Marker
from stream.recovery import compared, strangers
from stream.settings import Settings

SETTLED = ("Stable", "Empty", "Dead", "")


def members(settings: Settings, group: Group, partitions: int) -> Iterator[Finding]:
    """The group's state, who is in it, and whether every task has an owner."""
    if not group.members:
        yield warning(f"no worker runs: group {group.name} has no members", "start one: `driftline run`")
        return
    fine = group.state in SETTLED
    if not fine:
        yield warning(f"group {group.name} is {group.state}: tasks are being handed over", "ask again in a minute")
    if group.state == "Stable" and group.assignor != "range":
        fine = False
        yield wrong(
            f"group {group.name} assigns by {group.assignor!r}", "let nothing but Driftline join this consumer group"
        )
    owned: set[int] = set()
    idle = []
    for member in group.members:
        tasks = frozenset.union(frozenset(), *member.assigned.values())
        who = f"{member.instance or member.client} on {member.host}"
        owned |= tasks
        if not (member.instance or "").startswith(f"{settings.application.name}-"):
            fine = False
            yield wrong(f"a stranger is in group {group.name}: {who}", "give that consumer a group of its own")
        elif any(member.assigned.get(topic, frozenset()) != tasks for topic in settings.inputs):
            fine = False
            yield wrong(f"{who} has a task without all its topics", "let nothing else join this consumer group")
        elif not tasks:
            idle.append(who)
    missing = sorted(set(range(partitions)) - owned)
    if missing and group.state == "Stable":
        fine = False
        yield wrong(f"nobody owns task {listed(missing)}", "start a worker again, so that tasks are dealt out anew")
    if idle and group.state == "Stable":
        fine = False
        why = "there are no more tasks" if len(group.members) > partitions else "though there are enough tasks"
        yield warning(f"without a task, {why}: {listed(idle)}", "stop it, or wait for the next rebalance")
    if fine:
        count = f"{counted(len(group.members), 'worker')}, {counted(partitions, 'task')}"
        yield ok(f"{count}: {listed(map(_shown, group.members))}")


def _shown(member: Member) -> str:
    tasks = sorted(frozenset.union(frozenset(), *member.assigned.values()))
    return f"{member.instance} on {member.host} (tasks {listed(tasks)})"


def trainer(group: Group, workers: bool) -> Finding:
    """Whether a worker is the trainer."""
    holder = next((member for member in group.members if any(member.assigned.values())), None)
    if holder is not None:
        return ok(f"{holder.instance} on {holder.host} learns")
    if not workers:
        return ok("none, as no worker runs")
    return warning(
        f"workers run and none holds the models topic (group {group.name} is {group.state or 'unknown'})",
        "wait for kafka.session_timeout_s; then look into their logs for `the trainer waits`",
    )


def lag(
    settings: Settings, extents: Mapping[Place, Extent], committed: Mapping[int, Committed | None], partitions: int
) -> Iterator[Finding]:
    """Records that wait, by task; and committed offsets that lie outside of their partition."""
    waiting: dict[int, int] = {}
    fine = True
    for task in range(partitions):
        stamp = committed.get(task)
        for topic in settings.inputs:
            extent = extents[topic, task]
            offset = stamp.offsets.get(topic) if stamp else None
            if offset is None:
                early = settings.kafka.start_at == "earliest"
                waiting[task] = waiting.get(task, 0) + (extent.end - extent.start if early else 0)
                continue
            waiting[task] = waiting.get(task, 0) + max(extent.end - offset, 0)
            if offset < extent.start:
                fine = False
                yield wrong(
                    f"{topic}-{task}: committed at {offset:,}, but the oldest record kept is {extent.start:,}: "
                    f"{extent.start - offset:,} were removed before they were processed",
                    "raise retention.ms of the input topics; to go on without them, stop the workers and run "
                    "`driftline rewind --to store`",
                )
            if offset > extent.end:
                fine = False
                yield wrong(
                    f"{topic}-{task}: committed at {offset:,}, beyond its end {extent.end:,}: the topic was made anew, "
                    "or Kafka lost data",
                    "restore the topic, or use a new application.name",
                )
    if fine:
        most = sorted(((count, task) for task, count in waiting.items() if count), reverse=True)
        shown = listed(f"task {task} {count:,}" for count, task in most)
        yield ok(f"{counted(sum(waiting.values()), 'record')} waiting" + (f": {shown}" if shown else ""))


def tasks(
    settings: Settings,
    partitions: int,
    committed: Mapping[int, Committed | Misconfigured | None],
    before: Mapping[int, Marker],
    after: Mapping[int, Marker],
    kept: Mapping[Place, Extent],
) -> Iterator[Finding]:
    """The store against the committed offsets, as a worker would find them.

    Workers may run on meanwhile: `before` was read a while before `committed`, `after` a while after it. Only a marker
    that was there before is held to be ahead, only one that is still missing afterwards to be behind. `kept` are the
    partitions of the inputs and of the journal.
    """
    level, fine = 0, True
    for task in range(partitions):
        stamp, marker = committed.get(task), after.get(task)
        if isinstance(stamp, Misconfigured):
            fine = False
            yield _refused(stamp)
            continue
        try:
            behind = compared(task, partitions, settings.inputs, stamp, before.get(task)) is None
        except Refused as error:
            fine = False
            yield _refused(error)
            continue
        journal = kept.get((settings.topic("journal"), task))
        if stamp is None:
            if marker is not None and task in before:
                fine = False
                ends = {topic: kept[topic, task].stable for topic in settings.inputs if (topic, task) in kept}
                said = strangers(task, marker, ends, journal.stable) if journal else ""
                if said:
                    yield _refused(StoreAhead(said))
                    continue
                yield warning(
                    f"task {task}: the group's offsets have expired, the store is at tick {marker.state.seq}",
                    "none needed: a worker goes on from the store, under a new incarnation",
                )
            continue
        missing = stamp.seq - (marker.state.seq if marker else 0)
        if not behind or missing <= 0:
            level += 1
            continue
        fine = False
        yield _behind(task, missing, marker, journal)
    if fine:
        new = partitions - level
        yield ok(f"{counted(level, 'task')} level with the committed offsets" + (f", {new} new" if new else ""))


def _refused(error: Refused) -> Finding:
    """What a worker would say, whose messages end with what to do."""
    return wrong(f"a worker would refuse: {error}", "do as it says before a worker is started")


def _behind(task: int, missing: int, marker: Marker | None, journal: Extent | None) -> Finding:
    position = marker.journal_offset + 1 if marker else 0
    ticks = counted(missing, "tick")
    if journal is not None and marker is not None and journal.start > position:
        return wrong(
            f"task {task}: the store lacks {ticks}, and the journal begins at offset {journal.start}, after "
            f"{position} where they begin",
            "empty this task's Redis keys and restart, so that it is rebuilt from the journal whole",
        )
    if marker is None and journal is not None and journal.start > 0:
        return warning(
            f"task {task}: the store is empty, the group is {ticks} on and the journal's oldest were removed",
            "start a worker: it rebuilds the store if what is kept covers half of journal.retention_days; else restore "
            "a snapshot of Redis",
        )
    return warning(
        f"task {task}: the store is {ticks} behind the committed offsets",
        "none needed: a worker replays them from the journal; start one if none runs",
    )
