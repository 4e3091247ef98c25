"""The journal record of a tick: what it read, what it made of it, and everything needed to run it again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from stream.errors import NewerSchema
from stream.processing import sections
from stream.processing.churn import Wave
from stream.processing.customer import OLDEST_SCHEMA, SCHEMA, Rows, as_read, as_written
from stream.processing.names import CHURN_COLUMNS

NEWS_OF_STATE = {"schema": 2, "history_until_ms": 2}
"""Fields of the state with the schema that brought them."""
LABELLED_SINCE = 3
"""The schema whose examples the churn model learns from."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a task carries from tick to tick beside its rows; journalled, and kept in the store's marker.

    `offsets` is the next offset of each input topic, `highs` the highest event time seen of each, `alerted` the
    alerts of each kind on `day` of stream time; `live` says that events came close to the wall clock, so that timers
    may follow it while the shop is silent. `schema` is the one its rows and journal records are written in;
    `history_until_ms` the latest event time of what was marked as history: alerts up to there are not published.
    """

    seq: int = 0
    incarnation: int = 0
    stream_time_ms: int = 0
    offsets: Mapping[str, int] = field(default_factory=dict)
    highs: Mapping[str, int] = field(default_factory=dict)
    customers: int = 0
    day: int = 0
    alerted: Mapping[str, int] = field(default_factory=dict)
    live: bool = False
    wave: Wave = field(default_factory=Wave)
    schema: int = SCHEMA
    history_until_ms: int = 0

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"wave": self.wave._asdict()}
        return {name: value for name, value in values.items() if NEWS_OF_STATE.get(name, 1) <= self.schema}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TaskState":
        """The state in a marker or a journal record.

        Raises:
            NewerSchema: written by a newer release.
            Damaged: it holds what no release writes.
        """
        with sections.reading("the state of a task"):
            check_schema(values.get("schema", 1), "the state of a task")
            state = cls(**{"schema": 1, **values, "wave": Wave(**values["wave"])})
            blank = cls()
            for one in fields(cls):
                _check_type(one.name, getattr(state, one.name), type(getattr(blank, one.name)))
            for name in ("offsets", "highs", "alerted", "wave"):
                whole: Any = getattr(state, name)
                for value in whole if isinstance(whole, Wave) else whole.values():
                    _check_type(name, value, int)
            return state


def _check_type(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def check_schema(schema: int, what: str) -> None:
    """Raise NewerSchema unless this release reads that schema."""
    if not OLDEST_SCHEMA <= schema <= SCHEMA:
        remedy = (
            "upgrade this worker; until then its tasks go to workers of the newer release"
            if schema > SCHEMA
            else "start the release before this one until every row has been written anew"
        )
        raise NewerSchema(f"{what} has schema {schema}, this release reads {OLDEST_SCHEMA} to {SCHEMA}; {remedy}")


REWIND = "rewind"
"""In place of the code's hash: no tick but a deliberate rewind. `rewind 2/5` is the second of five parts."""


def part_of(code: str) -> tuple[int, int] | None:
    """Which part of a whole copy of the rows an entry is, and of how many; None = it is none.

    >>> part_of("rewind 2/5"), part_of("rewind"), part_of("f4fab67bc469")
    ((2, 5), None, None)
    """
    if not code.startswith(REWIND + " "):
        return None
    part, _, count = code.removeprefix(REWIND + " ").partition("/")
    return int(part), int(count)


class Published(NamedTuple):
    """An alert as it goes out: key (customer id), id, and the CloudEvent's bytes."""

    key: str
    id: str
    value: bytes


class Entry(NamedTuple):
    """A decoded journal record; see `encode` for its sections.

    Labels of schema 1 and 2 are of another form and left out: `label_features` has the columns of `CHURN_COLUMNS`.
    `past` are alerts about history, which are not published. `who` and `label_who` index `customers` followed by
    `forgotten`: whose event, whose label.
    """

    application: str
    task: int
    prev_seq: int
    state: TaskState
    offsets_before: Mapping[str, int]
    wakes: Sequence[str]
    released: Sequence[str]
    model_version: int
    config: str
    code: str
    partitions: int
    customers: Sequence[str]
    rows: Rows
    forgotten: Sequence[str]
    alerts: Sequence[Published]
    past: Sequence[Published]
    who: NDArray[np.uint32]
    uids: NDArray[np.uint64]
    features: NDArray[np.float32]
    scores: NDArray[np.float32]
    label_who: NDArray[np.uint32]
    label_features: NDArray[np.float32]
    label_churned: NDArray[np.bool_]
    label_taken_ms: NDArray[np.int64]

    @property
    def seq(self) -> int:
        return self.state.seq


def encode(entry: Entry) -> bytes:
    """The record's bytes: the same entry always gives the same bytes.

    Sections: `alerts`, `past`, `customers`, `rows` (after-images), `forgotten` (tombstones), `events` (whose, uid,
    feature vector, score), `label` (whose, columns, outcome, when taken).
    """
    header = {
        "v": entry.state.schema,
        "schema": entry.state.schema,
        "application": entry.application,
        "task": entry.task,
        "prev_seq": entry.prev_seq,
        "state": entry.state.to_json(),
        "offsets_before": dict(entry.offsets_before),
        "released": list(entry.released),
        "model_version": entry.model_version,
        "config": entry.config,
        "code": entry.code,
        "partitions": entry.partitions,
    }
    past: dict[str, sections.Section] = {} if entry.state.schema == 1 else {"past": _listed(entry.past)}
    return sections.pack(
        header,
        {
            "alerts": _listed(entry.alerts),
            **past,
            "wakes": orjson.dumps(list(entry.wakes)),
            "customers": orjson.dumps(list(entry.customers)),
            "forgotten": orjson.dumps(list(entry.forgotten)),
            "rows": as_written(entry.rows, entry.state.schema).tobytes(),
            "event_who": entry.who,
            "event_uids": entry.uids,
            "event_features": entry.features,
            "event_scores": entry.scores,
            **_labels(entry),
        },
    )


