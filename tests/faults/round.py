"""One round: an application of its own, a stream, a drawn schedule of faults, then quiet and the oracle."""

import heapq
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from traceback import format_exc
from typing import NamedTuple

import orjson
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from stream import errors
from tests.faults.network import Link
from tests.faults.nursery import Forked
from tests.faults.servers import WORKERS, Pair
from tests.faults.table import FAULTS, NoOccasion
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import Bad, Shop, _Null
from tests.integration.site import PARTITIONS, Running, Site

FEED_S = 8.0
FAULTS_S = 6.0
SETTLE_S = 90.0
STEP_S = 0.02
PACE_S = 0.1
CUSTOMERS, DAYS = 100, 13.0

SNAPSHOT = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
    found[#found + 1] = key
    found[#found + 1] = redis.call('DUMP', key)
end
return found
"""
ROLL_BACK = """
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end
for i = 2, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1]) end
"""
"""A server's data are of one moment, so both are one script."""


class Planned(NamedTuple):
    """A fault and when it begins, in seconds after the first tick."""

    at_s: float
    name: str


class Schedule(NamedTuple):
    """What a seed and a number draw; nothing else does."""

    workers: int
    leave_on_stop: bool
    faults: tuple[Planned, ...]


class DifferenceError(AssertionError):
    """A round that came to something else than it must; the message begins with the first divergence."""


def schedule(seed: int, number: int, only: Sequence[str] = (), brokers: int = 1) -> Schedule:
    """The schedule of a round; the same for the same arguments."""
    draw = random.Random(f"{seed}/{number}")
    workers, leave_on_stop = draw.choice((2, 2, 3)), draw.random() < 0.3
    times = sorted(draw.uniform(0, FAULTS_S) for _ in range(draw.randint(2, 5)))
    possible = {name: one for name, one in FAULTS.items() if one.brokers <= brokers}
    table = {name: one.weight for name, one in possible.items() if not only or name in only}
    names = draw.choices([*table], [*table.values()], k=len(times))
    return Schedule(workers, leave_on_stop, tuple(Planned(*one) for one in zip(times, names, strict=True)))


