"""Churn risk: a logistic regression learned in one pass by an extended Kalman filter."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from river import base
from scipy.special import expit

from online_models.arrays import ArrayModel, Matrix, ordered_sum

LARGEST_VARIANCE = 5.0  # of a weight; forgetting would let those of idle features grow without end
LEAST_CURVATURE = 1e-4  # of the loss; keeps a label learnable where the model is sure
VARIANCE_FLOOR = 1e-4  # of a feature, in its units squared
LEAST_OF_EACH = 10  # labels of either class before the model is ready
DECAY = 0.999  # of the progressive figures, per label


class ChurnRisk(ArrayModel, base.Classifier):
    """Probability that a customer does not buy within the horizon: a second-order online logistic regression.

    A label is True when the customer churned (no purchase within the horizon). Features are standardised by the
    running moments of the rows learned and clipped; a missing value counts as the mean. An extended Kalman filter
    keeps weights and their full covariance, so that a label moves what is still uncertain and little else.

    **Warm-up**: `min_labels` labels and 10 of each class; before, predictions shrink towards one half.
    **Cost**: O(F²), some 20 microseconds per label learned; well below one to predict, in batches.

    Parameters
    ----------
    features
        Names of the columns.
    prior_weight, prior_intercept
        Prior variance of a weight and of the intercept.
    clip
        Standardised features stay within ± this.
    forgetting
        Share of the accumulated certainty given up per label: memory is about 1/forgetting labels.
    min_labels
        Labels before the model is ready.

    Examples
    --------
    >>> model = ChurnRisk(["days_since_purchase"], min_labels=100)
    >>> for i in range(200):
    ...     model.learn_one({"days_since_purchase": i % 50}, y=i % 50 > 25 + i % 7)
    >>> model.ready
    True
    >>> [round(model.predict_proba_one({"days_since_purchase": days})[True], 2) for days in (5, 30, 45)]
    [0.07, 0.42, 0.74]

    References
    ----------
    West, M., Harrison, P.J. and Migon, H.S., 1985. Dynamic generalized linear models and Bayesian forecasting. JASA 80.
    """

    _state = (
        *("_counts", "_mean", "_m2", "_weights", "_covariance", "_labels"),
        *("_weight", "_churned", "_log_loss", "_brier", "_base_log_loss"),
    )

    def __init__(
        self,
        features: Sequence[str] | None = None,
        prior_weight: float = 0.1,
        prior_intercept: float = 1.0,
        clip: float = 3.0,
        forgetting: float = 1e-5,
        min_labels: int = 300,
    ) -> None:
        self.features = features
        self.prior_weight = prior_weight
        self.prior_intercept = prior_intercept
        self.clip = clip
        self.forgetting = forgetting
        self.min_labels = min_labels
        self._labels = np.zeros(2, np.int64)  # stayed, churned
        self._weight = self._churned = self._log_loss = self._brier = self._base_log_loss = 0.0
        self._allocate(0)
        self._start()

    def _allocate(self, width: int) -> None:
        self._counts, self._mean, self._m2 = np.zeros(width), np.zeros(width), np.zeros(width)
        self._weights = np.zeros(width + 1)  # the intercept is last
        self._covariance = np.diag([self.prior_weight] * width + [self.prior_intercept])

    @property
    def n_labels(self) -> int:
        """Labels learned."""
        return int(self._labels.sum())

    @property
    def ready(self) -> bool:
        """True once there are enough labels, and enough of either class."""
        return self.n_labels >= self.min_labels and int(self._labels.min()) >= LEAST_OF_EACH

    def figures(self) -> dict[str, float]:
        """Progressive log loss and Brier score over about the last thousand labels, each predicted before learned.

        `base_log_loss` is that of the churn rate itself, `skill` the share of it that the model saves.
        """
        weight = self._weight or 1.0
        return {
            "labels": self.n_labels,
            "churned_share": self._churned / weight,
            "log_loss": self._log_loss / weight,
            "brier": self._brier / weight,
            "base_log_loss": self._base_log_loss / weight,
            "skill": 1 - self._log_loss / self._base_log_loss if self._base_log_loss else 0.0,
        }

    def learn_one(self, x: Mapping[Any, Any], y: base.typing.ClfTarget) -> None:
        """Learn one customer's matured label."""
        self.learn_many(self._learnable_row(x), [y])

    def learn_many(self, X: npt.ArrayLike, y: npt.ArrayLike) -> None:
        """Learn the rows of X with their labels, one after another."""
        for row, churned in zip(self._learnable(X), np.asarray(y, np.bool_).tolist(), strict=True):
            self._absorb_moments(row)
            self._absorb_label(np.append(self._standard(row), 1.0), churned)

    def _absorb_moments(self, row: Matrix) -> None:
        present = ~np.isnan(row)
        self._counts = self._counts + present
        delta = np.where(present, row - self._mean, 0.0)
        self._mean = self._mean + delta / np.maximum(self._counts, 1.0)
        self._m2 = self._m2 + delta * np.where(present, row - self._mean, 0.0)

    def _absorb_label(self, z: Matrix, churned: bool) -> None:
        p = float(expit(self._weights @ z))
        self._track(p, churned)
        self._labels[int(churned)] += 1
        curvature = max(p * (1 - p), LEAST_CURVATURE)
        gain = self._covariance @ z
        shrink = 1 + curvature * float(z @ gain)
        self._weights = self._weights + gain * ((churned - p) / shrink)
        covariance = (self._covariance - (curvature / shrink) * np.outer(gain, gain)) / (1 - self.forgetting)
        self._covariance = covariance * min(1.0, LARGEST_VARIANCE / float(covariance.diagonal().max()))

    def _track(self, p: float, churned: bool) -> None:
        rate = (self._churned + 1) / (self._weight + 2)
        self._log_loss = DECAY * self._log_loss + _log_loss(p, churned)
        self._brier = DECAY * self._brier + (p - churned) ** 2
        self._base_log_loss = DECAY * self._base_log_loss + _log_loss(rate, churned)
        self._churned = DECAY * self._churned + churned
        self._weight = DECAY * self._weight + 1

    def predict_proba_one(self, x: Mapping[Any, Any], **_kwargs: Any) -> dict[base.typing.ClfTarget, float]:
        """Probability of churn under True, of staying under False."""
        p = float(self.predict_proba_many(self._row(x))[0])
        return {False: 1 - p, True: p}

    def predict_proba_many(self, X: npt.ArrayLike) -> Matrix:
        """Each row's probability of churn."""
        rows = self._matrix(X)
        if self._names is None:
            return np.full(len(rows), 0.5)
        terms = self.logit_contributions_many(rows).T
        logit = ordered_sum(terms, like=np.empty(len(rows))) + self._weights[-1]
        return np.asarray(expit(logit), np.float64)

    def logit_contributions_many(self, X: npt.ArrayLike) -> Matrix:
        """What each feature adds to the logit, (n, F): weight × standardised value; the mean customer has 0."""
        rows = self._matrix(X)
        return self._standard(rows) * self._weights[:-1] if self._names is not None else np.zeros_like(rows)

    def _standard(self, rows: Matrix) -> Matrix:
        std = np.sqrt(self._m2 / np.maximum(self._counts, 1.0) + VARIANCE_FLOOR)
        return np.where(np.isnan(rows), 0.0, np.clip((rows - self._mean) / std, -self.clip, self.clip))


def _log_loss(p: float, churned: bool) -> float:
    return -math.log(min(max(p if churned else 1 - p, 1e-12), 1.0))
