"""The checks of `driftline doctor`, in the order in which they are told: each asks, `stream/diagnosis` judges."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from stream.backends.http import probe
from stream.backends.kafka import KafkaQuestions, KafkaTopic, check_topics, transactional_id
from stream.backends.redis import RedisQuestions
from stream.chunks import Chunks
from stream.diagnosis import Finding, cluster, group, listed, ok, records, size, store, warning, wrong
from stream.diagnosis.facts import Cluster, Extent, Group, Place, RedisFacts, TopicFacts
from stream.errors import CannotTell, Misconfigured
from stream.ports import Committed
from stream.processing import sections
from stream.settings import ENVIRONMENT_PREFIX, Settings
from stream.versions import Versions

KAFKA, REDIS = "Kafka", "Redis"
PROBE_S = 3.0
SETTLE_S = 1.0
"""What was applied to Redis at one moment is visible in Kafka's committed offsets this much later."""
NEWEST_EVENTS, NEWEST_TICKS = 50, 20
"""Records looked at from the end of each partition."""
SAMPLE = 100
PACKAGES = ("kafka-python", "redis", "river", "numpy")
FAST = {"crc32c": "a record costs nine times as much", "hiredis": "reading Redis costs two to three times as much"}


class Site:
    """What has been found out so far about one application: each is asked once, when it is first needed."""

    def __init__(self, settings: Settings, config: Path | None) -> None:
        self.settings = settings
        self.config = config
        self.kafka = KafkaQuestions(settings)
        self.redis = RedisQuestions(settings)

    @cached_property
    def cluster(self) -> Cluster:
        return self.kafka.cluster()

    @cached_property
    def described(self) -> dict[str, TopicFacts]:
        settings = self.settings
        ours = [settings.topic("alerts"), settings.topic("dead_letters"), settings.topic("journal")]
        return self.kafka.topics([*settings.inputs, *ours, settings.topic("models")])

    @cached_property
    def topics(self) -> dict[str, TopicFacts]:
        """Those of our topics that are there to be seen."""
        return {name: one for name, one in self.described.items() if one.partitions}

    def need(self, *names: str) -> None:
        """Leave a check out whose topics are not there: asking for them might create them."""
        missing = [name for name in names if name not in self.topics]
        if missing:
            raise CannotTell(f"{listed(missing)} cannot be seen (see topics and permissions)")

    @cached_property
    def partitions(self) -> int:
        """Number of tasks."""
        self.need(*self.settings.inputs)
        counts = {len(self.topics[name].partitions) for name in self.settings.inputs}
        if len(counts) != 1:
            raise CannotTell("the input topics have unequal partition counts (see topics)")
        return counts.pop()

    @cached_property
    def extents(self) -> dict[Place, Extent]:
        places = [(one.name, p.number) for one in self.topics.values() for p in one.partitions if p.leader >= 0]
        return self.kafka.extents(places)

    @cached_property
    def group(self) -> Group:
        return self.kafka.group(self.settings.application.name)

    @cached_property
    def stamps(self) -> dict[int, Committed | Misconfigured | None]:
        return self.kafka.committed(self.partitions)

    @property
    def committed(self) -> dict[int, Committed | None]:
        """Committed offsets, without those that are not ours."""
        return {task: None if isinstance(stamp, Misconfigured) else stamp for task, stamp in self.stamps.items()}

    @cached_property
    def server(self) -> RedisFacts:
        return self.redis.facts()

    def kept(self, *names: str) -> dict[Place, Extent]:
        """The extents of some topics."""
        return {place: extent for place, extent in self.extents.items() if place[0] in names}


class Check(NamedTuple):
    """One check: its name, the servers it needs, and the function that gives its findings."""

    name: str
    needs: frozenset[str]
    ask: Callable[[Site], Iterable[Finding]]


CHECKS: list[Check] = []


def check(name: str, *needs: str) -> Callable[[Callable[[Site], Iterable[Finding]]], None]:
    """Put a function among the checks."""
    return lambda ask: CHECKS.append(Check(name, frozenset(needs), ask))


# This machine


@check("settings")
def _settings(site: Site) -> Iterator[Finding]:
    settings = site.settings
    shown = [_variable(name, value, settings) for name, value in sorted(os.environ.items()) if _is_setting(name)]
    yield ok(
        f"application {settings.application.name!r}, instance {settings.application.instance!r}, configuration "
        f"{settings.config_hash}; from {site.config or 'no file'}, environment: {listed(shown, 60) or 'none'}"
    )


