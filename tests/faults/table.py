"""What may go wrong: one small function a fault. A new one needs its name, a weight, and what it does.

A fault does its harm, yields how many seconds that lasts, and mends it; while it waits, other faults go on. It may
yield as often as it likes. `draw` is its own: what it draws depends on the seed alone, what it meets on the machine.
"""

import random
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from tests.faults.network import Link
from tests.faults.servers import WORKERS
from tests.integration.site import partition_of
from tests.integration.worker_process import STEPS

if TYPE_CHECKING:
    from tests.faults.round import Round

Act = Callable[["Round", random.Random], Iterator[float]]

QUIET_S = 0.3
"""A node killed within milliseconds of a commit may leave a last stable offset frozen for ever (Apache Kafka 4.3.1,
seen with the bare client too): workers hold still for this long before the broker is killed."""
BEYOND_S = (6.5, 9.0)
"""Longer than a session and a transaction, both 6 s."""


class NoOccasion(Exception):  # noqa: N818  nothing is wrong
    """A fault that cannot come about now; the message says why. It is not counted."""


class Fault(NamedTuple):
    """One kind of fault; two that need the same thing never overlap, and some want a cluster."""

    act: Act
    weight: float
    needs: str | None
    brokers: int


FAULTS: dict[str, Fault] = {}
"""By name; filled by `fault`."""


def fault(weight: float, needs: str | None = None, name: str | None = None, brokers: int = 1) -> Callable[[Act], Act]:
    """Register a fault, under its function's name unless told otherwise."""

    def register(act: Act) -> Act:
        FAULTS[name or act.__name__] = Fault(act, weight, needs, brokers)
        return act

    return register


# Workers, in the middle of a step


def _at(step: str) -> None:
    @fault(weight=1, name=f"killed {step}")
    def killed(round: "Round", draw: random.Random) -> Iterator[float]:
        yield from _reached(round, draw, step, "kill")

    @fault(weight=1, name=f"frozen {step}")
    def frozen(round: "Round", draw: random.Random) -> Iterator[float]:
        name = yield from _reached(round, draw, step, "stop")
        round.frozen.add(name)
        yield from _thaws(round, name, draw.uniform(*BEYOND_S))


def _reached(round: "Round", draw: random.Random, step: str, deed: str) -> Generator[float, None, str]:
    """Order the deed at a step, and wait for it; returns whom it met. The supervisor starts who was killed again."""
    name = round.trainer() if step == "in-publish" else round.somebody(draw)
    running, order = round.workers[name], round.order(name, step, deed)
    for _ in range(100):
        yield 0.05
        gone = round.workers.get(name) is not running
        if gone and deed == "stop":
            break  # of something else that met it, maybe after it had come there
        if not order.exists():
            round.note(f"{name} {'killed' if deed == 'kill' else 'frozen'} {step}")
            return name
        if gone:
            break
    order.unlink(missing_ok=True)
    raise NoOccasion(f"{name} did not come to {step}")


def _thaws(round: "Round", name: str, seconds: float) -> Iterator[float]:
    running = round.workers[name]
    yield seconds
    round.frozen.discard(name)
    running.process.send_signal(signal.SIGCONT)
    round.note(f"{name} thawed")


for _step in STEPS:
    _at(_step)


# Workers, at any moment


@fault(weight=2)
def worker_killed(round: "Round", draw: random.Random) -> Iterator[float]:
    """SIGKILL, wherever it stands; the supervisor starts it again."""
    name = round.somebody(draw)
    round.note(f"{name} killed")
    round.workers[name].kill()
    yield 0


@fault(weight=1)
def trainer_killed(round: "Round", draw: random.Random) -> Iterator[float]:
    name = round.trainer()
    round.note(f"{name}, the trainer, killed")
    round.workers[name].kill()
    yield 0


@fault(weight=1)
def everybody_killed(round: "Round", draw: random.Random) -> Iterator[float]:
    """At one moment, as when a machine fails."""
    for name in sorted(round.workers):
        round.note(f"{name} killed")
        round.workers[name].kill()
    yield 0


@fault(weight=1)
def worker_stopped(round: "Round", draw: random.Random) -> Iterator[float]:
    """SIGTERM; started again after a while."""
    name = round.somebody(draw)
    yield from round.out(name)
    yield draw.uniform(0.1, 3)
    round.start(name)


@fault(weight=1)
def worker_joins(round: "Round", draw: random.Random) -> Iterator[float]:
    names = sorted(set(WORKERS) - round.wanted)
    if not names:
        raise NoOccasion("all are there")
    round.start(names[0])
    yield 0


