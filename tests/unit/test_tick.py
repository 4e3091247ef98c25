import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from stream.events import HISTORY_HEADER, InvalidEvent, Kind
from stream.processing import clock, tick
from stream.processing.customer import DAY_MS, NO_SEGMENT, blank
from stream.processing.journal import encode
from stream.processing.names import ANOMALY_FEATURES, SEGMENT_FEATURES
from stream.processing.placement import is_placed
from stream.processing.tick import TickResult
from stream.processing.version import Version, warming
from tests.builders import (
    BUYS,
    HOUR_MS,
    NOW,
    ByHand,
    Run,
    body,
    event_rules_of,
    fold,
    kinds,
    order,
    run,
    settings,
    shop,
    silence_version,
)

ROOT = Path(__file__).parents[2]


def digest(found: Run) -> str:
    """One hash over the whole journal."""
    return hashlib.sha256(b"".join(found.journal)).hexdigest()


@pytest.fixture(scope="module")
def lived() -> Run:
    """Five months of the synthetic shop."""
    return run(settings(), shop())


def bought(customer: str, day: float, amount: float = 10.0) -> dict[str, Any]:
    """An order of a customer; ids follow from customer and day."""
    at = NOW + round(day * DAY_MS)
    return order(amount, f"{customer}/{day}", at, userId=customer, messageId=f"{customer}/{day}")


def silent(*customers: str, days: float = 20.0, least: float = 0.0, **alerts: Any) -> ByHand:
    """A task whose churn risk is silence alone, and these customers with one order each, scored once.

    Risk passes 0.5 after half of `days` without an order.
    """
    chosen = settings(alerts={"wave_min": 1_000, **alerts})
    task = ByHand(chosen, silence_version(chosen, days, least))
    task.tick(*(bought(customer, i / 100) for i, customer in enumerate(customers)))
    return task


def days_on(day: float) -> int:
    return NOW + round(day * DAY_MS)


# A pure function


def sample_tick() -> tuple[ByHand, list[dict[str, Any]]]:
    """A task with some history, and the bodies of its next tick."""
    task = silent("a", "b", "c")
    return task, [bought("b", 5), body(time_ms=days_on(6), userId="new"), bought("a", 5), bought("a", 5), {}]


def test_the_same_tick_gives_the_same_bytes() -> None:
    task, bodies = sample_tick()
    given = task.input(*bodies, wakes=["c", "nobody"], now_ms=days_on(30))
    customers = tick.touched(given.decoded, given.wakes)
    rows, known = task.gather(customers)
    first, second = (encode(tick.run(given, customers, rows, known, tick.rules(task.settings)).entry) for _ in range(2))
    assert first == second


def test_a_tick_leaves_its_rows_as_they_were() -> None:
    task, bodies = sample_tick()
    given = task.input(*bodies, wakes=["c"], now_ms=days_on(30))
    customers = tick.touched(given.decoded, given.wakes)
    rows, known = task.gather(customers)
    before = rows.tobytes(), known.tobytes(), task.state.to_json()
    tick.run(given, customers, rows, known, tick.rules(task.settings))
    assert (rows.tobytes(), known.tobytes(), task.state.to_json()) == before


def test_rows_that_are_not_known_are_ignored() -> None:
    task, bodies = sample_tick()
    given = task.input(*bodies)
    customers = tick.touched(given.decoded, given.wakes)
    rows, known = task.gather(customers)
    littered = rows.copy()
    littered["events"][~known] = 77
    littered["segment"][~known] = 2
    found = [
        encode(tick.run(given, customers, each, known, tick.rules(task.settings)).entry) for each in (rows, littered)
    ]
    assert found[0] == found[1]


def test_customers_are_touched_in_the_order_in_which_a_tick_meets_them() -> None:
    given = ByHand().input(bought("b", 1), bought("a", 2), {}, bought("b", 3), wakes=["c", "a"])
    assert tick.touched(given.decoded, given.wakes) == ["b", "a", "c"]


