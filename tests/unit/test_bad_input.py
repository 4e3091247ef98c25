"""Bad input of every kind: the fuzzer's targets over their seeds and some mutations, and what fuzzing has found."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka.inputs import stamped
from stream.backends.memory import MemoryCluster, MemoryTopic
from stream.backends.redis import RedisStore, _marker
from stream.chunks import CHUNK_HEADER, Chunks
from stream.errors import Damaged, Misconfigured, RowsLost, SettingsError
from stream.ports import Marker, Outgoing
from stream.processing import journal, sections
from stream.processing.journal import TaskState
from stream.processing.version import from_bytes, to_bytes, warming
from stream.settings import MAX_FILE_BYTES, Settings, load, parse
from stream.versions import Versions
from tests.builders import NOW, ByHand, order, settings
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import written
from tests.fuzz.targets import TARGETS

MUTATIONS = {"tick": 100, "files": 400, "settings": 200, "version": 400}
"""How many here, where a target is slow; of the others 2,000."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of rows whose bytes were changed: no numbers of ours
@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_and_no_change_of_one_breaks_a_promise(name: str) -> None:
    target, draw = TARGETS[name], random.Random(name)
    seeds = list(target.seeds())
    for data in (*seeds, *target.large()):
        target.check(data)
    for _ in range(MUTATIONS.get(name, 2_000)):
        data = draw.choice(seeds)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data = mutated(data, draw)
        try:
            target.check(data)
        except Exception as broken:
            broken.add_note(f"the input: {data[:2_000]!r}")
            raise


# What was found in the journal


def entry() -> journal.Entry:
    """Of a tick with an order."""
    return ByHand(settings()).tick(order()).entry


def damaged(change: Any, data: bytes | None = None) -> bytes:
    """A record of the journal, or these bytes, whose header somebody has changed."""
    whole = journal.encode(entry()) if data is None else data
    header = sections.unpack_header(whole)
    rest = whole[8 + int.from_bytes(whole[4:8], "little") :]
    change(header)
    head = orjson.dumps(header)
    return sections.MAGIC + len(head).to_bytes(4, "little") + head + rest


def put(*path: str, value: Any) -> Any:
    """A change: this value at that place of the header."""

    def change(header: dict[str, Any]) -> None:
        inner = header
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("prev_seq"),
        lambda header: header["sections"].pop("rows"),
        lambda header: header["state"].pop("wave"),
        put("state", "seq", value="7"),
        put("state", "offsets", value={"purchases": "9"}),
        put("state", "wave", value={"sections": 1}),
        put("task", value=1.5),
        put("code", value="rewind 2"),
        put("released", value=[3]),
        put("sections", "rows", value=[0, 7, None, None]),
        put("sections", "rows", value=[0, 10**9, None, None]),
        put("sections", "event_scores", value=[0, -1, "<f4", [1]]),
        put("sections", "event_scores", value=[0, 0, "V0", [0]]),
        put("sections", "event_scores", value=[0, 4, "O", [1]]),
        put("sections", "event_scores", value=[0, 4, "<f4", []]),
        put("sections", "event_uids", value=[0, 0, "<u8", [0]]),
    ],
)
def test_a_journal_record_that_somebody_has_changed_is_refused_as_damaged(change: Any) -> None:
    with pytest.raises(Damaged, match="Damaged records"):
        journal.decode(damaged(change))


@pytest.mark.parametrize("keep", [4, 8, 40, -1])
def test_a_journal_record_that_was_cut_is_refused_as_damaged(keep: int) -> None:
    data = journal.encode(entry()._replace(forgotten=["gone"]))
    with pytest.raises(Damaged):
        journal.decode(data[:keep])


def test_an_event_of_a_customer_that_the_record_does_not_name_is_refused() -> None:
    """Unchecked, the trainer's loops would read and write beside their arrays."""
    whole = entry()._replace(who=np.array([7], np.uint32))
    with pytest.raises(Damaged, match="lengths"):
        journal.decode(journal.encode(whole))


@pytest.mark.parametrize("header", [b"", b"0", b"0/", b"x/2", b"1/1", b"0/-1", b"0/" + b"9" * 5_000])
def test_a_chunk_whose_header_is_no_place_is_refused_as_damaged(header: bytes) -> None:
    with pytest.raises(Damaged, match="driftline-chunk"):
        Chunks().add(b"ab", ((CHUNK_HEADER, header),))


# In models


def snapshot() -> bytes:
    return to_bytes(replace(warming(settings().models), number=3), {})


def read_topic(*records: tuple[bytes, bytes, bytes]) -> Versions:
    """The models topic with these records: key, chunk's header, value."""
    topic = MemoryTopic(MemoryCluster((), 1), "models", partitions=1)
    versions = Versions(topic)
    for key, header, value in records:
        cluster_append(topic, key, header, value)
    versions.refresh()
    return versions