@fault(weight=1)
def worker_leaves(round: "Round", draw: random.Random) -> Iterator[float]:
    """For good, in order or not."""
    name = round.somebody(draw)
    if len(round.wanted) == 1:
        raise NoOccasion("it is the last one")
    round.wanted.discard(name)
    if draw.random() < 0.5:
        yield from round.out(name)
    else:
        round.note(f"{name} killed for good")
        round.workers.pop(name).kill()


@fault(weight=2)
def worker_frozen(round: "Round", draw: random.Random) -> Iterator[float]:
    """SIGSTOP beyond its session: the others take over, then it goes on."""
    yield from _thaws(round, round.freeze(round.somebody(draw)), draw.uniform(*BEYOND_S))


@fault(weight=1)
def trainer_frozen(round: "Round", draw: random.Random) -> Iterator[float]:
    yield from _thaws(round, round.freeze(round.trainer()), draw.uniform(*BEYOND_S))


@fault(weight=1)
def worker_frozen_and_replaced(round: "Round", draw: random.Random) -> Iterator[float]:
    """It is taken for dead and started again under its name; then it goes on, and one of the two gives way."""
    name = round.freeze(round.somebody(draw))
    running = round.workers[name]
    yield draw.uniform(0.1, 3)
    round.frozen.discard(name)
    if round.workers.get(name) is not running:  # another fault ends it meanwhile, or waits for its end
        running.process.send_signal(signal.SIGCONT)
        return
    round.strays.append((name, round.workers.pop(name)))
    round.doubled.add(name)
    round.start(name)
    yield draw.uniform(1, 8)
    running.process.send_signal(signal.SIGCONT)
    round.note(f"the former {name} thawed")


# Kafka


def _any(round: "Round", draw: random.Random) -> int:
    return draw.randint(1, len(round.pair.brokers))


@contextmanager
def _asking(round: "Round") -> Iterator[KafkaAdminClient]:
    """Who may not answer while another fault lasts."""
    try:
        with KafkaAdminClient(bootstrap_servers=round.site.bootstrap, bootstrap_timeout_ms=5_000) as admin:
            yield admin
    except KafkaError as error:
        raise NoOccasion(f"Kafka does not say who leads: {error}") from error


def _controller(round: "Round", draw: random.Random) -> int:
    with _asking(round) as admin:
        return int(admin.describe_metadata_quorum()["topics"][0]["partitions"][0]["leader_id"])


def _group_coordinator(round: "Round", draw: random.Random) -> int:
    return _leader(round, "__consumer_offsets", round.site.name)


def _transaction_coordinator(round: "Round", draw: random.Random) -> int:
    return _leader(round, "__transaction_state", f"{round.site.name}:{round.somebody(draw)}")


def _leader(round: "Round", topic: str, key: str) -> int:
    """The node id of who coordinates a group or a writer."""
    with _asking(round) as admin:
        places = admin.describe_topics([topic])[0]["partitions"]
    leaders = {one["partition_index"]: int(one["leader_id"]) for one in places}
    node = leaders.get(partition_of(key, len(leaders)), -1) if leaders else -1
    if node < 0:
        raise NoOccasion(f"nobody leads {topic}")
    return node


def _broker_faults(who: str, brokers: int, find: Callable[["Round", random.Random], int]) -> None:
    @fault(weight=1, needs="kafka", name=f"{who}_killed", brokers=brokers)
    def killed(round: "Round", draw: random.Random) -> Iterator[float]:
        lasts_s = draw.uniform(0.2, 3)
        node = find(round, draw)
        alone = len(round.pair.brokers) == 1
        still = [one.process for name, one in round.workers.items() if name not in round.frozen and one.alive()]
        for process in still if alone else ():
            process.send_signal(signal.SIGSTOP)
        time.sleep(QUIET_S if alone else 0)
        round.note(f"broker {node} killed")
        broker = round.pair.brokers[node - 1]
        broker.kill()
        for process in still if alone else ():
            process.send_signal(signal.SIGCONT)
        yield lasts_s
        broker.start(wait=False)
        while not broker.answers():
            yield 0.2

    @fault(weight=1, needs="kafka", name=f"{who}_restarted", brokers=brokers)
    def restarted(round: "Round", draw: random.Random) -> Iterator[float]:
        node = find(round, draw)
        round.note(f"broker {node} restarted")
        round.pair.brokers[node - 1].restart()
        yield 0

    @fault(weight=2, needs="kafka", name=f"{who}_frozen", brokers=brokers)
    def frozen(round: "Round", draw: random.Random) -> Iterator[float]:
        """Within a session or beyond it."""
        lasts_s = draw.uniform(1, 9)
        node = find(round, draw)
        round.note(f"broker {node} frozen")
        round.pair.brokers[node - 1].pause()
        yield lasts_s
        round.pair.brokers[node - 1].resume()


