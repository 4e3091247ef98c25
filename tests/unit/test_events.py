import math
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream.errors import InvalidEvent
from stream.events import (
    EARLIEST_MS,
    KINDS,
    MAX_ID_CHARS,
    MAX_MINOR,
    MAX_PRODUCTS,
    REASONS,
    Event,
    EventRules,
    Kind,
    Record,
    decode,
    fingerprint,
)
from stream.processing.clock import read
from tests.builders import DAY_MS, NOW, RULES, body, iso, order, record


def decoded(whole: dict[str, Any], rules: EventRules = RULES, timestamp_ms: int = NOW) -> Event:
    return decode(record(whole, timestamp_ms=timestamp_ms), rules)


def refused(value: dict[str, Any] | bytes | None, rules: EventRules = RULES) -> tuple[str, str]:
    with pytest.raises(InvalidEvent) as caught:
        decode(record(value), rules)
    return caught.value.reason, caught.value.detail


def sale(**properties: Any) -> dict[str, Any]:
    return body("Order Completed", properties=properties)


# The whole event


def test_a_whole_order_becomes_an_event_field_by_field() -> None:
    products = [{"category": "toys", "quantity": 2}, {"category": "books"}, {"category": "toys"}]
    whole = sale(order_id="o-7", revenue=19.99, currency="USD", products=products)
    assert decoded(whole) == Event(
        kind=Kind.ORDER,
        name="Order Completed",
        customer="c-1",
        anonymous=False,
        message_id="m-1",
        message_hash=fingerprint("m-1"),
        time_ms=NOW,
        clamped=False,
        order_hash=fingerprint("o-7"),
        amount_minor=1999,
        items=4,
        categories=("toys", "books"),
    )


def test_unknown_fields_change_nothing() -> None:
    more = {"context": {"ip": "::1"}, "integrations": {"All": True}, "writeKey": "k", "version": 3, "anonymousId": "a"}
    assert decoded(body(**more)) == decoded(body())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Product Viewed", Kind.VIEW),
        ("Product Clicked", Kind.VIEW),
        ("Product List Viewed", Kind.VIEW),
        ("Products Searched", Kind.SEARCH),
        ("Product Added", Kind.CART_ADD),
        ("Product Removed", Kind.CART_REMOVE),
        ("Checkout Started", Kind.CHECKOUT),
        ("Checkout Step Viewed", Kind.CHECKOUT),
        ("Checkout Step Completed", Kind.CHECKOUT),
        ("Payment Info Entered", Kind.CHECKOUT),
        ("Order Completed", Kind.ORDER),
        ("Order Refunded", Kind.REFUND),
        ("Viewed Product", Kind.VIEW),
        ("Viewed Product Category", Kind.VIEW),
        ("Added Product", Kind.CART_ADD),
        ("Removed Product", Kind.CART_REMOVE),
        ("Completed Order", Kind.ORDER),
        ("Coupon Applied", Kind.OTHER),
        ("product viewed", Kind.OTHER),
    ],
)
def test_segment_names_of_both_versions_have_a_kind_and_any_other_keeps_its_name(name: str, kind: Kind) -> None:
    assert decoded(body(name))[:2] == (kind, name)


def test_every_name_that_is_known_is_one_of_the_two_versions() -> None:
    assert len(KINDS) == 17


def test_kinds_keep_the_numbers_that_the_journal_holds() -> None:
    assert [kind.name for kind in sorted(Kind)] == [
        "VIEW",
        "SEARCH",
        "CART_ADD",
        "CART_REMOVE",
        "CHECKOUT",
        "ORDER",
        "REFUND",
        "OTHER",
    ]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"event": ..., "type": "identify"}, "identify"),
        ({"event": None, "type": "page"}, "page"),
        ({"event": ..., "type": ..., "action": "track"}, "track"),
        ({"event": ..., "type": ...}, "unnamed"),
    ],
)
def test_an_event_without_a_name_is_called_by_its_type(fields: dict[str, Any], name: str) -> None:
    assert decoded(body(**fields))[:2] == (Kind.OTHER, name)


