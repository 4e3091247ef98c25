"""What the reference forest hears: trees over volumes, and distances to samples; before both, a trimming.

Plain loops over arrays without missing values. Draws are hashes of a key, so a fit is a function of its rows and key.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from online_models.arrays import Matrix
from online_models.compiled import compiled
from online_models.nodes import BLOCK, FEATURE, FEATURE_BITS, ONE, PADDING, SHIFT, ZERO, part

SMALLEST_SPLIT = 5  # rows; a node with fewer is a leaf
SHORTEST = 1e-4  # added to a distance, per feature, before its logarithm
FARTHEST = 1e6  # spans; beyond, a row is no farther

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST_MIX, SECOND_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BITS_30, BITS_27, BITS_31, BITS_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Trees(NamedTuple):
    """Half-space trees; tree t begins at node `root[t]`, siblings are adjacent.

    `link` is the left child and the feature in one number; a leaf is its own left child, with everything below its
    threshold. `value` is −(log2((m + 1)/n) + depth) of a leaf that holds m of n rows: the fewer rows per volume,
    the more.
    """

    root: npt.NDArray[np.uint32]
    depth: npt.NDArray[np.uint32]
    link: npt.NDArray[np.uint32]
    threshold: Floats
    value: Floats


@compiled
def _drawn(key: np.uint64, number: int) -> float:
    """The number-th draw under a key, in [0, 1): splitmix64."""
    z = key + np.uint64(number + 1) * GOLDEN
    z = (z ^ (z >> BITS_30)) * FIRST_MIX
    z = (z ^ (z >> BITS_27)) * SECOND_MIX
    z = z ^ (z >> BITS_31)
    return float(z >> BITS_11) * 2.0**-53


@compiled
def isolation(columns: Matrix, n_trees: int, sample: int, height: int, key: np.uint64) -> Matrix:
    """Mean path of each row, columns (features, rows), in isolation trees (Liu, Ting & Zhou 2008): short = alone."""
    width, n = columns.shape
    sample = min(sample, n)
    most = 2 ** (height + 1)
    feature, child = np.zeros(most, np.uint64), np.zeros(most, np.uint64)
    split, path = np.zeros(most), np.zeros(most)
    at = np.empty(n, np.uint64)
    begins, ends, level = np.zeros(most, np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64)
    order, aside = np.empty(n, np.int64), np.empty(n, np.int64)
    total = np.zeros(n)
    draw = 0
    for i in range(n):
        order[i] = i
    for _ in range(n_trees):
        for i in range(sample):  # the first rows of a shuffle
            j = i + int(_drawn(key, draw) * (n - i))
            draw += 1
            order[i], order[j] = order[j], order[i]
        begins[0], ends[0], level[0] = 0, sample, 0
        count, node = 1, 0
        while node < count:
            begin, end = begins[node], ends[node]
            mass = end - begin
            child[node], split[node] = (
                np.uint64(node),
                np.inf,
            )  # a leaf is its own child: a walk needs no test for its end
            path[node] = level[node] + expected_path(mass)
            if mass > 1 and level[node] < height:
                chosen = int(_drawn(key, draw) * width)
                low = high = 0.0
                for turn in range(width):  # the next feature that differs at all
                    f = (chosen + turn) % width
                    low = high = columns[f, order[begin]]
                    for i in range(begin + 1, end):
                        low = min(low, columns[f, order[i]])
                        high = max(high, columns[f, order[i]])
                    if low < high:
                        feature[node] = np.uint64(f)
                        break
                if low < high:
                    column = columns[np.int64(feature[node])]
                    split[node] = low + _drawn(key, draw + 1) * (high - low)
                    left, right = begin, 0
                    for i in range(begin, end):
                        row = order[i]
                        if column[row] <= split[node]:
                            order[left] = row
                            left += 1
                        else:
                            aside[right] = row
                            right += 1
                    for i in range(right):
                        order[left + i] = aside[i]
                    child[node] = np.uint64(count)
                    begins[count], ends[count], level[count] = begin, left, level[node] + 1
                    begins[count + 1], ends[count + 1], level[count + 1] = left, end, level[node] + 1
                    count += 2
                draw += 2
            node += 1
        for i in range(n):
            at[i] = ZERO
        for _ in range(height):
            for i in range(n):
                place = at[i]
                at[i] = child[place] + (ZERO if columns[feature[place], i] <= split[place] else ONE)
        for i in range(n):
            total[i] += path[at[i]]
    return total / n_trees


@compiled
def expected_path(mass: int) -> float:
    """The depth at which so many rows would be told apart."""
    if mass <= 1:
        return 0.0
    harmonic = 0.0
    for i in range(1, mass):
        harmonic += 1.0 / i
    return 2.0 * harmonic - 2.0 * (mass - 1) / mass


@compiled
def grow(
    columns: Matrix, low: Matrix, span: Matrix, n_trees: int, height: int, key: np.uint64
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32], Floats, Floats]:
    """Grow half-space trees over rows, columns (features, rows), within limits; the fields of `Trees`."""
    width, n = columns.shape
    each = 1 + 2 * height * (n // SMALLEST_SPLIT)
    most = 1 + 2 * height * (n // SMALLEST_SPLIT)
    root, depths = np.zeros(n_trees, np.uint32), np.zeros(n_trees, np.uint32)
    link, threshold = np.zeros(n_trees * most, np.uint32), np.full(n_trees * most, np.inf, np.float32)
    value = np.zeros(n_trees * most, np.float32)
    begins, ends, level = np.zeros(each, np.int64), np.zeros(each, np.int64), np.zeros(each, np.int64)
    lows, highs = np.empty((each, width)), np.empty((each, width))
    order, aside = np.empty(n, np.uint64), np.empty(n, np.uint64)
    reach = np.empty(width)
    first, draw = 0, 0
    for tree in range(n_trees):
        for i in range(n):
            order[i] = np.uint64(i)
        root[tree] = first
        begins[0], ends[0], level[0] = 0, n, 0
        lows[0], highs[0] = 0.0, 1.0
        count, node = 1, 0
        while node < count:
            begin, end, depth = begins[node], ends[node], level[node]
            mass = end - begin
            link[first + node] = node << FEATURE_BITS
            if mass >= SMALLEST_SPLIT and depth < height:
                total = 0.0
                for j in range(width):
                    total += highs[node, j] - lows[node, j]
                    reach[j] = total
                drawn = _drawn(key, draw) * total
                f = 0
                while f < width - 1 and reach[f] <= drawn:
                    f += 1
                a, b = lows[node, f], highs[node, f]
                at = a + (PADDING + (1 - 2 * PADDING) * _drawn(key, draw + 1)) * (b - a)
                draw += 2
                split = np.float32(low[f] + at * span[f])
                threshold[first + node] = split
                link[first + node] = (count << FEATURE_BITS) | f
                column = columns[f]
                left = part(column, split, begin, end, order, aside)
                for child in range(2):
                    begins[count] = begin if child == 0 else left
                    ends[count] = left if child == 0 else end
                    level[count] = depth + 1
                    lows[count], highs[count] = lows[node], highs[node]
                    if child == 0:
                        highs[count, f] = at
                    else:
                        lows[count, f] = at
                    count += 1
                depths[tree] = max(depths[tree], np.uint32(depth + 1))
            else:
                value[first + node] = -(math.log2((mass + 1) / n) + depth)
            node += 1
        first += count
    return root, depths, link[:first].copy(), threshold[:first].copy(), value[:first].copy()


@compiled
def volume(
    rows: Matrix,
    root: npt.NDArray[np.uint32],
    depth: npt.NDArray[np.uint32],
    link: npt.NDArray[np.uint32],
    threshold: Floats,
    value: Floats,
) -> Matrix:
    """Mean over trees of the value of each row's leaf."""
    n, width = rows.shape
    total = np.zeros(n)
    block = np.empty(min(BLOCK, n) * width)
    at = np.empty(min(BLOCK, n), np.uint64)  # without a sign an index needs no test for being negative
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        for i in range(size):
            for j in range(width):
                block[i * width + j] = rows[first + i, j]
        for tree in range(len(root)):
            nodes = link[root[tree] :]
            thresholds = threshold[root[tree] :]
            values = value[root[tree] :]
            for i in range(size):
                at[i] = ZERO
            for _ in range(depth[tree]):
                for i in range(size):
                    node = at[i]
                    step = np.uint64(nodes[node])
                    x = block[np.uint64(i * width) + (step & FEATURE)]
                    at[i] = (step >> SHIFT) + (ZERO if x < thresholds[node] else ONE)
            for i in range(size):
                total[first + i] += values[at[i]]
    return total / len(root)


