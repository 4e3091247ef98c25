"""The job on Bytewax: a stateful operator keyed by the customer, Kafka in and out, one worker.

Default: no recovery; a restart begins at the beginning. Strongest: snapshots of state and offsets go into a recovery
store every ten seconds, as by default; its Kafka sink is at least once in either.
"""

import os
import signal
from datetime import timedelta
from threading import Timer

import orjson
from bytewax import operators as op
from bytewax._bytewax import cli_main  # what `python -m bytewax.run` calls
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.recovery import RecoveryConfig, init_db_dir

from benchmarks.peers.job import Job, Meter, Place, die


def run(place: Place, job: Job, meter: Meter, recovery: bool) -> None:
    def decoded(message):
        meter.count()
        if place.live and meter.events == place.events:
            Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()  # a dataflow on a live topic has no other end
        if meter.events == place.kill_at:
            die()
        body = orjson.loads(message.value)
        return body["userId"], body

    def step(state, body):
        state, alert = job.step(state, body)
        return state, () if alert is None else (alert,)

    def encoded(keyed):
        customer, alert = keyed
        return KafkaSinkMessage(customer.encode(), orjson.dumps(alert))

    flow = Dataflow("peers")
    source = kop.input("in", flow, brokers=[place.bootstrap], topics=[place.source], tail=place.live)
    events = op.map("decode", source.oks, decoded)
    alerts = op.stateful_flat_map("customers", events, step)
    kop.output("out", op.map("encode", alerts, encoded), brokers=[place.bootstrap], topic=place.alerts)
    config = None
    if recovery:
        store = place.directory / "recovery"
        if not store.exists():
            store.mkdir()
            init_db_dir(store, 1)
        config = RecoveryConfig(store)
    try:
        cli_main(flow, epoch_interval=timedelta(seconds=10), recovery_config=config)
    except (KeyboardInterrupt, BytewaxRuntimeError):
        if not place.live or meter.events < place.events:
            raise