# Dead letters


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (None, "empty", ["has no value", "send"]),
        (b"", "undecodable", ["line 1 column 1", "send one JSON object"]),
        (b'{"userId":', "undecodable", ["column 11", "send one JSON object"]),
        (b'{"userId":"\xff"}', "undecodable", ["UTF-8", "send one JSON object"]),
        (b"[1]", "not_an_object", ["list [1]", "send one JSON object"]),
        (b"null", "not_an_object", ["NoneType None", "send one JSON object"]),
        (b"{}", "no_customer", ["userId", "anonymousId", "send one of them"]),
        (b'{"userId":null,"anonymousId":""}', "no_customer", ["userId", "anonymousId", "send one of them"]),
        (body(userId=1.5), "invalid_field", ["userId", "float 1.5", "send a string"]),
        (body(userId=True), "invalid_field", ["userId", "bool True", "send a string"]),
        (body(messageId=["m"]), "invalid_field", ["messageId", "list ['m']", "send a string"]),
        (body(event={"a": 1}), "invalid_field", ["event", "dict {'a': 1}", "send a name"]),
        (body(event="x" * 201), "invalid_field", ["event", "at most 200"]),
        (sale(order_id={}), "invalid_field", ["properties.order_id", "dict {}", "send a string"]),
        (sale(orderId=1.0), "invalid_field", ["properties.orderId", "float 1.0", "send a string"]),
        (sale(products="p"), "invalid_field", ["properties.products", "str 'p'", "send an array"]),
        (sale(products=[{}] * (MAX_PRODUCTS + 1)), "invalid_field", ["properties.products", "at most 1000"]),
        (sale(revenue=1, currency=9), "invalid_field", ["properties.currency", "int 9", "such as EUR"]),
        (body(timestamp="yesterday"), "invalid_time", ["timestamp", "str 'yesterday'", "send ISO 8601"]),
        (body(timestamp=1.5), "invalid_time", ["timestamp", "float 1.5", "epoch milliseconds"]),
        (body(timestamp="9" * 41), "invalid_time", ["timestamp", "send ISO 8601"]),
        (body(timestamp=10**15), "invalid_time", ["timestamp", "int 1000000000000000", "send ISO 8601"]),
        (
            body(timestamp=EARLIEST_MS - 1),
            "invalid_time",
            [str(EARLIEST_MS - 1), "outside 1990 to 2100", "sender's clock"],
        ),
        (body(originalTimestamp=..., sentAt="x", receivedAt=NOW), "invalid_time", ["sentAt", "send ISO 8601"]),
        (sale(revenue=-1), "invalid_amount", ["properties.revenue", "int -1", "Order Refunded"]),
        (sale(subtotal="a lot"), "invalid_amount", ["properties.subtotal", "str 'a lot'", "send a number"]),
        (sale(total=[1]), "invalid_amount", ["properties.total", "list [1]", "send a number"]),
    ],
)
def test_a_dead_letter_says_what_was_found_where_and_what_to_do(value: Any, reason: str, says: list[str]) -> None:
    found, detail = refused(value)
    assert (found, [part for part in says if part not in detail], "\n" in detail) == (reason, [], False)


def test_every_reason_of_a_dead_letter_is_documented() -> None:
    assert set(REASONS) == {
        "empty",
        "undecodable",
        "not_an_object",
        "no_customer",
        "invalid_field",
        "invalid_time",
        "invalid_amount",
        "misplaced",
    }


def test_a_long_value_is_cut_short_in_the_detail() -> None:
    _, detail = refused(body(userId=["x" * 10_000]))
    assert len(detail) < 200


