import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from stream.adapters import records
from stream.cli import main
from stream.embedded import Embedded
from stream.errors import SettingsError
from stream.events import Event, EventRules, Kind, decode
from stream.settings import parse
from tests.builders import BUYS, CLICKS, NOW, SMALL_MODELS, body, iso, order, shop

ROOT = Path(__file__).parents[2]
REES46 = "event_time,event_type,product_id,category_code,brand,price,user_id,user_session\n"


def file(folder: Path, text: str | bytes, name: str = "events.csv") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def bodies(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(each.value or b"") for each in records(path, "t")]


def decoded(path: Path) -> list[Event]:
    return [decode(each, EventRules("USD")) for each in records(path, "t")]


# CSV


def test_a_row_of_a_public_click_log_is_one_event_in_segment_s_words(tmp_path: Path) -> None:
    rows = "2019-10-01T00:00:00Z,view,44600062,apparel.shoes,nike,35.79,541312140,s1\n"
    assert bodies(file(tmp_path, REES46 + rows)) == [
        {
            "type": "track",
            "event": "Product Viewed",
            "messageId": "t:2",
            "userId": "541312140",
            "timestamp": "2019-10-01T00:00:00Z",
            "properties": {"product_id": "44600062", "category": "apparel.shoes", "price": "35.79"},
        }
    ]


def test_every_event_type_of_a_public_click_log_has_its_kind(tmp_path: Path) -> None:
    types = ("view", "cart", "remove_from_cart", "purchase", "VIEW", "wishlist")
    rows = "".join(f"2019-10-01T00:00:0{i}Z,{name},1,c,b,2.50,7,s\n" for i, name in enumerate(types))
    found = decoded(file(tmp_path, REES46 + rows))
    assert [one.kind for one in found] == [
        Kind.VIEW,
        Kind.CART_ADD,
        Kind.CART_REMOVE,
        Kind.ORDER,
        Kind.VIEW,
        Kind.OTHER,
    ]
    assert [one.amount_minor for one in found if one.kind is Kind.ORDER] == [250]


def test_the_time_of_rees46_s_own_files_is_understood(tmp_path: Path) -> None:
    path = file(tmp_path, REES46 + "2019-10-01 00:00:00 UTC,view,1,c,b,2.5,7,s\n")
    assert [one.time_ms for one in decoded(path)] == [1_569_888_000_000]


def test_a_time_in_epoch_milliseconds_is_understood_as_retailrocket_writes_it(tmp_path: Path) -> None:
    path = file(tmp_path, f"timestamp,visitorid,event,itemid,transactionid\n{NOW},257597,view,355908,\n")
    assert [one.time_ms for one in decoded(path)] == [NOW]


def test_consecutive_lines_of_one_basket_are_one_order(tmp_path: Path) -> None:
    text = (
        "household_id,basket_id,transaction_timestamp,department,quantity,sales_value\n"
        "1,b1,2017-01-01T10:00:00,DELI,1,1.10\n"
        "1,b1,2017-01-01T10:00:00,MEAT,2,2.20\n"
        "2,b1,2017-01-01T10:00:00,DELI,1,5\n"
        "1,b2,2017-01-02T10:00:00,DELI,1,3.30\n"
    )
    found = decoded(file(tmp_path, text))
    assert [(one.kind, one.customer, one.amount_minor, one.items, one.categories) for one in found] == [
        (Kind.ORDER, "1", 330, 3, ("DELI", "MEAT")),
        (Kind.ORDER, "2", 500, 1, ("DELI",)),
        (Kind.ORDER, "1", 330, 1, ("DELI",)),
    ]


def test_purchases_without_an_order_id_are_orders_of_their_own(tmp_path: Path) -> None:
    found = decoded(file(tmp_path, "customer,date,amount\n1,2017-01-01,5\n1,2017-01-01,5\n"))
    assert [(one.order_hash, one.amount_minor) for one in found] == [(0, 500), (0, 500)]


