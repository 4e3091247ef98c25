"""One run of one job in a process of its own: `python -m benchmarks.peers.one JOB …`, as the command calls it.

Prints events, CPU seconds and wall seconds as JSON.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson

from benchmarks.events import clicks
from benchmarks.peers.job import Job, Meter, Models, Place, Spent, from_memory


class Peer(NamedTuple):
    """A row of the table. `run` says what it spent, where the meter does not; Driftline has its own models only."""

    name: str
    guarantee: str
    run: Callable[[Place, Job, Meter], Spent | None]
    own_models: bool = False


def _driftline(horizon_days: float = 28.0, client: str = "kafka-python") -> Callable[[Place, Job, Meter], Spent]:
    def run(place: Place, _job: Job, meter: Meter) -> Spent:
        from benchmarks.peers import driftline

        return driftline.run(place, meter.skip, horizon_days, client)

    return run


def _kafka_python(transactional: bool) -> Callable[[Place, Job, Meter], None]:
    def run(place: Place, job: Job, meter: Meter) -> None:
        from benchmarks.peers.loops import kafka_python

        kafka_python(place, job, meter, transactional)

    return run


def _confluent(transactional: bool) -> Callable[[Place, Job, Meter], None]:
    def run(place: Place, job: Job, meter: Meter) -> None:
        from benchmarks.peers.loops import confluent

        confluent(place, job, meter, transactional)

    return run


def _quix(exactly_once: bool, fixed_id: bool = False) -> Callable[[Place, Job, Meter], None]:
    def run(place: Place, job: Job, meter: Meter) -> None:
        from benchmarks.peers import quix

        quix.run(place, job, meter, exactly_once, fixed_id)

    return run


def _bytewax(recovery: bool) -> Callable[[Place, Job, Meter], None]:
    def run(place: Place, job: Job, meter: Meter) -> None:
        from benchmarks.peers import bytewax

        bytewax.run(place, job, meter, recovery)

    return run


AUTO = "offsets in the background: some events lost or repeated"
REDIS = "alerts once; Redis may fall behind"
PEERS = {
    "driftline": Peer("Driftline", "exactly once", _driftline(), own_models=True),
    "driftline-librdkafka": Peer(
        "Driftline on librdkafka", "exactly once", _driftline(client="librdkafka"), own_models=True
    ),
    "driftline-churn": Peer("Driftline, four days, churn in one", "exactly once", _driftline(1.0), own_models=True),
    "confluent": Peer("confluent-kafka loop", AUTO, _confluent(False)),
    "confluent-eos": Peer("confluent-kafka loop, transactions", REDIS, _confluent(True)),
    "kafka-python": Peer("kafka-python loop", AUTO, _kafka_python(False)),
    "kafka-python-eos": Peer("kafka-python loop, transactions", REDIS, _kafka_python(True)),
    "bytewax": Peer("Bytewax", "none: a restart begins at the beginning", _bytewax(False)),
    "bytewax-recovery": Peer("Bytewax, recovery", "state once, alerts at least once", _bytewax(True)),
    "quix": Peer("Quix Streams", "at least once", _quix(False)),
    "quix-eos": Peer("Quix Streams, exactly once", "exactly once", _quix(True)),
    "quix-eos-fixed": Peer("Quix Streams, exactly once, fixed transactional id", "exactly once", _quix(True, True)),
}
YARDSTICKS = {"all": Models, "none": lambda: None, "no-churn": lambda: Models(churn=False)}


def main() -> None:
    """Run it and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("memory", *PEERS))
    parser.add_argument("--models", choices=tuple(YARDSTICKS), default="all")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--instance", type=int, default=1)
    for name in ("bootstrap", "redis", "source", "alerts", "name", "directory"):
        parser.add_argument(f"--{name}", default="")
    given = parser.parse_args()
    job, meter = Job(YARDSTICKS[given.models](), given.every), Meter(given.skip)
    directory = Path(given.directory or ".")
    place = Place(
        *(given.bootstrap, given.redis, given.source, given.alerts, given.name, directory),
        *(given.events, given.live, given.kill_at, given.instance),
    )
    if given.job == "memory":
        from_memory(job, meter, [record.value or b"" for record in clicks(given.events)])
        spent = meter.spent()
    else:
        spent = PEERS[given.job].run(place, job, meter) or meter.spent()
    sys.stdout.write(orjson.dumps(spent._asdict()).decode() + "\n")


if __name__ == "__main__":
    main()