def test_the_same_shop_gives_the_same_journal_in_a_fresh_process() -> None:
    script = (
        "import hashlib; from tests.builders import run, settings, shop;"
        "print(hashlib.sha256(b''.join(run(settings(), shop(60, 60, 2)).journal)).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    there = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=True, text=True
    )
    assert there.stdout.strip() == digest(run(settings(), shop(60, 60, 2)))


def test_every_tick_runs_again_from_its_journal_entry_byte_for_byte(lived: Run) -> None:
    differing = [
        seq for seq, (first, again) in enumerate(zip(lived.journal, lived.again(), strict=True)) if first != again
    ]
    assert differing == []


def test_running_again_is_no_empty_promise(lived: Run) -> None:
    assert {
        "versions": len(lived.versions) > 5,
        "alerts": {alert["data"]["kind"] for alert in lived.alerts()},
        "wakes": any(result.entry.wakes for result in lived.results),
        "labels": any(len(result.entry.label_churned) for result in lived.results),
        "tombstones": any(result.entry.forgotten for result in lived.results),
    } == {
        "versions": True,
        "alerts": {"anomaly", "segment_changed", "churn_risk"},
        "wakes": True,
        "labels": True,
        "tombstones": True,
    }


def test_another_version_gives_other_bytes(lived: Run) -> None:
    others = replace(lived, versions=dict.fromkeys(lived.versions, warming(lived.settings.models)))
    changed = [first != again for first, again in zip(lived.journal, others.again(), strict=True)]
    assert any(changed)


# The journal as a whole


def test_ticks_are_numbered_without_a_gap_and_begin_where_the_last_one_ended(lived: Run) -> None:
    entries = [result.entry for result in lived.results]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.prev_seq for entry in entries] == list(range(len(entries)))
    assert all(dict(before.state.offsets) == dict(after.offsets_before) for before, after in pairwise(entries))


def test_stream_time_and_versions_never_go_back(lived: Run) -> None:
    for now in ([x.entry.state.stream_time_ms for x in lived.results], [x.entry.model_version for x in lived.results]):
        assert now == sorted(now)


def test_every_record_is_accepted_a_duplicate_or_a_dead_letter(lived: Run) -> None:
    counts = sum((Counter(result.counts) for result in lived.results), Counter[str]())
    read = [clock.read(each, event_rules_of(lived.settings)).outcome for log in lived.records.values() for each in log]
    dead = sum(isinstance(outcome, InvalidEvent) for outcome in read)
    accepted = sum(counts[kind.name.lower()] for kind in Kind)
    assert (sum(len(result.dead_letters) for result in lived.results), accepted + counts["duplicate"] + dead) == (
        dead,
        len(read),
    )
    assert accepted == sum(len(result.entry.who) for result in lived.results)
    assert min(dead, counts["duplicate"], counts["late"], counts["refund"]) > 10


def test_rows_hold_every_accepted_event_and_the_state_counts_the_rows(lived: Run) -> None:
    stored: dict[str, bytes] = {}
    ended = 0
    for result in lived.results:
        before = dict(stored)
        fold(stored, result.entry)
        ended += sum(events_of(before[name]) for name in result.entry.forgotten if name in before)
        assert len(stored) == result.entry.state.customers
    counted = sum(events_of(row) for row in stored.values())
    assert counted + ended == sum(len(result.entry.who) for result in lived.results)


def events_of(row: bytes) -> int:
    return int(np.frombuffer(row, blank(1).dtype)["events"][0])


def test_the_offsets_after_the_last_tick_are_the_ends_of_the_topics(lived: Run) -> None:
    assert dict(lived.results[-1].entry.state.offsets) == {topic: len(log) for topic, log in lived.records.items()}


def test_a_tick_covers_no_more_than_its_span_and_its_events(lived: Run) -> None:
    bounds = lived.settings.tick
    for result in lived.results:
        read = [clock.read(each, event_rules_of(lived.settings)) for each in lived.taken(result.entry)]
        times = [each.time_ms for each in clock.merged(read, tuple(lived.records))]
        before_ms = lived.results[result.entry.prev_seq - 1].entry.state.stream_time_ms if result.entry.prev_seq else 0
        assert len(read) <= bounds.max_events
        assert max(times, default=0) <= max([before_ms, *times[:1]]) + bounds.max_span_hours * HOUR_MS


