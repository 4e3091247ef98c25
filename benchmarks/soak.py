"""A quarter of an hour at a steady rate with a fault every 45 s: `python -m benchmarks.soak`.

Memory, open files, threads and Redis's keys are to stay flat, and every customer's count is to be the input's. The
samples go to benchmarks/results/soak.json, the picture to docs/soak.svg (`--draw` draws it anew).
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from statistics import median
from threading import Event as Flag
from threading import Thread
from typing import Any

import numpy as np
import orjson
import redis
from kafka import KafkaConsumer
from rich.console import Console
from rich.table import Table

from benchmarks.events import START_MS, clicks
from benchmarks.fleet import ROOT, Fleet, fleet
from stream.backends.redis import RedisStore
from stream.events import Record
from stream.processing.customer import ROW
from tests.servers import KafkaServer, RedisServer

RESULT = Path(__file__).parent / "results" / "soak.json"
PICTURE = ROOT / "docs" / "soak.svg"
PARTITIONS = 8
DAY_EVENTS = 200_000
"""A lap of the same customers and sessions, each lap a day later: at 3,000 a second a day goes by in 67 s."""
SAMPLE_S = 5.0
STEADY, SHAKEN = "w0", "w1"
"""Faults of a worker hit the second one, so that the first one's memory has the whole time to grow."""
console = Console(stderr=True, highlight=False)


def days() -> Iterator[Record]:
    """The same day of clicks again and again, each with the next date, messages and orders of its own."""
    first = datetime.fromtimestamp(START_MS / 1000, UTC)
    today = first.date().isoformat().encode()
    lap = [one for one in clicks(DAY_EVENTS) if one.value and today in one.value]
    for number in count():
        date = (first + timedelta(days=number)).date().isoformat().encode()
        order = b'"order_id":"%d-' % number
        for one in lap:
            value = one.value.replace(today, date).replace(b"ajs-next", b"ajs-%d" % number)
            yield one._replace(value=value.replace(b'"order_id":"', order))


def faults(one: Fleet, kafka: KafkaServer, store: RedisServer) -> Mapping[str, Callable[[], None]]:
    """What goes wrong, each ending with everything at work again."""

    def frozen(seconds: float) -> None:
        process = one.running[SHAKEN]
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def ended(*, kill: bool) -> None:
        one.end(SHAKEN, kill=kill)
        one.start(SHAKEN)

    def redis_killed() -> None:
        store.kill()
        time.sleep(3)
        store.start()

    def redis_emptied() -> None:
        with redis.Redis.from_url(store.url) as client:
            client.flushall()

    def broker_frozen() -> None:
        kafka.pause()
        time.sleep(5)
        kafka.resume()

    def broker_killed() -> None:
        kafka.kill()
        kafka.start()

    return {
        "worker killed": lambda: ended(kill=True),
        "worker restarted": lambda: ended(kill=False),
        "worker frozen 3 s": lambda: frozen(3),
        "worker frozen 15 s": lambda: frozen(15),
        "Redis killed 3 s": redis_killed,
        "Redis emptied": redis_emptied,
        "broker frozen 5 s": broker_frozen,
        "broker killed": broker_killed,
    }


def sample(one: Fleet, client: "redis.Redis[bytes]", began: float) -> dict[str, Any]:
    """What the processes and Redis hold now; None of what does not answer."""
    found: dict[str, Any] = {"s": round(time.monotonic() - began, 1)}
    for name, process in dict(one.running).items():
        folder = Path(f"/proc/{process.pid}")
        try:
            pages = int((folder / "statm").read_text().split()[1])
            found[name] = {
                "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
                "files": len(list((folder / "fd").iterdir())),
                "threads": len(list((folder / "task").iterdir())),
            }
        except OSError:
            found[name] = None  # it has just been killed
    try:
        found["keys"], found["redis_bytes"] = client.dbsize(), client.info("memory")["used_memory"]
    except redis.RedisError:
        found["keys"] = found["redis_bytes"] = None
    found["lag"] = one.total("driftline_input_lag_records")
    return found


def differences(one: Fleet, sent: Counter[str]) -> list[str]:
    """Customers whose count in Redis is not the input's, and alerts told twice."""
    counted: Counter[str] = Counter()
    with closing(RedisStore(one.settings)) as store:
        for task in range(one.partitions):
            counted |= {name: int(np.frombuffer(row, ROW)["events"][0]) for name, row in store.scan(task)}
    said = [f"{name}: {counted[name]} of {sent[name]}" for name in sent | counted if counted[name] != sent[name]]
    alerts = _alerts(one)
    said += [f"alert {alert} {times} times" for alert, times in alerts.items() if times > 1]
    console.print(f"{sent.total():,} events of {len(sent):,} customers, {len(alerts):,} alerts")
    return said


def _alerts(one: Fleet) -> Counter[str]:
    with closing(
        KafkaConsumer(
            one.settings.topic("alerts"),
            bootstrap_servers=one.settings.kafka.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            consumer_timeout_ms=5_000,
        )
    ) as consumer:
        return Counter(orjson.loads(record.value)["id"] for record in consumer)


