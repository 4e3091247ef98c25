"""From a Kafka record to a typed, frozen event.

The wire form is Segment-spec JSON (https://segment.com/docs/connections/spec/ecommerce/v2/), which RudderStack and
Jitsu send as well. Names of version 1 (`Viewed Product`, `orderId`) are accepted as aliases. Fields this module does
not name are left alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from stream.errors import InvalidEvent

REASONS: Mapping[str, str] = {
    "empty": "the record has no value",
    "undecodable": "the value is not JSON in UTF-8",
    "not_an_object": "the value is JSON, but not an object",
    "no_customer": "neither userId nor anonymousId",
    "invalid_field": "a field has the wrong type, is too long or holds control characters",
    "invalid_time": "a timestamp that is no time, or one outside 1990 to 2100",
    "invalid_amount": "an order's or refund's amount that is negative, not finite or out of range",
    "misplaced": "the record lies in a partition that its customer id does not belong to",
}
"""Every reason a record may become a dead letter for: the value of the header `driftline-reason`."""

HISTORY_HEADER = "driftline-history"
"""Marks a record of the past, put in by a backfill or a repartition: it counts, and raises no alert that goes out."""
FORGET_HEADER = "driftline-forget"
"""A record with this header asks to forget the customer that is its key. A header, as no visitor's browser sets one."""

ANONYMOUS = "anon:"
MAX_ID_CHARS = 200
MAX_NAME_CHARS = 200
MAX_PRODUCTS = 1_000
MAX_MINOR = 10**15
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_MS = 631_152_000_000  # 1990-01-01: earlier times are unset clocks, not shops
LATEST_MS = 4_102_444_800_000  # 2100-01-01: later ones are in another unit than milliseconds


class Record(NamedTuple):
    """One Kafka record as it came, never changed. `timestamp_ms` is the broker's or the producer's, epoch ms."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def place(self) -> str:
        """Where it lies, as alerts and logs name it."""
        return f"{self.topic}-{self.partition}-{self.offset}"


make_record: Callable[[tuple[Any, ...]], Record] = partial(tuple.__new__, Record)
"""A `Record` of all its fields, in order: half the cost of the class's own constructor, a line of Python."""


class Kind(IntEnum):
    """What a customer did. The numbers are stored in the journal: never renumber."""

    VIEW = 0
    SEARCH = 1
    CART_ADD = 2
    CART_REMOVE = 3
    CHECKOUT = 4
    ORDER = 5
    REFUND = 6
    OTHER = 7


KINDS: Mapping[str, Kind] = {
    "Product Viewed": Kind.VIEW,
    "Viewed Product": Kind.VIEW,
    "Product Clicked": Kind.VIEW,
    "Product List Viewed": Kind.VIEW,
    "Viewed Product Category": Kind.VIEW,
    "Products Searched": Kind.SEARCH,
    "Product Added": Kind.CART_ADD,
    "Added Product": Kind.CART_ADD,
    "Product Removed": Kind.CART_REMOVE,
    "Removed Product": Kind.CART_REMOVE,
    "Checkout Started": Kind.CHECKOUT,
    "Checkout Step Viewed": Kind.CHECKOUT,
    "Checkout Step Completed": Kind.CHECKOUT,
    "Payment Info Entered": Kind.CHECKOUT,
    "Order Completed": Kind.ORDER,
    "Completed Order": Kind.ORDER,
    "Order Refunded": Kind.REFUND,
}
"""Segment's e-commerce names, versions 2 and 1. Any other name is `Kind.OTHER` and keeps its name."""

WITH_MONEY = (Kind.ORDER, Kind.REFUND)


class Event(NamedTuple):
    """One accepted act of one customer.

    `time_ms` is when it happened (epoch ms, skew corrected, never far ahead of the broker's clock);
    `message_hash` and `order_hash` are fingerprints of the ids, 0 where the event carries none;
    `amount_minor` is int64 minor units of the application's currency, None where the event carries no usable amount;
    `items` is the number of pieces; `categories` are the products' categories, as sent; `history` says that the record
    was marked as one of the past.
    """

    kind: Kind
    name: str
    customer: str
    anonymous: bool
    message_id: str | None
    message_hash: int
    time_ms: int
    clamped: bool
    order_hash: int
    amount_minor: int | None
    items: int
    categories: tuple[str, ...]
    history: bool = False


_make_event: Callable[[tuple[Any, ...]], Event] = partial(tuple.__new__, Event)  # see `make_record`


class Forget(NamedTuple):
    """Somebody asked for a customer to be forgotten."""

    customer: str