def test_each_event_and_label_in_the_journal_names_a_customer_of_its_entry(lived: Run) -> None:
    astray = [
        result.entry.seq
        for result in lived.results
        if max([-1, *result.entry.who.tolist(), *result.entry.label_who.tolist()]) >= len(result.entry.customers)
    ]
    assert astray == []


def test_an_event_in_the_journal_names_its_own_customer_when_another_one_ends() -> None:
    task = ByHand()
    task.tick(body(userId=..., anonymousId="a", messageId="a"))
    seen = body(userId="c", time_ms=days_on(31), messageId="c")
    late = body(userId=..., anonymousId="a", time_ms=days_on(0.5), messageId="a-2")
    entry = task.tick(late, seen).entry
    assert (entry.forgotten, entry.customers[int(entry.who[-1])]) == (["anon:a"], "c")


# Events


def test_a_dead_letter_is_the_record_whole_with_its_reason() -> None:
    task = ByHand()
    given = task.input({"event": "x"}, bought("a", 0))
    (letter,) = task.tick({"event": "x"}, bought("a", 0)).dead_letters
    assert (letter.record, letter.reason) == (given.decoded[0].record, "no_customer")
    assert "userId" in letter.detail


def test_a_new_customer_in_a_partition_of_another_is_a_dead_letter_and_no_row() -> None:
    customers = [f"c-{i}" for i in range(40)]
    task = ByHand(partitions=4, task=1)
    result = task.tick(*(bought(customer, 0) for customer in customers))
    here = [customer for customer in customers if is_placed(customer, 1, 4, "murmur2")]
    assert (list(result.entry.customers), len(result.misplaced), result.met) == (here, 40 - len(here), len(here))
    assert {letter.reason for letter in result.dead_letters} == {"misplaced"}
    assert "partition 1 of 4" in result.dead_letters[0].detail
    assert "kafka.partitioner" in result.dead_letters[0].detail
    assert result.entry.state.customers == len(here)


def test_a_customer_who_is_known_is_not_asked_again_where_the_partition_lies() -> None:
    task = ByHand()
    customer = next(f"c-{i}" for i in range(99) if not is_placed(f"c-{i}", 0, 4, "murmur2"))
    task.tick(bought(customer, 0))
    task.partitions = 4
    result = task.tick(bought(customer, 1))
    assert (list(result.misplaced), int(task.row(customer)["events"])) == ([], 2)


def test_a_duplicate_is_counted_and_changes_nothing_but_the_due_time() -> None:
    task = ByHand()
    task.tick(bought("a", 0))
    row = task.row("a").copy()
    result = task.tick(bought("a", 0))
    assert (dict(result.counts), len(result.entry.who)) == ({"duplicate": 1}, 0)
    assert {name for name in row.dtype.names or () if not same(row[name], task.row("a")[name])} <= {"due", "example_at"}


def same(left: Any, right: Any) -> bool:
    return bool(np.array_equal(left, right, equal_nan=True))


def test_late_and_clamped_events_are_counted() -> None:
    task = ByHand()
    result = task.tick(bought("a", 3), bought("a", 1), body(time_ms=days_on(9), userId="b"), now_ms=days_on(4))
    assert dict(result.counts) == {"order": 2, "view": 1, "late": 1, "clamped": 1}


def test_an_event_is_scored_against_the_row_as_the_one_before_it_left_it() -> None:
    views = [body(time_ms=NOW + i * 60_000, messageId=f"m-{i}") for i in range(3)]
    features = ByHand().tick(*views).entry.features[:, ANOMALY_FEATURES.index("session_events")]
    assert features.tolist() == pytest.approx(np.log1p([1, 2, 3]).tolist())


# Alerts


