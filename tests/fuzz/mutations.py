"""What inputs are changed into: JSON by its structure, else byte by byte. A seed gives the same change again."""

import random
from collections.abc import Callable
from typing import Any

import orjson

from stream import adapters, events

FIELD, RECORD = b"\x1e", b"\x1d"
"""Between the fields of an input, and between its records: no JSON holds these bytes."""

HOSTILE: tuple[bytes, ...] = (
    *(b"null", b"true", b"0", b"-0.0", b"-1", b"1e-400", b"1e400", b"-1e308", b"NaN", b"Infinity", b"9" * 400),
    *(b"9" * 5_000, b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"4102444800001"),
    *(b'""', b'"0"', b'"1_0"', b'"nan"', b'"-inf"', b'"1e999"', b'"' + b"9" * 40 + b'"', b'" 7 "'),
    *(rb'"\u0000"', rb'"c\u0000d"', rb'"\u001b[31mred"', rb'"\u202eabc"', rb'"a\r\nb"', rb'"\ud800"', b'"\xff\xfe"'),
    *(b'"\xc3\x28"', b'"\xf0\x9f\x98\x80"', b'"' + b"x" * 201 + b'"', b'"anon:"', b'"anon:c-1"'),
    *(b'"' + "Ǆ".encode() * 200 + b'"', b"[" * 300 + b"]" * 300, b'{"a":' * 300 + b"1" + b"}" * 300, b'"24:00"'),
    *(b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59.999999-23:59"', b'"2024-02-30"', b'"20240101"'),
    *(b'"2024-W01-1"', b'"1970-01-01"', b"[]", b"{}"),
    *(b"[" * 5_000 + b"]" * 5_000, b'[{"price":1e300,"quantity":1e300}]', b'[{"quantity":-1}]', b"[null,1,[],{}]"),
)  # fmt: skip
"""Values as they stand in JSON, some of which no JSON may hold."""

WORDS: tuple[str, ...] = (
    *("type", "messageId", "userId", "anonymousId", "timestamp", "originalTimestamp", "sentAt", "receivedAt", "event"),
    *("properties", "context", "action", "order_id", "orderId", "revenue", "subtotal", "total", "currency", "products"),
    *("product_id", "sku", "price", "quantity", "category"),
    *(name for names in adapters.COLUMNS.values() for name in names),
    *events.KINDS,
    *adapters.EVENTS,
    *("v", "schema", "sections", "state", "wave", "seq", "inc", "offsets", "highs", "alerted", "stream_time_ms"),
    *("application", "task", "prev_seq", "offsets_before", "released", "model_version", "config", "code", "partitions"),
    *("sha256", "journal", "learned", "generation", "journal_offset", "rewind 1/2", "driftline-forget"),
    *("driftline-history", "driftline-chunk", "version/1/0", "config/"),
)
"""Keys and names that the code looks for: also the fuzzer's dictionary."""


def mutated(data: bytes, draw: random.Random, otherwise: Callable[[bytes], bytes] | None = None) -> bytes:
    """A changed input. Where no part of it is JSON, or now and then, `otherwise` changes bytes."""
    pieces = _pieces(data)
    places = [i for i, piece in enumerate(pieces) if piece[:1] in (b"{", b"[")]
    if not places or draw.random() < 0.2:
        return otherwise(data) if otherwise is not None else _bytes(data, draw)
    if draw.random() < 0.1:
        return _shuffled(pieces, draw)
    place = draw.choice(places)
    piece = pieces[place]
    try:
        changed = _json(orjson.loads(piece), draw)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # none, or nested deeper than the encoder goes
        return otherwise(data) if otherwise is not None else _bytes(data, draw)
    if data[:4] == b"DL01" and place == 1:  # the header of sections: its length stands before it
        pieces[0] = pieces[0][:4] + len(changed).to_bytes(4, "little")
    pieces[place] = changed
    return b"".join(pieces)


def _pieces(data: bytes) -> list[bytes]:
    """Fields, separators and lines; of a file of sections its magic, header and rest."""
    if data[:4] == b"DL01":
        end = 8 + int.from_bytes(data[4:8], "little")
        return [data[:8], data[8:end], data[end:]]
    found, last = [], 0
    for i, byte in enumerate(data):
        if byte in b"\x1e\x1d\n":
            found += [data[last:i], data[i : i + 1]]
            last = i + 1
    return [*found, data[last:]]


def _json(body: Any, draw: random.Random) -> bytes:
    """The JSON with one to three changes; a hostile value is put in as bytes, as no encoder writes it."""
    hostile: dict[str, bytes] = {}

    def value() -> Any:
        if draw.random() < 0.3:
            return draw.choice((*WORDS, draw.randrange(-5, 5), draw.getrandbits(53), draw.uniform(-1e6, 1e6)))
        name = f"@{len(hostile)}@"
        hostile[name] = draw.choice(HOSTILE)
        return name

    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        nodes: list[Any] = []
        _collect(body, nodes)
        if not nodes:
            body = value()
            break
        _change(draw.choice(nodes), value, draw)
    text = orjson.dumps(body)
    for name, raw in hostile.items():
        text = text.replace(b'"%s"' % name.encode(), raw)
    if draw.random() < 0.05 and text[:1] == b"{":  # a key twice
        text = b'{"%s":%s,' % (draw.choice(WORDS).encode(), draw.choice(HOSTILE)) + text[1:]
    return text


def _collect(body: Any, nodes: list[Any]) -> None:
    if isinstance(body, dict | list) and len(nodes) < 500:
        if body:
            nodes.append(body)
        for child in body.values() if isinstance(body, dict) else body:
            _collect(child, nodes)


def _change(node: Any, value: Callable[[], Any], draw: random.Random) -> None:
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, other, how = draw.choice(keys), draw.choice(keys), draw.randrange(6)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[draw.choice(WORDS)] = node.pop(key)
    elif how == 2:
        node[key], node[other] = node[other], node[key]
    elif how == 3 and isinstance(node, list):
        node.extend(node[:50])
    elif how == 4 and isinstance(node, dict):
        node[draw.choice(WORDS)] = value()
    elif how == 5 and isinstance(node[key], int | float):
        node[key] = node[key] + draw.choice((-1, 1, 1_000, -1_000, 10**9, 86_400_000))
    else:
        node[key] = value()


def _shuffled(pieces: list[bytes], draw: random.Random) -> bytes:
    """A piece out, twice, or in another's place."""
    first, second = draw.randrange(len(pieces)), draw.randrange(len(pieces))
    how = draw.randrange(3)
    if how == 0:
        del pieces[first]
    elif how == 1:
        pieces.insert(second, pieces[first])
    else:
        pieces[first], pieces[second] = pieces[second], pieces[first]
    return b"".join(pieces)


def _bytes(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 2, 4))):
        place, how = draw.randrange(len(changed) or 1), draw.randrange(5)
        if how == 0 and changed:
            changed[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            del changed[place : place + draw.randrange(1, 9)]
        elif how == 2:
            changed[place:place] = draw.choice((*HOSTILE, *(word.encode() for word in WORDS)))
        elif how == 3:
            changed[place : place + 1] = bytes([draw.choice((0, 0x1D, 0x1E, 0x0A, 0x22, 0x7F, 0x80, 0xFF))])
        else:
            del changed[place:]
    return bytes(changed)
