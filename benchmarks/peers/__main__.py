"""CPU time per event of Driftline and of its peers, the same job on the same broker: `make bench-peers`.

Each run is a process of its own, one after the other; all its threads count, from its first event to its orderly end.
In each round the job also runs without a broker, from memory: the machine's yardstick. Numbers are medians over the
rounds and go to benchmarks/results/. `--rate` sends the events while they are worked on, so many a second, and
counts the second half; `--recovery` measures restarts after a SIGKILL instead.
"""

import argparse
import json
import logging
import os
import platform
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.events import clicks
from benchmarks.peers import recovery
from benchmarks.peers.one import PEERS
from benchmarks.peers.site import DAYS, ROOT, SOURCE, Feeding, Site, raised, running
from stream.events import Record

RESULTS = Path(__file__).parents[1] / "results"
EVERY = 50
ROWS = [name for name in PEERS if name != "quix-eos-fixed"]  # what it costs does not hang on how the id is named
VERSIONS = ("kafka-python", "confluent-kafka", "quixstreams", "bytewax", "redis", "river", "orjson")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="events of the day (100,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--only", nargs="+", choices=tuple(PEERS), help="some rows of the table")
    parser.add_argument("--rate", type=int, default=0, help="send so many events a second, and count the second half")
    parser.add_argument("--recovery", action="store_true", help="restarts after a SIGKILL instead of CPU time")
    given = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # the client tells of each broker that ends with its round
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    console = Console(stderr=True)
    if given.recovery:
        recovery.main(console, given.only or list(PEERS))
        return
    jobs = given.only or [name for name in ROWS if not given.rate or name != "driftline-churn"]
    day = clicks(given.events)
    wanted = raised(day, EVERY)
    runs: list[dict[str, Any]] = []
    with running() as site:
        console.print(site.how)
        site.feed(SOURCE, day)
        site.feed(DAYS, clicks(given.events, days=4))
        for number in range(given.rounds):
            yardsticks = ("all", "none", "no-churn")
            runs += [_run(site, "memory", models, number, given.events) for models in yardsticks]
            for job in jobs:
                for models in ("all",) if PEERS[job].own_models else ("all", "none"):
                    run = _run(site, job, models, number, given.events, day if given.rate else (), given.rate)
                    if models == "none":
                        _check(site, run, wanted)
                    runs.append(run)
                    console.print(f"round {number + 1}: {job}, models {models}: {run['cpu_us']:.1f} µs")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = _table(runs, jobs)
    versions = {name: version(name) for name in VERSIONS}
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": machine, "versions": versions, "events": given.events, "rows": table, "runs": runs}
    (RESULTS / ("peers-live.json" if given.rate else "peers.json")).write_text(json.dumps(result, indent=2) + "\n")
    _print(table, machine)


def _run(
    site: Site, job: str, models: str, number: int, events: int, shop: Sequence[Record] = (), rate: int = 0
) -> dict[str, Any]:
    name = f"{job}-{models}-{number}"
    source = site.topic(f"{name}.live") if rate else DAYS if job == "driftline-churn" else SOURCE
    command = site.arguments(job, name, source)
    command += [
        "--models",
        models,
        "--every",
        str(EVERY),
        "--events",
        str(events),
        *(["--live", "--skip", str(events // 2)] if rate else []),
    ]
    feeding = Feeding(site, source, shop, rate) if rate else None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=900)
    if feeding is not None:
        feeding.stop()
    if done.returncode:
        sys.exit(f"{job} ended with {done.returncode}:\n{done.stderr.decode()[-3000:]}")
    spent = orjson.loads(done.stdout.splitlines()[-1])
    per_event = {"cpu_us": spent["cpu_s"] / spent["events"] * 1e6, "events_per_s": spent["events"] / spent["wall_s"]}
    return {"job": job, "models": models, "round": number, "name": name, **spent, **per_event}


def _check(site: Site, run: dict[str, Any], wanted: set[tuple[str, int]]) -> None:
    """Nobody is fast by leaving something out."""
    made = Counter((one["customer"], one["events"]) for one in map(orjson.loads, site.alerts(f"{run['name']}.alerts")))
    if made != Counter(wanted):
        sys.exit(f"{run['job']} raised {made.total():,} alerts, {len(wanted):,} were to come: it did another job")


def _table(runs: list[dict[str, Any]], jobs: list[str]) -> list[dict[str, Any]]:
    """One row a job: medians over the rounds of µs, of the ratio to the round's yardstick, of events per second."""

    def of(job: str, models: str, what: str) -> dict[int, float]:
        return {run["round"]: run[what] for run in runs if (run["job"], run["models"]) == (job, models)}

    yardstick = of("memory", "all", "cpu_us")
    rows = []
    for job in ["memory", *jobs]:
        peer = PEERS.get(job)
        row: dict[str, Any] = {
            "job": peer.name if peer else "from memory: no broker, no store",
            "guarantee": peer.guarantee if peer else "",
        }
        with_models = of(job, "all", "cpu_us")
        row["cpu_us"] = median(with_models.values())
        row["yardsticks"] = median(spent / yardstick[number] for number, spent in with_models.items())
        without = of(job, "none", "cpu_us")
        row["without_models_us"] = median(without.values()) if without else None
        row["events_per_s"] = median(of(job, "all", "events_per_s").values())
        rows.append(row)
    churn = median(spent - of("memory", "no-churn", "cpu_us")[number] for number, spent in yardstick.items())
    rows[0]["of_it_churn_us"] = churn
    return rows


def _print(rows: list[dict[str, Any]], machine: str) -> None:
    table = Table(title=f"CPU per event, {machine}", title_justify="left")
    table.add_column("")
    table.add_column("guarantee")
    for name in ("µs", "yardsticks", "without models, µs", "events/s"):
        table.add_column(name, justify="right")
    for row in rows:
        without = row["without_models_us"]
        table.add_row(
            *(row["job"], row["guarantee"], f"{row['cpu_us']:.1f}", f"{row['yardsticks']:.2f}"),
            *("" if without is None else f"{without:.1f}", f"{row['events_per_s']:,.0f}"),
        )
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(f"River's churn model is {rows[0]['of_it_churn_us']:.1f} µs of the yardstick.")


if __name__ == "__main__":
    main()
