"""Files of events for `driftline replay`: Segment JSON Lines as they are, CSV by its column names.

A CSV row is one event or one line of an order; consecutive lines of one order are put together. Columns are known by
the names in `COLUMNS`, without regard to case, blanks and underscores. A row without an event column is a purchase.
"""

import csv
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from stream.errors import InvalidEvent, SettingsError
from stream.events import MAX_PRODUCTS, EventRules, Record, decode

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "userId": ("userid", "customerid", "customer", "householdid", "visitorid", "clientid", "memberid"),
    "anonymousId": ("anonymousid", "cookieid", "deviceid"),
    "timestamp": (
        *("timestamp", "eventtime", "time", "date", "datetime", "invoicedate", "orderdate", "transactiontimestamp"),
        "purchasedate",
    ),
    "event": ("event", "eventtype", "eventname", "action"),
    "messageId": ("messageid", "eventid"),
    "order_id": ("orderid", "basketid", "invoiceno", "invoice", "invoicenumber", "transactionid", "receiptid"),
    "revenue": ("revenue", "amount", "total", "salesvalue", "value", "spend", "sales"),
    "price": ("price", "unitprice"),
    "quantity": ("quantity", "qty", "items", "cds"),
    "product_id": ("productid", "itemid", "sku", "stockcode"),
    "category": ("category", "categorycode", "department", "productcategory"),
    "currency": ("currency",),
}
"""Names under which a CSV's columns are recognised."""

EVENTS = {
    "view": "Product Viewed",
    "page_view": "Product Viewed",
    "click": "Product Viewed",
    "search": "Products Searched",
    "cart": "Product Added",
    "addtocart": "Product Added",
    "add_to_cart": "Product Added",
    "remove_from_cart": "Product Removed",
    "checkout": "Checkout Started",
    "purchase": "Order Completed",
    "transaction": "Order Completed",
    "order": "Order Completed",
    "refund": "Order Refunded",
}
"""Event names of public logs, in Segment's words; others are kept as they are."""

ORDERS = ("Order Completed", "Order Refunded")


BOM = b"\xef\xbb\xbf"
LOOK_AHEAD = 50
AHEAD_MS = 300_000


def records(path: Path, topic: str) -> Iterator[Record]:
    """The events of a file as Kafka records, in the file's order.

    A file has no broker: a record's timestamp is the time the file has reached. A line moves that time unless more than
    half of the next `LOOK_AHEAD` lines lie over five minutes before it: such a line is mis-dated, and decoding clamps
    it. Nothing depends on this machine's clock.

    Raises:
        SettingsError: the file cannot be read, or a CSV names neither a customer nor a time.
    """
    waiting: deque[tuple[bytes, int | None]] = deque()
    reached_ms = 0
    for value in _values(path, topic):
        waiting.append((value, _time_of(value)))
        if len(waiting) > LOOK_AHEAD:
            reached_ms = _reached(waiting, reached_ms)
            yield _record(topic, reached_ms, waiting.popleft()[0])
    while waiting:
        reached_ms = _reached(waiting, reached_ms)
        yield _record(topic, reached_ms, waiting.popleft()[0])


def _reached(waiting: Sequence[tuple[bytes, int | None]], reached_ms: int) -> int:
    """The time reached with the first of the waiting lines."""
    time_ms = waiting[0][1]
    if time_ms is None or time_ms <= reached_ms:
        return reached_ms
    later = [at for _, at in waiting if at is not None][1:]
    behind = sum(at < time_ms - AHEAD_MS for at in later)
    return reached_ms if behind > len(later) / 2 else time_ms


def _record(topic: str, reached_ms: int, value: bytes) -> Record:
    return Record(topic, 0, 0, max(reached_ms, 1), None, value)


def _time_of(value: bytes) -> int | None:
    try:
        return decode(Record("", 0, 0, 0, None, value), EventRules("USD")).time_ms
    except InvalidEvent:
        return None


def _values(path: Path, topic: str) -> Iterator[bytes]:
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            yield from _csv(path, topic)
        else:
            with path.open("rb") as lines:
                yield from (line for line in (line.strip().removeprefix(BOM) for line in lines) if line)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 ({error.reason}); convert it, for example with iconv") from None
    except csv.Error as error:
        raise SettingsError(f"{path} is no CSV: {error}; is a quote left open?") from None


