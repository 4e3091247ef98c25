"""The lines of a backfill: always the same ones in the same order, each with a time of its own."""

from pathlib import Path

import orjson
import pytest

from stream.cli.backfill import Line, _check_sample, _lines, _read_through
from stream.errors import SettingsError
from stream.events import Kind, Record, decode
from tests.builders import NOW, RULES, body, order

DAY_MS = 86_400_000


def written(path: Path, *bodies: object) -> Path:
    lines = [one if isinstance(one, bytes) else orjson.dumps(one) for one in bodies]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def lines(*paths: Path) -> list[Line]:
    return list(_lines(_read_through(paths)[1], RULES))


def test_the_order_of_the_command_line_does_not_matter_and_files_are_merged_by_time(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", *(body(time_ms=NOW + i * 2_000, messageId=f"a{i}") for i in range(5)))
    second = written(tmp_path / "b.jsonl", *(order(time_ms=NOW + i * 2_000 + 1, messageId=f"b{i}") for i in range(5)))
    assert _read_through([first, second])[:2] == _read_through([second, first])[:2]
    merged = lines(first, second)
    assert merged == lines(second, first)
    assert [orjson.loads(line.value)["messageId"] for line in merged] == [f"{x}{i}" for i in range(5) for x in "ab"]
    assert [line.purchase for line in merged] == [False, True] * 5
    assert not any(line.redated for line in merged)


def test_a_csv_under_another_name_gives_the_same_lines(tmp_path: Path) -> None:
    text = "customer_id,date,revenue,order_id\nc-1,2026-03-02,10,o-1\nc-2,2026-03-03,11,o-2\n"
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text(text)
    assert lines(tmp_path / "one.csv") == lines(tmp_path / "two.csv")


def test_a_line_without_a_time_or_mis_dated_happens_at_its_place_whenever_it_is_sent(tmp_path: Path) -> None:
    good = [body(time_ms=NOW + i * 60_000, messageId=f"m{i}") for i in range(60)]
    good[10] = body(timestamp=..., messageId="none")
    good[20] = body(time_ms=NOW + 4_000 * DAY_MS, messageId="ahead")
    found = lines(written(tmp_path / "a.jsonl", *good))
    assert [i for i, line in enumerate(found) if line.redated] == [10, 20]
    for i in (10, 20):
        event = decode(Record("t", 0, 0, NOW + 9_000 * DAY_MS, None, found[i].value), RULES)
        assert (event.kind, event.time_ms) == (Kind.VIEW, NOW + (i - 1) * 60_000)


def test_a_line_that_is_no_event_is_written_as_it_is_with_no_customer(tmp_path: Path) -> None:
    (bad, good) = lines(written(tmp_path / "a.jsonl", b"{broken", body()))
    assert bad == Line(False, None, b"{broken", "undecodable")
    assert (good.customer, good.reason) == ("c-1", "")


def test_files_that_are_mostly_no_events_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"2 of the first 3 lines.*2 undecodable"):
        _check_sample(lines(written(tmp_path / "a.jsonl", b"{", body(), b"}")))
    _check_sample(lines(written(tmp_path / "b.jsonl", b"{", body())))
    with pytest.raises(SettingsError, match="no events"):
        _check_sample(lines(written(tmp_path / "c.jsonl")))
