"""How soon a killed worker's successor has new committed output, and what was lost or repeated: `--recovery`.

A shop sends 1,000 events a second. A worker is killed (SIGKILL) inside a transaction, its records on the broker and
undecided, and its successor is started at once: the same worker again, or another one in its place. A reader of
committed alerts takes the time from the kill to the first alert it has not seen before, the successor's start included.
The peers' job is the one without models, its alerts each customer's 5th, 10th, 15th … event: what must come is counted
from the events.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import orjson
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.events import clicks
from benchmarks.peers.one import PEERS
from benchmarks.peers.site import ROOT, SOURCE, Feeding, Site, raised, running
from stream.backends.kafka import create_topics
from stream.events import Record
from stream.processing.alerts import SEGMENT_LINEAGE
from stream.settings import Settings, load
from tests.integration import oracle

RESULTS = Path(__file__).parents[1] / "results"
RATE = 1_000
CUSTOMERS = 2_000
EVERY = 5
KILL_AT = 16_000
"""So many events in: checkpoints of five and of ten seconds have been made, and the next one has not."""
KILL_AT_TICK = 150
"""The same for Driftline, of whose ticks there are ten a second."""
PATIENCE_S = 120.0
SETTLED_S = 15.0
"""No new alert for this long after the last event: there will be none. Longer than a checkpoint of any of them."""
SCENARIOS = [
    *(("driftline", same) for same in (True, False)),
    *(("kafka-python-eos", same) for same in (True, False)),
    *(("confluent-eos", same) for same in (True, False)),
    ("quix-eos", True),
    ("quix-eos-fixed", True),
    ("bytewax-recovery", True),
]
"""Another worker in its place is the same to Quix, whose members have no names; Bytewax has none."""


class Outcome(NamedTuple):
    """`recovered_s` None = no new alert within two minutes; `start_s` of it is Python's start and the imports."""

    job: str
    successor: str
    recovered_s: float | None
    start_s: float
    alerts: int
    lost: int
    repeated: int
    wrong: int


def main(console: Console, jobs: Sequence[str]) -> None:
    """All scenarios, each on servers of its own; results in benchmarks/results/peers-recovery.json."""
    shop = clicks(RATE * 160, CUSTOMERS)
    outcomes = []
    for job, same in SCENARIOS:
        if job not in jobs:
            continue
        with running() as site:
            outcome = (_driftline if job == "driftline" else _peer)(site, shop, job, same)
        console.print(outcome)
        outcomes.append(outcome)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers-recovery.json").write_text(json.dumps([one._asdict() for one in outcomes], indent=2) + "\n")
    _print(outcomes)


