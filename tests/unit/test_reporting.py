"""What a worker says of itself: its log, in which one customer and one tick can be followed, and its gauges."""

import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest

from stream.aliases import alias
from stream.cli.logs import JsonFormatter
from stream.errors import TooManyDeadLetters
from stream.metrics import Metrics
from stream.processing.journal import TaskState
from stream.reporting import Held, Reporter
from stream.settings import Settings, parse
from tests.unit.test_worker import DAY_MS, NOW_MS, Site

WHO = "ann@example.com"
SPOILT = orjson.dumps({"event": "Product Viewed", "userId": WHO, "timestamp": "yesterday, said Bob"})


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The lines that are logged, from DEBUG on."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    ours, handler = logging.getLogger("stream"), Keep()
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield lines
    ours.removeHandler(handler)
    ours.setLevel(before)


def shop(**settings: Any) -> Site:
    """A worker whose models are ready after a few dozen events and who alerts on the first oddity."""
    site = Site()
    site.worker.close()
    parsed: Settings = parse(
        {
            "tick": {"idle_after_s": 0},
            "models": {"reference_events": 100, "publish_min_events": 100},
            "alerts": {"anomaly_one_in": 10, "anomaly_min_events": 0, "anomaly_cooldown_hours": 0},
            **settings,
        }
    )
    site.settings = parsed
    site.start(parsed)
    return site


def live(site: Site) -> None:
    """A quiet crowd, then somebody whose days are unlike theirs; and one record that cannot be used."""
    for number in range(600):
        site.send("clickstream", f"c-{number % 20}", NOW_MS + number * 60_000)
    site.run(40)
    for number in range(80):
        body = {
            "event": "Order Completed",
            "userId": WHO,
            "timestamp": NOW_MS + DAY_MS + number * 1_000,
            "properties": {"revenue": 10.0 ** (number % 7), "products": [{"category": f"k{number}", "quantity": 90}]},
        }
        site.send("purchases", WHO, NOW_MS + DAY_MS, value=orjson.dumps(body))
    site.send("clickstream", WHO, NOW_MS + DAY_MS, value=SPOILT)
    site.wall_ms = NOW_MS + 2 * DAY_MS
    site.run(40)


def told(lines: list[str], message: str) -> list[dict[str, Any]]:
    return [line for line in map(orjson.loads, lines) if line["message"] == message]


def test_every_committed_tick_can_be_followed_from_offset_to_offset(log: list[str]) -> None:
    site = shop()
    live(site)
    ticks = told(log, "tick")
    assert [tick["seq"] for tick in ticks] == list(range(1, len(ticks) + 1))
    for before, after in pairwise(ticks):
        ends = {topic: end for topic, (_, end) in before["offsets"].items()}
        assert {topic: begin for topic, (begin, _) in after["offsets"].items() if topic in ends} == ends
    assert {"task", "stream_time", "version", "events", "wakes", "customers", "held"} <= set(ticks[0])
    assert ticks[-1]["offsets"]["purchases"][1] == 80
    assert sum(tick["events"] for tick in ticks) == 680


def test_one_customer_can_be_followed_by_the_alias_that_the_command_prints(log: list[str]) -> None:
    site = shop()
    live(site)
    (alert, *_) = told(log, "alert")
    assert {"task", "seq", "kind", "id"} <= set(alert)
    assert alias(WHO) in {each["customer"] for each in told(log, "alert")}
    assert any(alias(WHO) in tick["customers"] for tick in told(log, "tick"))
    assert alert["seq"] in {tick["seq"] for tick in told(log, "tick") if tick["alerts"]}


def test_dead_letters_are_logged_by_reason_and_place(log: list[str]) -> None:
    live(shop())
    (line,) = told(log, "dead letters")
    assert (line["reasons"], line["first_at"]) == ({"invalid_time": 1}, {"invalid_time": "clickstream-0-600"})


@pytest.mark.parametrize(
    ("how", "ids", "aliases", "contents"),
    [("none", False, False, False), ("hashed", False, True, False), ("plain", True, False, True)],
)
def test_a_log_names_customers_and_shows_contents_only_as_the_setting_allows(
    log: list[str], how: str, ids: bool, aliases: bool, contents: bool
) -> None:
    site = shop(log={"customers": how}, dead_letters={"window": 10})
    live(site)
    for _ in range(20):
        site.send("clickstream", WHO, NOW_MS + DAY_MS, value=SPOILT)
    with pytest.raises(TooManyDeadLetters) as stopped:
        site.run()
    text = "\n".join([*log, str(stopped.value)])
    assert told(log, "alert")
    assert told(log, "dead letters")
    assert (WHO in text, alias(WHO) in text, "Bob" in text) == (ids, aliases, contents)
    assert ("Bob" in str(stopped.value)) == contents


def test_a_log_line_says_its_time_in_utc() -> None:
    record = logging.makeLogRecord({"created": 1_800_000_000.25, "msecs": 250.0, "msg": "x"})
    assert orjson.loads(JsonFormatter().format(record))["time"] == "2027-01-15T08:00:00.250Z"


def gauges(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        if family.name == f"driftline_{name}"
        for sample in family.samples
    }


def report(metrics: Metrics, reporter: Reporter, tasks: dict[int, Held]) -> None:
    reporter._gauged_at = 0.0
    reporter.holding(tasks, lambda task: {"clickstream": 50 + task, "purchases": 7})


def test_gauges_of_a_task_tell_its_lag_while_it_is_ready_and_its_recovery_while_it_is_not() -> None:
    metrics = Metrics()
    reporter = Reporter(metrics, lambda: NOW_MS)
    ready = TaskState(seq=1, stream_time_ms=NOW_MS - 4_000, offsets={"clickstream": 41, "purchases": 7}, customers=3)
    report(metrics, reporter, {0: Held(True, ready), 1: Held(False, TaskState())})
    assert gauges(metrics, "stream_time_lag_seconds") == {("0",): 4.0}
    assert gauges(metrics, "input_lag_records") == {("0", "clickstream"): 9.0, ("0", "purchases"): 0.0}
    assert gauges(metrics, "customers") == {("0",): 3.0}
    assert gauges(metrics, "tasks") == {("ready",): 1.0, ("recovering",): 1.0}
    reporter._recovering[1] -= 30.0
    report(metrics, reporter, {0: Held(True, ready), 1: Held(False, TaskState())})
    recovering = gauges(metrics, "task_recovering_seconds")
    assert recovering["0",] == 0
    assert 30 <= recovering["1",] < 40
    report(metrics, reporter, {1: Held(True, ready)})
    assert gauges(metrics, "task_recovering_seconds") == {("1",): 0.0}
    assert gauges(metrics, "customers") == {("1",): 3.0}


def test_wall_time_is_accounted_to_phases_beside_cpu_time() -> None:
    metrics = Metrics()
    reporter = Reporter(metrics, lambda: NOW_MS)
    reporter._wall -= 5.0
    reporter.spent("poll")
    assert metrics.registry.get_sample_value("driftline_phase_seconds_total", {"phase": "poll"}) >= 5
    assert metrics.registry.get_sample_value("driftline_phase_cpu_seconds_total", {"phase": "poll"}) < 1
