"""Every alert that a run raises follows the schemas published in deploy/schemas."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from stream.embedded import Embedded
from stream.events import Record
from stream.processing.alerts import KINDS, SEGMENT_LINEAGE, rfc3339
from stream.settings import parse

Alert = dict[str, Any]

SCHEMAS = {
    path.name: json.loads(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parents[2] / "deploy" / "schemas").glob("*.json"))
}
REGISTRY: Registry[Any] = Registry().with_resources(
    (schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()
)
DAY_MS = 86_400_000
START_MS = 1_750_000_000_000
CUSTOMERS = 400
DAYS = 130
SETTINGS = {
    "application": {"name": "corner-shop"},
    "alerts": {
        "anomaly_one_in": 300,
        "segment_dwell_days": 1,
        "segment_margin": 0.1,
        "churn_enter": 0.5,
        "churn_clear": 0.3,
        "wave_min": 2,
        "wave_share": 0.001,
    },
    "models": {
        "horizon_days": 7,
        "segments": 4,
        "reference_events": 500,
        "first_customers": 100,
        "min_labels": 50,
        "publish_min_events": 1_000,
    },
    "tick": {"max_span_hours": 24},
}


def shop() -> Iterator[Record]:
    """Orders of a small shop. From day 70 on every fourth customer is gone, another fourth orders ten times as much."""
    random = Random(42)
    orders: list[tuple[int, str, float, int]] = []
    for number in range(CUSTOMERS):
        day, gap, basket = random.uniform(0, 20), random.uniform(3, 9), random.uniform(10, 60)
        while day < DAYS:
            changed = day > 70
            if changed and number % 4 == 0:
                break
            pieces = random.randint(1, 4) * (10 if changed and number % 4 == 1 else 1)
            orders.append((START_MS + round(day * DAY_MS), f"c-{number}", basket * pieces, pieces))
            day += gap * random.uniform(0.6, 1.4)
    for number, (time_ms, customer, amount, pieces) in enumerate(sorted(orders)):
        product = {"product_id": "p", "category": "bread", "price": round(amount / pieces, 2), "quantity": pieces}
        properties = {"order_id": f"o-{number}", "currency": "USD", "products": [product]}
        body = {
            "type": "track",
            "event": "Order Completed",
            "messageId": f"m-{number}",
            "userId": customer,
            "timestamp": rfc3339(time_ms),
            "properties": properties,
        }
        yield Record("purchases", 0, number, time_ms, customer.encode(), orjson.dumps(body))


@pytest.fixture(scope="module")
def alerts() -> list[Alert]:
    found: list[Alert] = []
    embedded = Embedded(
        parse(SETTINGS),
        ("purchases",),
        lambda result: found.extend(orjson.loads(alert.value) for alert in result.entry.alerts),
        lambda _, alert: found.extend([orjson.loads(alert.value)] if alert else []),
    )
    embedded.run({"purchases": shop()})
    return found


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SCHEMAS[name], registry=REGISTRY)


def faults(alert: Alert) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator("cloudevent.v1.json").iter_errors(alert)]


def test_the_run_raises_every_kind_of_alert(alerts: list[Alert]) -> None:
    assert {alert["data"]["kind"] for alert in alerts} == set(KINDS)


def test_every_alert_of_a_run_follows_its_schema(alerts: list[Alert]) -> None:
    assert {fault for alert in alerts for fault in faults(alert)} == set()


def test_every_alert_has_what_cloudevents_1_0_requires(alerts: list[Alert]) -> None:
    for alert in alerts:
        assert alert["specversion"] == "1.0"
        assert all(isinstance(alert[name], str) and alert[name] for name in ("id", "source", "type"))
        assert all(name.isalnum() and name.islower() for name in alert)  # attribute names: a-z and 0-9 alone


def test_source_and_id_together_are_unique(alerts: list[Alert]) -> None:
    assert len({(alert["source"], alert["id"]) for alert in alerts}) == len(alerts)


def test_dataschema_names_a_published_schema_that_the_data_follows(alerts: list[Alert]) -> None:
    by_id = {schema["$id"]: name for name, schema in SCHEMAS.items()}
    for alert in alerts:
        validator(by_id[alert["dataschema"]]).validate(alert["data"])


def test_every_field_an_alert_carries_is_described(alerts: list[Alert]) -> None:
    shared = SCHEMAS["alert.v1.json"]["properties"]
    for alert in alerts:
        data = alert["data"]
        own = SCHEMAS[f"{data['kind']}.v1.json"]["properties"]
        assert set(data) - set(shared) - set(own) == set()
        assert set(data["model"]) == set(shared["model"]["properties"])
        raised_by_a_tick = set() if data["kind"] == SEGMENT_LINEAGE else {"task", "seq"}
        assert set(data["derived_from"]) | {"task", "seq"} == set(shared["derived_from"]["properties"])
        assert raised_by_a_tick <= set(data["derived_from"])
    assert set(alerts[0]) == set(SCHEMAS["cloudevent.v1.json"]["properties"])


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_valid_and_so_are_its_examples(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    for example in SCHEMAS[name].get("examples", []):
        validator(name).validate(example)


def test_there_is_a_schema_with_an_example_for_every_kind() -> None:
    assert {f"{kind}.v1.json" for kind in KINDS} == {n for n, schema in SCHEMAS.items() if "examples" in schema} - {
        "cloudevent.v1.json"
    }


def _without_id(alert: Alert) -> None:
    del alert["id"]


def _of_another_kind(alert: Alert) -> None:
    alert["data"]["kind"] = "anomaly" if alert["data"]["kind"] != "anomaly" else "churn_risk"


def _with_local_time(alert: Alert) -> None:
    alert["time"] = "2026-03-02 09:15"


def _without_version(alert: Alert) -> None:
    del alert["data"]["model"]["version"]


def _without_sentence(alert: Alert) -> None:
    alert["data"]["reasons"] = [{"feature": "items", "value": 1.0, "baseline": None, "contribution": 1.0}]


@pytest.mark.parametrize(
    "spoil", [_without_id, _of_another_kind, _with_local_time, _without_version, _without_sentence]
)
def test_a_wrong_alert_fails(alerts: list[Alert], spoil: Callable[[Alert], None]) -> None:
    for kind in KINDS:
        wrong = copy.deepcopy(next(alert for alert in alerts if alert["data"]["kind"] == kind))
        spoil(wrong)
        assert faults(wrong)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("anomaly", "rate", 0),
        ("anomaly", "reasons", []),
        ("segment_changed", "confidence", 1.2),
        ("segment_changed", "severity", "high"),
        ("churn_risk", "probability", -0.1),
        ("churn_risk", "last_order", 1_750_000_000_000),
        ("churn_wave", "crossings", 2.5),
        ("segment_changed", "to_segment", {"id": 1, "name": "Rare orders", "share": 0.1}),
        ("segment_lineage", "changes", [{"what": "moved", "id": 1, "name": "Rare orders"}]),
        ("segment_lineage", "from", "7"),
    ],
)
def test_a_value_out_of_its_range_fails(alerts: list[Alert], kind: str, field: str, value: object) -> None:
    wrong = copy.deepcopy(next(alert for alert in alerts if alert["data"]["kind"] == kind))
    wrong["data"][field] = value
    assert faults(wrong)


def test_unknown_fields_and_unknown_kinds_pass(alerts: list[Alert]) -> None:
    newer = copy.deepcopy(alerts[0])
    newer["extension"] = newer["data"]["added_later"] = "x"
    kind = newer["data"] | {"kind": "came_later"}
    unknown = newer | {"type": "io.driftline.came_later.v1", "dataschema": "urn:driftline:schema:came_later:1"}
    assert faults(newer) == []
    assert faults(unknown | {"data": kind}) == []