def run(minutes: float, rate: int, seed: int, every_s: float, only: str | None) -> int:
    """Feed, disturb, sample; returns the exit code."""
    rng, sent, stop = random.Random(seed), Counter[str](), Flag()

    def counting() -> Iterator[Record]:
        for record in days():
            yield record  # counted once it was sent
            sent[record.key.decode()] += 1

    with (
        KafkaServer() as kafka,
        RedisServer(appendonly=True) as store,
        fleet((kafka.bootstrap_servers, store.url), PARTITIONS) as one,
        redis.Redis.from_url(store.url, socket_timeout=5) as client,
    ):
        console.print(f"{kafka.how} · {store.how}")
        for name in (STEADY, SHAKEN):
            one.start(name)
        one.wait_until_ready()
        feeding = Thread(target=one.feed, args=(counting(), rate, stop))
        began = time.monotonic()
        feeding.start()
        samples: list[dict[str, Any]] = []
        done = Flag()

        def watch() -> None:
            while not done.wait(SAMPLE_S):
                samples.append(sample(one, client, began))

        watching = Thread(target=watch)
        watching.start()
        happened: list[tuple[float, str]] = []
        known = faults(one, kafka, store)
        waiting: list[str] = []
        while time.monotonic() - began < minutes * 60 - every_s:
            time.sleep(max(0.0, began + every_s * (len(happened) + 1) - time.monotonic()))
            waiting = waiting or ([only] if only else rng.sample(list(known), len(known)))
            what = waiting.pop()
            happened.append((round(time.monotonic() - began, 1), what))
            console.print(f"{happened[-1][0]:6.0f} s  {what}")
            known[what]()
            one.wait_until_ready()
        time.sleep(max(0.0, began + minutes * 60 - time.monotonic()))
        stop.set()
        feeding.join()
        one.wait_for_the_end()
        done.set()
        watching.join()
        time.sleep(2)
        wrong = differences(one, sent)
    result = {"rate": rate, "seed": seed, "events": sent.total(), "faults": happened, "samples": samples}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result) + "\n")
    tell(result)
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


def tell(result: Mapping[str, Any]) -> None:
    """The medians of each third of the time."""
    table = Table(title=f"{result['events']:,} events, {len(result['faults'])} faults", title_justify="left")
    for column in ("median of", "first third", "second third", "last third"):
        table.add_column(column, justify="left" if column == "median of" else "right")
    samples = result["samples"]
    for label, values in series(samples).items():
        thirds = [values[i * len(samples) // 3 : (i + 1) * len(samples) // 3] for i in range(3)]
        table.add_row(label, *(f"{median(one for one in third if one is not None):,.0f}" for third in thirds))
    Console(file=sys.stdout, width=100).print(table)


def series(samples: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """What is looked at over time, by its label."""

    def of(name: str, what: str, scale: float = 1) -> list[float | None]:
        return [one[name][what] / scale if one.get(name) else None for one in samples]

    def over_all(what: str, scale: float = 1) -> list[float | None]:
        return [None if one[what] is None else one[what] / scale for one in samples]

    workers = {
        f"{label}, {name}": of(name, what, scale)
        for label, what, scale in (("memory, MB", "bytes", 1e6), ("open files", "files", 1), ("threads", "threads", 1))
        for name in (STEADY, SHAKEN)
    }
    return workers | {"Redis, keys": over_all("keys"), "Redis, MB": over_all("redis_bytes", 1e6)}


def draw(result: Mapping[str, Any]) -> None:
    """One panel a quantity, a line a fault."""
    import matplotlib as mpl  # of the group `bench`: only the picture needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "driftline"
    from matplotlib import pyplot

    minutes = [one["s"] / 60 for one in result["samples"]]
    lines = series(result["samples"])
    panels: dict[str, dict[str, list[float | None]]] = {}
    for label, values in lines.items():
        quantity, _, who = label.rpartition(", ") if label[-2:] in (STEADY, SHAKEN) else (label, "", "")
        panels.setdefault(quantity, {})[who] = values
    figure, axes = pyplot.subplots(len(panels), sharex=True, figsize=(9, 1.5 * len(panels)), layout="constrained")
    for axis, (quantity, held) in zip(axes, panels.items(), strict=True):
        for who, values in held.items():
            drawn = [float("nan") if value is None else value for value in values]
            axis.plot(minutes, drawn, label=who, linewidth=1.2)
        for at, _ in result["faults"]:
            axis.axvline(at / 60, color="0.8", linewidth=0.8, zorder=0)
        axis.set_ylim(bottom=0)
        axis.set_title(quantity, loc="left", fontsize=9)
    axes[0].legend(loc="lower right", fontsize=8)
    for at, what in result["faults"]:
        axes[0].annotate(what, (at / 60, 1), xycoords=("data", "axes fraction"), rotation=60, fontsize=6)
    axes[-1].set_xlabel("minutes")
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=int, default=3_000, help="events a second (3,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the faults (1)")
    parser.add_argument("--every", type=float, default=45, metavar="SECONDS", help="between two faults (45)")
    parser.add_argument("--only", metavar="FAULT", help="this one alone, by its name in the picture")
    parser.add_argument("--draw", action="store_true", help="run nothing; draw docs/soak.svg from the last run")
    parsed = parser.parse_args()
    if parsed.draw:
        draw(json.loads(RESULT.read_text()))
        return 0
    return run(parsed.minutes, parsed.rate, parsed.seed, parsed.every, parsed.only)


if __name__ == "__main__":
    sys.exit(main())