def _is_setting(name: str) -> bool:
    section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
    return name.startswith(ENVIRONMENT_PREFIX) and bool(key) and section in Settings.model_fields


def _variable(name: str, value: str, settings: Settings) -> str:
    if name.endswith("__URL"):
        return f"{name}={settings.shown_redis_url}"
    return f"{name}={'***' if 'PASSWORD' in name else value}"


@check("software")
def _software(_: Site) -> Iterator[Finding]:
    for package, otherwise in FAST.items():
        if find_spec(package) is None:
            make = wrong if package == "crc32c" else warning
            yield make(f"the package {package} is not installed: {otherwise}", f"pip install {package}")
    packages = listed(f"{name} {_version(name)}" for name in PACKAGES)
    yield ok(f"Driftline {_version('driftline')} on Python {platform.python_version()}, {packages}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"


@check("local disk")
def _local_disk(_: Site) -> Iterator[Finding]:
    usage = shutil.disk_usage(Path.cwd())
    found = f"{size(usage.free)} free of {size(usage.total)} where this runs; logs go to standard error"
    if usage.free < cluster.LEAST_SHARE * usage.total:
        yield warning(found, "make room")
    else:
        yield ok(found)


@check("http")
def _http(site: Site) -> Iterator[Finding]:
    http = site.settings.http
    address = f"{http.host}:{http.port}"
    if http.port == 0:
        yield ok("http.port is 0: each worker takes a free one and logs it")
        return
    answers = probe(http, PROBE_S)
    if answers is None:
        yield ok(f"{address} is free: no worker on this machine serves there")
    elif "driftline_" not in answers.get("/metrics", (0, ""))[1]:
        yield wrong(f"something that is no worker listens on {address}", "stop it, or set another http.port")
    else:
        for path, (status, said) in answers.items():
            if path != "/metrics" and status != 200:
                yield wrong(
                    f"the worker at {address} answers {path} with {status}: {said.strip()}", "see docs/runbook.md"
                )
        yield ok(f"a worker answers at {address}")


# Kafka


@check("brokers", KAFKA)
def _brokers(site: Site) -> Iterator[Finding]:
    yield from cluster.bootstrap(site.kafka.refusing())
    yield from cluster.brokers(site.cluster)


@check("topics", KAFKA)
def _topics(site: Site) -> Iterator[Finding]:
    checks = check_topics(site.settings)
    for topic in checks:
        for fault in topic.faults:
            found, _, remedy = fault.partition(": ")
            key, value = found.split()[0], found.split()[-1]  # as in: retention.ms is 1, should be 2
            change = (
                f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} --add-config {key}={value}"
            )
            yield wrong(f"{topic.name} {found}", remedy or change)
    if not any(topic.faults for topic in checks):
        yield ok(listed(f"{topic.name} ({topic.partitions})" for topic in checks))


@check("partitions", KAFKA)
def _partitions(site: Site) -> Iterable[Finding]:
    return cluster.partitions(list(site.topics.values()), len(site.cluster.brokers))


@check("permissions", KAFKA)
def _permissions(site: Site) -> Iterable[Finding]:
    name = site.settings.application.name
    groups = [one for one in (site.group, site.kafka.group(f"{name}.trainer")) if one.state]
    untold = [f"transactional ids {name}:*"]
    if not groups:
        untold.append(f"group {name}, which does not exist yet")
    return cluster.permissions(site.settings, list(site.described.values()), groups, untold)


@check("transactions", KAFKA)
def _transactions(site: Site) -> Iterable[Finding]:
    return cluster.transactions(site.kafka.open_transactions(site.extents, _now_ms()), site.settings)


@check("members", KAFKA)
def _members(site: Site) -> Iterable[Finding]:
    return group.members(site.settings, site.group, site.partitions)


@check("trainer", KAFKA)
def _trainer(site: Site) -> Iterator[Finding]:
    found = site.kafka.group(f"{site.settings.application.name}.trainer")
    yield group.trainer(found, workers=bool(site.group.members))


@check("lag", KAFKA)
def _lag(site: Site) -> Iterable[Finding]:
    return group.lag(site.settings, site.kept(*site.settings.inputs), site.committed, site.partitions)


