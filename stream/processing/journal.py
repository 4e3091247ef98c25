"""The journal record of a tick: what it read, what it made of it, and everything needed to run it again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from stream.errors import NewerSchema
from stream.processing import sections
from stream.processing.churn import Wave
from stream.processing.customer import ROW, SCHEMA, Rows

VERSION = 1


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a task carries from tick to tick beside its rows; journalled, and kept in the store's marker.

    `offsets` is the next offset of each input topic, `highs` the highest event time seen of each, `alerted` the
    alerts of each kind on `day` of stream time; `live` says that events came close to the wall clock, so that timers
    may follow it while the shop is silent.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"wave": self.wave._asdict()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TaskState":
        return cls(**{**values, "wave": Wave(**values["wave"])})


class Published(NamedTuple):
    """An alert as it goes out: key (customer id), id, and the CloudEvent's bytes."""

    key: str
    id: str
    value: bytes


class Entry(NamedTuple):
    """A decoded journal record; see `encode` for its sections.

    `who` and `label_who` index `customers` followed by `forgotten`: whose event, whose label.
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
    who: NDArray[np.uint32]
    uids: NDArray[np.uint64]
    features: NDArray[np.float32]
    scores: NDArray[np.float32]
    label_who: NDArray[np.uint32]
    label_features: NDArray[np.float32]
    label_churned: NDArray[np.bool_]

    @property
    def seq(self) -> int:
        return self.state.seq


def encode(entry: Entry) -> bytes:
    """The record's bytes: the same entry always gives the same bytes.

    Sections: `alerts`, `customers`, `rows` (after-images), `forgotten` (tombstones), `events` (whose, uid, feature
    vector, score), `labels` (whose, features, outcome).
    """
    header = {
        "v": VERSION,
        "schema": SCHEMA,
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
    alerts = [{"key": alert.key, "id": alert.id, "value": orjson.Fragment(alert.value)} for alert in entry.alerts]
    return sections.pack(
        header,
        {
            "alerts": orjson.dumps(alerts),
            "wakes": orjson.dumps(list(entry.wakes)),
            "customers": orjson.dumps(list(entry.customers)),
            "forgotten": orjson.dumps(list(entry.forgotten)),
            "rows": entry.rows.tobytes(),
            "event_who": entry.who,
            "event_uids": entry.uids,
            "event_features": entry.features,
            "event_scores": entry.scores,
            "label_who": entry.label_who,
            "label_features": entry.label_features,
            "label_churned": entry.label_churned,
        },
    )


def decode(data: bytes) -> Entry:
    """The entry in a record's bytes.

    Raises:
        NewerSchema: written by a newer release.
    """
    header = sections.unpack_header(data)
    if header["v"] != VERSION or header["schema"] != SCHEMA:
        raise NewerSchema(
            f"journal record of version {header['v']} with rows of schema {header['schema']}; this release reads "
            f"{VERSION} and {SCHEMA}: upgrade Driftline"
        )

    def ids(name: str) -> list[str]:
        found: list[str] = orjson.loads(sections.raw(data, header, name))
        return found

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
        sections.section(data, header, "rows", ROW),
        ids("forgotten"),
        alerts_of(data),
        sections.section(data, header, "event_who"),
        sections.section(data, header, "event_uids"),
        sections.section(data, header, "event_features"),
        sections.section(data, header, "event_scores"),
        sections.section(data, header, "label_who"),
        sections.section(data, header, "label_features"),
        sections.section(data, header, "label_churned"),
    )


def alerts_of(data: bytes) -> list[Published]:
    """The alerts alone, without decoding the rest."""
    header = sections.unpack_header(data)
    listed = orjson.loads(sections.raw(data, header, "alerts"))
    return [Published(alert["key"], alert["id"], orjson.dumps(alert["value"])) for alert in listed]
