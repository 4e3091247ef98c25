"""Buy-till-you-die models fitted to all customers at once: BG/NBD and Pareto/NBD (Fader, Hardie & Lee 2005).

Of each customer they know x = orders after the first, t_x = days from the first to the last, T = days from the first to
now. The probability of silence for H days is the likelihood of the same history at T + H over that at T.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, hyp2f1

Vector = NDArray[np.float64]
LogLikelihood = Callable[[Vector, Vector, Vector, Vector], Vector]


def bg_nbd(parameters: Vector, x: Vector, t_x: Vector, T: Vector) -> Vector:
    """Log-likelihood per customer of `(r, alpha, a, b)`."""
    r, alpha, a, b = parameters
    left = np.log(a / np.maximum(b + x - 1.0, 1e-10)) - (r + x) * np.log(alpha + t_x)
    stays = -(r + x) * np.log(alpha + T)
    either = np.where(x > 0, np.logaddexp(stays, left), stays)
    constant = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + betaln(a, b + x) - betaln(a, b)
    return np.asarray(constant + either, np.float64)


def pareto_nbd(parameters: Vector, x: Vector, t_x: Vector, T: Vector) -> Vector:
    """Log-likelihood per customer of `(r, alpha, s, beta)`."""
    r, alpha, s, beta = parameters
    far, near = max(alpha, beta), min(alpha, beta)
    power = r + s + x

    def term(t: Vector) -> Vector:
        # Euler's transformation keeps the series tame for customers with hundreds of orders.
        z, other = (far - near) / (far + t), np.log((near + t) / (far + t))
        if alpha >= beta:
            return np.asarray(-s * other + np.log(hyp2f1(1.0, r + x, power + 1.0, z)) - power * np.log(far + t))
        return np.asarray(
            (1.0 - r - x) * other + np.log(hyp2f1(1.0, s + 1.0, power + 1.0, z)) - power * np.log(far + t)
        )

    first, last = term(t_x), term(T)
    left = np.log(s / power) + first + np.log1p(-np.exp(np.minimum(last - first, -1e-12)))
    stays = -(r + x) * np.log(alpha + T) - s * np.log(beta + T)
    constant = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + s * np.log(beta)
    return np.asarray(constant + np.logaddexp(stays, left), np.float64)


class Refit:
    """Fitted anew at each cut by maximum likelihood, from where the fit before ended."""

    def __init__(self, log_likelihood: LogLikelihood, start: tuple[float, ...]) -> None:
        self._log_likelihood = log_likelihood
        self._logs = np.log(np.array(start))

    def silent(self, orders: Vector, recency: Vector, age: Vector, days: float) -> Vector:
        """Fit to these customers; each one's probability of no order within `days`."""
        histories, place, counts = np.unique(
            np.column_stack((orders - 1.0, age - recency, age)), axis=0, return_inverse=True, return_counts=True
        )
        x, t_x, T = histories.T

        def loss(logs: Vector) -> float:
            with np.errstate(all="ignore"):
                found = self._log_likelihood(np.exp(logs), x, t_x, T)
            found = np.nan_to_num(found, nan=-1e6, neginf=-1e6, posinf=-1e6)
            return float(-(found * counts).sum() / counts.sum() + 1e-5 * (logs**2).sum())

        fitted: Any = minimize(loss, self._logs, method="L-BFGS-B", bounds=[(-7.0, 9.0)] * len(self._logs))
        self._logs = np.asarray(fitted.x, np.float64)
        parameters = np.exp(self._logs)
        with np.errstate(all="ignore"):
            ratio = self._log_likelihood(parameters, x, t_x, T + days) - self._log_likelihood(parameters, x, t_x, T)
        return np.asarray(np.exp(np.minimum(np.nan_to_num(ratio, nan=-0.7), 0.0))[place.ravel()], np.float64)
