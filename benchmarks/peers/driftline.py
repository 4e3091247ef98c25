"""The job on Driftline, as `driftline run` runs it: exactly once, models and trainer included, all defaults."""

from benchmarks.peers.job import Place, Spent
from benchmarks.worker import measured, started, turn_until
from stream.backends.kafka import create_topics
from stream.settings import parse


def run(place: Place, skip: int, horizon_days: float, client: str) -> Spent:
    """What the events cost from when the trainer is at work; it is charged for as many events as were processed."""
    settings = parse(
        {
            "application": {"name": place.name},
            "kafka": {"bootstrap_servers": place.bootstrap, "client": client},
            "redis": {"url": place.redis_url},
            "topics": {"clickstream": place.source, "purchases": f"{place.name}.purchases", "alerts": place.alerts},
            "models": {"horizon_days": horizon_days},
            "tick": {"idle_after_s": 0.1},  # the topic of purchases is empty
        }
    )
    create_topics(settings, 1, 1)
    worker, metrics = started(settings)
    turn_until(worker, metrics, skip)
    result = measured(worker, metrics, place.events)
    worker.close()
    return Spent(result["events"], result["cpu_us"] * result["events"] / 1e6, result["wall_s"])
