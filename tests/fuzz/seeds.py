"""Where fuzzing begins: real values, made by the code that writes them, and some that are known to be hard."""

from dataclasses import replace
from functools import cache

import numpy as np
import orjson
from kafka.record.default_records import DefaultRecordBatchBuilder

from stream import adapters
from stream.events import (
    FORGET_HEADER,
    HISTORY_HEADER,
)
from stream.ports import Marker
from stream.processing import journal, sections
from stream.processing.customer import DAY_MS, ROW, ROWS, as_written, blank
from stream.processing.version import Version, to_bytes
from tests.builders import NOW, Run, body, fold, iso, order, run, shop
from tests.builders import settings as small_settings
from tests.fuzz.mutations import FIELD, RECORD

LONG = 1_000_000


def event_seeds() -> list[bytes]:
    product = {"product_id": "p", "category": "toys", "price": "9.50", "quantity": 2}
    bodies = [
        body(),
        body(
            "Order Completed",
            properties={"order_id": "o-7", "total": 20, "currency": "EUR", "products": [product, product]},
        ),
        body("Order Refunded", properties={"orderId": 7, "total": "4.10"}),
        body("Products Searched", userId=..., anonymousId="a-1"),
        body("Product Added", properties=product, originalTimestamp=iso(NOW - 5), sentAt=iso(NOW), receivedAt=NOW),
        body(timestamp=..., originalTimestamp=NOW + DAY_MS, userId=12345678901234567890),
        {"type": "identify", "userId": "Zoë", "timestamp": "2024-02-29T23:59:59+05:30", "context": {"ip": "::1"}},
        {"action": "page", "user_pseudo_id": "1.2", "event_timestamp": "1700000000000000", "event_name": "purchase"},
    ]
    values = [orjson.dumps(one) for one in bodies]
    marked = [
        FIELD.join((values[1], b"c-1", HISTORY_HEADER.encode(), b"1")),
        FIELD.join((values[0], b"c-1", b"x", b"", b"0")),
    ]
    asked = [
        FIELD.join((b"\0", key, FORGET_HEADER.encode(), b"1")) for key in (b"c-1", b"\xff", b"", b"c\0d", b"x" * 206)
    ]
    return [
        *values,
        *marked,
        *asked,
        b"",
        b"\0",
        b"[]",
        b"{",
        "ÿ".encode("utf-16"),
        orjson.dumps(bodies[0]).decode().encode("utf-16"),
    ]


def large_events() -> list[bytes]:
    """Megabytes in each place, and depth no stack holds."""
    deep = b"[" * LONG + b"]" * LONG
    fields = [
        b"userId",
        b"anonymousId",
        b"messageId",
        b"event",
        b"timestamp",
        b"type",
        b"properties",
        b"context",
        b"x" * LONG,
    ]
    nests = [
        b"{" + b'"userId":"c","%s":' % name + raw + b"}"
        for name in fields
        for raw in (b'"' + b"x" * LONG + b'"', deep, b"9" * LONG, b"[" * 900 + b"]" * 900)
    ]
    products = [
        b'{"userId":"c","event":"Order Completed","properties":{"products":['
        + b",".join([b'{"price":1,"quantity":999}'] * n)
        + b"]}}"
        for n in (1_000, 50_000)
    ]
    return [*nests, *products, deep, b'{"a":' * LONG, b"{}" * LONG, b"\xff" * LONG]


@cache
def rehearsed() -> Run:
    """A small shop run once: its journal, and models that are ready."""
    return run(small_settings(models={"first_customers": 50, "min_labels": 20, "horizon_days": 7.0}), shop(60, 90))


@cache
def ready() -> Version:
    return rehearsed().versions[max(rehearsed().versions)]


@cache
def stored() -> dict[str, bytes]:
    """Two customers of the shop under the ids of the seeds."""
    rows: dict[str, bytes] = {}
    for result in rehearsed().results:
        fold(rows, result.entry)
    return {"c-1": rows["c-001"], "anon:a-1": rows["c-003"]}