_broker_faults("broker", 1, _any)
_broker_faults("controller", 3, _controller)
_broker_faults("group_coordinator", 3, _group_coordinator)
_broker_faults("transaction_coordinator", 3, _transaction_coordinator)


@fault(weight=1, needs="kafka", brokers=3)
def two_brokers_frozen(round: "Round", draw: random.Random) -> Iterator[float]:
    """The one that is left may accept nothing alone."""
    lasts_s = draw.uniform(1, 9)
    nodes = draw.sample(range(1, 4), 2)
    round.note(f"brokers {nodes[0]} and {nodes[1]} frozen")
    for node in nodes:
        round.pair.brokers[node - 1].pause()
    yield lasts_s
    for node in nodes:
        round.pair.brokers[node - 1].resume()


@fault(weight=2, needs="kafka", brokers=3)
def broker_cut_off_from_brokers(round: "Round", draw: random.Random) -> Iterator[float]:
    """It leads on for whom it still serves, and the other two choose anew."""
    lasts_s = draw.uniform(1, 9)
    node = draw.choice((_any, _controller, _group_coordinator, _transaction_coordinator))(round, draw)
    links = [link for ends, links in round.pair.between.items() if node in ends for link in links]
    round.note(f"broker {node} cut off from the other two")
    yield from _held_up(links, lasts_s)


@fault(weight=1, needs="kafka", brokers=3)
def broker_cut_off_from_workers(round: "Round", draw: random.Random) -> Iterator[float]:
    """To its like it is there, and leads."""
    lasts_s, node = draw.uniform(1, 9), _any(round, draw)
    round.note(f"broker {node} cut off from every worker")
    yield from _held_up([links[node - 1] for links in round.pair.to_kafka.values()], lasts_s)


@fault(weight=2, brokers=3)
def worker_cut_off_from_a_broker(round: "Round", draw: random.Random) -> Iterator[float]:
    lasts_s, node, name = draw.uniform(1, 9), _any(round, draw), round.somebody(draw)
    round.note(f"{name} cut off from broker {node}")
    yield from _held_up([round.links(name, "kafka")[node - 1]], lasts_s)


@fault(weight=1, needs="kafka")
def topic_without_permission(round: "Round", draw: random.Random) -> Iterator[float]:
    """Somebody gives another one an access list to a topic of ours; the worker stops, and says what to grant."""
    settings = round.site.settings
    topic = draw.choice([settings.topic("alerts"), settings.topic("journal"), settings.topics.purchases])
    lasts_s = draw.uniform(1, 4)
    pattern = ResourcePattern(ResourceType.TOPIC, topic)
    with KafkaAdminClient(bootstrap_servers=round.site.bootstrap) as admin:
        admin.create_acls([ACL("User:somebody", "*", ACLOperation.READ, ACLPermissionType.ALLOW, pattern)])
    round.note(f"{topic} is somebody else's")
    round.may_refuse.add(topic)
    yield lasts_s
    ours = ResourcePatternFilter(ResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL)
    every = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, ours)
    with KafkaAdminClient(bootstrap_servers=round.site.bootstrap) as admin:
        admin.delete_acls([every])
    round.note(f"{topic} is ours")


# Redis


@fault(weight=1, needs="redis")
def redis_killed(round: "Round", draw: random.Random) -> Iterator[float]:
    """It comes back with its data."""
    round.pair.redis.kill()
    yield draw.uniform(0.1, 3)
    round.pair.redis.start()


@fault(weight=1, needs="redis")
def redis_killed_and_its_data_lost(round: "Round", draw: random.Random) -> Iterator[float]:
    round.pair.redis.kill()
    round.pair.lose_the_data()
    yield draw.uniform(0.1, 3)
    round.pair.redis.start()


@fault(weight=2, needs="redis")
def redis_emptied(round: "Round", draw: random.Random) -> Iterator[float]:
    """FLUSHALL."""
    with round.redis() as client:
        client.flushall()
    yield 0


@fault(weight=2, needs="redis")
def redis_rolled_back(round: "Round", draw: random.Random) -> Iterator[float]:
    """To a snapshot of some seconds ago."""
    snapshot = round.snapshot()
    yield draw.uniform(1, 5)
    round.roll_back(snapshot)


@fault(weight=2, needs="redis")
def redis_fails_over_with_lost_writes(round: "Round", draw: random.Random) -> Iterator[float]:
    """To what a replica had that lagged a little; every connection breaks."""
    snapshot = round.snapshot()
    yield draw.uniform(0.05, 0.5)
    for link in round.pair.to_redis.values():
        link.refuse()
    round.roll_back(snapshot)
    yield draw.uniform(0, 1)
    for link in round.pair.to_redis.values():
        link.mend()


