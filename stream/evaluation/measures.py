"""What predictions are measured by."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEAST_P = 1e-4
BINS = 15


def auc(labels: Flags, scores: Vector) -> float:
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


def average_precision(labels: Flags, scores: Vector) -> float:
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


def log_loss(labels: Flags, p: Vector) -> float:
    """Mean log loss, probabilities kept `LEAST_P` off 0 and 1."""
    p = np.clip(p, LEAST_P, 1.0 - LEAST_P)
    return float(-np.mean(np.log(np.where(labels, p, 1.0 - p)))) if len(p) else float("nan")


def calibration_error(labels: Flags, p: Vector) -> float:
    """Expected calibration error over `BINS` bins of equal size."""
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), BINS) if len(part)]
    return sum(len(part) * abs(float(labels[part].mean() - p[part].mean())) for part in parts) / max(len(p), 1)