def _csv(path: Path, topic: str) -> Iterator[bytes]:
    with path.open(newline="", encoding="utf-8-sig") as text:
        rows = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = next(rows, [])
        places = _places(path, header)
        order: dict[str, Any] | None = None
        for number, row in enumerate(rows, 2):
            if not any(row):
                continue
            cells = {
                name: row[place].strip() for name, place in places.items() if place < len(row) and row[place].strip()
            }
            event = _event(cells, f"{topic}:{number}")
            if order is not None and _same_order(order, event):
                _join(order, event)
                continue
            if order is not None:
                yield orjson.dumps(order)
            order = event if event["event"] in ORDERS else None
            if order is None:
                yield orjson.dumps(event)
        if order is not None:
            yield orjson.dumps(order)


def is_event_log(path: Path) -> bool:
    """Whether a CSV's first line names a customer and a time.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            return _usable_places(_found_places(next(csv.reader(text), [])))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path} is no CSV in UTF-8: {error}") from None


def _found_places(header: list[str]) -> dict[str, int]:
    plain = ["".join(character for character in name.lower() if character.isalnum()) for name in header]
    places = {}
    for field, names in COLUMNS.items():
        found = [plain.index(name) for name in names if name in plain]
        if found:
            places[field] = found[0]
    return places


def _usable_places(places: Mapping[str, int]) -> bool:
    return "timestamp" in places and ("userId" in places or "anonymousId" in places)


def _places(path: Path, header: list[str]) -> dict[str, int]:
    places = _found_places(header)
    if not _usable_places(places):
        customers, times = (", ".join(COLUMNS[field][:4]) for field in ("userId", "timestamp"))
        raise SettingsError(
            f"{path}: its columns are {', '.join(header) or 'none'}; a customer column ({customers}, …) and one "
            f"for the time ({times}, …) are needed. Rename them in the first line"
        )
    return places


def _event(cells: Mapping[str, str], message_id: str) -> dict[str, Any]:
    name = cells.get("event", "order")
    name = EVENTS.get(name.lower(), name)
    if name == "Order Completed" and cells.get("quantity", "").startswith("-"):
        name = "Order Refunded"  # public logs write a return as a line with a negative quantity
    product = {key: cells[key] for key in ("product_id", "category", "price", "quantity") if key in cells}
    properties: dict[str, Any] = {key: cells[key] for key in ("order_id", "currency") if key in cells}
    if name in ORDERS:
        if "revenue" in cells:
            properties["revenue"] = _number(cells["revenue"].removeprefix("-" if name == "Order Refunded" else ""))
        properties["products"] = [product]
    else:
        properties |= product
    return {
        "type": "track",
        "event": name,
        "messageId": cells.get("messageId", message_id),
        **{key: cells[key] for key in ("userId", "anonymousId") if key in cells},
        "timestamp": _moment(cells.get("timestamp", "")) or None,
        "properties": properties,
    }


def _moment(text: str) -> str | int:
    """A time as decoding takes it: epoch seconds or milliseconds, a trailing UTC, and month/day/year are understood."""
    if text.isdecimal() and len(text) in (10, 13):
        return int(text) * (1_000 if len(text) == 10 else 1)
    text = text.removesuffix(" UTC")
    for form in ("%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y"):
        if "/" in text:
            with suppress(ValueError):
                return datetime.strptime(text, form).isoformat()
    return text


def _number(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text  # decoding says what is wrong with it
    return number if math.isfinite(number) else text


def _same_order(order: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    same = ("event", "userId", "anonymousId")
    order_id = order["properties"].get("order_id")
    return (
        order_id is not None
        and order_id == line["properties"].get("order_id")
        and all(order.get(key) == line.get(key) for key in same)
        and all(_usable(each["properties"].get("revenue", 0.0)) for each in (order, line))
        and len(order["properties"]["products"]) < MAX_PRODUCTS
        and _time_of(orjson.dumps(line)) is not None
    )


def _usable(revenue: object) -> bool:
    return isinstance(revenue, float) and revenue >= 0


def _join(order: dict[str, Any], line: Mapping[str, Any]) -> None:
    """Put a further line of an order into it."""
    into, properties = order["properties"], line["properties"]
    into["products"] += properties["products"]
    if isinstance(into.get("revenue"), float) and isinstance(properties.get("revenue"), float):
        into["revenue"] = round(into["revenue"] + properties["revenue"], 6)
