"""Two releases side by side: what one writes the other reads, and a task goes on in the schema it is found in."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stream.errors import NewerSchema
from stream.processing import clock, tick
from stream.processing.customer import FIELDS, OLDEST_SCHEMA, ROW, ROWS, SCHEMA, as_read, as_written, blank
from stream.processing.journal import TaskState, decode, encode
from stream.settings import Journal
from tests.builders import NOW, ByHand, body, event_rules_of, fold, gathered, order, settings, silence_version

DAY_MS = 86_400_000
NEWS = [field.name for field in FIELDS if field.since > 1]


def bought(customer: str, day: float) -> dict[str, Any]:
    at = NOW + round(day * DAY_MS)
    return order(10.0, f"{customer}/{day}", at, userId=customer, messageId=f"{customer}/{day}")


def old_task(**journal: Any) -> ByHand:
    """A task that the release before began."""
    chosen = settings(alerts={"wave_min": 1_000}, journal=journal)
    return ByHand(chosen, silence_version(chosen), state=TaskState(schema=1))


def alerted(task: ByHand) -> int:
    """Let a customer fall silent until an alert goes out; returns how many did."""
    task.tick(bought("a", 0))
    return len(task.tick(wakes=["a"], now_ms=NOW + 12 * DAY_MS).entry.alerts)


def test_the_setting_allows_just_the_schemas_that_are_read_and_written() -> None:
    bounds = {type(one).__name__: one for one in Journal.model_fields["schema_version"].metadata}
    assert (bounds["Ge"].ge, bounds["Le"].le) == (OLDEST_SCHEMA, SCHEMA)
    assert sorted(ROWS) == list(range(OLDEST_SCHEMA, SCHEMA + 1))


def test_a_row_goes_to_the_old_schema_and_back_without_its_news() -> None:
    rows = blank(2)
    rows["events"], rows["spend_minor"], rows["churn"] = [3, 4], [5, 6], [0.5, np.nan]
    rows["alerts"] = 7
    estimated = ("last_spend", "spend_ewma")
    back = as_read(as_written(rows, 1).tobytes(), 1)
    assert as_written(rows, 1).dtype.itemsize < ROW.itemsize
    for name in ROW.names or ():
        expected = blank(2)[name] if name in NEWS else rows[name]
        if name in estimated:
            expected = rows["spend_minor"]
        np.testing.assert_array_equal(back[name], expected)
    assert as_read(as_written(rows, SCHEMA).tobytes(), SCHEMA).tobytes() == rows.tobytes()


def test_a_new_task_begins_in_the_newest_schema_and_counts_the_alerts_of_a_customer() -> None:
    chosen = settings(alerts={"wave_min": 1_000})
    task = ByHand(chosen, silence_version(chosen))
    assert alerted(task) == 1
    assert task.state.schema == SCHEMA
    assert task.row("a")["alerts"] == 1
    assert task.row("a")["alerted_at"] == NOW + 12 * DAY_MS


def test_a_task_of_the_release_before_goes_on_in_its_schema() -> None:
    task = old_task()
    assert alerted(task) == 1
    assert task.state.schema == 1
    assert task.row("a")["alerts"] == 0, "what the old schema cannot hold is not held in memory either"
    data = encode(task.results[-1].entry)
    assert decode(data).state == task.state
    assert encode(decode(data)) == data


def test_told_to_a_task_writes_the_newest_schema_and_rows_migrate_as_they_wake() -> None:
    task = old_task()
    task.tick(bought("a", 0), bought("b", 0))
    task.settings = settings(alerts={"wave_min": 1_000}, journal={"schema_version": 2})
    told = task.tick(wakes=["a"], now_ms=NOW + 12 * DAY_MS).entry
    assert told.state.schema == 2
    assert list(decode(encode(told)).customers) == ["a"]
    assert task.row("a")["alerts"] == 1
    task.settings = settings(alerts={"wave_min": 1_000}, journal={"schema_version": 1})
    assert task.tick(bought("b", 13)).entry.state.schema == 2, "the schema was lowered"


def test_ticks_of_either_schema_run_again_to_the_same_bytes() -> None:
    for task in (old_task(), old_task(schema_version=2)):
        stored: dict[str, bytes] = {}
        state = TaskState(schema=1)
        for days in (0, 1, 5, 9, 30):
            bodies = [bought(customer, days) for customer in ("a", "b")]
            before = task.input(*bodies)
            data = encode(task.tick(*bodies).entry)
            read = [clock.read(one.record, event_rules_of(task.settings)) for one in before.decoded]
            customers = tick.touched(read, ())
            again = tick.run(
                replace(before, state=state, decoded=read),
                customers,
                *gathered(stored, customers),
                tick.rules(task.settings),
            )
            assert encode(again.entry) == data
            fold(stored, decode(data))
            state = decode(data).state


@pytest.mark.parametrize(("schema", "remedy"), [(SCHEMA + 1, "upgrade this worker"), (0, "the release before")])
def test_a_state_of_another_release_is_refused_with_a_remedy(schema: int, remedy: str) -> None:
    values = TaskState().to_json() | {"schema": schema}
    with pytest.raises(NewerSchema, match=remedy):
        TaskState.from_json(values)


def test_a_state_without_a_schema_is_of_the_first() -> None:
    values = TaskState(schema=1, seq=7).to_json()
    assert "schema" not in values
    assert TaskState.from_json(values) == TaskState(schema=1, seq=7)


def test_what_is_marked_as_history_counts_and_publishes_no_alert() -> None:
    chosen = settings(alerts={"wave_min": 1_000})
    task = ByHand(chosen, silence_version(chosen))
    history = (("driftline-history", b"1"),)
    task.tick(bought("a", 0), headers=history)
    result = task.tick(bought("b", 12), wakes=["a"], headers=history)
    assert result.entry.alerts == []
    assert [alert.key for alert in result.entry.past] == ["a"]
    assert result.held["churn_risk", "history"] == 1
    assert task.row("a")["orders"] == 1
    assert task.row("a")["alerts"] == 0
    live = task.tick(bought("c", 30), wakes=["b"])
    assert [alert.key for alert in live.entry.alerts] == ["b"], "what happens after the history is told"
    assert decode(encode(result.entry)).past == result.entry.past


def test_a_customer_who_is_to_be_forgotten_is_gone_and_begins_anew_when_they_return() -> None:
    task = ByHand(settings())
    task.tick(bought("a", 0), bought("b", 0))
    gone = task.forget("a")
    assert list(gone.entry.forgotten) == ["a"]
    assert gone.counts["forgotten"] == 1
    assert set(task.rows) == {"b"}
    assert task.state.customers == 1
    task.tick(bought("a", 1))
    assert task.row("a")["orders"] == 1
    assert task.row("a")["first_seen"] == NOW + DAY_MS
    assert task.state.customers == 2


def test_what_came_in_the_tick_that_forgets_is_forgotten_too_and_what_follows_begins_anew() -> None:
    task = ByHand(settings())
    task.tick(bought("a", 0))
    both = task.forget("a", before=[bought("a", 1)], after=[bought("a", 2)])
    assert list(both.entry.customers) == ["a"]
    assert list(both.entry.forgotten) == []
    assert task.row("a")["orders"] == 1
    assert len(both.entry.features) == 1, "a forgotten event is not learned"
    assert task.state.customers == 1
    alone = task.forget("a", before=[bought("a", 3)])
    assert list(alone.entry.forgotten) == ["a"]
    assert len(alone.entry.features) == 0
    assert task.state.customers == 0


def test_to_forget_somebody_unknown_is_no_harm_and_no_event() -> None:
    task = ByHand(settings())
    task.tick(bought("a", 0))
    nothing = task.forget("nobody")
    assert list(nothing.entry.forgotten) == ["nobody"]
    assert task.state.customers == 1
    assert nothing.entry.state.stream_time_ms == NOW


def test_an_order_to_forget_without_a_customer_is_a_dead_letter() -> None:
    task = ByHand(settings())
    task.tick(body("Product Viewed", NOW, userId="a"))
    (letter,) = task.forget("").dead_letters
    assert letter.reason == "no_customer"
