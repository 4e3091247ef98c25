"""A small shop run once through the worker in this process, so that no compiled loop is compiled within a group.

The machine code is kept (online_models/compiled.py): a fresh install compiles for some seconds, later starts load it.
`python -m stream.rehearsal` is what the image is built with.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import orjson

from stream.backends.kafka.batches import compile_loops
from stream.embedded import Embedded
from stream.events import Record
from stream.processing.alerts import rfc3339
from stream.processing.customer import DAY_MS
from stream.processing.names import CHURN_COLUMNS
from stream.settings import parse

BEGAN_MS = 1_704_067_200_000  # 2024-01-01
CUSTOMERS = 60
DAYS = 60
MODELS = {
    "reference_events": 100,
    "first_customers": 50,
    "min_labels": 60,
    "horizon_days": 7.0,
    "publish_min_events": 200,
    "publish_max_events": 400,
}
"""Models that are ready within a few hundred events."""


def rehearse() -> Embedded:
    """Run the shop to its end; returns the worker that did."""
    settings = parse({"application": {"name": "rehearsal"}, "models": MODELS})
    embedded = Embedded(settings, ("purchases",), lambda _: None)
    with _quiet():
        embedded.run({"purchases": orders()})
    churn = embedded.worker.version.churn
    churn.features_many(np.zeros((1, len(CHURN_COLUMNS))))  # only an alert asks for them
    compile_loops()
    return embedded


@contextmanager
def _quiet() -> Iterator[None]:
    """Versions and trainers of a shop that does not exist are not the operator's."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def orders() -> Iterator[Record]:
    """Orders of customers who come every three to eight days."""
    for day in range(DAYS):
        for customer in range(CUSTOMERS):
            if (day + customer) % (3 + customer % 6) == 0:
                time_ms = BEGAN_MS + day * DAY_MS + customer * 600_000
                order = f"{customer}/{day}"
                properties = {"order_id": order, "revenue": 10.0 + customer, "category": f"c{customer % 5}"}
                body = {
                    "event": "Order Completed",
                    "userId": f"u-{customer}",
                    "messageId": order,
                    "timestamp": rfc3339(time_ms),
                    "properties": properties,
                }
                yield Record("purchases", 0, 0, time_ms, None, orjson.dumps(body))


if __name__ == "__main__":
    rehearse()