def test_an_alert_says_where_it_can_be_derived_again(lived: Run) -> None:
    for result in lived.results:
        for alert in result.entry.alerts:
            data = orjson.loads(alert.value)["data"]
            origin = data["derived_from"]
            assert (origin["seq"], origin["task"], origin["config"], origin["code"], data["model"]["version"]) == (
                result.entry.seq,
                0,
                lived.settings.config_hash,
                tick.CODE,
                result.entry.model_version,
            )


def test_every_alert_has_an_id_of_its_own(lived: Run) -> None:
    ids = [alert.id for result in lived.results for alert in result.entry.alerts]
    assert len(set(ids)) == len(ids) > 100


def test_nothing_is_alerted_before_there_is_a_model(lived: Run) -> None:
    assert not [
        result.entry.alerts for result in lived.results if result.entry.model_version == 0 and result.entry.alerts
    ]


def test_anomalies_of_a_customer_lie_a_cool_down_apart_and_come_after_the_first_events(lived: Run) -> None:
    quiet, seen, found = dict[str, int](), Counter[str](), 0
    alerts, rules = lived.settings.alerts, event_rules_of(lived.settings)
    times = {
        f"{each.topic}-0-{each.offset}": clock.read(each, rules).time_ms
        for log in lived.records.values()
        for each in log
    }
    for result in lived.results:
        seen.update(
            {name: int(row["events"]) for name, row in zip(result.entry.customers, result.entry.rows, strict=True)}
        )
        for alert in result.entry.alerts:
            data = orjson.loads(alert.value)["data"]
            if data["kind"] == "anomaly":
                at = times[data["derived_from"]["cause"]]
                assert at >= quiet.get(alert.key, 0)
                assert seen[alert.key] >= alerts.anomaly_min_events
                quiet[alert.key] = at + round(alerts.anomaly_cooldown_hours * HOUR_MS)
                found += 1
    assert found > 50


def test_an_anomaly_of_a_customer_of_few_events_is_held_back(lived: Run) -> None:
    careful = settings(alerts={"anomaly_min_events": 1_000})
    results = run(careful, {topic: log[:1_500] for topic, log in lived.records.items()}).results
    held = sum((Counter(result.held) for result in results), Counter[tuple[str, str]]())
    assert held["anomaly", "too_few_events"] > 10
    assert "anomaly" not in [kind for result in results for kind, _ in kinds(result)]


def test_anonymous_customers_raise_neither_churn_nor_segment_alerts(lived: Run) -> None:
    raised = {alert["data"]["kind"] for alert in lived.alerts() if alert["subject"].startswith("anon:")}
    assert raised <= {"anomaly"}
    assert all(
        result.entry.rows["segment"][i] == NO_SEGMENT and np.isnan(result.entry.rows["churn"][i])
        for result in lived.results
        for i, customer in enumerate(result.entry.customers)
        if customer.startswith("anon:")
    )


def test_an_anonymous_buyer_who_falls_silent_is_no_churn_alert() -> None:
    task = silent("a")
    task.tick(order(userId=..., anonymousId="v", messageId="v"))
    assert kinds(task.tick(wakes=["a", "anon:v"], now_ms=days_on(15))) == [("churn_risk", "a")]


def test_a_first_segment_is_no_alert_and_each_alert_leaves_the_segment_before(lived: Run) -> None:
    present: dict[str, int] = {}
    first = 0
    for result in lived.results:
        moved = {
            alert.key: orjson.loads(alert.value)["data"]
            for alert in result.entry.alerts
            if orjson.loads(alert.value)["data"]["kind"] == "segment_changed"
        }
        for customer, row in zip(result.entry.customers, result.entry.rows, strict=True):
            before, now = present.get(customer, NO_SEGMENT), int(row["segment"])
            if before == NO_SEGMENT:
                first += now != NO_SEGMENT
                assert customer not in moved
            elif customer in moved:
                assert moved[customer]["to"] == str(now) != moved[customer]["from"]
            present[customer] = now
    assert first > 50