@pytest.mark.parametrize("place", ["userId", "messageId", "event", "timestamp"])
def test_deep_nesting_is_a_dead_letter_like_any_other_wrong_value(place: str) -> None:
    deep = b"[" * 1_000 + b"]" * 1_000
    assert refused(b'{"anonymousId":"a","%s":%s}' % (place.encode(), deep))[0] in ("invalid_field", "invalid_time")


def test_a_deeply_nested_array_is_a_dead_letter() -> None:
    assert refused(b"[" * 1_000 + b"]" * 1_000)[0] == "not_an_object"


# Identifiers


@pytest.mark.parametrize(
    ("fields", "customer"),
    [
        ({"userId": "c-1"}, ("c-1", False)),
        ({"userId": 42}, ("42", False)),
        ({"userId": "Zoë 日本"}, ("Zoë 日本", False)),
        ({"userId": "x" * MAX_ID_CHARS}, ("x" * MAX_ID_CHARS, False)),
        ({"userId": "", "anonymousId": "a-1"}, ("anon:a-1", True)),
        ({"userId": None, "anonymousId": "a-1"}, ("anon:a-1", True)),
        ({"userId": ..., "anonymousId": 7}, ("anon:7", True)),
        ({"userId": "c-1", "anonymousId": "a-1"}, ("c-1", False)),
    ],
)
def test_the_customer_is_the_user_else_the_anonymous_id_with_a_prefix(
    fields: dict[str, Any], customer: tuple[str, bool]
) -> None:
    found = decoded(body(**fields))
    assert (found.customer, found.anonymous) == customer


@pytest.mark.parametrize("value", ["x" * (MAX_ID_CHARS + 1), "a\nb", "a\0", "\0", "a\x7f", "a\u200b", "\ufeffa"])
@pytest.mark.parametrize("name", ["userId", "anonymousId", "messageId"])
def test_an_id_that_is_too_long_or_holds_control_characters_is_refused(name: str, value: str) -> None:
    fields = {"userId": ...} if name == "anonymousId" else {}
    reason, detail = refused(body(**{**fields, name: value}))
    assert (reason, name in detail, "printable" in detail) == ("invalid_field", True, True)


def test_a_message_without_id_has_no_fingerprint() -> None:
    found = [decoded(body(messageId=value)) for value in (..., None, "")]
    assert [(one.message_id, one.message_hash) for one in found] == [(None, 0)] * 3


def test_the_order_id_of_either_version_is_the_same_order() -> None:
    found = [
        decoded(sale(**{name: value})) for name, value in (("order_id", "12"), ("orderId", "12"), ("order_id", 12))
    ]
    assert [one.order_hash for one in found] == [fingerprint("12")] * 3


def test_only_orders_and_refunds_carry_an_order_and_an_amount() -> None:
    properties = {"order_id": "o-1", "revenue": 5}
    names = ("Checkout Started", "Order Completed", "Order Refunded", "Order Updated")
    found = [decoded(body(name, properties=properties)) for name in names]
    assert [(one.order_hash != 0, one.amount_minor) for one in found] == [
        (False, None),
        (True, 500),
        (True, 500),
        (False, None),
    ]


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    assert fingerprint("m-1") == 3862828053442296530


# Amounts


@pytest.mark.parametrize(
    ("properties", "minor"),
    [
        ({"revenue": 10.5, "subtotal": 20, "total": 30}, 1050),
        ({"revenue": None, "subtotal": 20, "total": 30}, 2000),
        ({"total": 30}, 3000),
        ({"revenue": 0, "total": 30}, 0),
        ({"revenue": "12.50"}, 1250),
        ({"revenue": 0.29}, 29),
        ({"revenue": 19.999}, 2000),
        ({"revenue": -0.0}, 0),
        ({"products": [{"price": 2.5, "quantity": 2}, {"price": "1"}]}, 600),
        ({"products": [{"price": 2.5}, {"price": None}]}, None),
        ({"products": [{"price": 2.5}, {"price": -1}]}, None),
        ({"products": [{"price": "NaN"}]}, None),
        ({"products": []}, None),
        ({"product_id": "p", "price": 3, "quantity": 2}, 600),
        ({"price": 3}, None),
        ({}, None),
    ],
)
def test_the_amount_is_revenue_else_subtotal_else_total_else_the_products(
    properties: dict[str, Any], minor: int | None
) -> None:
    assert decoded(sale(**properties)).amount_minor == minor


