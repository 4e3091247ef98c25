"""MBG/NBD: when a customer orders again, and whether at all, from three numbers (Batislam et al. 2007).

While a customer stays, orders come at random at a rate drawn from Gamma(r, alpha); after each order, the first
included, the customer leaves with a probability drawn from Beta(a, b). Parameters travel as `(r, alpha, a, b)`, times
in days: x = orders after the first, t_x = first to last order, T = first order to now.
"""

import math

import numpy as np
import numpy.typing as npt

from online_models.compiled import compiled

Vector = npt.NDArray[np.float64]

START = (0.5, 20.0, 0.5, 2.0)
BATCH = 16
BOUNDS = (-6.0, 7.0)  # of the parameters' logarithms
SHRINKAGE = 1e-5
RATE, LEAST_RATE, RATE_STEPS = 0.02, 0.002, 2000.0
AVERAGING = 0.002  # the average scores are made with follows the last five hundred steps
ADAM_MEAN, ADAM_SQUARE, ADAM_EPSILON = 0.9, 0.999, 1e-8


@compiled
def digamma(x: float) -> float:
    """Derivative of ln Γ, x > 0, to 1e-12."""
    result = 0.0
    while x < 8.0:
        result -= 1.0 / x
        x += 1.0
    inverse = 1.0 / (x * x)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))))
    return result + math.log(x) - 0.5 / x - series


@compiled
def alive(parameters: Vector, x: float, t_x: float, T: float) -> float:
    """Probability that the customer has not left."""
    r, alpha, a, b = parameters[0], parameters[1], parameters[2], parameters[3]
    odds = math.log(a / (b + x)) + (r + x) * math.log((alpha + T) / (alpha + t_x))
    return 1.0 / (1.0 + math.exp(min(odds, 700.0)))


@compiled
def silent(parameters: Vector, x: float, t_x: float, T: float, days: float) -> float:
    """Probability of no order within `days` from now."""
    r, alpha = parameters[0], parameters[1]
    none_if_alive = math.exp((r + x) * math.log((alpha + T) / (alpha + T + days)))
    return 1.0 - alive(parameters, x, t_x, T) * (1.0 - none_if_alive)


@compiled
def silent_many(parameters: Vector, customers: Vector, days: float) -> Vector:
    """The same for many, whose columns begin with orders (the first included), days since the last, since the first."""
    found = np.empty(len(customers))
    for i in range(len(customers)):
        age = customers[i, 2]
        found[i] = silent(parameters, customers[i, 0] - 1.0, max(age - customers[i, 1], 0.0), age, days)
    return found


@compiled
def gradient(parameters: Vector, x: float, t_x: float, T: float, out: Vector) -> None:
    """Add the gradient of one customer's log-likelihood with respect to the parameters' logarithms to `out`."""
    r, alpha, a, b = parameters[0], parameters[1], parameters[2], parameters[3]
    stays = alive(parameters, x, t_x, T)
    leaves = 1.0 - stays
    here, then = alpha + T, alpha + t_x
    total = digamma(a + b + x + 1.0)
    out[0] += r * (digamma(r + x) - digamma(r) + math.log(alpha) - stays * math.log(here) - leaves * math.log(then))
    out[1] += alpha * (r / alpha - (r + x) * (stays / here + leaves / then))
    out[2] += a * (digamma(a + b) - total + leaves / a)
    out[3] += b * (digamma(a + b) - digamma(b) + digamma(b + x) + stays / (b + x) - total)


@compiled
def learn(state: Vector, customers: Vector, picks: npt.NDArray[np.int64], steps: int) -> None:
    """Climb the likelihood by Adam, `steps` times, over `BATCH` customers each, in the order of `picks`.

    Columns of `customers` begin with orders (the first included), days since the last and since the first. `state` has
    four rows of four and a number: logarithms of the parameters, their running average, Adam's moments, steps so far.
    """
    slope = np.zeros(4)
    parameters = np.zeros(4)
    for step in range(steps):
        state[16] += 1.0
        k = state[16]
        for j in range(4):
            parameters[j] = math.exp(state[j])
            slope[j] = 0.0
        for pick in range(BATCH):
            i = picks[step * BATCH + pick]
            age = customers[i, 2]
            gradient(parameters, customers[i, 0] - 1.0, max(age - customers[i, 1], 0.0), age, slope)
        rate = max(LEAST_RATE, RATE / math.sqrt(1.0 + k / RATE_STEPS))
        weight = max(AVERAGING, 1.0 / (k + 1.0))
        for j in range(4):
            climb = slope[j] / BATCH - SHRINKAGE * state[j]
            state[8 + j] = ADAM_MEAN * state[8 + j] + (1.0 - ADAM_MEAN) * climb
            state[12 + j] = ADAM_SQUARE * state[12 + j] + (1.0 - ADAM_SQUARE) * climb * climb
            mean = state[8 + j] / (1.0 - math.exp(k * math.log(ADAM_MEAN)))
            square = state[12 + j] / (1.0 - math.exp(k * math.log(ADAM_SQUARE)))
            state[j] = min(max(state[j] + rate * mean / (math.sqrt(square) + ADAM_EPSILON), BOUNDS[0]), BOUNDS[1])
            state[4 + j] += weight * (state[j] - state[4 + j])


def start() -> Vector:
    """The state that `learn` begins with."""
    state = np.zeros(17)
    state[:4] = state[4:8] = np.log(START)
    return state