def tick_seeds() -> list[bytes]:
    seeds = event_seeds()
    early = orjson.dumps(order(10, "o-2", NOW - 400 * DAY_MS, messageId="m-9"))
    again = [orjson.dumps(order(5 + i, f"o-{i}", NOW + i * DAY_MS, messageId=f"m-{i}")) for i in range(12)]
    return [
        b"1" + RECORD.join(seeds[:8]),
        b"2" + RECORD.join(seeds[:8]),
        b"1" + RECORD.join(seeds[8:]),
        b"1" + RECORD.join([*again, early]),
        b"2" + RECORD.join([*again[:3], seeds[10], *again[3:6], *seeds[:3]]),
        b"1",
    ]


def journal_seeds() -> list[bytes]:
    entries = [result.entry for result in rehearsed().results]
    small = sorted(entries, key=lambda entry: len(journal.encode(entry)))[:3]
    labelled = min((entry for entry in entries if len(entry.label_who)), key=lambda entry: len(journal.encode(entry)))
    older = [replace(labelled.state, schema=schema) for schema in (1, 2)]
    seeds = [
        journal.encode(entry) for entry in (*small, labelled, *(labelled._replace(state=state) for state in older))
    ]
    alerting = min((entry for entry in entries if entry.alerts), key=lambda entry: len(journal.encode(entry)))
    rewound = small[0]._replace(code="rewind 2/5")
    newer = {**sections.unpack_header(seeds[0]), "v": 4}
    return [*seeds, journal.encode(alerting), journal.encode(rewound), sections.pack(newer, {}), b"DL02", b"DL01", b""]


def chunk_seeds() -> list[bytes]:
    def of(*places: bytes) -> bytes:
        return RECORD.join(b"ab" + FIELD + place for place in places)

    return [
        b"ab",
        of(b"0/1"),
        of(b"0/2", b"1/2"),
        of(b"1/2", b"0/3", b"1/3", b"2/3"),
        of(b"x", b"0/-1", b"/", b"0/9" + b"9" * 5_000),
    ]


def model_topic_seeds() -> list[bytes]:
    def of(*records: tuple[bytes, bytes, bytes]) -> bytes:
        return RECORD.join(FIELD.join(one) for one in records)

    chunks = [(b"version/00000003/%d" % i, b"%d/3" % i, b"%d" % i) for i in range(3)]
    return [
        of((b"version/00000003", b"0/1", b"*"), (b"config/abc", b"", b"{}")),
        of(*chunks),
        of(chunks[1], chunks[0], *chunks),
        of((b"version/x", b"0/1", b"*")),
        of((b"\xff", b"", b"")),
        of((b"version/1", b"", b"*")),
        of(chunks[0], (b"version/00000003", b"", b"")),
    ]


@cache
def snapshot() -> bytes:
    """A small version: its models have not begun, or hold little."""
    first = min(number for number in rehearsed().versions if number > 0)
    return to_bytes(rehearsed().versions[first], {"code": 1})