class Watch:
    """A reader of committed alerts; `name` says which alert a value is."""

    def __init__(self, site: Site, topic: str, name: Callable[[bytes], Hashable | None]) -> None:
        self.seen: Counter[Hashable] = Counter()
        self._name = name
        self._consumer = KafkaConsumer(
            bootstrap_servers=site.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        self._consumer.assign([TopicPartition(topic, 0)])

    def look(self) -> bool:
        """Whether one has come that was not seen before."""
        before = len(self.seen)
        for batch in self._consumer.poll(timeout_ms=20).values():
            self.seen.update(name for name in (self._name(record.value) for record in batch) if name is not None)
        return len(self.seen) > before

    def close(self) -> None:
        self._consumer.close()

    def settle(self) -> None:
        """Wait until there will be no more."""
        last = time.monotonic()
        while time.monotonic() - last < SETTLED_S:
            if self.look():
                last = time.monotonic()


@contextmanager
def _child(site: Site, command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    child = site.start(command, environment)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _killed(
    site: Site, feeding: Feeding, watch: Watch, commands: tuple[list[str], list[str]], environment: dict[str, str]
) -> float | None:
    """Seconds from the first worker's death to the first new alert of the second; ends with all that will ever come."""
    with _child(site, commands[0], environment) as first:
        while first.poll() is None:
            watch.look()
            if feeding.sent > 6 * KILL_AT:
                sys.exit(f"the worker was to be killed at event {KILL_AT:,}, and lives; its log is in {site.directory}")
    died = time.monotonic()
    if first.returncode != -9:
        logs = "\n".join(log.read_text()[-2000:] for log in site.directory.glob("log-*"))
        sys.exit(f"the worker was to be killed and ended with {first.returncode}:\n{logs}")
    with _child(site, commands[1], environment):
        while watch.look() and time.monotonic() - died < 0.1:
            pass  # what was committed before the death and not yet read
        recovered = None
        while recovered is None and time.monotonic() - died < PATIENCE_S:
            if watch.look():
                recovered = time.monotonic() - died
        time.sleep(2)
        feeding.stop()
        watch.settle()
        watch.close()
    return recovered


def _start_s(command: list[str]) -> float:
    """How long the command takes to get to its own first line, on the machine as busy as it is now."""
    began = time.monotonic()
    subprocess.run([*command[:3], "--help"], cwd=ROOT, capture_output=True, check=True)
    return time.monotonic() - began


def _peer(site: Site, shop: list[Record], job: str, same: bool) -> Outcome:
    topic = site.topic(SOURCE)
    command = [*site.arguments(job, job), "--models", "none", "--every", str(EVERY), "--events", "0", "--live"]
    start_s = _start_s(command)
    watch = Watch(site, f"{job}.alerts", lambda value: (one := orjson.loads(value))["customer"] + f" {one['events']}")
    feeding = Feeding(site, topic, shop, RATE)
    commands = [*command, "--kill-at", str(KILL_AT)], command if same else [*command, "--instance", "2"]
    recovered = _killed(site, feeding, watch, commands, {})
    wanted = {f"{customer} {count}" for customer, count in raised(shop[: feeding.sent], EVERY)}
    return _outcome(job, same, recovered, start_s, wanted, watch)


def _driftline(site: Site, shop: list[Record], job: str, same: bool) -> Outcome:
    """Its alerts are anomalies, one in ten events: its journal says which, and the oracle that the journal is right."""
    environment = {
        f"DRIFTLINE_{key}": value
        for key, value in {
            "APPLICATION__NAME": job,
            "APPLICATION__INSTANCE": "w1",
            "KAFKA__BOOTSTRAP_SERVERS": site.bootstrap,
            "REDIS__URL": site.redis_url,
            "TICK__IDLE_AFTER_S": "0.1",
            "ALERTS__ANOMALY_ONE_IN": "10",
            "ALERTS__ANOMALY_MIN_EVENTS": "0",
            "ALERTS__ANOMALY_COOLDOWN_HOURS": "0",
            "ALERTS__MAX_PER_DAY": "1000000",
            "HTTP__PORT": "0",
        }.items()
    }
    settings = load(environment=environment)
    create_topics(settings, 1, 1)
    command = [sys.executable, "-m", "tests.integration.worker_process", "--rehearse", "--app", job, "--instance"]
    start_s = _start_s(command)
    watch = Watch(site, settings.topic("alerts"), _id_of)
    feeding = Feeding(site, settings.topics.clickstream, shop, RATE)
    commands = [*command, "w1", "--kill-at", f"in-transaction:{KILL_AT_TICK}"], [*command, "w1" if same else "w2"]
    recovered = _killed(site, feeding, watch, commands, environment)
    journal = _verified(settings)
    return _outcome(job, same, recovered, start_s, journal, watch)


def _outcome(job: str, same: bool, recovered: float | None, start_s: float, wanted: set[str], watch: Watch) -> Outcome:
    """Hold the alerts that were seen against those that must have come."""
    found = set(watch.seen)
    return Outcome(
        PEERS[job].name,
        "the same" if same else "another",
        recovered,
        start_s,
        len(wanted),
        len(wanted - found),
        watch.seen.total() - len(found),
        len(found - wanted),
    )


def _id_of(value: bytes) -> str | None:
    """None for what the trainer tells of its segments, which no event causes."""
    alert = orjson.loads(value)
    return None if alert["data"]["kind"] == SEGMENT_LINEAGE else alert["id"]


def _verified(settings: Settings) -> set[str]:
    """The ids of the alerts in the journal, whose ticks take in each event once and run again alike."""
    seen = oracle.look(settings, 1)
    oracle.check_the_journal_tiles_the_input(seen)
    oracle.check_ticks_run_again_give_the_same_bytes(seen)
    oracle.check_redis_is_the_journal_folded(seen)
    return {alert.id for one in seen.ticks[0] for alert in one.entry.alerts}


def _print(outcomes: list[Outcome]) -> None:
    table = Table(title="After a SIGKILL inside a transaction", title_justify="left")
    table.add_column("")
    table.add_column("successor")
    for name in ("s to new committed alerts", "of it imports", "alerts", "lost", "repeated", "wrong"):
        table.add_column(name, justify="right")
    for one in outcomes:
        waited = f"over {PATIENCE_S:.0f}" if one.recovered_s is None else f"{one.recovered_s:.1f}"
        counts = (f"{count:,}" for count in (one.alerts, one.lost, one.repeated, one.wrong))
        table.add_row(one.job, one.successor, waited, f"{one.start_s:.1f}", *counts)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 150).print(table)
