"""Kafka in memory, with what makes exactly-once hard: transactions that are decided in one place and become visible in
others later, the last stable offset, control records, epochs that fence, generations that do not always, static
members, late requests and unknown outcomes.

Guards of ours that live in the Kafka backend are modelled here too; `mutations` takes them away one by one.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from stream.errors import BrokerUnavailable, Misconfigured, OutcomeUnknown, TaskLost, TransactionOpen
from stream.events import Record
from stream.ports import Committed, Offset, Outgoing, Polled, Token
from stream.processing.placement import partition_of
from tests.simulation.actors import Actor, Stage

SESSION_S = 6.0
TRANSACTION_S = 10.0
COMMITTED_S = 5.0
WATCHDOG_S = 20.0
MARKER_S = 0.05
OWNED_EVERY_S = 0.2
LARGEST_POLL = 30


@dataclass(eq=False)
class Transaction:
    """What one producer has begun. `decided` is None while it is open; each log learns of the decision by itself."""

    producer: str
    began: float
    decided: bool | None = None
    logs: dict["Log", None] = field(default_factory=dict)
    offsets: dict[tuple[str, int], tuple[int, int, int]] = field(default_factory=dict)
    unmarked: int = 0


class Log:
    """One partition, kept from `first` on. A control record takes an offset, as in Kafka, so offsets have gaps."""

    def __init__(self) -> None:
        self.first = 0
        self._entries: list[tuple[Record | None, Transaction | None]] = []
        self._open: dict[Transaction, int] = {}
        self._aborted: set[Transaction] = set()

    def append(self, record: Record, transaction: Transaction | None) -> int:
        offset = len(self._entries)
        self._entries.append((record._replace(offset=offset), transaction))
        if transaction is not None:
            self._open.setdefault(transaction, offset)
        return offset

    def mark(self, transaction: Transaction) -> None:
        """Write the control record that ends a transaction here."""
        self._entries.append((None, None))
        del self._open[transaction]
        if not transaction.decided:
            self._aborted.add(transaction)

    @property
    def stable_end(self) -> int:
        """The last stable offset: where the first open transaction begins."""
        return min(self._open.values(), default=len(self._entries))

    def read(self, start: int, limit: int) -> tuple[list[Record], int]:
        """Committed records from an offset on, and where to read on."""
        found: list[Record] = []
        place, end = max(start, self.first), self.stable_end
        while place < end and len(found) < limit:
            record, transaction = self._entries[place]
            if record is not None and transaction not in self._aborted:
                found.append(record)
            place += 1
        return found, place


@dataclass
class Producer:
    epoch: int = 0
    transaction: Transaction | None = None


@dataclass(eq=False)
class Member:
    """A member of the group as the coordinator knows it."""

    number: int
    instance: str
    actor: Actor
    heard: float
    tasks: frozenset[int] = frozenset()


class Metadata(NamedTuple):
    """What a client sends with transactional offsets."""

    generation: int
    member: int | None
    instance: str | None


UNKNOWN_MEMBER = Metadata(-1, None, None)
"""What the client answers once it has left the group by itself; a classic group accepts it."""


class OffsetsRefusedError(Exception):
    """The coordinator refuses offsets: the group has moved on."""


class FencedError(Exception):
    """A producer of the same name has a newer epoch, or the broker has ended the transaction."""


class Broker:
    """One cluster that forgets nothing it has acknowledged, and is down now and then."""

    def __init__(self, stage: Stage, inputs: Sequence[str], partitions: int, mutations: frozenset[str]) -> None:
        self.stage, self.inputs, self.partitions, self.mutations = stage, tuple(inputs), partitions, mutations
        self.draw: random.Random = stage.draw
        self.topics: dict[str, list[Log]] = {}
        self.producers: dict[str, Producer] = {}
        self.committed: dict[tuple[str, int], tuple[int, int, int]] = {}
        self.groups: dict[str, Group] = {}
        self.down_until = 0.0
        self.fate: Callable[[], str] = lambda: "answered"
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def check(self) -> None:
        if self.stage.now < self.down_until:
            raise BrokerUnavailable("the broker is down")

    def group(self, name: str, tasks: int) -> "Group":
        return self.groups.setdefault(name, Group(self.stage, tasks))

    def topic(self, name: str, partitions: int | None = None) -> list[Log]:
        if name not in self.topics:
            self.topics[name] = [Log() for _ in range(partitions or self.partitions)]
        return self.topics[name]

    def logs(self) -> Iterator[tuple[str, int, Log]]:
        for name, logs in self.topics.items():
            for partition, log in enumerate(logs):
                yield name, partition, log

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.append((self.stage.now + seconds, next(self._count), act))

    def pass_time(self) -> None:
        """What the cluster does by itself: markers, late requests, time-outs."""
        due = sorted(one for one in self._later if one[0] <= self.stage.now)
        self._later = [one for one in self._later if one[0] > self.stage.now]
        for _, _, act in due:
            act()
        for producer in self.producers.values():
            transaction = producer.transaction
            if transaction and transaction.decided is None and self.stage.now - transaction.began > TRANSACTION_S:
                producer.epoch += 1
                self.decide(producer, commit=False)
        for group in self.groups.values():
            group.pass_time()

    # Transactions

    def init(self, name: str) -> int | None:
        """The epoch of a new producer; what the old one left open is aborted. None = ask again."""
        producer = self.producers.setdefault(name, Producer())
        if producer.transaction is not None:
            if producer.transaction.decided is None:
                producer.epoch += 1
                self.decide(producer, commit=False)
            return None
        producer.epoch += 1
        return producer.epoch

    def produce(self, name: str, epoch: int, outgoing: Outgoing) -> int | None:
        """Append within the producer's transaction, which begins with this; None = the one before is not done yet."""
        producer = self._fencing(name, epoch)
        if producer.transaction is None:
            producer.transaction = Transaction(name, self.stage.now)
        transaction = producer.transaction
        if transaction.decided is not None:
            return None
        logs = self.topic(outgoing.topic)
        partition = outgoing.partition
        if partition is None:
            partition = partition_of((outgoing.key or b"").decode(errors="replace"), len(logs), "murmur2")
        transaction.logs[logs[partition]] = None
        now_ms = round(self.stage.now * 1000)
        return logs[partition].append(
            Record(
                outgoing.topic,
                partition,
                0,
                now_ms if outgoing.timestamp_ms is None else outgoing.timestamp_ms,
                outgoing.key,
                outgoing.value,
                outgoing.headers,
            ),
            transaction,
        )

    def add_offsets(self, name: str, epoch: int, group: "Group", offsets: Sequence[Offset], sent: Metadata) -> None:
        producer = self._fencing(name, epoch)
        assert producer.transaction is not None
        group.validate(sent)
        for topic, task, next_offset, seq, incarnation in offsets:
            stamp = (next_offset, seq, incarnation)
            if "timer ticks are not numbered" in self.mutations:
                before = self.committed.get((topic, task))
                moved = any(
                    self.committed.get((one.topic, one.task), (-1,))[0] != one.next_offset
                    for one in offsets
                    if one.task == task
                )
                stamp = stamp if moved or before is None else before
            producer.transaction.offsets[topic, task] = stamp

    def end(self, name: str, epoch: int, commit: bool) -> None:
        producer = self._fencing(name, epoch)
        if producer.transaction is not None and producer.transaction.decided is None:
            self.decide(producer, commit)

    def end_late(self, name: str, epoch: int) -> None:
        """A request to commit that arrives late: before KIP-890 it ends whatever that epoch has open by then."""
        producer = self.producers[name]
        if producer.epoch == epoch and producer.transaction and producer.transaction.decided is None:
            self.decide(producer, commit=True)

    def decide(self, producer: Producer, commit: bool) -> None:
        """Decided for good; every partition and the offsets hear of it a little later, in any order."""
        transaction = producer.transaction
        assert transaction is not None
        transaction.decided = commit
        self.stage.note(f"broker {'commits' if commit else 'aborts'} {transaction.producer}")

        def told(act: Callable[[], None]) -> None:
            def tell() -> None:
                act()
                transaction.unmarked -= 1
                if not transaction.unmarked:
                    producer.transaction = None

            transaction.unmarked += 1
            self.later(self.draw.random() * MARKER_S, tell)

        for log in transaction.logs:
            told(lambda log=log: log.mark(transaction))  # type: ignore[misc]
        told(lambda: self._settle(transaction))

    def _settle(self, transaction: Transaction) -> None:
        if transaction.decided:
            self.committed.update(transaction.offsets)
        transaction.offsets = {}

    def pending(self, task: int) -> bool:
        """Whether a transaction whose end is not known to the group yet holds offsets of a task."""
        return any(
            (topic, task) in producer.transaction.offsets
            for producer in self.producers.values()
            if producer.transaction is not None
            for topic in self.inputs
        )

    def _fencing(self, name: str, epoch: int) -> Producer:
        producer = self.producers[name]
        if producer.epoch != epoch:
            raise FencedError(f"epoch {epoch} of {name} is over, it is {producer.epoch}")
        return producer