@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b"1e12", b"-0.01", b'"NaN"', b'"inf"', b'"-5"', b'""', b"true"])
def test_an_amount_that_is_negative_not_finite_or_too_large_is_refused(value: bytes) -> None:
    raw = b'{"userId":"c","event":"Order Completed","properties":{"revenue":%s}}' % value
    assert refused(raw)[0] in ("invalid_amount", "undecodable")


@pytest.mark.parametrize(
    ("rules", "amount", "currency", "minor"),
    [
        (EventRules("USD"), 10, None, 1000),
        (EventRules("USD"), 10, "", 1000),
        (EventRules("USD"), 10, "usd", 1000),
        (EventRules("USD"), 10, "EUR", None),
        (EventRules("USD", {"EUR": 1.08}), 10, "EUR", 1080),
        (EventRules("USD", {"EUR": 1.08}), 10, "eur", 1080),
        (EventRules("USD", {"JPY": 0.0066}), 1500, "JPY", 990),
        (EventRules("JPY"), 1500, "JPY", 1500),
        (EventRules("JPY", {"USD": 150.0}), 9.99, "USD", 1498),
        (EventRules("BHD"), 1.2345, "BHD", 1234),
        (EventRules("XOF"), 655, None, 655),
    ],
)
def test_an_amount_is_counted_in_minor_units_of_the_application_s_currency(
    rules: EventRules, amount: float, currency: str | None, minor: int | None
) -> None:
    assert decoded(sale(revenue=amount, currency=currency), rules).amount_minor == minor


def test_an_amount_beyond_the_largest_is_refused_after_conversion() -> None:
    assert refused(sale(revenue=9e11, currency="EUR"), EventRules("USD", {"EUR": 1e6}))[0] == "invalid_amount"


def test_a_sum_of_products_beyond_the_largest_is_refused() -> None:
    assert refused(sale(products=[{"price": 9e11, "quantity": 999}] * 100))[0] == "invalid_amount"


def test_an_amount_that_a_rate_makes_infinite_is_refused() -> None:
    assert refused(sale(revenue=1e11, currency="EUR"), EventRules("USD", {"EUR": 1e300}))[0] == "invalid_amount"


# Products


@pytest.mark.parametrize(
    ("properties", "items", "categories"),
    [
        ({}, 0, ()),
        ({"category": "toys"}, 0, ("toys",)),
        ({"product_id": "p", "category": "toys", "quantity": 3}, 3, ("toys",)),
        ({"sku": "s"}, 1, ()),
        ({"products": [{}, None, 7, "p", [1]]}, 1, ()),
        ({"products": [{"category": 5}, {"category": ""}, {"category": "a"}, {"category": "a"}]}, 4, ("a",)),
        ({"products": [{"quantity": "2"}, {"quantity": 0}, {"quantity": -3}, {"quantity": 2.9}]}, 6, ()),
        ({"products": [{"quantity": 1_000}, {"quantity": "NaN"}, {"quantity": None}]}, 3, ()),
        ({"products": [], "category": "toys"}, 0, ("toys",)),
    ],
)
def test_products_of_any_shape_are_counted_as_far_as_they_go(
    properties: dict[str, Any], items: int, categories: tuple[str, ...]
) -> None:
    found = decoded(body(properties=properties))
    assert (found.items, found.categories) == (items, categories)


