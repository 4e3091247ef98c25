"""What a version changed of the segments is told in one alert, by the trainer and in the version's own transaction."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import orjson

from stream.embedded import Embedded
from stream.events import Record
from stream.processing.alerts import rfc3339
from stream.processing.journal import Published
from stream.processing.segment_lineage import announce
from stream.processing.version import Version, from_bytes, to_bytes, warming
from stream.settings import parse

SETTINGS = parse({"models": {"segments": 3, "first_customers": 60, "publish_min_events": 100}})
START_MS = 1_750_000_000_000


def learned(version: Version, places: Sequence[float], seed: int = 1) -> Version:
    """The version after it: customers at these places of the first feature, names as the trainer would give."""
    random = np.random.default_rng(seed)
    rows = np.zeros((300, len(version.segments.features or ())))
    rows[:, 0] = np.repeat(places, 300 // len(places)) + random.normal(scale=0.1, size=300)
    model = type(version.segments).from_arrays(version.segments.to_arrays())
    model.learn_many(rows, np.arange(300))
    model.refit()
    ids = model.ids.tolist()
    shares = dict(zip(ids, model.shares().tolist(), strict=True))
    names = {segment: f"segment {segment}" for segment in ids}
    return replace(version, number=version.number + 1, segments=model, segment_names=names, segment_shares=shares)


def test_the_first_segments_are_told() -> None:
    before = warming(SETTINGS.models)
    alert = announce(before, learned(before, [0, 5, 10]), "shop", START_MS)
    assert alert is not None
    assert (alert.before, alert.after, alert.customer) == ("version 0", "version 1", "shop")
    assert [one["what"] for one in alert.details["changes"]] == ["born"] * 3
    assert [one["id"] for one in alert.details["segments"]] == [0, 1, 2]
    assert sum(one["customers"] for one in alert.details["segments"]) == 300
    assert all("one of the first segments" in reason.text for reason in alert.reasons)


def test_segments_that_are_what_they_were_are_not_told_again() -> None:
    first = learned(warming(SETTINGS.models), [0, 5, 10])
    assert announce(first, learned(first, [0.2, 5.1, 10.1], seed=2), "shop", START_MS) is None


def test_a_split_and_a_merger_are_told_with_the_names_that_people_know() -> None:
    first = learned(warming(SETTINGS.models), [0, 5, 10])
    second = learned(first, [2, 2, 3, 3, 10, 20], seed=2)
    alert = announce(first, second, "shop", START_MS)
    assert alert is not None
    changes = alert.details["changes"]
    assert sorted(one["what"] for one in changes) == ["merged", "split"]
    assert all(one["share"] == 1.0 for one in changes)
    new = {one["id"] for one in changes if one["what"] in ("born", "split")}
    gone = {one["id"] for one in changes if one["what"] in ("merged", "retired")}
    assert new == set(second.segments.ids.tolist()) - {0, 1, 2} != set()
    assert gone == {0, 1, 2} - set(second.segments.ids.tolist())
    for one, reason in zip(changes, alert.reasons, strict=False):
        assert repr(one["name"]) in reason.text
        assert one["other_id"] is None or repr(one["other_name"]) in reason.text


def test_a_snapshot_describes_its_segments_as_the_version_did() -> None:
    version = learned(warming(SETTINGS.models), [0, 5, 10])
    again = from_bytes(to_bytes(replace(version, stream_time_ms=START_MS), {}))
    assert again.stream_time_ms == START_MS
    assert [again.segment(one) for one in again.segments.ids] == [version.segment(one) for one in version.segments.ids]


def orders() -> list[Record]:
    found = []
    for number, (day, customer) in enumerate(itertools.product(range(0, 40, 4), range(90))):
        time_ms = START_MS + day * 86_400_000 + customer * 1000
        properties = {"order_id": f"o-{number}", "revenue": 10.0 * (1 + customer % 3) ** 3, "currency": "USD"}
        body = {"type": "track", "event": "Order Completed", "messageId": f"m-{number}", "userId": f"c-{customer}"}
        value = orjson.dumps(body | {"timestamp": rfc3339(time_ms), "properties": properties})
        found.append(Record("orders", 0, number, time_ms, f"c-{customer}".encode(), value))
    return found


def test_a_run_tells_of_each_version_with_other_segments_once_and_a_replay_with_the_same_bytes() -> None:
    def lived() -> tuple[list[bytes], list[tuple[int, list[int]]]]:
        told: list[Published] = []
        ids: list[tuple[int, list[int]]] = []

        def see(version: Version, alert: Published | None) -> None:
            ids.append((version.number, version.segments.ids.tolist()))
            told.extend([alert] if alert else [])

        Embedded(SETTINGS, ("orders",), lambda _: None, see).run({"orders": iter(orders())})
        return [one.value for one in told], ids

    told, ids = lived()
    changed = [number for (_, before), (number, after) in itertools.pairwise([(0, []), *ids]) if before != after]
    assert [orjson.loads(value)["data"]["to"] for value in told] == [f"version {number}" for number in changed]
    assert changed
    assert lived()[0] == told
