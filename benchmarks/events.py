"""A made-up day of a shop's clickstream: what the benchmarks feed to Driftline, to its peers and to the floor.

Mostly views, as a shop's events are. The left column is what `python -m benchmarks.events` prints, the right one was
counted in the public log of REES46 (1 October 2019, 17,435 events of a few hours):

| | here | REES46 |
|---|---|---|
| events a session: mean, median, 90 %, 99 % | 4.1, 2, 9, 25 | 3.4, 2, 8, 21 |
| seconds between two events of a session: median, mean | 34, 84 | 33, 56 |
| events of the busiest 1 % of the customers | 13 % | 8 % |
| views and searches | 92 % | 98 % (carts logged in part, checkouts and searches not at all) |
| events per order | 54 | 87 |
| bytes an event | 617 of JSON | a row of a table |
"""

import argparse
import hashlib
import math
import random
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from statistics import mean, median, quantiles
from typing import Any

import orjson

from stream.events import Record

START_MS = 1_772_409_600_000  # Monday 2026-03-02, 00:00 UTC
DAY_MS = 86_400_000
CUSTOMERS = 20_000
ZIPF = 0.6
"""The customer of rank r comes as often as r to the power of minus this: the busiest hundredth sends an eighth."""
HOURS = (2, 1, 1, 1, 1, 2, 3, 5, 7, 8, 9, 9, 9, 9, 8, 8, 8, 9, 11, 13, 14, 12, 8, 4)
"""How many sessions begin in each hour, in proportion."""
CATEGORIES = ("shoes", "coats", "bags", "toys", "books", "garden", "kitchen", "phones", "audio", "sports")
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/134.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 "
    "Mobile/15E148 Safari/604.1",
)


def clicks(events: int, customers: int = CUSTOMERS, days: int = 1, seed: int = 1) -> list[Record]:
    """So many events of a day, or of several, in order of time, each the JSON that analytics.js sends.

    The same arguments give the same events; more of them make a busier day. Offsets are left to whoever stores them.
    """
    draw = random.Random(seed)
    ranks = list(accumulate((rank + 1) ** -ZIPF for rank in range(customers)))
    made: list[tuple[int, int, bytes, bytes]] = []
    while len(made) < events:
        customer = bisect(ranks, draw.random() * ranks[-1])
        hour = 24 * draw.randrange(days) + draw.choices(range(24), HOURS)[0]
        for time_ms, name, properties in _session(draw, START_MS + round((hour + draw.random()) * DAY_MS / 24)):
            made.append((time_ms, len(made), *_record(customer, time_ms, len(made), name, properties)))
    made.sort()  # two of the same millisecond stay in the order they were made in
    return [Record("clickstream", 0, 0, time_ms, key, value) for time_ms, _, key, value in made[:events]]


def _session(draw: random.Random, time_ms: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Looks, now and then a cart, half of the carts an order."""
    cart: list[dict[str, Any]] = []
    for _ in range(max(1, round(draw.lognormvariate(0.68, 0.98)))):
        product = _product(draw)
        kind = draw.random()
        if kind < 0.10:
            yield time_ms, "Products Searched", {"query": product["name"]}
        elif kind < 0.22:
            yield time_ms, "Product List Viewed", {"list_id": product["category"], "category": product["category"]}
        else:
            yield time_ms, "Product Viewed", product
            if draw.random() < 0.06:
                time_ms += _pause_ms(draw)
                cart.append(product | {"quantity": 1 + (draw.random() < 0.15)})
                yield time_ms, "Product Added", cart[-1]
        time_ms += _pause_ms(draw)
    if cart and draw.random() < 0.5:
        revenue = round(sum(one["price"] * one["quantity"] for one in cart), 2)
        order = {"revenue": revenue, "currency": "USD", "products": cart}
        yield time_ms, "Checkout Started", order
        order_id = f"{draw.getrandbits(40):010x}"
        yield time_ms + _pause_ms(draw), "Order Completed", {"order_id": order_id, "shipping": 4.9, **order}


def _pause_ms(draw: random.Random) -> int:
    return round(1000 * draw.lognormvariate(3.5, 1.02))


def _product(draw: random.Random) -> dict[str, Any]:
    number = int(6_000 * draw.random() ** 2)
    category = CATEGORIES[number % len(CATEGORIES)]
    price = round(math.exp(2.5 + number * 0.618 % 1 * 2.5), 2)
    return {"product_id": f"p-{number}", "name": f"{category} no. {number}", "category": category, "price": price}


def _record(customer: int, time_ms: int, number: int, name: str, properties: dict[str, Any]) -> tuple[bytes, bytes]:
    at = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    user = f"c-{customer:06}"
    path = f"/{properties.get('category', 'search')}/{properties.get('product_id', '')}"
    body = {
        "type": "track",
        "event": name,
        "messageId": f"ajs-next-{time_ms}-{hashlib.blake2b(b'%d' % number, digest_size=8).hexdigest()}",
        "userId": user,
        "anonymousId": hashlib.blake2b(user.encode(), digest_size=16).hexdigest(),
        "timestamp": at,
        "properties": properties,
        "context": {
            "library": {"name": "analytics.js", "version": "next-1.77.0"},
            "page": {"path": path, "url": f"https://shop.example{path}", "title": "Shop", "referrer": ""},
            "userAgent": AGENTS[customer % len(AGENTS)],
            "locale": "en-GB",
        },
    }
    return user.encode(), orjson.dumps(body)


def main() -> None:
    """Print what the docstring states."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--events", type=int, default=100_000)
    records = clicks(parser.parse_args().events)
    times: dict[bytes, list[int]] = {}
    for record in records:
        times.setdefault(record.key or b"", []).append(record.timestamp_ms)
    names = Counter(orjson.loads(record.value or b"")["event"] for record in records)
    sizes, pauses = [], []
    for mine in times.values():
        sizes.append(1)
        for before, after in pairwise(mine):
            if after - before > 30 * 60_000:
                sizes.append(1)
            else:
                sizes[-1] += 1
                pauses.append((after - before) / 1000)
    cuts = quantiles(sizes, n=100)
    busiest = sorted(map(len, times.values()), reverse=True)[: len(times) // 100]
    looks = names["Product Viewed"] + names["Product List Viewed"] + names["Products Searched"]
    print(f"events a session: {mean(sizes):.1f}, {median(sizes):.0f}, {cuts[89]:.0f}, {cuts[98]:.0f}")
    print(f"seconds between two of a session: {median(pauses):.0f}, {mean(pauses):.0f}")
    print(f"share of the busiest 1 % of {len(times):,} customers: {sum(busiest) / len(records):.1%}")
    print(f"views and searches: {looks / len(records):.1%}")
    print(f"events per order: {len(records) / names['Order Completed']:.0f}")
    print(f"bytes: {mean(len(record.value or b'') for record in records):.0f}")


if __name__ == "__main__":
    main()