@check("retention", KAFKA)
def _retention(site: Site) -> Iterable[Finding]:
    times = {}
    for place in site.kept(*site.settings.inputs):
        kept_ms = int(site.topics[place[0]].configs.get("retention.ms", "-1"))
        if kept_ms >= 0:
            times[place] = _now_ms() - round(cluster.SHARE_OF_RETENTION * kept_ms)
    found = site.kafka.since(times) if times else {}
    aged = {place: found.get(place, site.extents[place].end) for place in times}
    return cluster.retention(site.settings, site.topics, site.extents, site.committed, aged)


@check("events", KAFKA)
def _events(site: Site) -> Iterable[Finding]:
    site.need(*site.settings.inputs)
    newest = {
        topic: [one for some in site.kafka.newest(topic, site.extents, NEWEST_EVENTS).values() for one in some]
        for topic in site.settings.inputs
    }
    return records.inputs(site.settings, newest, site.partitions, _now_ms())


@check("journal", KAFKA)
def _journal(site: Site) -> Iterable[Finding]:
    site.need(site.settings.topic("journal"))
    newest = site.kafka.newest(site.settings.topic("journal"), site.extents, NEWEST_TICKS)
    headers: dict[int, Mapping[str, Any] | None] = {}
    for task, some in newest.items():
        chunks = Chunks()
        whole = [data for one in some if (data := chunks.add(one.value or b"", one.headers)) is not None]
        headers[task] = sections.unpack_header(whole[-1]) if whole else None
    return records.journals(headers, site.settings)


@check("models", KAFKA)
def _models(site: Site) -> Iterator[Finding]:
    site.need(site.settings.topic("models"))
    topic = KafkaTopic(site.settings, site.settings.topic("models"))
    try:
        versions = Versions(topic)
        newest = versions.refresh()
    finally:
        topic.close()
    if newest is None:
        yield records.model(0, None, {}, {})
        return
    published_ms = versions.published_ms.get(newest.number)
    ready = {"anomaly": newest.anomaly.ready, "segments": newest.segments.ready, "churn": newest.churn.ready}
    age_s = None if published_ms is None else (_now_ms() - published_ms) / 1000
    yield records.model(newest.number, age_s, ready, newest.learned)


@check("brokers' disks", KAFKA)
def _brokers_disks(site: Site) -> Iterable[Finding]:
    return cluster.disks(site.kafka.log_dirs())


@check("brokers' clocks", KAFKA)
def _brokers_clocks(site: Site) -> Iterator[Finding]:
    name = site.settings.application.name
    names = [one.instance.removeprefix(f"{name}-") for one in site.group.members if one.instance]
    ids = [transactional_id(site.settings, one) for one in ("trainer", *names)]
    times = [site.kafka.newest_transaction_ms(ids)]
    stamping = [
        one.name for one in site.topics.values() if one.configs.get("message.timestamp.type") == "LogAppendTime"
    ]
    times += [extent.newest_ms for extent in site.kept(*stamping).values()]
    yield records.broker_clock(max((one for one in times if one is not None), default=None), _now_ms())


# Redis


@check("redis", REDIS)
def _redis(site: Site) -> Iterable[Finding]:
    return store.server(site.server, site.settings.shown_redis_url)


@check("redis memory", REDIS)
def _redis_memory(site: Site) -> Iterable[Finding]:
    return store.memory(site.server.info, site.redis.setting("maxmemory-policy"))


@check("redis disk", REDIS)
def _redis_disk(site: Site) -> Iterable[Finding]:
    return store.persistence(site.server.info, site.redis.setting("save"))


@check("redis rights", REDIS)
def _redis_rights(site: Site) -> Iterable[Finding]:
    return store.rights(site.redis.rights())


@check("redis clock", REDIS)
def _redis_clock(site: Site) -> Iterator[Finding]:
    yield store.clock(site.server.clock_ahead_s, records.CLOCK_S)


# Both


@check("tasks", KAFKA, REDIS)
def _tasks(site: Site) -> Iterable[Finding]:
    settle_s = SETTLE_S if site.group.members else 0.0
    before = site.redis.markers(range(site.partitions))
    time.sleep(settle_s)
    stamps = site.kafka.committed(site.partitions)
    time.sleep(settle_s)
    kept = site.kept(*site.settings.inputs, site.settings.topic("journal"))
    after = site.redis.markers(range(site.partitions))
    return group.tasks(site.settings, site.partitions, stamps, before, after, kept)


@check("customers", REDIS)
def _customers(site: Site) -> Iterable[Finding]:
    # Last, as it looks through all keys of the server.
    return store.customers(site.redis.counts(), *site.redis.missing(SAMPLE))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