class Group:
    """A classic consumer group of static members with the range assignor."""

    def __init__(self, stage: Stage, tasks: int) -> None:
        self.generation = 0
        self.members: dict[str, Member] = {}
        self._stage, self._tasks = stage, tasks
        self._count = count(1)

    def join(self, instance: str, actor: Actor) -> Member:
        """A new member; one that takes the place of another of its name causes no rebalance."""
        before = self.members.get(instance)
        member = Member(next(self._count), instance, actor, self._stage.now)
        self.members[instance] = member
        if before is not None:
            member.tasks = before.tasks
        else:
            self.rebalance()
        return member

    def leave(self, instance: str) -> None:
        if self.members.pop(instance, None) is not None:
            self.rebalance()

    def rebalance(self) -> None:
        self.generation += 1
        names = sorted(self.members)
        share, extra = divmod(self._tasks, max(len(names), 1))
        first = 0
        for place, name in enumerate(names):
            size = share + (place < extra)
            self.members[name].tasks = frozenset(range(first, first + size))
            first += size
        self._stage.note(f"group at {self.generation}: { {n: sorted(m.tasks) for n, m in self.members.items()} }")

    def validate(self, sent: Metadata) -> None:
        """The broker's check of transactional offsets: nothing at all where neither generation nor name is sent."""
        if sent == UNKNOWN_MEMBER:
            return
        member = self.members.get(sent.instance or "")
        if member is None or member.number != sent.member:
            raise OffsetsRefusedError(f"{sent.instance} is another member now")
        if sent.generation != self.generation:
            raise OffsetsRefusedError(f"generation {sent.generation} is over, the group is at {self.generation}")

    def pass_time(self) -> None:
        """Alive processes send heartbeats, whatever they do; the others are missed after the session time-out."""
        now = self._stage.now
        for instance, member in list(self.members.items()):
            if not member.actor.done and member.actor.frozen_until <= now:
                member.heard = now
            elif now - member.heard > SESSION_S:
                self._stage.note(f"group misses {instance}")
                self.leave(instance)


