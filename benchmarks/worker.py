"""CPU time per event of the worker on a real Kafka and a real Redis: `make bench`, or `python -m benchmarks.worker`.

Events are Complete Journey's (baskets real, one page view a basket derived), or with `--mix clicks` a day of a shop's
clickstream (`benchmarks/events.py`). Ticks hold up to 2,000 events of one task.
The first events are not counted: the process warms up on them, as its models do. The machine's speed cancels out in the
ratio to the floor: the same client that only polls and parses the same records, measured in the same run.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import orjson
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.events import clicks
from stream.backends.kafka import create_topics
from stream.backends.redis import RedisStore
from stream.cli import collect_rarely
from stream.cli.run import assemble
from stream.events import Record
from stream.journey import TIMEZONE, Journey
from stream.metrics import PHASES, Metrics
from stream.processing.customer import ROW
from stream.rehearsal import rehearse
from stream.settings import Settings, parse
from stream.worker import Worker
from tests.servers import KafkaServer, RedisServer

TAIL = 10_000
"""Events beyond those that are measured, so that the worker never waits for any."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure and print; the same numbers go to benchmarks/results/worker.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="events to process (100,000)")
    parser.add_argument("--warm-up", type=int, default=20_000, help="events before them, not counted (20,000)")
    parser.add_argument("--partitions", type=int, default=1, help="tasks of the worker (1)")
    parser.add_argument("--client", choices=("kafka-python", "librdkafka"), default="kafka-python")
    parser.add_argument("--mix", choices=("journey", "clicks"), default="journey", help="what the events are (journey)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    console = Console(stderr=True)
    with KafkaServer() as kafka, RedisServer() as store:
        settings = _settings(kafka.bootstrap_servers, store.url, arguments.client)
        create_topics(settings, arguments.partitions, 1)
        console.print(f"{kafka.how} · {store.how}: {arguments.warm_up:,} events to warm up, then {arguments.events:,}")
        worker, metrics = started(settings)
        beyond = arguments.warm_up + arguments.events + TAIL
        records = iter(clicks(beyond)) if arguments.mix == "clicks" else Journey().records()
        _feed(settings, islice(records, arguments.warm_up))
        turn_until(worker, metrics, arguments.warm_up)
        feeding = Thread(target=_feed, args=(settings, islice(records, arguments.events + TAIL)))
        feeding.start()  # in a thread of its own: the worker's is measured
        feeding.join()
        result = measured(worker, metrics, arguments.warm_up + arguments.events)
        worker.close()
        result |= _stored(settings, store.url)
        floor = _floor(settings, arguments.partitions)
    result |= {"mix": arguments.mix, "client": arguments.client}
    result["floor_cpu_us"] = floor
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result["versions"] = {name: version(name) for name in ("kafka-python", "redis", "river", "numpy", "orjson")}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "worker.json").write_text(json.dumps(result, indent=2) + "\n")
    _print(result)


def started(settings: Settings) -> tuple[Worker, Metrics]:
    """A worker as `driftline run` starts it, its trainer at work."""
    collect_rarely()
    rehearse()
    metrics = Metrics()
    worker = assemble(settings, metrics)
    while not _sum(metrics, "trainer_active"):
        worker.turn()
    return worker, metrics


def _settings(bootstrap: str, redis_url: str, client: str) -> Settings:
    name = f"bench-{uuid4().hex[:8]}"
    return parse(
        {
            "application": {"name": name, "timezone": TIMEZONE},
            "kafka": {"bootstrap_servers": bootstrap, "client": client},
            "redis": {"url": redis_url},
            "topics": {"clickstream": f"{name}.clickstream", "purchases": f"{name}.purchases"},
            "tick": {"max_span_hours": 168, "idle_after_s": 1},
        }
    )


def _feed(settings: Settings, records: Iterator[Record]) -> None:
    clickstream, purchases = settings.inputs
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, linger_ms=20, batch_size=500_000)
    for record in records:
        producer.send(purchases if b'"Order Completed"' in record.value else clickstream, record.value, record.key)
    producer.flush()
    producer.close()


def _floor(settings: Settings, partitions: int) -> float:
    """CPU µs per record of the same client that polls and parses, and does nothing else."""
    if settings.kafka.client == "librdkafka":
        return _floor_on_librdkafka(settings, partitions)
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