class BySize:
    """A segment model for tests: 1 above a mean log amount of `border`, else 0, or the other way round."""

    ready = True
    ids = np.array([0, 1], np.int32)

    def __init__(self, border: float = 3.0, swapped: bool = False) -> None:
        self.border, self.swapped = border, swapped

    def predict_many(self, features: np.ndarray) -> np.ndarray:
        return ((features[:, 2] > self.border) ^ self.swapped).astype(np.int32)

    def distances_many(self, features: np.ndarray) -> np.ndarray:
        return np.where(self.predict_many(features)[:, None] == self.ids, 0.1, 1.0)

    def figures(self) -> dict[str, float]:
        return {"customers": 50}

    def centres(self) -> np.ndarray:
        return np.zeros((2, len(SEGMENT_FEATURES)))

    def population(self) -> int:
        return 50

    def contrast(self, *_: object) -> np.ndarray:
        return np.arange(float(len(SEGMENT_FEATURES)))


def by_size(task: ByHand, number: int, **model: Any) -> Version:
    return replace(warming(task.settings.models), number=number, segments=BySize(**model))  # type: ignore[arg-type]


def sized() -> ByHand:
    """A customer of small orders, whose segment is 0."""
    task = ByHand()
    task.version = by_size(task, 1)
    for day in (0, 5, 10):
        task.tick(bought("a", day))
    return task


def test_a_customer_who_moves_is_alerted_once_and_not_before_the_dwell_is_over() -> None:
    task = sized()  # two usual gaps, drawn towards 14 days while they are few, are 14 days on day 21 and 13.5 on day 26
    found = [kinds(task.tick(bought("a", day, 9_999))) for day in (11, 16, 21, 26, 31)]
    assert found == [[], [], [], [("segment_changed", "a")], []]
    assert int(task.row("a")["segment"]) == 1


def test_a_move_is_told_within_45_days_however_rare_the_customer_s_orders() -> None:
    task = ByHand()
    task.version = by_size(task, 1)
    for day in (0, 100, 200):
        task.tick(bought("a", day))
    task.tick(bought("a", 210, 99_999))
    found = [kinds(task.tick(wakes=["a"], now_ms=days_on(day))) for day in (254.9, 255)]
    assert found == [[], [("segment_changed", "a")]]


@pytest.mark.parametrize(("marks", "told"), [((), True), (((HISTORY_HEADER, b"1"),), False)])
def test_an_alert_caused_by_history_is_not_published_however_far_the_clock_is_ahead(marks: Any, told: bool) -> None:
    task = sized()
    for day in (11, 16, 21):
        task.tick(bought("a", day, 9_999), headers=marks)
    result = task.tick(bought("a", 26, 9_999), now_ms=days_on(27), headers=marks)
    assert (len(result.entry.alerts), len(result.entry.past)) == ((1, 0) if told else (0, 1))


def test_a_segment_alert_describes_both_segments() -> None:
    task = sized()
    for day in (11, 16, 21, 26):
        result = task.tick(bought("a", day, 9_999))
    data = orjson.loads(result.entry.alerts[0].value)["data"]
    assert (data["from_segment"]["id"], data["to_segment"]["id"]) == (0, 1)
    assert data["to_segment"] == task.version.segment(1)
    assert data["to_segment"]["profile"]["days_between_orders"] == 30


def test_an_anonymous_buyer_is_given_no_segment() -> None:
    task = ByHand()
    task.version = by_size(task, 1)
    for day in (0, 5, 10, 15):
        task.tick({name: value for name, value in bought("", day).items() if name != "userId"} | {"anonymousId": "v"})
    row = task.row("anon:v")
    assert (int(row["order_days"]), int(row["segment"])) == (4, NO_SEGMENT)


def test_a_customer_who_comes_back_within_the_dwell_is_not_alerted() -> None:
    task = sized()
    task.tick(bought("a", 11, 9_999))
    found = [kinds(task.tick(*(bought("a", day + i / 10, 0) for i in range(5)))) for day in (12, 13, 20)]
    assert (found, int(task.row("a")["candidate"])) == ([[], [], []], NO_SEGMENT)


