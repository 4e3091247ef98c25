"""What became of each segment when the centres were fitted anew, told by the customers that old and new ones share."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

SAME = 0.25
"""Share of all customers in either (Jaccard) that old and new must have in common to be one segment."""
MOST = 0.5
"""Share of a segment's customers that came from one place, or went to one."""

Ids = npt.NDArray[np.int32]


class Change(NamedTuple):
    """One change of identity: `what` is born, split, merged or retired.

    A segment born has the new id `segment`; one split off is new too, `other` is where most of its customers were. A
    segment merged or retired is gone, its id never used again; `other` is where most of a merged one's customers are.
    `other` is −1 where there is none. `share` is that of the customers who came from `other`, or went there; of a
    segment born or retired, the largest share that came from one place or went to one.
    """

    what: str
    segment: int
    other: int
    share: float


def redrawn(shared: npt.NDArray[np.float64], before: Ids, unused: int) -> tuple[Ids, list[Change]]:
    """The ids of the new segments, and what changed.

    Args:
        shared: customers in old segment i and new segment j, (old, new).
        before: ids of the old segments.
        unused: the lowest id never used; new segments take it and those that follow.

    A new segment inherits an id if the two have a quarter of their customers in common; pairs are matched so that they
    have as much in common as possible (Hungarian). Jaccard index as in Greene, Doyle and Cunningham 2010, Tracking the
    evolution of communities in dynamic social networks; the kinds of change as in Spiliopoulou et al. 2006, MONIC.

    >>> ids, changes = redrawn(np.array([[90.0, 0, 0], [0, 60, 40]]), np.array([4, 7], np.int32), unused=8)
    >>> ids.tolist(), changes
    ([4, 7, 8], [Change(what='split', segment=8, other=7, share=1.0)])
    """
    old, new = shared.sum(axis=1), shared.sum(axis=0)
    either = old[:, None] + new - shared
    alike = shared / np.maximum(either, 1.0)
    came, went = shared / np.maximum(new, 1.0), shared / np.maximum(old, 1.0)[:, None]
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(-alike), strict=True) if alike[i, j] >= SAME]
    ids = np.full(len(new), -1, np.int32)
    for i, j in pairs:
        ids[j] = before[i]
    fresh = np.flatnonzero(ids < 0)
    ids[fresh] = np.arange(unused, unused + len(fresh), dtype=np.int32)
    changes = []
    for j in fresh.tolist():
        i = int(came[:, j].argmax()) if len(old) else -1
        share = float(came[i, j]) if i >= 0 else 0.0
        off = share >= MOST
        changes.append(Change("split" if off else "born", int(ids[j]), int(before[i]) if off else -1, share))
    for i in sorted(set(range(len(old))) - {i for i, _ in pairs}):
        j = int(went[i].argmax())
        share = float(went[i, j])
        into = share >= MOST
        changes.append(Change("merged" if into else "retired", int(before[i]), int(ids[j]) if into else -1, share))
    return ids, changes
