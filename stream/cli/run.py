"""Run a worker, trainer included, until told to stop.

SIGTERM and SIGINT end it after the tick at hand, with exit code 0.
"""

import argparse
import logging
import signal
import sys
import time
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from types import FrameType
from typing import Any

from prometheus_client import ProcessCollector

from stream.backends.http import HttpServer
from stream.backends.kafka import KafkaInputs, KafkaOutputs, KafkaTopic
from stream.backends.redis import RedisStore
from stream.errors import Misconfigured
from stream.metrics import Metrics
from stream.ports import Clock
from stream.processing.tick import CODE
from stream.rehearsal import rehearse
from stream.settings import Settings
from stream.trainer import Trainer
from stream.worker import Ports, Worker

log = logging.getLogger(__name__)

SLACK_S = 30.0
"""What recovery and the clients' own time-outs may add to a turn."""


def add(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def main(arguments: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001  as every command
    """Run until SIGTERM or SIGINT."""
    metrics = Metrics()
    build = {"version": version("driftline"), "code": CODE, "config": settings.config_hash}
    metrics.build.labels(**build, worker=settings.application.instance).set(1)
    ProcessCollector(registry=metrics.registry)
    workers: list[Worker] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        log.info("told to stop", extra={"signal": signal.Signals(number).name})
        if not workers:
            sys.exit(0)  # still starting: nothing has been read
        workers[0].stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    began = time.monotonic()
    rehearse()  # a member that compiles is one that does not poll
    log.info("compiled loops are ready", extra={"seconds": round(time.monotonic() - began, 1)})
    worker = assemble(settings, metrics)
    workers.append(worker)
    stalled_s = stalled_after_s(settings)
    server = HttpServer(settings.http, metrics.registry, lambda: _live(worker, stalled_s), lambda: worker.waiting)
    log.info("started", extra={"worker": settings.application.instance, "http_port": server.port, **build})
    with closing(server), closing(worker):
        worker.run()
    return 0


def assemble(settings: Settings, metrics: Metrics) -> Worker:
    """A worker on the Kafka and Redis of the settings.

    Raises:
        Retriable: one of them does not answer.
        Misconfigured: topics are missing or do not fit, or Redis may evict.
    """
    store = RedisStore(settings)
    store.check()
    make_inputs, make_outputs = clients(settings)
    inputs = make_inputs(settings)

    clock = Clock()
    trainer = Trainer(
        settings,
        KafkaTopic(settings, settings.topic("journal")),
        KafkaTopic(settings, settings.topic("models"), owner="trainer"),
        lambda: make_outputs(settings, "trainer", topics=[settings.topic("models"), settings.topic("alerts")]),
        metrics,
        clock.wall_ms,
    )
    written = [settings.topic("alerts"), settings.topic("dead_letters"), settings.topic("journal")]
    outputs = make_outputs(settings, settings.application.instance, inputs.holds, written)
    journal, models = KafkaTopic(settings, settings.topic("journal")), KafkaTopic(settings, settings.topic("models"))
    if journal.partitions() != inputs.partitions:
        raise Misconfigured(
            f"the journal {settings.topic('journal')} has {journal.partitions()} partitions, the input topics "
            f"{inputs.partitions}: partitions were added to one of them. Customers would move away from their rows: "
            "restore the partition count by copying into new topics, or give the application a new name"
        )
    return Worker(settings, Ports(inputs, outputs, journal, models, store), trainer, metrics, clock)


def clients(settings: Settings) -> tuple[Any, Any]:
    """What makes the inputs and the outputs, by `kafka.client`.

    Raises:
        Misconfigured: its package is not installed.
    """
    if settings.kafka.client == "kafka-python":
        return KafkaInputs, KafkaOutputs
    if find_spec("confluent_kafka") is None:
        raise Misconfigured(
            "kafka.client is librdkafka, and its package is not installed; run `pip install '.[librdkafka]'` where "
            "Driftline's source is, or set kafka.client to kafka-python"
        )
    from stream.backends.librdkafka import LibrdkafkaInputs, LibrdkafkaOutputs

    return LibrdkafkaInputs, LibrdkafkaOutputs


def stalled_after_s(settings: Settings) -> float:
    """A loop that has not turned for this long is not alive.

    The waits of one turn add up: a tick's commit, its abort and a model version's commit, each without an answer.
    """
    return 3 * settings.kafka.commit_timeout_s + settings.redis.timeout_s + SLACK_S


def _live(worker: Worker, stalled_s: float) -> str | None:
    silent_s = time.monotonic() - worker.turned_at
    return None if silent_s < stalled_s else f"the loop has not turned for {silent_s:.0f} s"