def test_an_order_of_lines_with_prices_is_their_sum(tmp_path: Path) -> None:
    lines = ("1,2010-12-01 08:26:00,5,2.55,6", "1,2010-12-01 08:26:00,5,1,2")
    text = "\n".join(("Customer ID,InvoiceDate,Invoice No,Unit Price,Qty", *lines))
    assert [(one.amount_minor, one.items) for one in decoded(file(tmp_path, text))] == [(1730, 8)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.csv", "userId,timestamp,event\nc-1,2023-11-14,view\n"),
        ("case.CSV", "USER_ID,Event Time,Event Type\nc-1,2023-11-14,view\n"),
        ("tabs.tsv", "user id\ttimestamp\tevent\nc-1\t2023-11-14\tview\n"),
        ("bom.csv", "\ufeffuserId,timestamp,event\nc-1,2023-11-14,view\n"),
        ("windows.csv", "userId,timestamp,event\r\nc-1,2023-11-14,view\r\n"),
        ("quoted.csv", '"userId","timestamp","event"\n"c-1"," 2023-11-14 ","view"\n'),
        ("more.csv", "x,userId,y,timestamp,event\n1,c-1,2,2023-11-14,view,too,many\n"),
        ("no-newline.csv", "userId,timestamp,event\nc-1,2023-11-14,view"),
    ],
)
def test_a_table_is_read_however_it_is_written(tmp_path: Path, name: str, text: str) -> None:
    found = decoded(file(tmp_path, text, name))
    assert [(one.kind, one.customer, one.time_ms) for one in found] == [(Kind.VIEW, "c-1", 1_699_920_000_000)]


@pytest.mark.parametrize("blank", ["\n", "\n\n"])
def test_a_blank_line_is_no_event(tmp_path: Path, blank: str) -> None:
    text = f"userId,timestamp,event\nc-1,2023-11-14,view\n{blank}c-2,2023-11-15,view\n{blank}"
    assert [each.get("userId") for each in bodies(file(tmp_path, text))] == ["c-1", "c-2"]


