"""Bare loops of kafka-python and confluent-kafka with a Redis: the state of a customer is one JSON value.

A batch's customers are read by one MGET and written by one MSET, the cheapest a client can do (a hash a customer, in a
pipeline, costs several times as much). Default: offsets are committed by the client in the background. Transactional:
alerts and offsets in one transaction a batch, Redis after it; a crash between the two leaves Redis behind.
"""

from collections.abc import Iterable

import confluent_kafka as librdkafka
import orjson
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from benchmarks.peers.job import Job, Meter, Place, State, die

BATCH = 2_000
"""Events of a batch, as of a tick of Driftline."""


class States:
    """Customers in Redis, keyed by the run's name."""

    def __init__(self, place: Place) -> None:
        self._redis = redis.Redis.from_url(place.redis_url)
        self._prefix = place.name

    def of(self, customers: Iterable[str]) -> dict[str, State]:
        names = list(dict.fromkeys(customers))
        found = self._redis.mget([f"{self._prefix}:{name}" for name in names])
        return {name: orjson.loads(value) for name, value in zip(names, found, strict=True) if value is not None}

    def keep(self, states: dict[str, State]) -> None:
        self._redis.mset({f"{self._prefix}:{name}": orjson.dumps(state) for name, state in states.items()})


def worked(values: Iterable[bytes], job: Job, meter: Meter, states: States) -> tuple[list[tuple[str, bytes]], dict]:
    """The alerts of a batch and its customers' new states, not yet kept."""
    bodies = []
    for value in values:
        meter.count()
        bodies.append(orjson.loads(value))
    known = states.of(body["userId"] for body in bodies)
    alerts = []
    for body in bodies:
        customer = body["userId"]
        known[customer], alert = job.step(known.get(customer), body)
        if alert is not None:
            alerts.append((customer, orjson.dumps(alert)))
    return alerts, known


def kafka_python(place: Place, job: Job, meter: Meter, transactional: bool) -> None:
    states = States(place)
    consumer = KafkaConsumer(
        bootstrap_servers=place.bootstrap,
        group_id=place.name,
        group_instance_id=f"{place.name}-{place.instance}" if transactional else None,
        auto_offset_reset="earliest",
        enable_auto_commit=not transactional,
        isolation_level="read_committed" if transactional else "read_uncommitted",
        max_poll_records=BATCH,
    )
    consumer.partitions_for_topic(place.source)  # a group that is joined before the metadata came stays empty
    consumer.subscribe([place.source])
    options = {"transactional_id": f"{place.name}-{place.instance}", "retry_backoff_ms": 5} if transactional else {}
    producer = KafkaProducer(bootstrap_servers=place.bootstrap, linger_ms=20, **options)
    if transactional:
        producer.init_transactions()
    while not place.events or meter.events < place.events:
        batch = [record for records in consumer.poll(timeout_ms=500).values() for record in records]
        if not batch:
            continue
        alerts, known = worked((record.value for record in batch), job, meter, states)
        if transactional:
            producer.begin_transaction()
        for customer, alert in alerts:
            producer.send(place.alerts, alert, customer.encode())
        if transactional:
            offsets = {TopicPartition(r.topic, r.partition): OffsetAndMetadata(r.offset + 1) for r in batch}
            producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
            if place.kill_at and meter.events >= place.kill_at:
                producer.flush()
                die()
            producer.commit_transaction()
        states.keep(known)
    producer.flush()
    producer.close()
    consumer.close()


def confluent(place: Place, job: Job, meter: Meter, transactional: bool) -> None:
    states = States(place)
    group = {"group.id": place.name, "auto.offset.reset": "earliest", "enable.auto.commit": not transactional}
    if transactional:
        group["group.instance.id"] = f"{place.name}-{place.instance}"
    consumer = librdkafka.Consumer({"bootstrap.servers": place.bootstrap, **group})
    consumer.subscribe([place.source])
    options = {"transactional.id": f"{place.name}-{place.instance}"} if transactional else {}
    producer = librdkafka.Producer({"bootstrap.servers": place.bootstrap, "linger.ms": 20, **options})
    if transactional:
        producer.init_transactions()
    while not place.events or meter.events < place.events:
        batch = [message for message in consumer.consume(BATCH, 0.1) if message.error() is None]
        if not batch:
            continue
        alerts, known = worked((message.value() for message in batch), job, meter, states)
        if transactional:
            producer.begin_transaction()
        for customer, alert in alerts:
            producer.produce(place.alerts, alert, customer)
        if transactional:
            ends = consumer.position(consumer.assignment())
            producer.send_offsets_to_transaction(ends, consumer.consumer_group_metadata())
            if place.kill_at and meter.events >= place.kill_at:
                producer.flush()
                die()
            producer.commit_transaction()
        else:
            producer.poll(0)
        states.keep(known)
    producer.flush()
    consumer.close()
