"""One schedule: a shop, workers, and what goes wrong; then quiet, and the oracle."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import orjson

from online_models import IncrementalKMeans
from stream.chunks import chunked
from stream.embedded import Embedded
from stream.errors import Misconfigured, Retriable
from stream.events import FORGET_HEADER, HISTORY_HEADER, Record
from stream.metrics import Metrics
from stream.ports import Clock
from stream.processing.customer import SCHEMA
from stream.processing.version import Version, to_bytes
from stream.settings import Settings, parse
from stream.trainer import Trainer
from stream.worker import Ports, Worker
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import Shop
from tests.simulation.actors import Actor, Stage
from tests.simulation.kafka import SESSION_S, TRANSACTION_S, Broker, SimInputs, SimOutputs, SimTopic
from tests.simulation.redis import NOTHING, Server, SimStore

PARTITIONS = 2
CUSTOMERS = 16
DAYS = 11.0
END_MS = 1_790_000_000_000
DAY_MS = 86_400_000
BATCH = 5
BATCH_S = 0.25
QUIET_S = 4.0
NIGHTS = 3
NIGHT_STEPS = 150
EVERYBODY_WAKES_DAYS = 4
LONGEST_STEPS = 60_000
MOST_WORKERS = 3

FAULTS: dict[str, Callable[["World"], None]] = {}
"""What may go wrong, by name; filled by `fault`."""


class ScheduleError(AssertionError):
    """A schedule that came to something else than it must."""


def settings_for(max_events: int, cache_rows: int) -> Settings:
    """Models that are ready within a schedule, small ticks, and a cache that gives rows up."""
    parsed = parse(
        {
            "application": {"name": "sim"},
            "tick": {"max_events": max_events, "max_span_hours": 12, "idle_after_s": 0.5, "live_within_s": 1e6},
            "alerts": {
                "anomaly_one_in": 20,
                "anomaly_min_events": 3,
                "anomaly_cooldown_hours": 24,
                "segment_min_orders": 2,
                "segment_dwell_days": 0,
                "segment_dwell_gaps": 0,
                "segment_margin": 0.05,
                "churn_enter": 0.5,
            },
            "customers": {"anonymous_retention_days": 3_650},
            "models": {
                "horizon_days": 1,
                "segments": 3,
                "reference_events": 200,
                "first_customers": 60,
                "min_labels": 20,
                "publish_min_events": 100,
            },
        }
    )
    customers = parsed.customers.model_copy(update={"cache_rows": cache_rows})  # fewer than the setting allows
    return parsed.model_copy(update={"customers": customers})


@cache
def trained() -> Version:
    """Models that have seen a shop like this one, so that a short schedule raises alerts."""
    settings = settings_for(200, 1_000)
    shop = Shop(*settings.inputs, partitions=1, customers=75, days=DAYS, seed=99, garbage=False, now_ms=END_MS)
    logs: dict[str, list[Record]] = {topic: [] for topic in settings.inputs}
    for one in shop.next(len(shop.records)):
        logs[one.topic].append(Record(one.topic, 0, len(logs[one.topic]), one.time_ms, one.key, one.value, one.headers))
    embedded = Embedded(settings, settings.inputs, lambda _: None)
    embedded.run({topic: iter(records) for topic, records in logs.items()})
    return replace(embedded.worker.version, number=1, parent=0, learned={"events": 0, "labels": 0}, journal={})


@cache
def upended() -> Version:
    """The same with segments that are not this shop's: the first version of a schedule has others, and says so."""
    version = trained()
    arrays = version.segments.to_arrays()
    arrays["centres"] += 50.0 * np.arange(len(arrays["centres"]))[:, None]
    return replace(version, segments=IncrementalKMeans.from_arrays(arrays))