def decode(data: bytes) -> Entry:
    """The entry in a record's bytes.

    Raises:
        NewerSchema: written by a newer release.
        Damaged: it holds what no release writes.
    """
    with sections.reading("a journal record"):
        return _checked(_decoded(data))


def _decoded(data: bytes) -> Entry:
    header = sections.unpack_header(data)
    check_schema(header["v"], "a journal record")

    def ids(name: str) -> list[str]:
        found: list[str] = orjson.loads(sections.raw(data, header, name))
        return found

    labelled = header["schema"] >= LABELLED_SINCE
    return Entry(
        header["application"],
        header["task"],
        header["prev_seq"],
        TaskState.from_json(header["state"]),
        header["offsets_before"],
        ids("wakes"),
        header["released"],
        header["model_version"],
        header["config"],
        header["code"],
        header["partitions"],
        ids("customers"),
        as_read(sections.raw(data, header, "rows"), header["schema"]),
        ids("forgotten"),
        _alerts(data, header, "alerts"),
        _alerts(data, header, "past") if "past" in header["sections"] else [],
        sections.section(data, header, "event_who"),
        sections.section(data, header, "event_uids"),
        sections.section(data, header, "event_features"),
        sections.section(data, header, "event_scores"),
        sections.section(data, header, "label_who") if labelled else np.zeros(0, np.uint32),
        sections.section(data, header, "label_features") if labelled else np.zeros((0, len(CHURN_COLUMNS)), np.float32),
        sections.section(data, header, "label_churned") if labelled else np.zeros(0, np.bool_),
        sections.section(data, header, "label_taken_ms") if labelled else np.zeros(0, np.int64),
    )


HEADER_TYPES = {
    "application": str,
    "task": int,
    "prev_seq": int,
    "offsets_before": dict,
    "wakes": list,
    "released": list,
    "model_version": int,
    "config": str,
    "code": str,
    "partitions": int,
    "customers": list,
    "forgotten": list,
}
ARRAYS = {
    "who": ("u4", 1),
    "uids": ("u8", 1),
    "features": ("f4", 2),
    "scores": ("f4", 1),
    "label_who": ("u4", 1),
    "label_features": ("f4", 2),
    "label_churned": ("?", 1),
    "label_taken_ms": ("i8", 1),
}


def _checked(entry: Entry) -> Entry:
    """The entry, if its parts fit together: the loops that take them are compiled, and check no bounds."""
    for name, kind in HEADER_TYPES.items():
        _check_type(name, getattr(entry, name), kind)
    for name in ("wakes", "released", "customers", "forgotten"):
        for text in getattr(entry, name):
            _check_type(name, text, str)
    for number in entry.offsets_before.values():
        _check_type("offsets_before", number, int)
    part_of(entry.code)
    for name, (dtype, ndim) in ARRAYS.items():
        array = getattr(entry, name)
        if array.dtype != np.dtype(dtype) or array.ndim != ndim:
            raise ValueError(f"{name} is an array of {array.dtype} with {array.ndim} dimensions")
    everybody = len(entry.customers) + len(entry.forgotten)
    if not (
        len(entry.rows) == len(entry.customers)
        and len(entry.who) == len(entry.uids) == len(entry.features) == len(entry.scores)
        and len(entry.label_who) == len(entry.label_features) == len(entry.label_churned) == len(entry.label_taken_ms)
        and all(not len(who) or who.max() < everybody for who in (entry.who, entry.label_who))
    ):
        raise ValueError("its parts are of different lengths")
    return entry


def _labels(entry: Entry) -> dict[str, sections.Section]:
    if entry.state.schema < LABELLED_SINCE:  # the release before learns from examples of another form
        return {
            "label_who": np.zeros(0, np.uint32),
            "label_features": np.zeros((0, 16), np.float32),
            "label_churned": np.zeros(0, np.bool_),
        }
    return {
        "label_who": entry.label_who,
        "label_features": entry.label_features,
        "label_churned": entry.label_churned,
        "label_taken_ms": entry.label_taken_ms,
    }


class Label(NamedTuple):
    """What a journal record says of itself in its header: its tick, its code, and the customers after it."""

    seq: int
    code: str
    customers: int


def label_of(data: bytes) -> Label:
    """The label alone, without decoding the rest; raises as `decode` does."""
    with sections.reading("a journal record"):
        header = sections.unpack_header(data)
        found = Label(header["state"]["seq"], header["code"], header["state"]["customers"])
        for value, kind in zip(found, (int, str, int), strict=True):
            _check_type("the label", value, kind)
        part_of(found.code)
        return found


def alerts_of(data: bytes) -> list[Published]:
    """The alerts alone, without decoding the rest; raises as `decode` does."""
    with sections.reading("a journal record"):
        return _alerts(data, sections.unpack_header(data), "alerts")


def _listed(alerts: Sequence[Published]) -> bytes:
    return orjson.dumps([{"key": alert.key, "id": alert.id, "value": orjson.Fragment(alert.value)} for alert in alerts])


def _alerts(data: bytes, header: Mapping[str, Any], section: str) -> list[Published]:
    listed = orjson.loads(sections.raw(data, header, section))
    for alert in listed:
        _check_type("an alert's key", alert["key"], str)
        _check_type("an alert's id", alert["id"], str)
    return [Published(alert["key"], alert["id"], orjson.dumps(alert["value"])) for alert in listed]
