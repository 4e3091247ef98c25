"""Many workers, and many customers: `python -m benchmarks.scaling workers|handover|customers|lag`.

Each worker is a process of its own, `driftline run`, on one real Kafka and one real Redis. docs/scaling.md carries the
numbers on; benchmarks/results/ keeps them as JSON.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event as Flag
from threading import Thread
from typing import Any

import redis
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.events import clicks
from benchmarks.fleet import ASK_S, Fleet, fleet
from stream.events import Record
from tests.servers import KafkaServer, RedisServer

RESULTS = Path(__file__).parent / "results"
PARTITIONS = 16
"""A worker."""
SESSION_S = 60.0
"""Longer than the frozen workers are fed."""
BUSY = 0.9
"""Of the events: until so many are counted all workers have work."""
PAUSE_S = 12.0
"""Between two disturbances of a hand-over; longer than a session's time-out."""
LAG_S = 40.0
"""How long clicks wait for a silent topic; long enough that all buffers are full."""
console = Console(stderr=True)


def main() -> None:
    """Measure and print; the same numbers go to benchmarks/results/scaling-WHAT.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("workers").add_argument("--events", type=int, default=100_000, help="events a worker (100,000)")
    commands.add_parser("handover").add_argument("--rate", type=int, default=2_000, help="events a second (2,000)")
    commands.add_parser("customers").add_argument("--customers", type=int, default=1_000_000)
    commands.add_parser("lag").add_argument("--events", type=int, default=400_000, help="that wait (400,000)")
    arguments = parser.parse_args()
    with KafkaServer() as kafka, RedisServer() as store:
        console.print(f"{kafka.how} · {store.how}")
        site = (kafka.bootstrap_servers, store.url)
        if arguments.what == "workers":
            result = workers(site, arguments.events)
        elif arguments.what == "handover":
            result = handover(site, arguments.rate)
        elif arguments.what == "customers":
            result = customers(site, arguments.customers)
        else:
            result = lag(site, arguments.events)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"scaling-{arguments.what}.json").write_text(json.dumps(result, indent=2) + "\n")


def workers(site: tuple[str, str], events: int) -> list[dict[str, Any]]:
    """CPU per event of 1, 2 and 4 workers that are busy, and of learning; how long versions differ."""
    rows = []
    for count in (1, 2, 4):
        with fleet(site, PARTITIONS * count, SESSION_S) as one:
            names = [f"w{number}" for number in range(count)]
            for name in names:
                one.start(name)
            one.wait_until_ready()
            records = clicks(events * count)
            before = _spent(one)
            with one.frozen():  # fed beside them, two cores would keep four workers waiting, and small ticks cost more
                one.feed(records)
            seen, stop = defaultdict(dict), Flag()
            watch = Thread(target=_watch, args=(one, seen, stop))
            watch.start()
            # Not to the end: who is through, and who has stood still the longest, would be counted while they wait.
            one.wait_for_events(round(BUSY * len(records)))
            spent, counted = _spent(one) - before, one.total("driftline_events_total")
            one.wait_for_events(len(records))
            one.wait_for_events(len(records), "driftline_learned_total/events")
            learned = one.total("driftline_phase_cpu_seconds_total/train")
            stop.set()
            watch.join()
            spread = [max(at.values()) - min(at.values()) for at in seen.values() if len(at) == count]
            rows.append(
                {
                    "workers": count,
                    "tasks": [int(one.samples(name)["driftline_tasks/ready"]) for name in names],
                    "cpu_us": spent / counted * 1e6,
                    "learning_us": learned / len(records) * 1e6,
                    "events_per_tick": len(records) / one.total("driftline_ticks_total"),
                    "ticks_per_turn": one.total("driftline_ticks_total") / one.total("driftline_tick_seconds_count"),
                    "trainers": int(one.total("driftline_trainer_active")),
                    "versions": len(seen),
                    "version_spread_s": max(spread, default=0.0),
                    "journal_disk_bytes": one.disk(one.settings.topic("journal")) / len(records),
                    "version_disk_bytes": one.disk(one.settings.topic("models"))
                    / max(one.samples(names[0])["driftline_model_version"], 1),
                }
            )
            console.print(rows[-1])
    _print(
        f"{events:,} events a worker, {PARTITIONS} partitions each",
        (
            "workers",
            "tasks each",
            "µs an event",
            "of one's",
            "to learn",
            "events a tick",
            "trainers",
            "versions apart, s",
        ),
        [
            (
                row["workers"],
                " ".join(map(str, row["tasks"])),
                f"{row['cpu_us']:.1f}",
                f"{row['cpu_us'] / rows[0]['cpu_us']:.2f}",
                f"{row['learning_us']:.1f}",
                f"{row['events_per_tick']:,.0f}",
                row["trainers"],
                f"{row['version_spread_s']:.1f}",
            )
            for row in rows
        ],
    )
    return rows


def _spent(one: Fleet) -> float:
    """CPU of all workers, but for what is learned: one does that for all, and later than the others count."""
    return one.total("process_cpu_seconds_total") - one.total("driftline_phase_cpu_seconds_total/train")


def _watch(one: Fleet, seen: dict[int, dict[str, float]], stop: Flag) -> None:
    """Note when each worker is first seen with each version; one that skips a version has it with the next."""
    while not stop.wait(ASK_S):
        for name in list(one.ports):
            number = int(one.samples(name).get("driftline_model_version", 0))
            if number and (not seen[number] or name not in seen[number]):
                seen[number].setdefault(name, time.monotonic())


def handover(site: tuple[str, str], rate: int) -> list[dict[str, Any]]:
    """How long each customer's stream stands still while a worker joins, leaves, dies, or all are restarted in turn.

    The one killed for good is the trainer: how long until another learns.
    """
    rows = []
    with fleet(site, PARTITIONS) as one:
        for name in ("w0", "w1"):
            one.start(name)
        one.wait_until_ready()
        stop = Flag()
        records = clicks(rate * 300)
        feeding = Thread(target=one.feed, args=(records, rate, stop))
        feeding.start()
        windows, next_trainer_s = [], 0.0

        def disturb(what: str, act: Callable[[], None]) -> None:
            began = time.time()
            act()
            one.wait_until_ready()
            time.sleep(PAUSE_S)
            windows.append((what, began, time.time()))
            console.print(what)

        def end_for_good(trainer: str) -> None:
            one.end(trainer, kill=True)
            nonlocal next_trainer_s
            next_trainer_s = one.wait(lambda: one.total("driftline_trainer_active") == 1, "another trainer")

        def restart_all() -> None:
            for name in list(one.running):
                one.end(name)
                one.start(name)
                one.wait_until_ready()

        time.sleep(PAUSE_S)
        disturb("nothing", lambda: None)
        disturb("a third worker joins", lambda: one.start("w2"))
        disturb("it stops and comes back", lambda: (one.end("w2"), one.start("w2")))
        disturb("it stops for good", lambda: one.end("w2"))
        disturb("one is killed and comes back", lambda: (one.end("w1", kill=True), one.start("w1")))
        trainer = next(name for name in one.running if one.samples(name)["driftline_trainer_active"])
        disturb("one is killed for good", lambda: end_for_good(trainer))
        one.start(trainer)
        one.wait_until_ready()
        disturb("all are restarted in turn", restart_all)
        stop.set()
        feeding.join()
        one.wait_for_the_end()
        time.sleep(2)
        commits = one.commits()
    for what, began, ended in windows:
        gaps = sorted(_longest_gap(times, began, ended) for times in commits.values())
        rows.append({"what": what, "median_s": median(gaps), "worst_s": gaps[-1], "tasks": len(gaps)})
    _print(
        f"{rate:,} events a second, {PARTITIONS} tasks: the longest time without a committed tick",
        ("what happens", "median task, s", "worst task, s"),
        [(row["what"], f"{row['median_s']:.1f}", f"{row['worst_s']:.1f}") for row in rows],
    )
    print(f"another trainer {next_trainer_s:.1f} s after the one was killed")
    return [*rows, {"what": "another trainer", "after_s": next_trainer_s}]


def _longest_gap(times: Sequence[float], began: float, ended: float) -> float:
    inside = [began, *(at for at in times if began < at < ended), ended]
    return max(after - before for before, after in pairwise(inside))


def customers(site: tuple[str, str], count: int) -> dict[str, Any]:
    """Memory, Redis and journal bytes, start-up and recovery, with so many customers on one worker."""
    with fleet(site, PARTITIONS) as one, redis.Redis.from_url(site[1]) as store:
        one.start("w0")
        one.wait_until_ready()
        idle = one.samples("w0")
        empty, spent = idle["process_resident_memory_bytes"], idle["process_cpu_seconds_total"]
        began = time.monotonic()
        one.feed(track(_one_each(count), "customers", count, console=console))
        one.wait_for_events(count)
        result: dict[str, Any] = {"customers": count, "first_s": time.monotonic() - began}
        result["worker_bytes"] = one.samples("w0")["process_resident_memory_bytes"]
        result["worker_bytes_before"] = empty
        result["cpu_us"] = (one.samples("w0")["process_cpu_seconds_total"] - spent) / count * 1e6
        result["redis_bytes"] = store.info("memory")["used_memory"]
        result["journal_bytes"] = one.samples("w0")["driftline_journal_bytes_total"]
        result["journal_disk_bytes"] = one.disk(one.settings.topic("journal"))
        one.end("w0")
        result["start_s"] = _started(one)
        one.end("w0")
        store.flushall()
        result["recovery_s"] = _started(one)
        result["replayed"] = one.samples("w0")["driftline_journal_records_replayed_total"]
        result["redis_bytes_after"] = store.info("memory")["used_memory"]
    _print(
        f"{count:,} customers, one worker, {PARTITIONS} tasks",
        ("what", "all", "a customer"),
        [
            ("Redis", f"{result['redis_bytes'] / 1e6:,.0f} MB", f"{result['redis_bytes'] / count:,.0f} bytes"),
            ("journal", f"{result['journal_bytes'] / 1e6:,.0f} MB", f"{result['journal_bytes'] / count:,.0f} bytes"),
            (
                "journal on disk",
                f"{result['journal_disk_bytes'] / 1e6:,.0f} MB",
                f"{result['journal_disk_bytes'] / count:,.0f} bytes",
            ),
            (
                "worker's memory",
                f"{result['worker_bytes'] / 1e6:,.0f} MB",
                f"{(result['worker_bytes'] - empty) / count:,.0f} bytes",
            ),
            ("CPU of an event of a new customer", "", f"{result['cpu_us']:.1f} µs"),
            ("start, Redis as it was", f"{result['start_s']:.1f} s", ""),
            ("start, Redis empty", f"{result['recovery_s']:.1f} s", f"{result['recovery_s'] / count * 1e6:.1f} µs"),
        ],
    )
    return result


def lag(site: tuple[str, str], events: int) -> dict[str, Any]:
    """Memory of a worker whose clicks wait for orders that do not come, and once they have been let go."""
    records = [record for record in clicks(events) if b'"Order Completed"' not in record.value]
    most = 0.0
    with fleet(site, PARTITIONS, idle_s=LAG_S) as one:
        one.start("w0")
        one.wait_until_ready()
        before = one.samples("w0")["process_resident_memory_bytes"]
        one.feed(records)

        def let_go() -> bool:
            nonlocal most
            found = one.samples("w0")
            if found.get("driftline_events_total", 0.0):
                return True
            most = max(most, found.get("process_resident_memory_bytes", 0.0))
            return False

        one.wait(let_go, "clicks let go")
        one.wait_for_events(len(records))
        after = one.samples("w0")["process_resident_memory_bytes"]
    _print(
        f"{len(records):,} clicks wait for an order, one worker, {PARTITIONS} tasks",
        ("the worker's memory", "MB"),
        [(what, f"{size / 1e6:,.0f}") for what, size in (("before", before), ("waiting", most), ("after", after))],
    )
    return {"events": len(records), "before_bytes": before, "waiting_bytes": most, "after_bytes": after}


def _started(one: Fleet) -> float:
    """How long a worker takes from its start until all its tasks are ready."""
    began = time.monotonic()
    one.start("w0")
    one.wait_until_ready()
    return time.monotonic() - began


def _one_each(count: int) -> Iterator[Record]:
    """One event of each customer."""
    model = clicks(1)[0]
    for number in range(count):
        user = b"m-%08d" % number
        value = model.value.replace(model.key, user).replace(b"ajs-next", b"ajs-%d" % number)
        yield model._replace(key=user, value=value)


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(str, row))
    Console(file=sys.stdout, width=140).print(table)


if __name__ == "__main__":
    main()