@compiled
def distance(rows: Matrix, low: Matrix, span: Matrix, points: Floats, samples: int, own: Integers) -> Matrix:
    """Mean over samples of the log2 distance (L1, in spans) to the nearest point.

    `points` has shape (features, count), place by place: the first of each sample, the second of each, and so on.
    `own[i]` is the row that point i is, where the rows are those it was drawn from; else empty.
    """
    n, width = rows.shape
    count = points.shape[1]
    far = np.empty(count, np.float32)
    nearest = np.empty(samples, np.float32)
    result = np.empty(n)
    for i in range(n):
        far[:] = np.float32(SHORTEST * width)
        for j in range(width):
            u = np.float32(min(max((rows[i, j] - low[j]) / span[j], -FARTHEST), FARTHEST))
            of = points[j]
            for p in range(count):
                far[p] += abs(of[p] - u)
        for p in range(len(own)):
            if own[p] == i:
                far[p] = np.float32(np.inf)
        for s in range(samples):
            nearest[s] = far[s]
        for first in range(samples, count, samples):
            for s in range(samples):
                nearest[s] = far[first + s] if far[first + s] < nearest[s] else nearest[s]
        product = 1.0  # of at most SAMPLES numbers between 1e-4 and 1e9: far from the limits of a float
        for s in range(samples):
            product *= float(nearest[s])
        result[i] = math.log2(product) / samples
    return result
