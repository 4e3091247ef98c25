"""Feeds a shop's year into the input topics: views into clickstream, orders into purchases, keyed by customer id.

    python deploy/shop/feed.py --bootstrap-servers 127.0.0.1:9092 --speed 86400

The shop is Complete Journey (the extra `demo`), its event times moved so that the year ends when the feed does.
Records carry the time of sending, as a collector's do: the topics' retention then counts from now.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from stream.errors import SettingsError
from stream.events import Record
from stream.journey import Journey
from stream.processing.alerts import rfc3339

DAY_S = 86_400
END_MS = 1_514_779_300_000
"""The end of the shop's year, 20 seconds after its last basket: the worker finds the stream live when it gets there."""
AT_ONCE = 500
"""Events between two looks at the clock."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed a shop's year into the input topics.")
    parser.add_argument(
        "--bootstrap-servers", default="127.0.0.1:9092", help="host:port, comma-separated (%(default)s)"
    )
    parser.add_argument("--clickstream", default="clickstream", help="topic of the views (%(default)s)")
    parser.add_argument("--purchases", default="purchases", help="topic of the orders (%(default)s)")
    parser.add_argument(
        "--speed", type=float, default=DAY_S, help="the shop's seconds a second; 0 = no pause (%(default)s, a day)"
    )
    parser.add_argument("--days", type=float, default=366, help="feed the last so many days of the year (%(default)s)")
    parser.add_argument("--again", action="store_true", help="feed even if there are records in the topics already")
    arguments = parser.parse_args()
    if 0 < arguments.speed < 1 or arguments.speed < 0:
        parser.error("--speed is 0, or at least 1: the shop's year would end in the future")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    servers = arguments.bootstrap_servers.split(",")
    topics = {"Product Viewed": arguments.clickstream, "Order Completed": arguments.purchases}
    try:
        if not arguments.again and (known := fed(servers, list(topics.values()))):
            print(f"{known:,} records are in the topics already, nothing fed; feed a second year with --again")
            return 0
        print("loading the shop", flush=True)
        feed(servers, topics, Journey(), arguments.days, arguments.speed, stopping)
    except (KafkaError, SettingsError) as error:
        print(f"feed: {error}", file=sys.stderr)
        return 1
    return 0


def fed(servers: list[str], topics: list[str]) -> int:
    """Number of records that were ever written to the topics."""
    consumer = KafkaConsumer(bootstrap_servers=servers)
    try:
        partitions = [TopicPartition(topic, n) for topic in topics for n in consumer.partitions_for_topic(topic) or ()]
        return sum(consumer.end_offsets(partitions).values()) if partitions else 0
    finally:
        consumer.close()


def feed(
    servers: list[str], topics: dict[str, str], shop: Journey, days: float, speed: float, stopping: threading.Event
) -> None:
    """Send the shop's last `days`, paced, until the end or told to stop."""
    first_ms = END_MS - round(days * DAY_S * 1000)
    took_ms = round(days * DAY_S * 1000 / speed) if speed else 0
    began_ms, sent = time.time_ns() // 1_000_000, 0
    shift_ms = began_ms + took_ms - END_MS
    failures: list[Exception] = []
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=20, compression_type="lz4")
    try:
        for record, body in moved(shop.records(), first_ms, shift_ms):
            if sent % AT_ONCE == 0 and speed:
                due_ms = began_ms + (record.timestamp_ms - first_ms) / speed
                stopping.wait(max(due_ms - time.time_ns() / 1e6, 0) / 1000)
            if stopping.is_set():
                break
            sending = producer.send(topics[body["event"]], key=record.key, value=orjson.dumps(body))
            sending.add_errback(failures.append)
            if failures:
                raise failures[0]
            sent += 1
            if sent % 50_000 == 0:
                print(f"{sent:,} events, the shop is at {body['timestamp']}", flush=True)
        producer.flush()
        if failures:
            raise failures[0]
    finally:
        producer.close()
    print(f"fed {sent:,} events of {shop.households:,} households", flush=True)


def moved(records: Iterator[Record], first_ms: int, shift_ms: int) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Records from `first_ms` on, each with its event moved in time by `shift_ms`."""
    for record in records:
        if record.timestamp_ms >= first_ms:
            body: dict[str, Any] = orjson.loads(record.value or b"")
            yield record, body | {"timestamp": rfc3339(record.timestamp_ms + shift_ms)}


if __name__ == "__main__":
    sys.exit(main())