def test_what_a_new_version_calls_otherwise_is_taken_over_without_an_alert() -> None:
    task = sized()
    task.version = by_size(task, 2, swapped=True)
    results = [task.tick(bought("a", day)) for day in (11, 16, 21, 26, 31, 36, 38.9, 39.1, 45)]
    assert [kinds(result) for result in results] == [[]] * 9
    assert [dict(result.held) for result in results] == [{}] * 7 + [{("segment_changed", "new_model_version"): 1}, {}]
    assert int(task.row("a")["segment"]) == 1


def test_a_version_that_is_of_another_opinion_for_less_than_four_weeks_changes_nothing() -> None:
    task = sized()
    for number, (day, swapped) in enumerate([(11, True), (16, True), (30, True), (38, False), (42, True)], start=2):
        task.version = by_size(task, number, swapped=swapped)
        result = task.tick(bought("a", day))
        assert (kinds(result), dict(result.held), int(task.row("a")["segment"])) == ([], {}, 0)


def test_customers_of_a_segment_that_is_gone_are_given_another_at_once_and_without_an_alert() -> None:
    task = sized()
    task.version = by_size(task, 2)
    task.version.segments.ids = np.array([1, 2], np.int32)  # type: ignore[misc]
    result = task.tick(bought("a", 11))
    assert (kinds(result), dict(result.held)) == ([], {("segment_changed", "new_model_version"): 1})
    assert int(task.row("a")["segment"]) == 1


def test_a_silent_spell_is_one_alert_and_the_next_spell_another() -> None:
    task = silent("a")
    days = (2, 9, 10.5, 11, 12, 19)
    first = [kinds(task.tick(wakes=["a"], now_ms=days_on(day))) for day in days]
    back = kinds(task.tick(bought("a", 20)))
    second = [kinds(task.tick(wakes=["a"], now_ms=days_on(20 + day))) for day in days]
    spell = [[], [], [("churn_risk", "a")], [], [], []]
    assert (first, back, second) == (spell, [], spell)


def test_an_order_ends_the_silent_spell_even_where_the_risk_stays_above_the_clearing_one() -> None:
    task = silent("a", least=0.4)
    first = task.tick(wakes=["a"], now_ms=days_on(12))
    assert b'cleared_by":"an order' in first.entry.alerts[0].value
    task.tick(bought("a", 13))
    assert kinds(task.tick(wakes=["a"], now_ms=days_on(25))) == [("churn_risk", "a")]


def test_a_first_score_is_no_alert_however_high() -> None:
    task = ByHand()
    task.tick(bought("a", 0))
    task.version = silence_version(task.settings)
    assert [kinds(task.tick(wakes=["a"], now_ms=days_on(day))) for day in (19, 20)] == [[], []]


def test_a_risk_between_the_two_thresholds_neither_raises_nor_clears(lived: Run) -> None:
    high: dict[str, int] = {}
    alerts = lived.settings.alerts
    for result in lived.results:
        for customer, row in zip(result.entry.customers, result.entry.rows, strict=True):
            before, now, risk = high.get(customer, 0), int(row["churn_high"]), float(row["churn"])
            assert now >= before or risk < alerts.churn_clear
            assert now <= before or risk >= alerts.churn_enter
            high[customer] = now