@dataclass
class World:
    """A shop and its workers.

    The seed decides which faults may happen and how often, unless `only` names them, and nobody then asks to be
    forgotten; `mutations` are guards taken away.
    """

    seed: int
    mutations: frozenset[str] = frozenset()
    worker_type: type[Worker] = Worker
    cache_rows: int = 8
    only: tuple[str, ...] | None = None
    heard: Callable[[str], None] | None = None
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.draw = draw = random.Random(self.seed)
        self.stage = Stage(draw)
        self.stage.heard = self.heard
        self.settings = settings_for(draw.choice((4, 12, 40)), self.cache_rows)
        self.broker = Broker(self.stage, self.settings.inputs, PARTITIONS, self.mutations)
        self.broker.topic(self.settings.topic("models"), 1)
        self.server = Server(self.stage, self.mutations)
        self.group = self.broker.group("workers", PARTITIONS)
        self.trainers = self.broker.group("trainers", 1)
        self.shop = Shop(
            *self.settings.inputs, partitions=PARTITIONS, customers=CUSTOMERS, days=DAYS, seed=self.seed, now_ms=END_MS
        )
        self.alive: dict[str, Actor] = {}
        self.doubled: set[str] = set()
        self.workers: dict[str, Worker] = {}
        self.quiet_since: dict[Actor, float] = {}
        self._restarts: list[tuple[float, str]] = []
        self._ahead_ms = 0.0
        self._enabled = draw.sample(sorted(FAULTS), draw.randrange(len(FAULTS) + 1))
        self._rate = draw.choice((0.0, 0.01, 0.02, 0.05))
        if self.only is not None:
            self._enabled, self._rate = [*self.only], 0.04
        self._unknown = draw.choice((0.0, 0.05, 0.2))
        self.broker.fate = self._fate
        self.server.lost_answers = draw.choice((0.0, 0.0, 0.05))
        self._history_share = draw.choice((0.0, 0.0, 0.3, 0.6))
        if draw.random() < 0.9:
            self._publish(upended() if self.seed % 2 else trained())

    def run(self) -> Seen:
        """The whole schedule; returns what it left.

        Raises:
            ScheduleError: something was lost, repeated or stuck; the message names the seed.
        """
        for number in range(self.draw.randrange(1, 3)):
            self.start(f"w{number + 1}")
        self.stage.enter("shop", self._keep_shop)
        try:
            while self.shop.fed < len(self.shop.records):
                self._step(faults=True)
            if self.only is None:
                self._forget()
            for _ in range(NIGHTS):
                night(self)
                for _ in range(NIGHT_STEPS):
                    self._step(faults=True)
            self._calm()
            self._settle()
            self._ahead_ms += EVERYBODY_WAKES_DAYS * DAY_MS  # rows that were deleted are missed when they are needed
            self._settle()
            seen = self.look()
            oracle.check_all(seen, self.shop.counts, self.shop.bad)
        except AssertionError as error:
            raise ScheduleError(f"seed {self.seed}, step {self.stage.steps}: {error}") from error
        finally:
            for actor in self.stage.actors:
                actor.kill()
        return seen

    def start(self, instance: str) -> None:
        """A worker process under a name, in place of one that ended."""
        self.alive[instance] = self.stage.enter(instance, lambda actor: self._work(instance, actor))

    def restart_later(self, instance: str, seconds: float) -> None:
        self.alive.pop(instance, None)
        self._restarts.append((self.stage.now + seconds, instance))

    def look(self) -> Seen:
        """What is left, in the form in which the oracle reads it from real servers."""
        records: dict[str, list[Record]] = {}
        inputs: dict[tuple[str, int], list[Record]] = {}
        for name, partition, log in self.broker.logs():
            found, _ = log.read(0, 1_000_000)
            records.setdefault(name, []).extend(found)
            if name in self.settings.inputs:
                inputs[name, partition] = found
        for topic in self.settings.inputs:
            for task in range(PARTITIONS):
                inputs.setdefault((topic, task), [])
        journal = records.get(self.settings.topic("journal"), [])
        left = {task: self.server.tasks.get(task, NOTHING) for task in range(PARTITIONS)}
        return Seen(
            self.settings,
            inputs,
            {task: oracle.ticks_in(journal, task) for task in range(PARTITIONS)},
            *oracle.parted(records.get(self.settings.topic("alerts"), [])),
            records.get(self.settings.topic("dead_letters"), []),
            records.get(self.settings.topic("models"), []),
            {
                (topic, task): (stamp[0], orjson.dumps({"seq": stamp[1], "inc": stamp[2]}).decode())
                for (topic, task), stamp in self.broker.committed.items()
            },
            {
                task: {name: SCHEMA.to_bytes(2, "little") + row for name, row in contents.rows.items()}
                for task, contents in left.items()
            },
            {task: contents.dues for task, contents in left.items()},
            {task: _marker(contents.marker) for task, contents in left.items()},
        )

    def _fate(self) -> str:
        """What becomes of a request to commit."""
        return self.draw.choice(("lost", "late", "unanswered")) if self.draw.random() < self._unknown else "answered"

    def _wall_ms(self) -> int:
        return round(self._ahead_ms + self.stage.now * 1000)

    def _keep_shop(self, actor: Actor) -> None:
        self._ahead_ms = self.shop.records[0].time_ms
        history = round(len(self.shop.records) * self._history_share)
        while batch := self.shop.next(BATCH):
            self._ahead_ms += max(batch[-1].time_ms - self._wall_ms(), 0)
            for place, one in enumerate(batch, self.shop.fed - len(batch)):
                marks = ((HISTORY_HEADER, b"1"),) if place < history and one.reason is None else ()
                headers = (*one.headers, *marks)
                record = Record(one.topic, one.partition, 0, self._wall_ms(), one.key, one.value, headers)
                self.broker.topic(one.topic)[one.partition].append(record, None)
            actor.pause("sold", BATCH_S)

    def _forget(self) -> None:
        """Some ask to be forgotten, once they have bought all they will."""
        known = sorted(customer for customer in self.shop.counts if not customer.startswith("anon:"))
        for customer in self.draw.sample(known, self.draw.randrange(3)):
            del self.shop.counts[customer]
            partition = self.shop.place(customer)
            for topic in self.settings.inputs:
                order = Record(topic, partition, 0, self._wall_ms(), customer.encode(), None, ((FORGET_HEADER, b"1"),))
                self.broker.topic(topic)[partition].append(order, None)

    def _work(self, instance: str, actor: Actor) -> None:
        worker = self._assemble(instance, actor)
        self.workers[instance] = worker
        self.quiet_since[actor] = self.stage.now
        while not worker.stopping:
            busy = worker.turn()
            if busy or not worker.ready:
                self.quiet_since[actor] = self.stage.now
            actor.pause("turned", 0.0 if busy else 0.05)
        worker.close()

    def _assemble(self, instance: str, actor: Actor) -> Worker:
        """As `stream.cli.run` does; where the broker does not answer, an operator's supervisor tries again."""
        broker, settings = self.broker, self.settings
        clock = Clock(self._wall_ms, lambda: self.stage.now)
        models, journal = settings.topic("models"), settings.topic("journal")
        store = SimStore(self.server, actor)
        inputs = SimInputs(broker, self.group, instance, actor)
        metrics = Metrics()
        trainer = Trainer(
            settings,
            SimTopic(broker, journal, actor),
            SimTopic(broker, models, actor, self.trainers, instance),
            lambda: SimOutputs(broker, "trainer", actor, None, None),
            metrics,
            self._wall_ms,
        )
        while True:
            try:
                outputs = SimOutputs(broker, instance, actor, self.group, inputs)
                break
            except Retriable:
                actor.pause("cannot start", 1.0)
        ports = Ports(inputs, outputs, SimTopic(broker, journal, actor), SimTopic(broker, models, actor), store)
        return self.worker_type(settings, ports, trainer, metrics, clock)

    def _publish(self, version: Version) -> None:
        topic = self.settings.topic("models")
        for one in chunked(topic, 0, f"version/{version.number:08d}".encode(), to_bytes(version, {"code": 1}), {}):
            self.broker.topic(topic)[0].append(Record(topic, 0, 0, 0, one.key, one.value, one.headers), None)

    def _step(self, faults: bool) -> None:
        self.broker.pass_time()
        for due in [one for one in self._restarts if one[0] <= self.stage.now]:
            self._restarts.remove(due)
            self.start(due[1])
        if faults and self._enabled and self.draw.random() < self._rate:
            name = self.draw.choice(self._enabled)
            self.injected[name] += 1
            self.stage.note(f"FAULT {name}")
            FAULTS[name](self)
        actor = self.stage.step()
        if actor is None:  # all are dead: the next one starts later
            self.stage.now = min((at for at, _ in self._restarts), default=self.stage.now)
            return
        assert self.stage.steps < LONGEST_STEPS, "it never settles"
        if not actor.done:
            return
        twins = [other for other in self.stage.actors if other.name == actor.name]
        fenced = actor.name in self.doubled and isinstance(actor.error, Misconfigured)
        if actor.error is not None and not fenced:
            raise AssertionError(f"{actor.name} ended with {actor.error!r}") from actor.error
        if self.alive.get(actor.name) is actor and twins:  # one of a name gives way to the other
            self.alive[actor.name] = twins[0]
        elif self.alive.get(actor.name) is actor:  # it was told to stop
            self.restart_later(actor.name, self.draw.uniform(0.1, 3))

    def _calm(self) -> None:
        """Nothing goes wrong any more, and at least one worker is there."""
        self._unknown = 0.0
        self.stage.uneven = False
        for actor in self.stage.actors:
            actor.frozen_until = 0.0
        self.server.lost_answers = 0.0
        if not self.alive and not self._restarts:
            self.start("w1")

    def _settle(self) -> None:
        """Until there has been nothing to do for a while."""
        began = self.stage.now
        while True:
            self._step(faults=False)
            since = max([began, *(self.quiet_since.get(actor, self.stage.now) for actor in self.alive.values())])
            if self.stage.now - since > QUIET_S and not self._restarts and self._read_to_the_end():
                return

    def _read_to_the_end(self) -> bool:
        for task in range(PARTITIONS):
            journal, _ = self.broker.topic(self.settings.topic("journal"))[task].read(0, 1_000_000)
            last = int(dict(journal[-1].headers)["driftline-seq"]) if journal else 0
            marker = self.server.tasks.get(task, NOTHING).marker
            if last != (marker.state.seq if marker else 0) or self.broker.pending(task):
                return False
            for topic in self.settings.inputs:
                if self.broker.committed.get((topic, task), (0,))[0] != self.broker.topic(topic)[task].stable_end:
                    return False
        return True


