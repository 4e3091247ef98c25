"""How well scores put what is labelled ahead of the rest."""

import numpy as np
from numpy.typing import NDArray


def auc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Chance that a labelled row scores above another; ties count half. NaN unless there are both.

    >>> auc(np.array([False, False, True, True]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(count) - (count - 1) / 2
    return float((ranks[place][labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Mean precision over the labelled rows, each at its own score. NaN without any.

    >>> round(average_precision(np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8])), 3)
    0.833
    """
    positive = int(labels.sum())
    if not positive:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels[order])[last_of_equal]
    seen = np.flatnonzero(last_of_equal) + 1
    return float((np.diff(found, prepend=0) * (found / seen)).sum() / positive)