def test_the_cap_of_a_day_holds_back_the_weakest() -> None:
    task = silent("a", "b", "c", "d", "e", max_per_day=2)
    task.tick(bought("b", 4), bought("d", 1), now_ms=days_on(4))
    now_ms = days_on(16)
    result = task.tick(wakes=["a", "b", "c", "d", "e"], now_ms=now_ms)
    assert kinds(result) == [("churn_risk", "a"), ("churn_risk", "c")]
    assert dict(result.held) == {("churn_risk", "daily_cap"): 3}
    assert (result.entry.state.alerted, result.entry.state.day) == ({"churn_risk": 2}, now_ms // DAY_MS)


def test_the_cap_counts_over_ticks_and_begins_anew_each_day() -> None:
    task = silent("a", "b", "c", max_per_day=1)
    midnight = (days_on(16) // DAY_MS + 1) * DAY_MS
    times = (midnight - 2, midnight - 1, midnight)
    found = [task.tick(wakes=[name], now_ms=at) for name, at in zip("abc", times, strict=True)]
    assert [kinds(result) for result in found] == [[("churn_risk", "a")], [], [("churn_risk", "c")]]


def test_the_cap_of_one_kind_does_not_hold_another() -> None:
    task = silent("a", max_per_day=1)
    task.state = replace(task.state, day=days_on(16) // DAY_MS, alerted={"anomaly": 1, "segment_changed": 1})
    assert kinds(task.tick(wakes=["a"], now_ms=days_on(16))) == [("churn_risk", "a")]


def wave(count: int) -> tuple[ByHand, list[str]]:
    names = [f"c-{i}" for i in range(count)]
    return silent(*names, wave_min=5, wave_share=0.1), names


def test_a_wave_holds_its_alerts_back_and_sends_one_summary_a_day() -> None:
    task, names = wave(20)
    at = days_on(16) // DAY_MS * DAY_MS
    found = [task.tick(wakes=names, now_ms=at + hours * HOUR_MS) for hours in (0, 1, 26)]
    assert [kinds(result) for result in found] == [[("churn_wave", "test")], [], [("churn_wave", "test")]]
    assert [result.held["churn_risk", "wave"] for result in found] == [20, 0, 20], (
        "they are looked at again a day later"
    )
    assert [int(task.row(name)["churn_high"]) for name in names] == [0] * 20


def test_a_wave_is_counted_over_the_ticks_of_an_hour() -> None:
    task, names = wave(20)
    at = days_on(16) // HOUR_MS * HOUR_MS
    found = [task.tick(wakes=part, now_ms=at + i) for i, part in enumerate((names[:4], names[4:8], names[8:12]))]
    assert [[kind for kind, _ in kinds(result)] for result in found] == [["churn_risk"] * 4, ["churn_wave"], []]


def test_as_many_crossings_as_the_limit_are_no_wave() -> None:
    task, names = wave(20)
    assert kinds(task.tick(wakes=names[:5], now_ms=days_on(16))) == [("churn_risk", name) for name in names[:5]]


def test_those_a_wave_held_back_are_alerted_when_it_is_over() -> None:
    task, names = wave(20)
    task.tick(wakes=names, now_ms=days_on(16))
    assert kinds(task.tick(wakes=names[:3], now_ms=days_on(17))) == [("churn_risk", name) for name in names[:3]]


# Due times and ends


def test_a_row_is_due_after_now_and_within_half_of_the_journal_s_retention(lived: Run) -> None:
    half_ms = round(lived.settings.journal.retention_days * DAY_MS) // 2
    for result in lived.results:
        now_ms = np.maximum(result.entry.state.stream_time_ms, result.entry.rows["last_seen"])
        assert (result.entry.rows["due"] > now_ms).all()
        assert (result.entry.rows["due"] <= now_ms + half_ms).all()


@pytest.mark.parametrize("retention_days", [1.0, 1.5, 3.0, 7.0, 30.0])
@pytest.mark.parametrize("silence", [0.1, 6.0, 12.0])
def test_a_row_is_due_within_half_of_any_retention_whatever_its_risk(retention_days: float, silence: float) -> None:
    chosen = settings(journal={"retention_days": retention_days})
    task = ByHand(chosen, silence_version(chosen))
    task.tick(bought("a", 0))
    now_ms = days_on(silence)
    task.tick(wakes=["a"], now_ms=now_ms)
    assert now_ms < int(task.row("a")["due"]) <= now_ms + retention_days * DAY_MS / 2


def test_every_wake_writes_the_row_to_the_journal_again(lived: Run) -> None:
    woken = [
        set(result.entry.wakes) - set(result.entry.customers) - set(result.entry.forgotten) for result in lived.results
    ]
    assert (sum(len(result.entry.wakes) for result in lived.results) > 500, set().union(*woken)) == (True, set())


def test_no_row_stays_unwritten_for_half_of_the_retention_and_a_tick(lived: Run) -> None:
    written: dict[str, int] = {}
    half_ms = lived.settings.journal.retention_days * DAY_MS / 2
    for result in lived.results:
        now_ms = result.entry.state.stream_time_ms
        written |= dict.fromkeys(result.entry.customers, now_ms)
        for customer in result.entry.forgotten:
            written.pop(customer, None)
        assert now_ms - min(written.values()) <= half_ms + 6 * HOUR_MS


@pytest.mark.parametrize(
    ("fields", "days"), [({"userId": "a"}, 100), ({"userId": ..., "anonymousId": "a"}, 30)], ids=["known", "anonymous"]
)
def test_a_customer_silent_for_the_whole_retention_ends_by_a_tombstone(fields: dict[str, Any], days: int) -> None:
    task = ByHand(settings(customers={"retention_days": 100.0}))
    name = task.tick(body(**fields)).entry.customers[0]
    kept = task.tick(wakes=[name], now_ms=days_on(days) - 1).entry
    gone = task.tick(wakes=[name], now_ms=days_on(days)).entry
    assert [(list(e.customers), list(e.forgotten), e.state.customers) for e in (kept, gone)] == [
        ([name], [], 1),
        ([], [name], 0),
    ]


def test_a_row_is_woken_when_its_retention_ends() -> None:
    task = ByHand()
    task.tick(body(userId=..., anonymousId="a"))
    task.tick(wakes=["anon:a"], now_ms=days_on(28))
    assert int(task.row("anon:a")["due"]) == days_on(30)


def test_a_customer_who_comes_back_after_the_end_is_new() -> None:
    task = ByHand()
    task.tick(body(userId=..., anonymousId="a"))
    task.tick(wakes=["anon:a"], now_ms=days_on(30))
    result = task.tick(body(userId=..., anonymousId="a", time_ms=days_on(31)))
    assert (result.met, int(task.row("anon:a")["events"]), result.entry.state.customers) == (1, 1, 1)


def test_a_wake_without_a_row_is_forgotten_and_counts_for_nothing() -> None:
    task = silent("a")
    result = task.tick(wakes=["nobody", "a"], now_ms=days_on(1))
    entry = result.entry
    assert (list(entry.customers), list(entry.forgotten), entry.state.customers, result.met) == (
        ["a"],
        ["nobody"],
        1,
        0,
    )


def test_a_wake_without_a_row_whose_event_is_refused_is_forgotten_too() -> None:
    customer = next(f"c-{i}" for i in range(99) if not is_placed(f"c-{i}", 0, 4, "murmur2"))
    entry = ByHand(partitions=4).tick(bought(customer, 0), wakes=[customer]).entry
    assert (list(entry.customers), list(entry.forgotten)) == ([], [customer])


# Labels


def label_runs(task: ByHand, until_day: int, *orders: float) -> list[TickResult]:
    """Wake the customer whenever it is due, with orders on these days."""
    pending = sorted(orders)
    found = []
    while (due_ms := int(task.row("a")["due"])) < days_on(until_day):
        if pending and days_on(pending[0]) <= due_ms:
            found.append(task.tick(bought("a", pending.pop(0))))
        else:
            found.append(task.tick(wakes=["a"], now_ms=due_ms))
    return found


@pytest.mark.parametrize("buys", [True, False])
def test_an_example_matures_after_the_horizon_and_says_whether_an_order_came(buys: bool) -> None:
    task = ByHand()
    task.tick(bought("a", 0))
    taken_day = (int(task.row("a")["example_at"]) - NOW) / DAY_MS
    assert 0 < taken_day <= 7
    results = label_runs(task, 25, *[taken_day + 1] if buys else ())
    assert [flag for result in results for flag in result.entry.label_churned.tolist()] == [not buys]


def test_the_code_is_stamped_by_twelve_digits() -> None:
    assert (tick.code_hash(), len(tick.CODE), int(tick.CODE, 16) >= 0) == (tick.CODE, 12, True)


def test_records_of_both_topics_advance_their_own_offsets() -> None:
    task = ByHand()
    task.offset = 40
    assert dict(task.tick(bought("a", 0), {}, bought("a", 1)).entry.state.offsets) == {BUYS: 43}
