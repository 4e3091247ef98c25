"""What predictions are measured by."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Vector = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEAST_P = 1e-4
BINS = 15


def auc(scores: Vector, labels: Flags) -> float:
    """Area under the ROC curve, ties counted half; NaN where only one class is there."""
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        return float("nan")
    ranks = float(rankdata(scores)[labels].sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


def log_loss(p: Vector, labels: Flags) -> float:
    """Mean log loss, probabilities kept `LEAST_P` off 0 and 1."""
    p = np.clip(p, LEAST_P, 1.0 - LEAST_P)
    return float(-np.mean(np.log(np.where(labels, p, 1.0 - p)))) if len(p) else float("nan")


def calibration_error(p: Vector, labels: Flags) -> float:
    """Expected calibration error over `BINS` bins of equal size."""
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), BINS) if len(part)]
    return sum(len(part) * abs(float(labels[part].mean() - p[part].mean())) for part in parts) / max(len(p), 1)