@pytest.mark.parametrize("properties", [None, [], "x", 5, ...])
def test_properties_that_are_no_object_count_as_none(properties: Any) -> None:
    found = decoded(body("Order Completed", properties=properties))
    assert (found.order_hash, found.amount_minor, found.items, found.categories) == (0, None, 0, ())


# Time

SENT, RECEIVED = NOW - 60_000, NOW - 1_000


@pytest.mark.parametrize(
    ("fields", "time_ms"),
    [
        ({}, NOW - DAY_MS),
        ({"sentAt": iso(SENT), "receivedAt": iso(RECEIVED)}, NOW - DAY_MS + RECEIVED - SENT),
        ({"sentAt": SENT, "receivedAt": RECEIVED}, NOW - DAY_MS + RECEIVED - SENT),
        ({"originalTimestamp": iso(NOW), "sentAt": iso(SENT), "receivedAt": iso(RECEIVED)}, NOW - DAY_MS),
        ({"sentAt": iso(SENT)}, NOW - DAY_MS),
        ({"receivedAt": iso(RECEIVED)}, NOW - DAY_MS),
    ],
)
def test_skew_is_corrected_once_and_only_where_the_collector_has_not(fields: dict[str, Any], time_ms: int) -> None:
    assert decoded(body(time_ms=NOW - DAY_MS, **fields)).time_ms == time_ms


@pytest.mark.parametrize(
    ("timestamp", "time_ms"),
    [
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20.000+00:00", NOW),
        ("2023-11-14T17:13:20-05:00", NOW),
        ("2023-11-14 22:13:20", NOW),
        ("2023-11-14T22:13:20.0004Z", NOW),
        ("2023-11-14", NOW - (22 * 3600 + 13 * 60 + 20) * 1000),
        (NOW, NOW),
        (EARLIEST_MS, EARLIEST_MS),
    ],
)
def test_a_time_is_iso_8601_in_any_zone_or_epoch_milliseconds(timestamp: Any, time_ms: int) -> None:
    assert decoded(body(timestamp=timestamp)).time_ms == time_ms


@pytest.mark.parametrize("timestamp", [..., None, ""])
def test_a_missing_time_is_the_record_s_unless_the_client_named_one(timestamp: Any) -> None:
    found = [
        decoded(body(timestamp=timestamp), timestamp_ms=NOW + 5),
        decoded(body(timestamp=timestamp, originalTimestamp=NOW - 9), timestamp_ms=NOW + 5),
    ]
    assert [(one.time_ms, one.clamped) for one in found] == [(NOW + 5, False), (NOW - 9, False)]


def test_a_time_well_ahead_of_the_record_is_clamped_to_it() -> None:
    rules = EventRules("USD", max_ahead_ms=1_000)
    found = [decoded(body(time_ms=NOW + ahead), rules) for ahead in (0, 1_000, 1_001)]
    assert [(one.time_ms, one.clamped) for one in found] == [(NOW, False), (NOW + 1_000, False), (NOW, True)]


def test_an_old_time_is_kept_however_late_it_comes() -> None:
    found = decoded(body(time_ms=NOW - 3_650 * DAY_MS))
    assert (found.time_ms, found.clamped) == (NOW - 3_650 * DAY_MS, False)


@pytest.mark.parametrize("timestamp_ms", [-1, 0, EARLIEST_MS - 1])
@pytest.mark.parametrize("fields", [{}, {"timestamp": ...}])
def test_no_event_is_dated_before_1990_by_a_record_without_a_timestamp(
    fields: dict[str, Any], timestamp_ms: int
) -> None:
    outcome = read(record(body(**fields), timestamp_ms=timestamp_ms), RULES).outcome
    assert outcome.time_ms >= EARLIEST_MS if isinstance(outcome, Event) else outcome.reason == "invalid_time"


# Anything at all