def cluster_append(topic: MemoryTopic, key: bytes, header: bytes, value: bytes) -> None:
    cluster = MemoryCluster((), 1)
    cluster.topics["models"] = topic._logs
    cluster.produce(Outgoing("models", 0, key, value, ((CHUNK_HEADER, header),)), NOW)


def test_records_of_others_in_the_models_topic_are_passed_by_whatever_their_key() -> None:
    found = read_topic((b"\xff", b"0/1", b"x"), (b"version/3", b"0/1", snapshot()), (b"other", b"0/1", b""))
    assert found.newest is not None
    assert found.newest.number == 3


@pytest.mark.parametrize(("key", "header"), [(b"version/x", b"0/1"), (b"version/3", b"?"), (b"version/3", b"2/1")])
def test_a_model_version_under_a_key_or_header_that_none_has_is_refused_as_damaged(key: bytes, header: bytes) -> None:
    with pytest.raises(Damaged):
        read_topic((key, header, b"x"))


def test_chunks_of_a_version_that_were_cut_in_two_ways_are_not_joined() -> None:
    assert read_topic((b"version/3/1", b"1/2", b"a"), (b"version/3/2", b"2/3", b"b")).newest is None


@pytest.mark.parametrize(
    "change",
    [
        put("version", value=4),
        put("sections", "segments/mean", value=[0, 56, "<i8", [7]]),
        put("segment_names", value={"1": "others"}),
        lambda header: header.pop("learned"),
        lambda header: header["sections"].pop("churn/config"),
    ],
)
def test_a_model_version_whose_header_was_changed_does_not_match_its_seal(change: Any) -> None:
    """Its arrays may be as they were, and be taken in another shape: compiled loops check no bounds."""
    with pytest.raises(Damaged):
        from_bytes(damaged(change, snapshot()))


def test_a_model_version_of_the_release_before_has_no_seal_on_its_header() -> None:
    before = damaged(lambda header: header.pop("header_sha256"), snapshot())
    assert from_bytes(before).number == 3


# In Redis


@pytest.mark.parametrize("data", [b"\3\0", b"\3\0" + bytes(7), b"\1"])
def test_a_row_of_another_length_in_redis_is_lost_and_its_task_rebuilt(data: bytes) -> None:
    with pytest.raises(RowsLost, match="rebuilt from the journal"):
        RedisStore(settings())._row("c-1", data)


@pytest.mark.parametrize(
    "change",
    [
        {"state": 3},
        {"state": {}},
        {"generation": "4"},
        {"journal_offset": 1.5},
        {"partitions": None},
        {"state": {"schema": "1"}},
    ],
)
def test_a_marker_that_holds_what_no_release_writes_is_refused_as_damaged(change: Mapping[str, Any]) -> None:
    values = orjson.loads(written(Marker(TaskState(), 4, 17, 2)))
    with pytest.raises(Damaged):
        _marker(orjson.dumps(values | change))


@pytest.mark.parametrize("stamp", ['{"seq":"7","inc":1}', '{"seq":7.0,"inc":1}', '{"seq":7,"inc":null}'])
def test_offsets_whose_stamp_is_no_number_are_refused(stamp: str) -> None:
    with pytest.raises(Misconfigured, match="not the stamp of one tick"):
        stamped("group", 0, {"clickstream": OffsetAndMetadata(5, stamp, -1)})


# In settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = " + "[" * 3_000, "nests its tables too deeply"),
        ("[tick]\nmax_events = " + "9" * 5_000, "is not TOML"),
        ("a" + ".a" * MAX_FILE_BYTES, "is it another file"),
        ("[application]\nname = '" + "x" * 60_000 + "'", "takes 1 to 60 letters"),
        ("[models]\nseed = 0x" + "f" * 4_000, "models.seed: takes at most 10,000,000,000, found int too large"),
        ("[tick]\nmax_ahead_s = 1e300", r"tick.max_ahead_s: takes at most .* found 1e\+300"),
    ],
)
def test_a_file_that_no_settings_can_be_is_refused_in_few_words(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "driftline.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=says) as caught:
        load(path, {})
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "name", ["DRIFTLINE_HTTP\udcff__HOST", "DRIFTLINE_HTTP__HOST", "DRIFTLINE_KAFKA__SASL_USERNAME"]
)
def test_an_environment_that_is_not_utf_8_is_refused_with_the_variable(name: str) -> None:
    with pytest.raises(SettingsError, match=r"DRIFTLINE_\w+.*not UTF-8"):
        load(None, {name: "\udcff"})


def test_what_is_in_the_environment_for_others_may_hold_any_bytes() -> None:
    assert load(None, {"OTHER__NAME": "\udcff"}) == Settings()


def test_the_largest_numbers_that_settings_take_are_told_again_from_their_text() -> None:
    large = parse({"models": {"seed": 10**10}, "customers": {"retention_days": 1e10}, "tick": {"max_ahead_s": 1e10}})
    assert Settings.from_config_text(large.config_text).config_hash == large.config_hash