def _marker(marker: Any) -> Mapping[str, object]:
    if marker is None:
        return {"seq": 0}
    return {"seq": marker.state.seq, "state": orjson.loads(orjson.dumps(marker.state.to_json()))}


def fault(act: Callable[[World], None]) -> Callable[[World], None]:
    """Register a fault under its function's name."""
    FAULTS[act.__name__] = act
    return act


def _anybody(world: World) -> str | None:
    """A worker that runs."""
    return world.draw.choice(sorted(world.alive)) if world.alive else None


@fault
def kill(world: World) -> None:
    """SIGKILL, wherever it stands; it is started again under its name."""
    if name := _anybody(world):
        world.alive[name].kill()
        world.restart_later(name, world.draw.uniform(0.1, 12))


@fault
def stop(world: World) -> None:
    """SIGTERM: the turn at hand ends."""
    name = _anybody(world)
    if name and name in world.workers:
        world.workers[name].stopping = True


@fault
def freeze(world: World) -> None:
    """SIGSTOP, mostly for longer than the session."""
    if name := _anybody(world):
        world.alive[name].frozen_until = world.stage.now + world.draw.uniform(0.5, 20)


@fault
def twin(world: World) -> None:
    """A frozen worker is taken for dead and started again under its name; then it thaws."""
    if name := _anybody(world):
        world.alive[name].frozen_until = world.stage.now + world.draw.uniform(0.5, 12)
        world.doubled.add(name)
        world.start(name)