class SimInputs:
    """`Inputs` as `KafkaInputs` keeps them: the token is taken with the records, in one critical section."""

    def __init__(self, broker: Broker, group: Group, instance: str, actor: Actor, start_at: str = "earliest") -> None:
        self._start_at = start_at
        self._broker, self._group, self._instance, self._actor = broker, group, instance, actor
        self.topics = broker.inputs
        self._member: Member | None = None
        self._generation = -1
        self._epoch = 0
        self._tasks: frozenset[int] = frozenset()
        self._positions: dict[tuple[str, int], int] = {}

    @property
    def partitions(self) -> int:
        return self._broker.partitions

    def poll(self, timeout_s: float, full: frozenset[tuple[str, int]]) -> Polled:
        self._actor.pause("poll", timeout_s)
        self._broker.check()
        present = self._group.members.get(self._instance)
        if self._member is not None and present is not None and present is not self._member:
            raise Misconfigured("another worker has the same application.instance")
        if present is None or self._member is None:
            self._let_go()
            self._member = self._group.join(self._instance, self._actor)
            return Polled((), None)
        if self._generation != self._group.generation:
            self._let_go()
            self._generation, self._tasks = self._group.generation, self._member.tasks
            return Polled((), self._token())
        records: list[Record] = []
        limit = self._broker.draw.randrange(1, LARGEST_POLL)
        for (topic, task), position in self._positions.items():
            if (topic, task) not in full:
                read, self._positions[topic, task] = self._broker.topic(topic)[task].read(position, limit)
                records += read
        return Polled(records, self._token())

    def holds(self, token: Token) -> bool:
        return bool(token.proof[0] == self._epoch)

    def metadata_now(self) -> Metadata:
        """What the client would answer now: nothing once it knows that it has been thrown out."""
        present = self._group.members.get(self._instance)
        if self._member is None or present is not self._member:
            return UNKNOWN_MEMBER
        return Metadata(self._group.generation, self._member.number, self._instance)

    def committed(self, task: int) -> Committed | None:
        self._actor.pause("committed")
        self._broker.check()
        deadline = self._broker.stage.now + COMMITTED_S
        while self._broker.pending(task) and "inputs are read uncommitted" not in self._broker.mutations:
            if self._broker.stage.now > deadline:
                raise TransactionOpen("the offsets are held by an open transaction")
            self._actor.pause("waits for stable offsets", 0.1)
            self._broker.check()
        found = {topic: self._broker.committed.get((topic, task)) for topic in self.topics}
        offsets = {topic: stamp[0] for topic, stamp in found.items() if stamp is not None}
        if not offsets:
            return None
        _, seq, incarnation = next(stamp for stamp in found.values() if stamp is not None)
        return Committed(offsets, seq, incarnation)

    def start(self, task: int, offsets: Mapping[str, int] | None) -> Mapping[str, int]:
        self._actor.pause("start")
        self._broker.check()
        if offsets is None:
            logs = {topic: self._broker.topic(topic)[task] for topic in self.topics}
            offsets = {
                topic: log.first if self._start_at == "earliest" else log.stable_end for topic, log in logs.items()
            }
        for topic, offset in offsets.items():
            self._positions[topic, task] = offset
        return offsets

    def ends(self, task: int) -> Mapping[str, int]:
        self._actor.pause("ends")
        self._broker.check()
        return {topic: self._broker.topic(topic)[task].stable_end for topic in self.topics}

    def heard_ends(self, task: int) -> Mapping[str, int]:
        return {topic: self._broker.topic(topic)[task].stable_end for topic, one in self._positions if one == task}

    def ended(self, task: int, since: float = 0.0) -> frozenset[str]:  # noqa: ARG002  it is told at once
        return frozenset(
            topic
            for (topic, partition), position in self._positions.items()
            if partition == task and position >= self._broker.topic(topic)[task].stable_end
        )

    def close(self) -> None:
        """A static member does not say goodbye."""

    def _let_go(self) -> None:
        self._epoch += 1
        self._tasks = frozenset()
        self._positions.clear()

    def _token(self) -> Token:
        assert self._member is not None
        proof = (self._epoch, Metadata(self._generation, self._member.number, self._instance))
        return Token(self._generation, self._tasks, proof)