def check(whole: Record, rules: EventRules) -> None:
    found = read(whole, rules).outcome
    if isinstance(found, InvalidEvent):
        assert (found.reason in REASONS, found.detail != "") == (True, True)
        return
    assert found.time_ms >= EARLIEST_MS
    assert found.time_ms <= whole.timestamp_ms + rules.max_ahead_ms
    assert found.amount_minor is None or (type(found.amount_minor) is int and 0 <= found.amount_minor <= MAX_MINOR)
    assert 0 <= found.items < MAX_PRODUCTS * 1_000
    assert 0 <= found.message_hash < 2**64
    assert 0 <= found.order_hash < 2**64
    assert found.customer
    assert found.customer.encode()
    assert all(type(category) is str and category for category in found.categories)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "1e999", "NaN", "inf", "-1", "0x1", "1_0", "EUR", "a\0", iso(NOW), "0001-01-01T00:00+14:00"]),
    st.integers(NOW - 10**12, NOW + 10**12),
)
ANY = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
PRODUCT = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("product_id", "category", "price", "quantity"), SCALARS | ANY)
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("order_id", "orderId", "revenue", "subtotal", "total", "category", "price", "sku"), SCALARS)
    | {"currency": st.sampled_from(["EUR", "usd", "", 3, None]), "products": ANY | st.lists(PRODUCT | ANY, max_size=4)},
)
SHAPED = st.fixed_dictionaries(
    {"userId": st.sampled_from(["c-1", 7, "", None]) | SCALARS},
    optional={
        "anonymousId": SCALARS,
        "messageId": SCALARS,
        "event": st.sampled_from(list(KINDS)) | SCALARS,
        "type": SCALARS,
        "timestamp": SCALARS,
        "originalTimestamp": SCALARS,
        "sentAt": SCALARS,
        "receivedAt": SCALARS,
        "properties": PROPERTIES | ANY,
    },
)
SOME_RULES = st.sampled_from([EventRules("USD", {"EUR": 1.08}), EventRules("JPY"), EventRules("BHD", {"EUR": 1e9})])


@given(st.binary(max_size=200) | ANY.map(lambda value: orjson.dumps(value, default=str)), SOME_RULES)
@example(b"\xef\xbb\xbf{}", RULES)
@examples(max_examples=200, deadline=None)
def test_bytes_of_any_kind_are_an_event_or_a_dead_letter(value: bytes, rules: EventRules) -> None:
    check(record(value), rules)


@given(SHAPED, SOME_RULES)
@examples(max_examples=500, deadline=None)
def test_json_around_the_schema_is_an_event_in_range_or_a_dead_letter(whole: dict[str, Any], rules: EventRules) -> None:
    check(record(whole), rules)


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["revenue", "subtotal", "total"]))
@examples(max_examples=200, deadline=None)
def test_every_number_is_an_amount_in_range_or_a_dead_letter(amount: float, name: str) -> None:
    text = repr(amount) if math.isfinite(amount) else f'"{amount}"'
    check(
        record(b'{"userId":"c","event":"Completed Order","properties":{"%s":%s}}' % (name.encode(), text.encode())),
        RULES,
    )


def test_decoding_leaves_the_record_as_it_came() -> None:
    whole = record(order())
    before = tuple(whole)
    decode(whole, RULES)
    assert tuple(whole) == before


@pytest.mark.parametrize(
    ("quantity", "price", "minor"), [(1500, 0.5, 75_000), (1.5, 10, 1_500), (0, 10, 0), (None, 10, 1_000)]
)
def test_an_order_without_a_total_is_price_times_quantity_whatever_the_quantity_counts(
    quantity: float | None, price: float, minor: int
) -> None:
    product = {"product_id": "p", "price": price, **({} if quantity is None else {"quantity": quantity})}
    body = {"event": "Order Completed", "userId": "c", "timestamp": NOW, "properties": {"products": [product]}}
    assert (
        decode(Record("t", 0, 0, 1_800_000_000_000, None, orjson.dumps(body)), EventRules("USD")).amount_minor == minor
    )
