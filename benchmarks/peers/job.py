"""The job that every peer does: one event into one customer's state, River's models, now and then an alert.

Plain functions over a dict, which is what each peer's documentation keeps as state. No peer's code is here.
"""

import math
import os
import signal
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from river import anomaly, cluster, linear_model, preprocessing, stats

State = dict[str, Any]
Features = dict[str, float]
SESSION_MS = 30 * 60_000
RARE = 0.9995
"""An event whose score lies above this quantile of all scores so far is an anomaly: one in 2,000, as in Driftline."""
WARM = 1_000
"""Events before the quantile is believed."""


class Models:
    """River's own, each behind the scaler its documentation puts before it; trees as in Tan, Ting & Liu's paper."""

    def __init__(self, churn: bool = True, segments: bool = True, trees: bool = True) -> None:
        self._trees = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(10, 8, 250, seed=42) if trees else None
        self._segments = preprocessing.StandardScaler() | cluster.KMeans(6, seed=42) if segments else None
        self._churn = preprocessing.StandardScaler() | linear_model.LogisticRegression() if churn else None
        self._quantile = stats.Quantile(RARE)
        self._seen = 0

    def look(self, features: Features, example: tuple[Features, bool] | None, state: State) -> float | None:
        """Score, then learn; segment and risk go into the state. The score, where it is an anomaly."""
        rare = None
        if self._trees is not None:
            score = self._trees.score_one(features)
            self._trees.learn_one(features)
            self._seen += 1
            if self._seen > WARM and score > self._quantile.get():
                rare = score
            self._quantile.update(score)
        if self._segments is not None:
            self._segments.learn_one(features)
            state["segment"] = self._segments.predict_one(features)
        if self._churn is not None:
            if example is not None:
                self._churn.learn_one(*example)
            state["risk"] = self._churn.predict_proba_one(features)[True]
        return rare


class Job:
    """What a process does with its events; `models` None leaves River out.

    An alert is raised for an anomaly and at every `every`-th event of a customer: the second kind follows from the
    state alone, so a state that lost an event or counted one twice shows in it.
    """

    def __init__(self, models: Models | None, every: int = 50) -> None:
        self._models = models
        self._every = every

    def step(self, state: State | None, body: dict[str, Any]) -> tuple[State, dict[str, Any] | None]:
        """The customer's state after an event, and the alert it raises."""
        state, features, example = described(state, body)
        rare = None if self._models is None else self._models.look(features, example, state)
        if rare is None and state["events"] % self._every:
            return state, None
        kind = "milestone" if rare is None else "anomaly"
        alert = {"customer": body["userId"], "kind": kind, "at": body["timestamp"], "events": state["events"]}
        return state, alert | {"score": rare, "segment": state.get("segment"), "risk": state.get("risk")}


def described(state: State | None, body: dict[str, Any]) -> tuple[State, Features, tuple[Features, bool] | None]:
    """The state with the event counted, the event's features, and the churn example it decides.

    The example: what was known where the last session began, and whether no order has come since.
    """
    time_ms = int(datetime.fromisoformat(body["timestamp"]).timestamp() * 1000)
    name, properties = body["event"], body["properties"]
    if state is None:
        state = {"events": 0, "orders": 0, "spend": 0.0, "mean": 0.0, "last": time_ms, "looks": 0, "carts": 0}
        state |= {"began": time_ms, "session": 0, "gap": 0.0, "then": None, "bought": False}
    gap_s = max(0.0, (time_ms - state["last"]) / 1000)
    begins = gap_s * 1000 > SESSION_MS or not state["events"]
    if begins:
        state["began"], state["session"] = time_ms, 0
    amount = 0.0
    state["events"] += 1
    state["session"] += 1
    state["gap"] += 0.1 * (gap_s - state["gap"])
    state["last"] = max(state["last"], time_ms)
    if name == "Order Completed":
        amount = float(properties["revenue"])
        state["orders"] += 1
        state["spend"] += amount
        state["mean"] = state["spend"] / state["orders"]
        state["looks"] = state["carts"] = 0
        state["bought"] = True
    elif name == "Product Added":
        state["carts"] += 1
    else:
        state["looks"] += 1
    features = {
        "gap": math.log1p(gap_s),
        "usual_gap": math.log1p(state["gap"]),
        "session": float(state["session"]),
        "minutes": (time_ms - state["began"]) / 60_000,
        "amount": math.log1p(amount),
        "times_usual": amount / state["mean"] if amount else 0.0,
        "looks": float(state["looks"]),
        "carts": float(state["carts"]),
        "orders": float(state["orders"]),
        "spend": math.log1p(state["spend"]),
    }
    example = None
    if begins:
        if state["then"] is not None:
            example = state["then"], not state["bought"]
        state["then"], state["bought"] = features, False
    return state, features, example


class Spent(NamedTuple):
    """What the events cost this process, its threads included, from the first one to where the job is wound up."""

    events: int
    cpu_s: float
    wall_s: float


class Meter:
    """Stamps CPU and wall time at the first event that counts and when the job has been wound up.

    `skip` is for a live input, until the start has been caught up with. Where all events lie there beforehand there is
    none: librdkafka fetches far ahead meanwhile, and a later stamp would find that done.
    """

    def __init__(self, skip: int = 0) -> None:
        self.events = 0
        self.skip = skip
        self._began = (0.0, 0.0)

    def count(self) -> None:
        """An event begins; charged to every peer alike."""
        if self.events == self.skip:
            self._began = time.process_time(), time.monotonic()
        self.events += 1

    def spent(self) -> Spent:
        cpu, wall = self._began
        return Spent(self.events - self.skip, time.process_time() - cpu, time.monotonic() - wall)


class Place(NamedTuple):
    """Where a run finds its input and leaves what it makes; `name` is the run's own, for groups and ids."""

    bootstrap: str
    redis_url: str
    source: str
    alerts: str
    name: str
    directory: Path
    events: int
    live: bool = False
    """The input is still being written: wait at its end. With `events` 0, until killed."""
    kill_at: int = 0
    """Die at this event, or at the end of its batch with the transaction open."""
    instance: int = 1
    """The worker's number, where members have names."""


def die() -> None:
    """SIGKILL from within."""
    os.kill(os.getpid(), signal.SIGKILL)


def from_memory(job: Job, meter: Meter, values: Iterable[bytes]) -> None:
    """The job without a broker: the machine's yardstick."""
    states: dict[str, State] = {}
    for value in values:
        meter.count()
        body = orjson.loads(value)
        customer = body["userId"]
        states[customer], alert = job.step(states.get(customer), body)
        if alert is not None:
            orjson.dumps(alert)