@dataclass(frozen=True, slots=True)
class EventRules:
    """What decoding depends on besides the record.

    >>> EventRules("USD", {"EUR": 1.08}).minor(10, "EUR")
    1080
    >>> EventRules("JPY").minor(1200, None)
    1200
    >>> EventRules("USD").minor(10, "EUR") is None
    True
    """

    currency: str
    rates: Mapping[str, float] = field(default_factory=dict)
    """One unit of each other currency in units of `currency`; amounts in a currency not named here count as missing."""
    max_ahead_ms: int = 300_000
    """An event time further ahead of the record's timestamp than this is clamped to that timestamp."""

    def minor(self, amount: float, currency: str | None) -> int | None:
        """`amount` in minor units of the application's currency; None where no rate is known.

        Raises:
            InvalidEvent: it is more than `MAX_MINOR`.
        """
        if currency is not None and currency != self.currency:
            rate = self.rates.get(currency)
            if rate is None:
                return None
            amount *= rate
        minor = amount * float(10 ** minor_digits(self.currency))
        if minor > MAX_MINOR:
            raise InvalidEvent("invalid_amount", f"the amount is {minor:g} minor units; send at most {MAX_MINOR}")
        return round(minor)


def minor_digits(currency: str) -> int:
    """Decimal places of a currency (ISO 4217).

    >>> minor_digits("USD"), minor_digits("JPY"), minor_digits("BHD")
    (2, 0, 3)
    """
    if currency in {"BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF"}:
        return 0
    if currency in {"XOF", "XPF"}:
        return 0
    return 3 if currency in {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"} else 2


def decode(record: Record, rules: EventRules) -> Event:
    """The event in a record.

    Raises:
        InvalidEvent: the record cannot be used; `reason` and `detail` go into the dead letter's headers.
    """
    if record.value is None:
        raise InvalidEvent("empty", "the record has no value; send the event as JSON in the record's value")
    try:
        body = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise InvalidEvent("undecodable", f"{error}; send one JSON object in UTF-8 a record") from None
    if type(body) is not dict:
        raise InvalidEvent("not_an_object", f"found {_shown(body)}; send one JSON object a record")
    customer, anonymous = _customer(body)
    kind, name = _kind(body)
    time_ms, clamped = _time(body, record, rules)
    properties = body.get("properties")
    if type(properties) is not dict:
        properties = {}
    products = _products(properties)
    order_id, amount = None, None
    if kind in WITH_MONEY:
        order_id = _identifier(properties, "order_id", "properties.") or _identifier(
            properties, "orderId", "properties."
        )
        amount = _amount(properties, products, rules)
    items, categories = _contents(properties, products)
    message_id = _identifier(body, "messageId")
    return _make_event(
        (
            kind,
            name,
            customer,
            anonymous,
            message_id,
            fingerprint(message_id) if message_id else 0,
            time_ms,
            clamped,
            fingerprint(order_id) if order_id else 0,
            amount,
            items,
            categories,
            bool(record.headers) and any(name == HISTORY_HEADER for name, _ in record.headers),
        )
    )


def forget_of(record: Record) -> Forget | None:
    """Whom the record asks to forget; None = it is no such order.

    Raises:
        InvalidEvent: it is one, and its key is no customer id.
    """
    if not record.headers or all(name != FORGET_HEADER for name, _ in record.headers):
        return None
    try:
        customer = (record.key or b"").decode()
    except UnicodeDecodeError:
        customer = ""
    if not customer or len(customer) > len(ANONYMOUS) + MAX_ID_CHARS:
        raise InvalidEvent("no_customer", f"a record with the header {FORGET_HEADER} needs a customer id as its key")
    return Forget(customer)


def fingerprint(text: str) -> int:
    """A stable 64-bit hash, never 0: the form in which message and order ids lie in a row.

    >>> fingerprint("m-1") == fingerprint("m-1") != fingerprint("m-2")
    True
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:  # JSON may nest deeper than Python can write it
        text = "nested too deeply to be shown"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _identifier(body: Mapping[str, Any], name: str, path: str = "") -> str | None:
    value = body.get(name)
    if type(value) is str and 0 < len(value) <= MAX_ID_CHARS and value.isprintable():
        return value
    if value is None or value == "":
        return None
    if type(value) is int:
        value = str(value)
    if type(value) is not str:
        raise InvalidEvent("invalid_field", f"{path}{name} is {_shown(value)}; send a string")
    if len(value) > MAX_ID_CHARS or not value.isprintable():
        raise InvalidEvent(
            "invalid_field",
            f"{path}{name} is {_shown(value)} of {len(value)} characters; "
            f"send at most {MAX_ID_CHARS} printable characters",
        )
    return value


def _customer(body: Mapping[str, Any]) -> tuple[str, bool]:
    user = _identifier(body, "userId")
    if user is not None:
        return user, user.startswith(ANONYMOUS)
    anonymous = _identifier(body, "anonymousId")
    if anonymous is None:
        raise InvalidEvent("no_customer", "neither userId nor anonymousId is set; send one of them")
    return ANONYMOUS + anonymous, True


def _kind(body: Mapping[str, Any]) -> tuple[Kind, str]:
    name = body.get("event")
    if type(name) is str and (known := KINDS.get(name)) is not None:
        return known, name
    if name is None or name == "":
        name = body.get("type") or body.get("action") or "unnamed"
    if type(name) is not str or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InvalidEvent(
            "invalid_field", f"event is {_shown(name)}; send a name of at most {MAX_NAME_CHARS} printable characters"
        )
    return KINDS.get(name, Kind.OTHER), name


def _time(body: Mapping[str, Any], record: Record, rules: EventRules) -> tuple[int, bool]:
    """Event time and whether it was clamped.

    A collector that sets `originalTimestamp` has corrected `timestamp` for the client's skew already; where only
    `sentAt` and `receivedAt` came along, Segment's formula is applied here
    (https://segment.com/docs/connections/spec/common/#timestamps).
    """
    time_ms = _instant(body, "timestamp")
    if time_ms is None:
        time_ms = _instant(body, "originalTimestamp")
    elif body.get("sentAt") and body.get("receivedAt") and body.get("originalTimestamp") is None:
        time_ms += (_instant(body, "receivedAt") or 0) - (_instant(body, "sentAt") or 0)
    dated = EARLIEST_MS <= record.timestamp_ms <= LATEST_MS
    if dated and (time_ms is None or time_ms > record.timestamp_ms + rules.max_ahead_ms):
        return record.timestamp_ms, time_ms is not None
    if time_ms is None:
        raise InvalidEvent("invalid_time", "neither the event nor its record has a time; send a timestamp")
    if not EARLIEST_MS <= time_ms <= LATEST_MS:
        raise InvalidEvent(
            "invalid_time", f"the event's time is {time_ms} ms, outside 1990 to 2100; correct the sender's clock"
        )
    return time_ms, False


def _instant(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or value == "":
        return None
    if type(value) is str:
        if len(value) <= 40:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                pass
            else:
                since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
                return (since.days * 86_400 + since.seconds) * 1000 + (since.microseconds + 500) // 1000
    elif (type(value) is int or (type(value) is float and value.is_integer())) and abs(value) < 10**15:
        return int(value)
    raise InvalidEvent(
        "invalid_time", f"{name} is {_shown(value)}; send ISO 8601 such as 2026-03-02T09:15:00Z, or epoch milliseconds"
    )


def _products(properties: dict[str, Any]) -> list[dict[str, Any]]:
    products = properties.get("products")
    if products is None:
        return [properties] if "product_id" in properties or "sku" in properties else []
    if type(products) is not list or len(products) > MAX_PRODUCTS:
        raise InvalidEvent(
            "invalid_field", f"properties.products is {_shown(products)}; send an array of at most {MAX_PRODUCTS}"
        )
    return [product for product in products if type(product) is dict]


def _number(value: object) -> float | None:
    if type(value) is float or type(value) is int:
        return float(value)
    if type(value) is str and len(value) <= 40 and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _amount(properties: Mapping[str, Any], products: list[dict[str, Any]], rules: EventRules) -> int | None:
    """`revenue`, else `subtotal`, else `total`, else the products' price × quantity; None where none is usable."""
    amount = None
    for name in ("revenue", "subtotal", "total"):
        if properties.get(name) is not None:
            amount = _number(properties[name])
            if amount is None or not abs(amount) < MAX_MINOR / 1000 or amount < 0:
                raise InvalidEvent(
                    "invalid_amount",
                    f"properties.{name} is {_shown(properties[name])}; send a number from 0 to {MAX_MINOR // 1000}"
                    " (money back is an Order Refunded event)",
                )
            break
    else:
        prices = [(_number(product.get("price")), _amount_of(product)) for product in products]
        if prices and all(price is not None and 0 <= price < MAX_MINOR / 1000 for price, _ in prices):
            amount = sum((price or 0.0) * quantity for price, quantity in prices)
    if amount is None:
        return None
    currency = properties.get("currency")
    if currency is not None and type(currency) is not str:
        raise InvalidEvent("invalid_field", f"properties.currency is {_shown(currency)}; send a code such as EUR")
    return rules.minor(amount, currency.strip().upper() if currency else None)


def _amount_of(product: Mapping[str, Any]) -> float:
    """The quantity that a price is multiplied with: pieces, or a weight or volume; 1 where none is sent."""
    quantity = _number(product.get("quantity"))
    return quantity if quantity is not None and 0 <= quantity < MAX_MINOR / 1000 else 1.0


def _contents(properties: Mapping[str, Any], products: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    """Pieces, and categories, each once.

    A quantity of thousands is a weight or a volume in small units (thousandths of a gallon of petrol).
    """
    items = 0
    found: dict[str, None] = {}
    for product in products or (properties,):
        quantity = product.get("quantity")
        pieces = quantity if quantity is None or type(quantity) is int else _number(quantity)
        items += int(pieces) if pieces is not None and 1 <= pieces < 1_000 else 1
        name = product.get("category")
        if type(name) is str and name:
            found[name[:MAX_NAME_CHARS]] = None
    return items if products else 0, tuple(found)
