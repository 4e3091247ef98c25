"""From an event's sending to its committed tick, alerts included: `python -m benchmarks.latency`.

One worker, `driftline run`, first at full load, then at a tenth, a half and four fifths of it. An event is waited for
until the journal record of its tick can be read (`read_committed`): its alerts, in the same transaction, are read then
as well. All events go to one input topic: with two, each also waits for what the other one brings (tick.idle_after_s).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.events import clicks
from benchmarks.fleet import Fleet, fleet
from stream.chunks import Chunks
from stream.events import Record
from stream.processing import journal
from tests.servers import KafkaServer, RedisServer

RESULTS = Path(__file__).parent / "results"
SHARES = (0.1, 0.5, 0.8)
WARM_S = 3.0
console = Console(stderr=True)


def main() -> None:
    """Measure and print; the same numbers go to benchmarks/results/latency.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="at each load (20)")
    parser.add_argument("--events", type=int, default=60_000, help="events at full load (60,000)")
    parser.add_argument("--partitions", type=int, default=4, help="tasks of the worker (4)")
    arguments = parser.parse_args()
    rows = []
    with KafkaServer() as kafka, RedisServer() as store:
        console.print(f"{kafka.how} · {store.how}")
        with fleet((kafka.bootstrap_servers, store.url), arguments.partitions) as one:
            one.start("w0")
            one.wait_until_ready()
            records = _now(iter(clicks(3 * arguments.events + round(arguments.seconds * 30_000))))
            done = one.feed(islice(records, arguments.events), together=True)
            one.wait_for_events(done)
            began = time.monotonic()
            done += one.feed(islice(records, arguments.events), together=True)
            one.wait_for_events(done)
            capacity = arguments.events / (time.monotonic() - began)
            for share in SHARES:
                rate = round(share * capacity)
                stop, seen = Flag(), list[tuple[float, journal.Entry]]()
                reading = Thread(target=_read, args=(one, stop, seen))
                reading.start()
                time.sleep(1)
                began, spent = time.time(), one.total("process_cpu_seconds_total")
                sent = one.feed(islice(records, round(rate * arguments.seconds)), rate, together=True)
                done += sent
                one.wait_for_events(done)
                spent = one.total("process_cpu_seconds_total") - spent
                time.sleep(1)
                stop.set()
                reading.join()
                waits = _waits(one, seen, began + WARM_S)
                p50, p99 = (np.percentile(waits, [50, 99]) * 1000).tolist()
                rows.append({"share": share, "rate": rate, "events": len(waits), "p50_ms": p50, "p99_ms": p99})
                rows[-1]["cpu_us"] = spent / sent * 1e6
                console.print(rows[-1])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latency.json").write_text(json.dumps({"capacity": capacity, "loads": rows}, indent=2) + "\n")
    _print(capacity, rows)


def _now(records: Iterator[Record]) -> Iterator[Record]:
    """The same events, each happening when it is sent."""
    for record in records:
        before = record.value.index(b'"timestamp":"') + len(b'"timestamp":"')
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
        yield record._replace(value=record.value[:before] + now + record.value[before + len(now) :])


def _read(one: Fleet, stop: Flag, seen: list[tuple[float, journal.Entry]]) -> None:
    """Note when each tick can be read."""
    consumer = KafkaConsumer(
        bootstrap_servers=one.settings.kafka.bootstrap_servers, isolation_level="read_committed", fetch_max_wait_ms=20
    )
    places = [TopicPartition(one.settings.topic("journal"), task) for task in range(one.partitions)]
    consumer.assign(places)
    consumer.seek_to_end()
    chunks = {task: Chunks() for task in range(one.partitions)}
    found = []
    while not stop.is_set():
        for place, records in consumer.poll(timeout_ms=100).items():
            found += [(time.time(), place.partition, record) for record in records]
    consumer.close()
    for at, task, record in found:
        data = chunks[task].add(record.value or b"", record.headers)
        if data is not None:
            seen.append((at, journal.decode(data)))


def _waits(one: Fleet, seen: Sequence[tuple[float, journal.Entry]], since: float) -> list[float]:
    """Seconds from each event's sending to its tick's being readable."""
    consumer = KafkaConsumer(bootstrap_servers=one.settings.kafka.bootstrap_servers, auto_offset_reset="earliest")
    places = [TopicPartition(topic, task) for topic in one.settings.inputs for task in range(one.partitions)]
    consumer.assign(places)
    ends, sent = consumer.end_offsets(places), dict[tuple[str, int, int], float]()
    while any(consumer.position(place) < ends[place] for place in places):
        for place, records in consumer.poll(timeout_ms=500).items():
            sent.update({(*place, record.offset): record.timestamp / 1000 for record in records})
    consumer.close()
    return [
        at - began
        for at, entry in seen
        for topic, end in entry.state.offsets.items()
        for offset in range(entry.offsets_before.get(topic, 0), end)
        if (began := sent[topic, entry.task, offset]) > since
    ]


def _print(capacity: float, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"One worker, at most {capacity:,.0f} events a second here", title_justify="left")
    for column in ("load", "events a second", "p50, ms", "p99, ms", "CPU, µs an event"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}", f"{row['cpu_us']:.0f}")
        table.add_row(f"{row['share']:.0%}", f"{row['rate']:,}", *numbers)
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
