"""A synthetic shop on the real broker: seeded, and with what must come of it counted while it is made up.

What is expected is counted here, by the one who lives the customers' lives, never by the code under test.
"""

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from kafka import KafkaProducer
from kafka.partitioner.default import murmur2
from kafka.serializer import Serializer

DAY_MS, HOUR_MS, MINUTE_MS = 86_400_000, 3_600_000, 60_000
Headers = tuple[tuple[str, bytes], ...]


class Sent(NamedTuple):
    """One record as the shop sends it; `time_ms` orders the sending, `reason` is set where it cannot be used."""

    time_ms: int
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    reason: str | None = None


class Counts(NamedTuple):
    """What Driftline must know of a customer in the end."""

    events: int = 0
    orders: int = 0
    spend_minor: int = 0


class Bad(NamedTuple):
    """A record that must become a dead letter, and why."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str


class _Null(Serializer):
    """The client refuses a record with neither key nor value; through a serializer it sends one."""

    STANDS_FOR = b"<null>"

    def serialize(self, topic: str, headers: Any, data: bytes) -> bytes | None:  # noqa: ARG002  as the client calls it
        return None if data == self.STANDS_FOR else data


@dataclass
class Shop:
    """`customers` who live for `days` until now (or until `days_ago`), and what their lives come to.

    `fed` is how many of `records` a topic has been given; customers and bad records are counted as they are fed.
    """

    clickstream: str
    purchases: str
    partitions: int = 3
    customers: int = 75
    days: float = 11.0
    days_ago: float = 0.0
    seed: int = 7
    garbage: bool = True
    now_ms: int | None = None
    records: list[Sent] = field(default_factory=list)
    fed: int = 0
    counts: dict[str, Counts] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    _offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    _gains: dict[int, tuple[str, Counts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        self._now_ms = self.now_ms or time.time_ns() // 1_000_000 - MINUTE_MS - round(self.days_ago * DAY_MS)
        self._made: list[tuple[Sent, tuple[str, Counts] | None]] = []
        for number in range(self.customers):
            self._live(number, draw)
        for number in range(self.customers // 4):
            self._visit(f"v-{number}", self._some_time(draw), 1 + draw.randrange(5))
        if self.garbage:
            self._litter(draw)
        self._made.sort(key=lambda one: one[0].time_ms)  # stable: a repeated message stays behind the first
        self.records = [sent for sent, _ in self._made]

    def hold_back(self, topic: str, by_ms: int) -> None:
        """Send what goes to a topic so much later than the rest."""
        self._made.sort(key=lambda one: one[0].time_ms + (by_ms if one[0].topic == topic else 0))
        self.records = [sent for sent, _ in self._made]

    def lose_orders(self, days: float) -> None:
        """Of the last days no order was ever sent."""
        lost_ms = self._now_ms - round(days * DAY_MS)
        self._made = [
            one for one in self._made if one[0].time_ms < lost_ms or b'"event":"Order ' not in (one[0].value or b"")
        ]
        self.records = [sent for sent, _ in self._made]

    def feed(self, bootstrap: str, until: float = 1.0) -> None:
        """Send what comes before this share of the records, and count it."""
        producer = KafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            linger_ms=20,
            value_serializer=_Null(),
        )
        try:
            sent = []
            for one in self.next(round(len(self.records) * until) - self.fed):
                value = _Null.STANDS_FOR if one.value is None else one.value
                sent.append((one, producer.send(one.topic, value, one.key, list(one.headers), one.partition)))
            producer.flush()
            for one, future in sent:
                assert future.get(10).partition == one.partition
        finally:
            producer.close()

    def next(self, count: int) -> list[Sent]:
        """The next records to be sent, counted as if they had been."""
        made = self._made[self.fed : self.fed + count]
        for one, gain in made:
            self._count(one, gain)
        self.fed += len(made)
        return [one for one, _ in made]

    def send(self, bootstrap: str, sent: Sent, gain: tuple[str, Counts] | None, **producer: Any) -> None:
        """Send a record of the test's own making, and count it: `gain` is whose it is and what it adds."""
        client = KafkaProducer(bootstrap_servers=bootstrap, acks="all", **producer)
        try:
            client.send(sent.topic, sent.value, sent.key, list(sent.headers), sent.partition).get(20)
        finally:
            client.close()
        self._count(sent, gain)

    def ends(self) -> dict[tuple[str, int], int]:
        """The next offset of each input partition."""
        return {
            (topic, partition): self._offsets.get((topic, partition), 0)
            for topic in (self.clickstream, self.purchases)
            for partition in range(self.partitions)
        }

    def place(self, key: str) -> int:
        """Where Kafka's own partitioner puts a key."""
        return (murmur2(key.encode()) & 0x7FFFFFFF) % self.partitions

    def _count(self, sent: Sent, gain: tuple[str, Counts] | None) -> None:
        place = (sent.topic, sent.partition)
        offset = self._offsets.get(place, 0)
        self._offsets[place] = offset + 1
        if sent.reason is not None:
            self.bad.append(Bad(*place, offset, sent.key, sent.value, sent.headers, sent.reason))
        if gain is not None:
            customer, more = gain
            before = self.counts.get(customer, Counts())
            self.counts[customer] = Counts(*(a + b for a, b in zip(before, more, strict=True)))

    def _add(
        self, topic: str, customer: str, body: dict[str, Any], gain: Counts | None, time_ms: int, key: str | None = None
    ) -> None:
        key = customer if key is None else key
        headers = (("source", b"shop"),)
        sent = Sent(time_ms, topic, self.place(key), key.encode(), orjson.dumps(body), headers)
        self._made.append((sent, None if gain is None else (customer, gain)))

    def _live(self, number: int, draw: random.Random) -> None:
        """Buy every so often, look before, put into the cart; some leave, some change, some are double-minded."""
        customer = f"c-{number:03}"
        gap_days = (1.0, 2.0, 4.0)[number % 3] * draw.uniform(0.8, 1.2)
        cents = (1_500, 6_000, 22_000)[number % 3]
        leaves_on = self.days * draw.uniform(0.4, 0.8) if number % 5 == 0 else self.days
        day, visit = draw.uniform(0, gap_days), 0
        while day < leaves_on:
            at = self._now_ms - round((self.days - day) * DAY_MS)
            name = f"{customer}/{visit}"
            for view in range(1 + number % 3):
                seen = at - (view + 1) * MINUTE_MS
                body = self._body("Product Viewed", f"{name}/v{view}", seen, userId=customer)
                body["properties"] = {"product_id": f"p{view}", "category": ("bread", "wine", "toys")[number % 3]}
                self._add(self.clickstream, customer, body, Counts(1), seen)
            if draw.random() < 0.5:
                body = self._body("Product Added", f"{name}/a", at - 20_000, userId=customer)
                self._add(self.clickstream, customer, body, Counts(1), at - 20_000)
            self._buy(customer, name, at, max(100, round(cents * draw.lognormvariate(0, 0.3))), draw)
            visit += 1
            day += gap_days * draw.uniform(0.6, 1.4) / (3 if number % 7 == 1 and day > self.days / 2 else 1)

    def _buy(self, customer: str, name: str, at: int, cents: int, draw: random.Random) -> None:
        if draw.random() < 0.03:
            cents *= 40
        order = {"order_id": f"o/{name}", "revenue": cents / 100, "currency": "USD"}
        products = [{"category": draw.choice(("bread", "wine", "toys")), "quantity": 1 + cents % 3, "price": 1}]
        body = self._body("Order Completed", f"{name}/o", at, userId=customer)
        body["properties"] = order | {"products": products}
        self._add(self.purchases, customer, body, Counts(1, 1, cents), at)
        if draw.random() < 0.05:  # sent twice
            self._add(self.purchases, customer, body, None, at)
        if draw.random() < 0.05:  # told by the server and by the browser
            told = body | {"messageId": f"{name}/browser"}
            self._add(self.clickstream, customer, told, None, at)
        if draw.random() < 0.08:
            back = draw.choice((cents, cents // 4))
            refund = self._body("Order Refunded", f"{name}/r", at + 5 * MINUTE_MS, userId=customer)
            refund["properties"] = {"order_id": f"o/{name}"} | ({} if back == cents else {"total": back / 100})
            self._add(self.purchases, customer, refund, Counts(1, 0, -back), at + 5 * MINUTE_MS)

    def _visit(self, visitor: str, at: int, views: int) -> None:
        """An anonymous visit, keyed by the bare id."""
        for view in range(views):
            body = self._body("Product Viewed", f"{visitor}/{view}", at + view * MINUTE_MS, anonymousId=visitor)
            self._add(self.clickstream, f"anon:{visitor}", body, Counts(1), at + view * MINUTE_MS, key=visitor)

    def _litter(self, draw: random.Random) -> None:
        good = self._body("Order Completed", "x", self._now_ms - DAY_MS, userId="c-000")
        stray = "stray-1"
        for time_ms in (self._some_time(draw) for _ in range(3)):
            for value, reason in (
                (b"{no json", "undecodable"),
                (b"\xff\xfe\x00", "undecodable"),
                (orjson.dumps(good)[:-1] + b',"properties":{"revenue":1e999}}', "undecodable"),
                (b"[1, 2]", "not_an_object"),
                (b'{"event": "Product Viewed"}', "no_customer"),
                (None, "empty"),
                (orjson.dumps(good | {"timestamp": "yesterday"}), "invalid_time"),
                (orjson.dumps(good | {"timestamp": -5}), "invalid_time"),
                (orjson.dumps(good | {"properties": {"revenue": "1e999"}}), "invalid_amount"),
                (orjson.dumps(good | {"properties": {"revenue": -1}}), "invalid_amount"),
                (orjson.dumps(good | {"userId": ["c-000"]}), "invalid_field"),
            ):
                self._spoil(draw, time_ms, b"c-000", value, reason)
            self._spoil(draw, time_ms, None, None, "empty")
            body = orjson.dumps(self._body("Product Viewed", f"s{time_ms}", time_ms, userId=stray))
            wrong = (self.place(stray) + 1) % self.partitions
            headers = (("trace", b"\x00\x01"), ("trace", b"twice"))
            sent = Sent(time_ms, self.clickstream, wrong, stray.encode(), body, headers, "misplaced")
            self._made.append((sent, None))

    def _spoil(self, draw: random.Random, time_ms: int, key: bytes | None, value: bytes | None, reason: str) -> None:
        topic = draw.choice((self.clickstream, self.purchases))
        headers = draw.choice(((), (("source", b"broken"),)))
        sent = Sent(time_ms, topic, draw.randrange(self.partitions), key, value, headers, reason)
        self._made.append((sent, None))

    def _some_time(self, draw: random.Random) -> int:
        return self._now_ms - round(draw.uniform(0.1, 0.9) * self.days * DAY_MS)

    def _body(self, event: str, message: str, time_ms: int, **ids: Any) -> dict[str, Any]:
        at = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return {"type": "track", "event": event, "messageId": message, "timestamp": at, **ids}
