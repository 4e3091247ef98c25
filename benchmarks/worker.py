"""CPU time per event of the worker on a real Kafka and a real Redis: `make bench`, or `python -m benchmarks.worker`.

Events are Complete Journey's (baskets real, one page view a basket derived). Ticks hold up to 2,000 events of one task.
The machine's speed cancels out in the ratio to the floor: the same client that only polls and parses the same
records, measured in the same run.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from uuid import uuid4

import orjson
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from rich.table import Table

from stream.backends.kafka import create_topics
from stream.backends.redis import RedisStore
from stream.cli.run import assemble
from stream.journey import TIMEZONE, Journey
from stream.metrics import Metrics
from stream.processing.customer import ROW
from stream.settings import Settings, parse
from tests.servers import KafkaServer, RedisServer

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure and print; the same numbers go to benchmarks/results/worker.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="events to process (100,000)")
    parser.add_argument("--partitions", type=int, default=1, help="tasks of the worker (1)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    console = Console(stderr=True)
    with KafkaServer() as kafka, RedisServer() as store:
        settings = _settings(kafka.bootstrap_servers, store.url)
        create_topics(settings, arguments.partitions, 1)
        console.print(f"{kafka.how} · {store.how}: feeding {arguments.events:,} events")
        _feed(settings, arguments.events)
        floor = _floor(settings, arguments.partitions)
        result = _worker(settings, arguments.events, store.url)
    result["floor_cpu_us"] = floor
    result["ratio_to_floor"] = result["cpu_us"] / floor
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result["versions"] = {name: version(name) for name in ("kafka-python", "redis", "river", "numpy", "orjson")}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "worker.json").write_text(json.dumps(result, indent=2) + "\n")
    _print(result)


def _settings(bootstrap: str, redis_url: str) -> Settings:
    name = f"bench-{uuid4().hex[:8]}"
    return parse(
        {
            "application": {"name": name, "timezone": TIMEZONE},
            "kafka": {"bootstrap_servers": bootstrap},
            "redis": {"url": redis_url},
            "topics": {"clickstream": f"{name}.clickstream", "purchases": f"{name}.purchases"},
            "tick": {"max_span_hours": 168, "idle_after_s": 1},
        }
    )


def _feed(settings: Settings, count: int) -> None:
    clickstream, purchases = settings.inputs
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, linger_ms=20, batch_size=500_000)
    for record in islice(Journey().records(), count):
        producer.send(purchases if b'"Order Completed"' in record.value else clickstream, record.value, record.key)
    producer.flush()
    producer.close()


def _floor(settings: Settings, partitions: int) -> float:
    """CPU µs per record of the same client that polls and parses, and does nothing else."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_poll_records=2_000,
    )
    places = [TopicPartition(topic, partition) for topic in settings.inputs for partition in range(partitions)]
    consumer.assign(places)
    left = sum(consumer.end_offsets(places).values())
    began, count = time.process_time(), 0
    while count < left:
        for batch in consumer.poll(timeout_ms=500).values():
            for record in batch:
                orjson.loads(record.value)
            count += len(batch)
    spent = time.process_time() - began
    consumer.close()
    return spent / count * 1e6


def _worker(settings: Settings, events: int, redis_url: str) -> dict[str, object]:
    metrics = Metrics()
    worker = assemble(settings, metrics)
    began_cpu, began = time.process_time(), time.monotonic()
    done = 0.0
    while done < events and time.monotonic() - began < 600:
        worker.turn()
        done = sum(_values(metrics, "driftline_events_total").values()) + sum(
            _values(metrics, "driftline_events_ignored_total").values()
        )
    cpu, wall = time.process_time() - began_cpu, time.monotonic() - began
    worker.close()
    phases = {
        labels["phase"]: value / done * 1e6 for labels, value in _samples(metrics, "driftline_phase_cpu_seconds_total")
    }
    total = cpu / done * 1e6
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(settings)
        customers = sum(1 for task in store.tasks() for _ in store.scan(task))
        store.close()
        redis_bytes = client.info("memory")["used_memory_dataset"]
    return {
        "events": int(done),
        "ticks": int(sum(_values(metrics, "driftline_ticks_total").values())),
        "wakes": int(sum(_values(metrics, "driftline_wakes_total").values())),
        "customers": customers,
        "cpu_us": total,
        "phases_us": {**phases, "client threads": total - sum(phases.values())},
        "events_per_cpu_second": 1e6 / total,
        "wall_s": wall,
        "bytes_per_customer_row": ROW.itemsize,
        "bytes_per_customer_redis": redis_bytes / max(customers, 1),
        "journal_bytes_per_event": sum(_values(metrics, "driftline_journal_bytes_total").values()) / done,
    }


def _samples(metrics: Metrics, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


def _values(metrics: Metrics, name: str) -> dict[str, float]:
    return {",".join(labels.values()): value for labels, value in _samples(metrics, name)}


def _print(result: dict[str, object]) -> None:
    table = Table(title=f"CPU per event, {result['machine']}", title_justify="left")
    table.add_column("phase")
    table.add_column("µs", justify="right")
    phases: dict[str, float] = result["phases_us"]  # type: ignore[assignment]
    for name, value in phases.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("[bold]all[/]", f"[bold]{result['cpu_us']:.1f}[/]")
    table.add_row("floor: poll and parse", f"{result['floor_cpu_us']:.1f}")
    table.add_row("ratio to the floor", f"{result['ratio_to_floor']:.1f}")
    rows: list[tuple[str, Callable[[float], str]]] = [
        ("events", lambda value: f"{value:,.0f}"),
        ("ticks", lambda value: f"{value:,.0f}"),
        ("wakes", lambda value: f"{value:,.0f}"),
        ("events_per_cpu_second", lambda value: f"{value:,.0f}"),
        ("bytes_per_customer_row", lambda value: f"{value:,.0f}"),
        ("bytes_per_customer_redis", lambda value: f"{value:,.0f}"),
        ("journal_bytes_per_event", lambda value: f"{value:,.0f}"),
    ]
    table.add_section()
    for name, shown in rows:
        table.add_row(name.replace("_", " "), shown(result[name]))  # type: ignore[arg-type]
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
