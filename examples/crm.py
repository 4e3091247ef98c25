"""A CRM's subscriber to Driftline's alerts: one entry in its to-do list for each alert, however often it is delivered.

    pip install kafka-python crc32c
    python crm.py --bootstrap-servers 127.0.0.1:9092 --topic shop.alerts --db crm.sqlite

Two rules make it safe to kill at any moment:

    1. The alert's id and what is done about it are written in one transaction of the CRM's own database.
    2. Offsets are committed afterwards. A crash in between delivers alerts again; rule 1 makes that a no-op.

An effect outside the database, such as a mail, is sent from its table `actions`, and marked there once sent.
"""

import argparse
import json
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka.errors import KafkaError

TABLE = """
CREATE TABLE IF NOT EXISTS actions (
    source TEXT, id TEXT, time TEXT, customer TEXT, action TEXT, why TEXT, sent INTEGER DEFAULT 0,
    PRIMARY KEY (source, id)
)
"""
INSERT = (
    "INSERT INTO actions (source, id, time, customer, action, why) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
DEAR_MINOR = 50_000
"""A customer who has spent this much, in minor units, is called; others get a mail."""


class Action(NamedTuple):
    """One entry of the to-do list; `source` and `id` are the alert's, and together its identity."""

    source: str
    id: str
    time: str
    customer: str
    action: str
    why: str


def decide(value: bytes | None) -> Action | None:
    """What to do about one record; None for kinds, or versions of a kind, that this CRM does not know."""
    try:
        event: dict[str, Any] = json.loads(value or b"")
        data = event["data"]
        match event["type"]:
            case "io.driftline.churn_risk.v1":
                action = "call" if data["spend_minor"] >= DEAR_MINOR else "mail"
                what = f"{data['probability']:.0%} risk of leaving"
            case "io.driftline.segment_changed.v1":
                action, what = "mail", f"now {data['to_name']!r}, was {data['from_name']!r}"
            case "io.driftline.anomaly.v1":
                action, what = "review", f"{data['event']}, as unusual as one in {data['one_in']:,}"
            case "io.driftline.churn_wave.v1":
                action, what = "review", "alerts are held back, a feed may be lost"
            case "io.driftline.segment_lineage.v1":
                action, what = "review", "campaigns that name a segment"
            case _:
                return None
        why = "; ".join([what, *(reason["text"] for reason in data["reasons"])])
        return Action(event["source"], event["id"], event["time"], event["subject"], action, why)
    except (ValueError, KeyError, TypeError) as error:
        print(f"skipped, not an alert: {error!r} in {value!r:.200}", file=sys.stderr)
        return None


def store(db: sqlite3.Connection, actions: Iterable[Action]) -> list[Action]:
    """Write the actions in one transaction; returns those that were not there yet."""
    with db:
        return [action for action in actions if db.execute(INSERT, action).rowcount]


def follow(consumer: KafkaConsumer, db: sqlite3.Connection, stopping: threading.Event) -> None:
    """Store, then commit, until told to stop."""
    while not stopping.is_set():
        polled = consumer.poll(timeout_ms=500, max_records=200)
        decided = [decide(record.value) for records in polled.values() for record in records]
        for action in store(db, [action for action in decided if action is not None]):
            print(f"{action.time}  {action.action:6}  {action.customer}: {action.why}", flush=True)
        if polled:
            try:
                consumer.commit()
            except KafkaError as error:  # the group moved on: whoever owns the partition now is delivered these again
                print(f"offsets not committed: {error!r}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Follow Driftline's alerts and act once on each.")
    parser.add_argument(
        "--bootstrap-servers", default="127.0.0.1:9092", help="host:port, comma-separated (%(default)s)"
    )
    parser.add_argument("--topic", default="shop.alerts", help="the alerts topic (%(default)s)")
    parser.add_argument("--group", default="crm", help="the consumer group (%(default)s)")
    parser.add_argument("--db", default="crm.sqlite", metavar="FILE", help="the CRM's database (%(default)s)")
    arguments = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with closing(sqlite3.connect(arguments.db)) as db:
        db.execute(TABLE)
        consumer = KafkaConsumer(
            bootstrap_servers=arguments.bootstrap_servers.split(","),
            group_id=arguments.group,
            isolation_level="read_committed",  # alerts of aborted ticks are not seen
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        with closing(consumer):
            consumer.partitions_for_topic(arguments.topic)  # kafka-python 3.0: else the group may get no partitions
            consumer.subscribe([arguments.topic])
            follow(consumer, db, stopping)
    return 0


if __name__ == "__main__":
    sys.exit(main())