class SimOutputs:
    """`Outputs` as `KafkaOutputs` keeps them: refuses a stale token, and knows when it does not know."""

    def __init__(self, broker: Broker, name: str, actor: Actor, group: Group | None, inputs: SimInputs | None) -> None:
        self._broker, self._name, self._actor, self._group, self._inputs = broker, name, actor, group, inputs
        self._epoch = -1
        self._refused: Sequence[Offset] = ()
        self.reset()

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        broker = self._broker
        unfenced = "the generation is read at the commit" in broker.mutations
        self._actor.pause("begin")
        if offsets and not unfenced and not self._holds(token):
            raise TaskLost("the assignment changed while the tick ran")
        try:
            written = [self._send(record) for record in records]
            self._actor.pause("sent records")
            self._check()
            if offsets:
                if not unfenced and not self._holds(token):
                    raise OffsetsRefusedError("the assignment changed before the offsets were sent")
                assert self._group is not None
                assert self._inputs is not None
                sent = self._inputs.metadata_now() if unfenced else token.proof[1]
                offsets, self._refused = [*self._refused, *offsets], ()
                broker.add_offsets(self._name, self._epoch, self._group, offsets, sent)
            self._actor.pause("sent offsets")
            self._check()
            self._end()
        except OffsetsRefusedError as error:
            if "refused offsets are sent again" in broker.mutations:
                self._refused = offsets  # as kafka-python does, unless its producer is thrown away
            self._abort()
            raise TaskLost(str(error)) from None
        except FencedError as error:
            raise OutcomeUnknown(str(error)) from None
        return written

    def reset(self) -> None:
        while True:
            self._actor.pause("init transactions", 0.01)
            self._broker.check()
            epoch = self._broker.init(self._name)
            if epoch is not None:
                self._epoch = epoch
                return

    def close(self) -> None:
        """What is open is aborted by whoever comes next, or by the time-out."""

    def _holds(self, token: Token) -> bool:
        return self._inputs is None or self._inputs.holds(token)

    def _check(self) -> None:
        try:
            self._broker.check()
        except BrokerUnavailable as error:
            raise OutcomeUnknown(str(error)) from None

    def _send(self, record: Outgoing) -> int:
        while True:
            self._check()
            offset = self._broker.produce(self._name, self._epoch, record)
            if offset is not None:
                return offset
            self._actor.pause("waits for its last transaction", 0.01)

    def _end(self) -> None:
        broker = self._broker
        fate = broker.fate()
        if fate != "answered":
            broker.stage.note(f"{self._name}: the end of its transaction is {fate}")
        if fate == "late":
            name, epoch = self._name, self._epoch
            broker.later(broker.draw.uniform(0.01, 12.0), lambda: broker.end_late(name, epoch))
        elif fate != "lost":
            broker.end(self._name, self._epoch, commit=True)
        if fate != "answered":
            self._actor.pause("waits for an answer", broker.draw.choice((0.1, WATCHDOG_S)))
            raise OutcomeUnknown("the transaction had no answer")

    def _abort(self) -> None:
        try:
            self._broker.check()
            self._broker.end(self._name, self._epoch, commit=False)
        except (FencedError, BrokerUnavailable):
            pass