@fault
def expel(world: World) -> None:
    """Thrown out of the group without hearing of it, as after a poll that came too late."""
    if world.group.members:
        world.group.leave(world.draw.choice(sorted(world.group.members)))


@fault
def expel_trainer(world: World) -> None:
    """The same in the trainers' group."""
    if world.trainers.members:
        world.trainers.leave(world.draw.choice(sorted(world.trainers.members)))


@fault
def join(world: World) -> None:
    """One more worker."""
    names = {f"w{number + 1}" for number in range(MOST_WORKERS)} - set(world.alive) - {n for _, n in world._restarts}
    if names:
        world.start(min(names))


@fault
def leave(world: World) -> None:
    """A worker is taken out for good."""
    name = _anybody(world)
    if name and len(world.alive) > 1:
        world.alive.pop(name).kill()
        world.group.leave(name)
        world.trainers.leave(name)


@fault
def offsets_expire(world: World) -> None:
    """Everybody is away for longer than the group remembers its offsets."""
    away_s = 2 * SESSION_S + TRANSACTION_S
    for name in sorted(world.alive):
        world.alive[name].kill()
        world.restart_later(name, away_s + 1)
    if not [actor for actor in world.stage.actors if actor.name.startswith("w") and not actor.done]:  # no twin is left
        world.broker.later(away_s, world.broker.committed.clear)


@fault
def redis_loses_its_tail(world: World) -> None:
    """A failover to a replica that lagged behind."""
    for task in range(PARTITIONS):
        if world.draw.random() < 0.7:
            world.server.lose_tail(task, world.draw.choice((1, 1, 1, 2, 3, 8, 20)))


@fault
def rows_are_deleted(world: World) -> None:
    """Somebody deletes keys of customers."""
    for task in range(PARTITIONS):
        world.server.lose_rows(task, world.draw.uniform(0.1, 1))


@fault
def redis_is_emptied(world: World) -> None:
    """FLUSHALL."""
    world.server.empty()


@fault
def redis_is_down(world: World) -> None:
    world.server.down_until = world.stage.now + world.draw.uniform(0.05, 8)


@fault
def kafka_is_down(world: World) -> None:
    world.broker.down_until = world.stage.now + world.draw.uniform(0.05, 12)


@fault
def night(world: World) -> None:
    """The clock goes on while nobody sells: customers are woken by their due times."""
    world._ahead_ms += world.draw.uniform(0.1, 1.5) * DAY_MS