def model_version_seeds() -> list[bytes]:
    whole = snapshot()
    return [whole, whole[: len(whole) // 2], whole[:100], b"DL01" + b"\xff" * 8]


def row_seeds() -> list[bytes]:
    rows = np.concatenate([np.frombuffer(one, ROW) for one in stored().values()] + [blank(1)])
    seeds = [
        schema.to_bytes(2, "little") + as_written(rows[i : i + 1], schema).tobytes()
        for schema in ROWS
        for i in range(3)
    ]
    ones = [schema.to_bytes(2, "little") + b"\xff" * ROWS[schema].itemsize for schema in ROWS]
    return [*seeds, *ones, b"\4\0" + seeds[-1][2:], seeds[0][:-1], seeds[0] + b"\0", b"", b"\1"]


def written(marker: Marker) -> bytes:
    """As the store writes it."""
    return orjson.dumps(
        {
            "state": marker.state.to_json(),
            "generation": marker.generation,
            "journal_offset": marker.journal_offset,
            "partitions": marker.partitions,
        }
    )


def marker_seeds() -> list[bytes]:
    states = [
        rehearsed().results[-1].entry.state,
        *(replace(journal.TaskState(), schema=schema) for schema in (1, 2, 3)),
    ]
    return [*(written(Marker(state, 4, 17, 2)) for state in states), b"{}", b"[]", b"", b'{"state":{"schema":4}}']


def stamp_seeds() -> list[bytes]:
    stamp = b'{"seq":7,"inc":1}'
    return [
        stamp,
        stamp + FIELD + stamp,
        stamp + FIELD,
        b"",
        b'{"seq":"7","inc":1}',
        b"[]",
        b"7",
        b'{"seq":7}',
        b"\xff",
    ]


def batch_seeds() -> list[bytes]:
    headers = [("driftline-forget", b"1"), ("ü", b"")]
    found = []
    for number in (1, 3):
        builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1_000_000)
        for i in range(number):
            builder.append(i, NOW + i, (None, b"c-1")[i % 2], (None, b"{}", b"x" * 300)[i % 3], headers[: i % 3])
        found.append(bytes(builder.build()))
    return found


def file_seeds() -> list[bytes]:
    lines = b"\n".join(event_seeds()[:8])
    cdnow = b"customer_id,date,quantity,amount\n1,1997-01-01,1,11.77\n2,01/12/1997 10:30,5,77.00\n2,1997-01-12,-1,-5\n"
    basket = (
        b"household_id,basket_id,sales_value,quantity,transaction_timestamp,category\n"
        b"h1,7,1.5,2,2017-01-01 10:00:00 UTC,a\nh1,7,2.5,1,2017-01-01 10:00:00 UTC,b\n"
        b"h2,8,1e400,x,1483264800,\n"
    )
    log = (
        b"timestamp\tvisitorid\tevent\titemid\ttransactionid\n"
        b"1433221332117\t257597\tview\t355908\t\n1433221332118\t257597\ttransaction\t1\t2\n"
    )
    return [
        b"\0" + lines,
        b"\0" + adapters.BOM + lines + b"\r\n\r\n",
        b"\1" + cdnow,
        b"\1" + basket,
        b"\2" + log,
        b'\1userid,time\n"a',
        b"\1",
        b"\1\xff\xfe",
        b"\1time,userid\n" + b"x" * 140_000 + b",1",
    ]


def large_files() -> list[bytes]:
    return [b"\0" + one for one in large_events()[::5]] + [
        b"\1userid,time\n" + b"x" * LONG + b",1",
        b"\1" + b"userid,time," * 50_000 + b"\n1,2\n",
    ]


def configuration_seeds() -> list[bytes]:
    whole = (
        b'[application]\nname = "my-shop"\ncurrency = "EUR"\nrates = {USD = 0.93}\n'
        b"[kafka]\nsession_timeout_s = 10\n"
        b'[redis]\nurl = "redis://u:p@127.0.0.1:6379/0"\n[tick]\nmax_events = 2_000\n'
        b"[journal]\nschema_version = 2\n[alerts]\nchurn_enter = 0.6\n"
    )
    environment = [
        b"DRIFTLINE_APPLICATION__NAME=x",
        b'DRIFTLINE_APPLICATION__RATES={"EUR":1.08}',
        b"DRIFTLINE_HTTP__PORT=0",
        b"DRIFTLINE_KAFKA__SASL_PASSWORD=\xff",
        b"DRIFTLINE_REDIS__URL=rediss://h",
        b"DRIFTLINE_TICK__MAX_EVENTS=1e3",
    ]
    hostile = [
        b"a = " + b"[" * 3_000,
        b"a = " + b"{a=" * 3_000,
        b"[tick]\nmax_events = " + b"9" * 5_000,
        b"x" + b".x" * 3_000 + b" = 1",
        b"application = 3",
        b"[[application]]",
        b"[application]\nname = '\xff'",
        b"[application]\nrates = 1979-05-27",
        b"[tick]\nmax_events = 1e400",
        b"[models]\nseed = 0x" + b"f" * 4_000,
        b"[application]\nname = {a = 1}",
        b"\xef\xbb\xbf[tick]",
    ]
    return [
        whole,
        FIELD.join((whole, *environment)),
        *hostile,
        *(FIELD + one for one in environment),
        FIELD + b"DRIFTLINE_TICK_MAX_EVENTS=1",
        FIELD + b"DRIFTLINE_APPLICATION=1",
        FIELD + b"DRIFTLINE___=1",
        FIELD + b"DRIFTLINE_TICK__=1",
    ]


def large_configurations() -> list[bytes]:
    return [
        b"a = " + b"[" * LONG,
        b"a = '" + b"x" * LONG + b"'",
        b"[application]\nname = '" + b"x" * LONG + b"'",
        b"[" + b"a." * 200_000 + b"a]",
        b"[tick]\nmax_events = " + b"9" * LONG,
    ]