class SimTopic:
    """`Topic`: beyond the end as it was when reading began there, the answer may be nothing although there is more."""

    def __init__(
        self, broker: Broker, name: str, actor: Actor, owners: Group | None = None, instance: str = ""
    ) -> None:
        self._broker, self._name, self._actor, self._owners, self._instance = broker, name, actor, owners, instance
        self._at: dict[int, int] = {}
        self._sure_until: dict[int, int] = {}
        self._member: Member | None = None
        self._held = False
        self._asked = -OWNED_EVERY_S

    def partitions(self) -> int:
        return len(self._broker.topic(self._name))

    def read(self, partition: int, start: int, limit: int) -> Sequence[Record]:
        self._actor.pause(f"read {self._name}")
        self._broker.check()
        if self._at.get(partition) != start:
            self._sure_until[partition] = self.end(partition)
        if start >= self._sure_until[partition] and self._broker.draw.random() < 0.2:
            return []
        records, _ = self._broker.topic(self._name)[partition].read(start, limit)
        self._at[partition] = records[-1].offset + 1 if records else start
        return records

    def end(self, partition: int) -> int:
        return self._broker.topic(self._name)[partition].stable_end

    def catch_up(self, partition: int) -> None:
        self._at.pop(partition, None)

    def owned(self) -> bool:
        """A hint, asked for now and then: two may believe it for a moment."""
        if self._owners is None:
            return False
        self._broker.check()
        now = self._broker.stage.now
        if now - self._asked >= OWNED_EVERY_S:
            self._asked = now
            present = self._owners.members.get(self._instance)
            if present is None or self._member is None:
                self._member = self._owners.join(self._instance, self._actor)
            elif present is not self._member:
                raise Misconfigured("another worker has the same application.instance")
            self._held = bool(self._member.tasks)
        return self._held

    def close(self) -> None: ...