def test_a_row_that_is_cut_off_is_an_event_without_what_is_missing(tmp_path: Path) -> None:
    found = bodies(file(tmp_path, "userId,timestamp,event\nc-1\n"))
    assert [(each["userId"], each["timestamp"]) for each in found] == [("c-1", None)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("event,timestamp\nview,2023-11-14\n", "event, timestamp"),
        ("userId,event\nc-1,view\n", "userId, event"),
        ("", "none"),
    ],
)
def test_a_table_without_customer_or_time_is_refused_with_its_columns(tmp_path: Path, text: str, says: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(SettingsError, match=r"a customer column .*userid.*timestamp.*needed") as caught:
        list(records(path, "t"))
    assert f"{path}: its columns are {says};" in str(caught.value)


def test_a_quote_that_is_never_closed_is_said_and_no_crash(tmp_path: Path) -> None:
    path = file(tmp_path, 'userId,timestamp,event\nc-1,2023-11-14,"view\n' + "c-1,2023-11-14,view\n" * 10_000)
    with pytest.raises(SettingsError):
        list(records(path, "t"))


def test_rows_of_two_files_of_one_name_are_not_duplicates_of_each_other(tmp_path: Path) -> None:
    text = "userId,timestamp,event\nc-1,2023-11-14,view\n"
    ids = [
        orjson.loads(next(records(file(tmp_path / month, text), f"file{i}")).value or b"")["messageId"]
        for i, month in enumerate(("january", "february"))
    ]
    assert len(set(ids)) == 2


def test_a_message_id_of_the_table_is_kept(tmp_path: Path) -> None:
    assert bodies(file(tmp_path, "userId,time,event_id\nc-1,2023-11-14,e-9\n"))[0]["messageId"] == "e-9"


# JSON Lines


def test_json_lines_are_taken_as_they_are_and_blank_lines_left_out(tmp_path: Path) -> None:
    lines = [orjson.dumps(body()), b"{garbage", b"\xff\xfe", b"[]"]
    path = file(tmp_path, b"\n\n".join(lines) + b"\n  \n", "events.jsonl")
    assert [each.value for each in records(path, "t")] == lines


def test_a_record_s_timestamp_is_the_time_reached_so_far(tmp_path: Path) -> None:
    lines = [body(time_ms=NOW), body(time_ms=NOW - 5), body(timestamp=...), body(timestamp="2999-01-01"), b"x"]
    data = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    found = list(records(file(tmp_path, data, "events.jsonl"), "t"))
    assert [each.timestamp_ms for each in found] == [NOW] * 5


@pytest.mark.parametrize("name", ["missing.csv", "missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        list(records(tmp_path / name, "t"))


# driftline replay


CONFIG = "[application]\nname = 'test'\n[models]\n" + "".join(
    f"{name} = {value}\n" for name, value in SMALL_MODELS.items()
)
CONFIG += "[alerts]\nanomaly_one_in = 50\nanomaly_min_events = 5\n"


@pytest.fixture(scope="module")
def shop_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The synthetic shop as two files of JSON Lines, behind the option that makes its models small."""
    folder = tmp_path_factory.mktemp("shop")
    logs = shop(60, 60)
    paths = [
        file(folder, b"\n".join(each.value or b"" for each in logs[topic]), f"{topic}.jsonl")
        for topic in (CLICKS, BUYS)
    ]
    return ["--config", str(file(folder, CONFIG, "small.toml")), "replay", *map(str, paths)]


def test_replay_gives_the_same_bytes_every_time_and_in_another_process(
    shop_files: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code = main(shop_files)
    here = capfdbinary.readouterr().out
    there = subprocess.run(
        [sys.executable, "-m", "stream", *shop_files], cwd=ROOT, capture_output=True, check=True
    ).stdout
    assert (code, here == there, len(here.splitlines()) > 10) == (0, True, True)
    assert all(orjson.loads(line)["specversion"] == "1.0" for line in here.splitlines())


def test_replay_writes_dead_letters_and_customers_as_json_lines(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = [orjson.dumps(order(order_id=f"o-{i}", messageId=f"m-{i}")) for i in range(5)]
    path = file(tmp_path, b"\n".join([*lines, b"{garbage", b'"\xff"']), "events.jsonl")
    letters, customers = tmp_path / "letters.jsonl", tmp_path / "customers.jsonl"
    code = main(["replay", str(path), "--dead-letters", str(letters), "--customers", str(customers)])
    found = [orjson.loads(line) for line in letters.read_bytes().splitlines()]
    assert (code, capfdbinary.readouterr().out) == (0, b"")
    assert [
        {name: one.get(name) for name in ("reason", "partition", "offset", "value", "value_base64")} for one in found
    ] == [
        {"reason": "undecodable", "partition": 0, "offset": 5, "value": "{garbage", "value_base64": None},
        {"reason": "undecodable", "partition": 0, "offset": 6, "value": None, "value_base64": "Iv8i"},
    ]
    (customer,) = [orjson.loads(line) for line in customers.read_bytes().splitlines()]
    assert {name: customer[name] for name in ("customer_id", "events", "orders", "spend_minor", "last_order")} == {
        "customer_id": "c-1",
        "events": 5,
        "orders": 5,
        "spend_minor": 6_250,
        "last_order": iso(NOW).replace("+00:00", "Z"),
    }


def test_replay_merges_files_by_event_time(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    customers = []
    for names in (("a", "b"), ("b", "a")):
        for i, name in enumerate(("a", "b")):
            lines = [orjson.dumps(order(1, f"o-{i}-{n}", NOW + n * 60_000, messageId=f"m-{i}-{n}")) for n in range(9)]
            file(tmp_path, b"\n".join(lines), f"{name}.jsonl")
        out = tmp_path / "customers.jsonl"
        main(["replay", *(str(tmp_path / f"{name}.jsonl") for name in names), "--customers", str(out)])
        customers.append([orjson.loads(line) for line in out.read_bytes().splitlines()])
    assert customers[0] == customers[1]
    assert [(one["events"], one["sessions"], one["spend_minor"]) for one in customers[0]] == [(18, 1, 1_800)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay", "missing.jsonl"], "missing.jsonl cannot be read"),
        (["--config", "missing.toml", "replay", "x.jsonl"], "missing.toml cannot be read"),
        (["replay", "columns.csv"], "its columns are a, b"),
        (["--config", "wrong.toml", "replay", "columns.csv"], "tick.max_event: no such setting"),
        (["replay", "empty.jsonl", "--dead-letters", "nowhere/letters.jsonl"], "nowhere/letters.jsonl"),
    ],
)
def test_wrong_settings_and_files_end_with_two_and_say_why_on_standard_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    arguments: list[str],
    says: str,
) -> None:
    file(tmp_path, "a,b\n1,2\n", "columns.csv")
    file(tmp_path, "[tick]\nmax_event = 3\n", "wrong.toml")
    file(tmp_path, "", "empty.jsonl")
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    out, err = capfdbinary.readouterr()
    assert (code, out, says.encode() in err) == (2, b"", True)


def test_wrong_usage_ends_with_two(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["replay"])
    assert caught.value.code == 2


def test_a_file_of_mostly_dead_letters_ends_with_one(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = file(tmp_path, b"{garbage\n" * 1_500, "events.jsonl")
    code = main(["replay", str(path)])
    assert (code, b"undecodable" in capfdbinary.readouterr().err) == (1, True)


def jsonl(tmp_path: Path, times: list[str]) -> Path:
    path = tmp_path / "events.jsonl"
    lines = [orjson.dumps({"userId": "c", "event": "Product Viewed", "timestamp": each}) for each in times]
    path.write_bytes(b"\n".join(lines))
    return path


def test_one_mis_dated_line_does_not_move_the_time_a_file_has_reached(tmp_path: Path) -> None:
    times = [f"2026-03-01T10:{minute:02}:00Z" for minute in range(60)]
    times.insert(5, "2026-11-01T00:00:00Z")
    stamps = [record.timestamp_ms for record in records(jsonl(tmp_path, times), "t")]
    assert stamps == sorted(stamps)
    assert stamps[5] == stamps[4]
    assert stamps[-1] == 1_772_362_740_000


def test_a_real_pause_moves_the_time_a_file_has_reached(tmp_path: Path) -> None:
    times = [*(f"2026-03-01T10:{minute:02}:00Z" for minute in range(5)), "2026-04-01T00:00:00Z", "2026-04-01T00:01:00Z"]
    stamps = [record.timestamp_ms for record in records(jsonl(tmp_path, times), "t")]
    assert stamps[5] - stamps[4] > 30 * 86_400_000


def test_a_line_of_an_order_that_cannot_be_used_is_not_swallowed_by_the_line_before(tmp_path: Path) -> None:
    lines = ("c,2026-01-05,o1,10", "c,2026-01-05,o1,abc", "c,garbage,o1,5", "c,2026-01-05,o1,nan")
    text = "\n".join(("userId,timestamp,order_id,revenue", *lines, ""))
    assert [each["properties"]["revenue"] for each in bodies(file(tmp_path, text))] == [10.0, "abc", 5.0, "nan"]


def test_a_return_written_with_minus_signs_is_a_refund_of_that_amount(tmp_path: Path) -> None:
    (body,) = bodies(file(tmp_path, "userId,timestamp,order_id,quantity,amount\nc,2026-01-05,o1,-1,-10\n"))
    assert (body["event"], body["properties"]["revenue"]) == ("Order Refunded", 10.0)


def test_a_csv_that_is_not_utf_8_is_refused_and_merges_nobody(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("userId,timestamp,revenue\ncafé,2026-01-05,1\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        list(records(path, "t"))


def test_a_replay_does_not_write_over_what_it_reads(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ["2026-03-01T10:00:00Z"])
    before = path.read_bytes()
    assert main(["replay", str(path), "--dead-letters", str(path)]) == 2
    assert path.read_bytes() == before


def test_a_replay_of_nothing_usable_ends_with_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"[1]\n[2]\n")
    assert main(["replay", str(path)]) == 1


def test_a_replay_keeps_in_memory_only_what_is_not_processed_yet(tmp_path: Path) -> None:
    start = 1_772_362_740_000
    path = tmp_path / "long.jsonl"
    with path.open("wb") as lines:
        for number in range(12_000):
            event = {"userId": f"c-{number % 50}", "event": "Product Viewed", "timestamp": start + number * 1_000}
            lines.write(orjson.dumps(event) + b"\n")
    kept = []
    embedded = Embedded(parse({}), ("t",), lambda _: None)
    log = embedded._cluster.topic("t")[0]
    embedded.run({"t": records(path, "t")}, lambda _: kept.append(len(log.records)))
    assert len(kept) == 3
    assert max(kept) <= 5_000
