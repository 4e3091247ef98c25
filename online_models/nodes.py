"""What both kinds of half-space trees share: how a node is packed, and how rows are parted at one."""

from typing import Any

import numpy as np
import numpy.typing as npt

from online_models.arrays import Hashes
from online_models.compiled import compiled

PADDING = 0.15  # River's rule: a threshold lies in the inner 70 % of its node's range
FEATURE_BITS = 16  # the lowest of a node's link; above them lies its left child, the right one is next to it
FEATURE, SHIFT = np.uint64(2**FEATURE_BITS - 1), np.uint64(FEATURE_BITS)
ZERO, ONE = np.uint64(0), np.uint64(1)
BLOCK = 256  # rows walked side by side: while one waits for its node, the others go on


@compiled
def part(column: npt.NDArray[Any], split: Any, begin: int, end: int, order: Hashes, aside: Hashes) -> int:
    """Put those of `order[begin:end]` whose value lies below `split` first, in their order; returns where they end.

    Without branches, which the processor could not foretell; `aside` is room for as many.
    """
    to_left, to_right = np.uint64(begin), ZERO
    for i in range(begin, end):
        row = order[i]
        goes_left = ONE if column[row] < split else ZERO
        order[to_left] = row
        aside[to_right] = row
        to_left += goes_left
        to_right += ONE - goes_left
    left = int(to_left)
    for i in range(left, end):
        order[i] = aside[i - left]
    return left