def _floor_on_librdkafka(settings: Settings, partitions: int) -> float:
    from confluent_kafka import OFFSET_BEGINNING, Consumer
    from confluent_kafka import TopicPartition as Place

    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "group.id": "floor",
            "isolation.level": "read_committed",
        }
    )
    places = [Place(topic, partition, OFFSET_BEGINNING) for topic in settings.inputs for partition in range(partitions)]
    consumer.assign(places)
    left = sum(consumer.get_watermark_offsets(place)[1] for place in places)
    began, count = time.process_time(), 0
    while count < left:
        for message in consumer.consume(2_000, 0.5):
            orjson.loads(message.value())
            count += 1
    spent = time.process_time() - began
    consumer.close()
    return spent / count * 1e6


def measured(worker: Worker, metrics: Metrics, events: int) -> dict[str, Any]:
    """What is spent until so many events are processed; the trainer's work by what it has learned: it may lag."""
    before, began = _now(metrics), time.monotonic()
    turn_until(worker, metrics, events)
    spent, wall = {name: value - before[name] for name, value in _now(metrics).items()}, time.monotonic() - began
    done = spent["events"]
    per_event = {name: value / done * 1e6 for name, value in spent.items()}
    phases = {phase: per_event[phase] for phase in PHASES}
    threads = per_event["cpu"] - sum(phases.values())
    phases["train"] *= done / max(spent["learned"], 1.0)
    cpu_us = sum(phases.values()) + threads
    return {
        "events": int(done),
        "ticks": int(spent["ticks"]),
        "wakes": int(spent["wakes"]),
        "learned": int(spent["learned"]),
        "cpu_us": cpu_us,
        "phases_us": {**phases, "client threads": threads},
        "events_per_cpu_second": 1e6 / cpu_us,
        "wall_s": wall,
        "bytes_per_customer_row": ROW.itemsize,
        "journal_bytes_per_event": spent["journal_bytes"] / done,
    }


def _stored(settings: Settings, redis_url: str) -> dict[str, Any]:
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(settings)
        customers = sum(1 for task in store.tasks() for _ in store.scan(task))
        store.close()
        redis_bytes = client.info("memory")["used_memory_dataset"]
    return {"customers": customers, "bytes_per_customer_redis": redis_bytes / max(customers, 1)}


def turn_until(worker: Worker, metrics: Metrics, events: int) -> None:
    """Let the worker work until so many events are processed. Raises TimeoutError after ten minutes."""
    deadline = time.monotonic() + 600
    while (done := _processed(metrics)) < events:
        worker.turn()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{done:,.0f} of {events:,} events in ten minutes")


def _processed(metrics: Metrics) -> float:
    """Events so far. Asked after every turn, so of these counters alone: a look at all of them takes milliseconds."""
    families = (*metrics.events.collect(), *metrics.ignored.collect())
    return sum(one.value for family in families for one in family.samples if one.name.endswith("_total"))


def _now(metrics: Metrics) -> dict[str, float]:
    """What was counted and spent up to now: events, ticks, wakes, bytes of journal, CPU seconds in all and by phase."""
    return {
        "events": _processed(metrics),
        "ticks": _sum(metrics, "ticks_total"),
        "wakes": _sum(metrics, "wakes_total"),
        "journal_bytes": _sum(metrics, "journal_bytes_total"),
        "learned": sum(v for labels, v in _samples(metrics, "learned_total") if labels["what"] == "events"),
        "cpu": time.process_time(),
        **{labels["phase"]: value for labels, value in _samples(metrics, "phase_cpu_seconds_total")},
    }


def _samples(metrics: Metrics, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == f"driftline_{name}":
                yield sample.labels, sample.value


def _sum(metrics: Metrics, name: str) -> float:
    return sum(value for _, value in _samples(metrics, name))


def _print(result: dict[str, Any]) -> None:
    floor = result["floor_cpu_us"]
    table = Table(
        title=f"CPU per event, {result['mix']}, {result['client']}, {result['machine']}", title_justify="left"
    )
    table.add_column("phase")
    table.add_column("µs", justify="right")
    table.add_column("floors", justify="right")
    for name, value in result["phases_us"].items():
        table.add_row(name, f"{value:.2f}", f"{value / floor:.2f}")
    table.add_row("[bold]all[/]", f"[bold]{result['cpu_us']:.1f}[/]", f"[bold]{result['cpu_us'] / floor:.1f}[/]")
    table.add_row("floor: poll and parse", f"{floor:.1f}", "1")
    table.add_section()
    for name in (
        *("events", "learned", "ticks", "wakes", "customers", "events_per_cpu_second"),
        *("bytes_per_customer_row", "bytes_per_customer_redis", "journal_bytes_per_event"),
    ):
        table.add_row(name.replace("_", " "), f"{result[name]:,.0f}")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
