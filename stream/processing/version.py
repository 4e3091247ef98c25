"""A model version: an immutable set of arrays that a tick is scored with, and that the trainer goes on from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from online_models import ChurnRisk, IncrementalKMeans, ReferenceForest
from stream.errors import Damaged, NewerSchema
from stream.processing import sections
from stream.processing.names import ANOMALY_FEATURES, SEGMENT_FEATURES
from stream.processing.segment_names import profile
from stream.settings import Models

SCHEMA = 1
WARMING = 0
"""The number of the version that exists before the first one is published: nothing is scored with it."""


@dataclass(frozen=True, slots=True)
class Version:
    """All models at one moment of learning, immutable once published.

    `segment_names` maps a segment's id to its name, `segment_shares` to its share of the sampled customers; `learned`
    counts events, customers and labels learned so far; `journal` is the offset up to which each journal partition
    has been learned (exclusive), `stream_time_ms` the latest stream time in it.
    """

    number: int
    parent: int
    anomaly: ReferenceForest
    segments: IncrementalKMeans
    churn: ChurnRisk
    segment_names: Mapping[int, str] = field(default_factory=dict)
    segment_shares: Mapping[int, float] = field(default_factory=dict)
    learned: Mapping[str, int] = field(default_factory=dict)
    journal: Mapping[int, int] = field(default_factory=dict)
    stream_time_ms: int = 0

    def segment(self, segment: int) -> dict[str, Any]:
        """A segment as alerts describe it: id, name, share of customers, about how many, centre in plain units."""
        share = self.segment_shares.get(segment, 0.0)
        place = self.segments.ids.tolist().index(segment)
        return {
            "id": segment,
            "name": self.segment_names.get(segment, ""),
            "share": float(f"{share:.6g}"),
            "customers": round(share * self.segments.population()),
            "profile": profile(self.segments.centres()[place].tolist()),
        }


def warming(settings: Models) -> Version:
    """The models before they have learned anything."""
    return Version(
        WARMING,
        WARMING,
        ReferenceForest(ANOMALY_FEATURES, reference=settings.reference_events, refit_every=0, seed=settings.seed),
        IncrementalKMeans(
            SEGMENT_FEATURES,
            n_clusters=settings.segments,
            min_customers=settings.first_customers,
            refit_every=0,
            seed=settings.seed,
        ),
        ChurnRisk(settings.horizon_days, settings.min_labels, settings.seed),
    )


def to_bytes(version: Version, header: Mapping[str, Any]) -> bytes:
    """A snapshot: arrays, schema, parent and sha256, no pickle."""
    arrays = {
        f"{name}/{key}": array
        for name, model in (("anomaly", version.anomaly), ("segments", version.segments), ("churn", version.churn))
        for key, array in model.to_arrays().items()
    }
    whole = {
        **header,
        "schema": SCHEMA,
        "version": version.number,
        "parent": version.parent,
        "segment_names": {str(key): name for key, name in version.segment_names.items()},
        "segment_shares": {str(key): share for key, share in version.segment_shares.items()},
        "learned": dict(version.learned),
        "stream_time_ms": version.stream_time_ms,
        "journal": {str(task): offset for task, offset in version.journal.items()},
        "sha256": _digest(arrays),
    }
    return sections.pack({**whole, "header_sha256": _seal(whole, arrays)}, arrays)


def from_bytes(data: bytes) -> Version:
    """The version in a snapshot.

    Raises:
        NewerSchema: written by a newer release.
        Damaged: not what its checksums say.
    """
    with sections.reading("a model snapshot"):
        return _restored(data)


def _restored(data: bytes) -> Version:
    header = sections.unpack_header(data)
    if header["schema"] != SCHEMA:
        raise NewerSchema(
            f"model snapshot of schema {str(header['schema'])[:40]}, this release reads {SCHEMA}; upgrade Driftline"
        )
    arrays = {name: sections.section(data, header, name).copy() for name in header["sections"]}
    whole = {name: value for name, value in header.items() if name not in ("sections", "header_sha256")}
    # The release before seals its arrays alone.
    if _digest(arrays) != header["sha256"] or _seal(whole, arrays) != header.get("header_sha256", _seal(whole, arrays)):
        raise Damaged(
            f"model version {str(header['version'])[:40]} does not match its sha256; delete it: see "
            '"Damaged records" in docs/runbook.md'
        )
    return Version(
        header["version"],
        header["parent"],
        ReferenceForest.from_arrays(_part(arrays, "anomaly")),
        IncrementalKMeans.from_arrays(_part(arrays, "segments")),
        _churn(_part(arrays, "churn")),
        {int(key): name for key, name in header["segment_names"].items()},
        {int(key): share for key, share in header["segment_shares"].items()},
        header["learned"],
        {int(task): offset for task, offset in header["journal"].items()},
        header.get("stream_time_ms", 0),
    )


def _churn(arrays: dict[str, NDArray[Any]]) -> ChurnRisk:
    """The model in a snapshot; one of another form begins anew, as its labels come back by themselves."""
    try:
        return ChurnRisk.from_arrays(arrays)
    except (KeyError, TypeError, ValueError):
        return ChurnRisk()


def _part(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(name + "/")}


def _seal(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of the header, and of the types and shapes of the arrays: compiled loops take them as they are."""
    shapes = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    return hashlib.sha256(orjson.dumps([header, shapes], option=orjson.OPT_SORT_KEYS)).hexdigest()


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