@fault(weight=1, needs="redis")
def redis_slow(round: "Round", draw: random.Random) -> Iterator[float]:
    """Within `redis.timeout_s`, here 1 s, or beyond it."""
    seconds = draw.uniform(0.3, 3)
    with round.redis() as client:
        client.client_pause(int(seconds * 1000))
    yield seconds


@fault(weight=1, needs="redis")
def redis_out_of_memory(round: "Round", draw: random.Random) -> Iterator[float]:
    with round.redis() as client:
        client.config_set("maxmemory", "1")
    yield draw.uniform(0.5, 3)
    with round.redis() as client:
        client.config_set("maxmemory", "0")


@fault(weight=1, needs="redis")
def redis_disk_full(round: "Round", draw: random.Random) -> Iterator[float]:
    if round.pair.disk is None:
        raise NoOccasion("no small file system was mounted")
    round.pair.fill_the_disk()
    yield draw.uniform(1, 4)
    round.pair.make_room()


# The network


@fault(weight=2)
def worker_cut_off_from_kafka(round: "Round", draw: random.Random) -> Iterator[float]:
    """Nothing arrives; later what was sent does, late."""
    yield from _held(round, draw, "kafka", draw.uniform(1, 9))


@fault(weight=2)
def worker_cut_off_from_redis(round: "Round", draw: random.Random) -> Iterator[float]:
    yield from _held(round, draw, "redis", draw.uniform(0.5, 4))


def _held(round: "Round", draw: random.Random, server: str, seconds: float) -> Iterator[float]:
    name = round.somebody(draw)
    round.note(f"{name} cut off from {server}")
    yield from _held_up(round.links(name, server), seconds)


def _held_up(links: Sequence[Link], seconds: float, hold: Callable[[Link], None] = Link.hold) -> Iterator[float]:
    for link in links:
        hold(link)
    yield seconds
    for link in links:
        link.mend()


@fault(weight=2)
def answers_held_up(round: "Round", draw: random.Random) -> Iterator[float]:
    """What a worker sends to one server arrives, and no answer does: it cannot know what was done."""
    server, name, lasts_s = draw.choice(("kafka", "redis")), round.somebody(draw), draw.uniform(1, 9)
    round.note(f"{name} hears nothing from {server}")
    yield from _held_up(round.links(name, server), lasts_s, Link.hold_answers)


@fault(weight=1)
def connections_broken(round: "Round", draw: random.Random) -> Iterator[float]:
    """A worker's connections to one server end, and are refused for a moment."""
    server = draw.choice(("kafka", "redis"))
    name = round.somebody(draw)
    round.note(f"{name}'s connections to {server} broken")
    for link in round.links(name, server):
        link.refuse()
    yield draw.uniform(0, 2)
    for link in round.links(name, server):
        link.mend()


@fault(weight=1)
def network_slow(round: "Round", draw: random.Random) -> Iterator[float]:
    server, delay_s = draw.choice((("kafka", 0.3), ("redis", 0.1)))
    name = round.somebody(draw)
    round.note(f"{name} to {server}: {delay_s:g} s each way")
    for link in round.links(name, server):
        link.slow(delay_s)
    yield draw.uniform(1, 4)
    for link in round.links(name, server):
        link.mend()


# An operator


@fault(weight=1, needs="operator")
def operator_rewinds_to_earliest(round: "Round", draw: random.Random) -> Iterator[float]:
    """All is counted anew, and nothing is told twice."""
    yield from round.everybody_out()
    yield from round.operator("rewind", "--to", "earliest", "--yes")
    round.everybody_in()


@fault(weight=1, needs="operator")
def offsets_reset_and_rewound_to_the_store(round: "Round", draw: random.Random) -> Iterator[float]:
    """A tool resets the group's offsets, which `driftline rewind` mends."""
    back = draw.choice((0, 20, 10_000))
    yield from round.everybody_out()
    with KafkaAdminClient(bootstrap_servers=round.site.bootstrap) as admin:
        places = round.site.committed()
        used = {task for (_, task), now in places.items() if now}
        to = {at: OffsetAndMetadata(max(now - back, 0), "", -1) for at, now in places.items() if at[1] in used}
        admin.alter_group_offsets(round.site.name, {TopicPartition(*at): one for at, one in to.items()})
    round.note(f"the group's offsets set back by {back}")
    yield from round.operator("rewind", "--to", "store", "--yes")
    round.everybody_in()
