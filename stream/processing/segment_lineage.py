"""What became of the segments under a new model version, told to the CRM in one alert."""

import math

from stream.processing.alerts import SEGMENT_LINEAGE, Alert, Reason
from stream.processing.version import Version

SENTENCES = {
    "first": "{name!r} is one of the first segments",
    "born": "{name!r} is new: its customers came from several segments",
    "split": "{name!r} is new: {share:.0%} of its customers were in {other!r}",
    "merged": "{name!r} is gone: {share:.0%} of its customers are in {other!r} now",
    "retired": "{name!r} is gone: its customers went to several segments",
}


def announce(before: Version, version: Version, application: str, time_ms: int) -> Alert | None:
    """The alert about what changed between two versions; None where every segment is what it was.

    Its cause names version and stream time, so that a models topic created anew gives other ids.
    """
    changes = version.segments.lineage
    if not changes:
        return None
    names = {**before.segment_names, **version.segment_names}
    told = [
        {
            "what": change.what,
            "id": change.segment,
            "name": names.get(change.segment, ""),
            "other_id": None if change.other < 0 else change.other,
            "other_name": names.get(change.other),
            "share": round(change.share, 4),
        }
        for change in changes
    ]
    first = not before.segment_names
    reasons = [
        Reason(
            "customers_shared",
            change.share,
            math.nan,
            max(change.share, 1e-6),
            SENTENCES["first" if first else change.what].format(
                name=names.get(change.segment, ""), other=names.get(change.other, ""), share=change.share
            ),
        )
        for change in changes
    ]
    return Alert(
        SEGMENT_LINEAGE,
        application,
        time_ms,
        f"version-{version.number}-at-{time_ms}",
        f"version {before.number}",
        f"version {version.number}",
        "info",
        float(len(changes)),
        tuple(reasons[:3]),
        {
            "changes": told,
            "segments": [version.segment(segment) for segment in version.segments.ids.tolist()],
        },
        int(version.segments.figures()["customers"]),
    )