class Round:
    """Runs one schedule. What it did is in `story`, with times; which faults came about, in `happened`."""

    def __init__(
        self, pair: Pair, seed: int, number: int, folder: Path, only: Sequence[str] = (), client: str = "kafka-python"
    ) -> None:
        self.pair, self.number = pair, number
        named = {"seed": seed, "round": number, "brokers": len(pair.brokers), "client": client, "only": " ".join(only)}
        self.asked = " ".join(f"--{name} {value}" for name, value in named.items() if value != "")
        self.name = f"seed {seed}, round {number}"
        self.plan = schedule(seed, number, only, len(pair.brokers))
        self.story: list[str] = []
        self.happened: Counter[str] = Counter()
        self.workers: dict[str, Running] = {}
        self.wanted: set[str] = set()
        self.frozen: set[str] = set()
        self.strays: list[tuple[str, Running]] = []
        self.may_refuse: set[str] = set()
        self.seed = seed
        self._began = time.monotonic()
        self._folder = folder
        self._order = count()
        self._waiting: list[tuple[float, int, str, Iterator[float]]] = []
        self._busy: set[str] = set()
        self.doubled: set[str] = set()
        self._doors_closed = False
        self._draw = random.Random(f"{seed}/{number}/supervisor")
        self.site = Site(
            pair.kafka.bootstrap_servers,
            pair.redis.url,
            folder,
            replication=len(pair.brokers),
            name=f"f{seed}-{number}-{time.time_ns() // 10**6 % 10**8}",
        )
        self.site.runs = Forked
        self.site.set(
            KAFKA__CLIENT=client,
            KAFKA__TRANSACTION_TIMEOUT_S="6",
            KAFKA__COMMIT_TIMEOUT_S="5",
            KAFKA__LEAVE_ON_STOP=str(self.plan.leave_on_stop).lower(),
        )
        inputs = self.site.settings.inputs
        lives = random.Random(f"{seed}/{number}/shop").randrange(2**32)
        self.site.shop = Shop(*inputs, partitions=PARTITIONS, customers=CUSTOMERS, days=DAYS, seed=lives)

    def run(self) -> Seen:
        """The whole round; returns what it left.

        Raises:
            DifferenceError: something was lost, repeated or stuck, or a worker ended that should not have.
        """
        feed = _Feed(self.site.shop, self.site.bootstrap)
        try:
            for name in WORKERS[: self.plan.workers]:
                self.start(name)
            self._turn_until(lambda: any(one.said("ready") for one in self.workers.values()), "a worker")
            feed.start()
            self._turn_until(lambda: any(one.said("tick") for one in self.workers.values()), "the first tick")
            self.note("the first tick")
            for number, planned in enumerate(self.plan.faults):
                draw = random.Random(f"{self.seed}/{self.number}/{number}")
                self._later(planned.at_s, planned.name, self._begin(planned.name, draw))
            self._turn_until(lambda: not self._waiting, lambda: f"the end of {[one[2] for one in self._waiting]}")
            self._mend()
            self._turn_until(lambda: not feed.is_alive(), "the end of the feed")
            feed.check()
            self._turn_until(self._level, self._how_it_stands)
            self.note("all is read and applied")
            self._stop()
            return self._check()
        except (AssertionError, pytest.fail.Exception) as error:
            raise DifferenceError(str(error)) from error
        except Exception as error:
            raise DifferenceError(f"the round itself failed: {format_exc()}") from error
        finally:
            feed.stop()
            self.site.close()

    # What faults do

    def note(self, what: str) -> None:
        self.story.append(f"{self._now():7.2f} s  {what}")

    def somebody(self, draw: random.Random) -> str:
        """A worker that runs.

        Raises:
            NoOccasion: there is none.
        """
        names = [name for name, one in sorted(self.workers.items()) if one.alive() and name not in self.frozen]
        if not names:
            raise NoOccasion("nobody runs")
        return draw.choice(names)

    def trainer(self) -> str:
        """The worker that trains, by what it has said last.

        Raises:
            NoOccasion: there is none.
        """
        for name, running in sorted(self.workers.items()):
            said = running.errors
            if name not in self.frozen and said.rfind('"trainer takes over"') > said.rfind('"trainer hands over"'):
                return name
        raise NoOccasion("nobody trains")

    def start(self, name: str) -> None:
        """A worker under this name; later, where an operator wants none now."""
        self.wanted.add(name)
        running = self.workers.get(name)
        if self._doors_closed or (running and running.alive()):
            return
        self.note(f"{name} started")
        orders = self._orders(name)
        orders.mkdir(exist_ok=True)
        self.workers[name] = self.site.worker(name, "--obey", str(orders), **self.pair.settings(name))

    def order(self, name: str, step: str, deed: str) -> Path:
        """Have a worker killed or stopped at a step; the file is gone once it is done."""
        path = self._orders(name) / step
        path.with_suffix(".new").write_text(deed)
        return path.with_suffix(".new").rename(path)

    def freeze(self, name: str) -> str:
        self.note(f"{name} frozen")
        self.workers[name].process.send_signal(signal.SIGSTOP)
        self.frozen.add(name)
        return name

    def out(self, *names: str) -> Iterator[float]:
        """Tell workers to stop, and see them end in order."""
        leaving = [(name, self.workers.pop(name)) for name in names]
        for name, running in leaving:
            self.note(f"{name} told to stop")
            running.process.send_signal(signal.SIGTERM)
        while leaving:
            for name, running in list(leaving):
                if not running.alive():
                    leaving.remove((name, running))
                    self._ended(name, running, told=True)
            yield STEP_S

    def everybody_out(self) -> Iterator[float]:
        """Stop every worker, and let none start until `everybody_in`; none is a member when it ends."""
        self._doors_closed = True
        yield from self.out(*sorted(self.workers))
        while any(running.alive() for _, running in self.strays) or "kafka" in self._busy:
            yield 0.05
        for name in WORKERS:
            self.site.expel(name)

    def everybody_in(self) -> None:
        self._doors_closed = False
        for name in sorted(self.wanted):
            self.start(name)

    def operator(self, *command: str) -> Iterator[float]:
        """Run a command until it says that it is done, as one does while servers come and go."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            self.note(f"driftline {' '.join(command)}")
            running = self.site.command(*command)
            while running.alive():
                yield 0.05
            said = (running.errors or running.output.decode()).splitlines()[-1:]
            self.note(f"exit code {running.process.returncode}: {' '.join(said)}")
            if running.process.returncode == 0:
                return
            assert running.process.returncode == 1, running.errors
            assert time.monotonic() < deadline, f"the operator does not get on: {running.errors}"
            yield 1.0

    def links(self, name: str, server: str) -> Sequence[Link]:
        return self.pair.to_kafka[name] if server == "kafka" else [self.pair.to_redis[name]]

    def redis(self) -> "redis.Redis[bytes]":
        return self.site.redis()

    def snapshot(self) -> Sequence[bytes]:
        """This round's keys and what they hold, at one moment."""
        with self.redis() as client:
            found: Sequence[bytes] = client.eval(SNAPSHOT, 0, f"{{{self.site.name}:*")
            return found

    def roll_back(self, snapshot: Sequence[bytes]) -> None:
        with self.redis() as client:
            client.eval(ROLL_BACK, 0, f"{{{self.site.name}:*", *snapshot)

    # The loop

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _orders(self, name: str) -> Path:
        return self._folder / f"{name}.orders"

    def _later(self, seconds: float, name: str, acts: Iterator[float]) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + seconds, next(self._order), name, acts))

    def _begin(self, name: str, draw: random.Random) -> Iterator[float]:
        """A fault, unless what it needs is at fault already."""
        fault = FAULTS[name]
        if fault.needs in self._busy:
            self.note(f"{name}: not while another fault of {fault.needs} lasts")
            return
        self.note(f"FAULT {name}")
        self.happened[name] += 1
        if fault.needs:
            self._busy.add(fault.needs)
        try:
            yield from fault.act(self, draw)
        except NoOccasion as reason:
            self.happened[name] -= 1
            self.note(f"{name}: {reason}")
        if fault.needs:
            self._busy.discard(fault.needs)
            self.note(f"{name} is over")

    def _turn(self) -> None:
        """What is due, and a look at who has ended."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, _, name, acts = heapq.heappop(self._waiting)
            with suppress(StopIteration):
                self._later(next(acts), name, acts)
        self._supervise()
        time.sleep(STEP_S)

    def _turn_until(self, met: Callable[[], bool], what: Callable[[], str] | str) -> None:
        deadline = time.monotonic() + SETTLE_S
        while not met():
            assert time.monotonic() < deadline, (
                f"not within {SETTLE_S:g} s: {what if isinstance(what, str) else what()}"
            )
            self._turn()

    def _supervise(self) -> None:
        """Start again who was killed, or gave up because a server was away; nobody else may end."""
        for name, running in sorted(self.workers.items()):
            if not running.alive():
                del self.workers[name]
                self.frozen.discard(name)
                self._ended(name, running)
                self._later(self._draw.uniform(0.1, 3), name, self._start_again(name))
        for name, running in list(self.strays):
            if not running.alive():
                self.strays.remove((name, running))
                self._ended(name, running)

    def _start_again(self, name: str) -> Iterator[float]:
        if name in self.wanted:
            self.start(name)
        yield from ()

    def _ended(self, name: str, running: Running, told: bool = False) -> None:
        """Judge how a worker ended.

        Raises:
            AssertionError: it should not have.
        """
        code = running.process.returncode
        last = (running.errors.splitlines() or [""])[-1]
        self.note(f"{name} ended with {code}{': ' + last if code == 1 else ''}")
        if code == -signal.SIGKILL or (told and code == 0):
            return
        if told and code == -signal.SIGTERM and not running.said("started"):
            return
        kind = getattr(errors, last.split(":")[1].strip(), None) if last.startswith("driftline: ") else None
        if code == 1 and kind is not None:
            doubled = name in self.doubled
            granted = any(topic in last for topic in self.may_refuse)
            if issubclass(kind, errors.Retriable) or (kind is errors.Misconfigured and (doubled or granted)):
                return
        raise DifferenceError(f"{name} ended with {code}: {running.errors[-3000:]}")

    # The end

    def _mend(self) -> None:
        """Each fault has mended what it did; this says so, and sees that it is true."""
        assert not self.frozen, f"still frozen: {self.frozen}"
        self.pair.mend()
        self.note("all is mended")

    def _level(self) -> bool:
        """Whether all that was fed is committed, and Redis is where the last commit is."""
        try:
            found = oracle.committed(self.site.settings, PARTITIONS, self.site.asking)
            with self.redis() as client:
                stored = [client.hget(f"{{{self.site.name}:p{task}}}:m", "seq") for task in range(PARTITIONS)]
        except (KafkaError, redis.RedisError) as error:
            self.note(f"asking: {error!r}")
            return False
        expected = self.site.shop.ends()
        if any(stamp is None or stamp[0] != expected[place] for place, stamp in found.items()):
            return False
        ticks = [orjson.loads(stamp[1])["seq"] for stamp in found.values() if stamp]
        return ticks == [int(one or 0) for one in stored] * 2

    def _stop(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        for pause_s in self.out(*sorted(self.workers)):
            assert time.monotonic() < deadline, "workers told to stop still run"
            time.sleep(pause_s)
        for _, running in self.strays:
            running.kill()

    def _check(self) -> Seen:
        seen = oracle.look(self.site.settings, PARTITIONS)
        oracle.check_all(seen, self.site.shop.counts, told_of(seen, self.site.shop.bad))
        return seen

    def _how_it_stands(self) -> str:
        """For who is stuck: what is fed, committed and applied, and how far each partition can be read."""
        lines = [f"the end of the input, committed and applied; fed {self.site.shop.ends()}"]
        with suppress(KafkaError, redis.RedisError):
            lines.append(f"committed {oracle.committed(self.site.settings, PARTITIONS, self.site.asking)}")
            with self.redis() as client:
                lines.append(
                    f"applied {[client.hget(f'{{{self.site.name}:p{n}}}:m', 'seq') for n in range(PARTITIONS)]}"
                )
            lines += [f"undecided: {at} from {stable} to {end}" for at, (stable, end) in undecided(self.site).items()]
        for name, running in sorted(self.workers.items()):
            lines.append(f"{name} said last: {' | '.join(running.errors.splitlines()[-3:])}")
        return "\n".join(lines)


def told_of(seen: Seen, bad: Sequence[Bad]) -> list[Bad]:
    """Each unusable record once for each time its task came to it: a rewind to the earliest comes to it again."""
    begun = {task: 1 + sum(map(_drops, (one.entry for one in ticks))) for task, ticks in seen.ticks.items()}
    if all(times == 1 for times in begun.values()):
        return list(bad)
    return [
        one
        for one in bad
        for tick in seen.ticks[one.partition]
        if not oracle.is_rewind(tick.entry)
        and tick.entry.offsets_before[one.topic] <= one.offset < tick.entry.state.offsets[one.topic]
    ]


def _drops(entry: oracle.Entry) -> bool:
    return oracle.is_rewind(entry) and not any(entry.state.offsets.values())


def undecided(site: Site) -> Mapping[str, tuple[int, int]]:
    """Partitions that can be read to their last stable offset only, and where they end."""
    found: dict[str, dict[TopicPartition, int]] = {}
    for level in ("read_committed", "read_uncommitted"):
        consumer = KafkaConsumer(bootstrap_servers=site.bootstrap, isolation_level=level, enable_auto_commit=False)
        try:
            topics = [*site.settings.inputs, *map(site.settings.topic, ("alerts", "dead_letters", "journal", "models"))]
            places = [TopicPartition(name, one) for name in topics for one in consumer.partitions_for_topic(name) or ()]
            found[level] = consumer.end_offsets(places)
        finally:
            consumer.close()
    stable, ends = found["read_committed"], found["read_uncommitted"]
    return {f"{at.topic}-{at.partition}": (stable[at], ends[at]) for at in ends if stable[at] < ends[at]}


class _Feed(threading.Thread):
    """Sends what the shop has, steadily, in a thread; each record once whatever the broker does."""

    def __init__(self, shop: Shop, bootstrap: str) -> None:
        super().__init__(name="feed", daemon=True)
        self._shop, self._address = shop, bootstrap
        self._ends = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._send()
        except BaseException as error:  # told by `check`
            self._error = error

    def stop(self) -> None:
        self._ends.set()
        if self.ident is not None:
            self.join()

    def check(self) -> None:
        """Raise AssertionError where the stream is not what the shop thinks it is: then nothing can be judged."""
        assert self._error is None, f"the shop could not send: {self._error!r}"
        assert self._shop.fed == len(self._shop.records)

    def _send(self) -> None:
        steps = round(FEED_S / PACE_S)
        size = -(-len(self._shop.records) // steps)
        producer = KafkaProducer(
            bootstrap_servers=self._address,
            acks="all",
            enable_idempotence=True,
            value_serializer=_Null(),
            max_block_ms=60_000,
            reconnect_backoff_max_ms=500,
        )
        try:
            sent = []
            while batch := self._shop.next(size):
                for one in batch:
                    value = _Null.STANDS_FOR if one.value is None else one.value
                    sent.append(producer.send(one.topic, value, one.key, list(one.headers), one.partition))
                if self._ends.wait(PACE_S):
                    return
            producer.flush(60)
            for future in sent:
                future.get(60)
        finally:
            producer.close(5)
