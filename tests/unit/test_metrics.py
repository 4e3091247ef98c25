"""The metrics, and the page that lists them."""

import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram, generate_latest

from stream.metrics import HELD, PHASES, Metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"


def registered() -> dict[str, str]:
    """Description by name, counters with their `_total`."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.documentation
        for family in Metrics().registry.collect()
    }


def test_the_page_lists_exactly_the_metrics_there_are() -> None:
    assert set(re.findall(r"driftline_[a-z_]+", PAGE.read_text("utf-8"))) == set(registered())


def test_every_metric_has_a_row_of_its_own_on_the_page() -> None:
    rows = re.findall(r"^\| *`(driftline_[a-z_]+)`", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(registered())


@pytest.mark.parametrize("name", registered())
def test_a_metric_is_named_as_prometheus_names_them(name: str) -> None:
    assert re.fullmatch(r"driftline(_[a-z]+)+", name)
    assert not re.search(r"_(ms|millis|milliseconds|minutes|kb|mb)(_|$)", name)  # base units: seconds and bytes


@pytest.mark.parametrize(("name", "description"), registered().items())
def test_a_metric_is_described_in_a_sentence(name: str, description: str) -> None:
    assert description.endswith(".")
    assert not description[0].islower()


def test_two_workers_of_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.ticks.inc()
    assert first.registry.get_sample_value("driftline_ticks_total") == 1
    assert second.registry.get_sample_value("driftline_ticks_total") == 0


def test_every_attribute_is_registered() -> None:
    metrics = Metrics()
    owned = [one for one in vars(metrics).values() if isinstance(one, Counter | Gauge | Histogram)]
    assert len(owned) == len(list(metrics.registry.collect()))


def test_every_reason_to_hold_an_alert_back_is_begun_at_zero_and_on_the_page() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "stream" / "processing").glob("*.py"))
    said = PAGE.read_text("utf-8").partition("`driftline_alerts_held_total` reasons:")[2]
    begun = {sample.labels["reason"] for one in Metrics().held.collect() for sample in one.samples}
    assert set(re.findall(r"\b(?:hold|held)\([\w.]+, \"(\w+)\"\)", code)) == set(HELD)
    assert set(re.findall(r"`(\w+)`", said)) == set(HELD) == begun


def test_every_phase_of_the_loop_can_be_counted() -> None:
    metrics = Metrics()
    for phase in PHASES:
        metrics.phase_seconds.labels(phase).inc(0.5)
    assert generate_latest(metrics.registry).count(b"driftline_phase_cpu_seconds_total{") == len(PHASES)
