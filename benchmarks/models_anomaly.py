"""Anomaly models: speed against River and peers, quality on labelled sets, drift, and whether "one in N" comes true.

    python -m benchmarks.models_anomaly speed
    python -m benchmarks.models_anomaly quality DATA [--seeds 11,12,13,14]
    python -m benchmarks.models_anomaly drift FOLDER
    python -m benchmarks.models_anomaly calibration DATA

DATA is one .npz that holds NAME_X and NAME_y of several sets, or a folder of ADBench's files (a clone of
github.com/Minqi824/ADBench has one, adbench/datasets/Classical): of each at most 12,000 rows, drawn with seed 0. Sets
are shuffled by seed; in *block* all anomalies come between the two halves of the others. Tables are Markdown on
standard output. Peers come with the dependency group `bench`; those that are not installed are named and left out.
"""

import argparse
import importlib.util
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from river import anomaly

from online_models import HalfSpaceTrees, ReferenceForest
from stream.embedded import Embedded
from stream.evaluation import detectors
from stream.evaluation.measures import auc, average_precision
from stream.journey import TIMEZONE, TOPIC, Journey
from stream.processing.tick import TickResult
from stream.settings import parse

Matrix = NDArray[np.float64]

FEATURES = 10
ROUNDS = 5
MOST_ROWS = 12_000
FEWEST_ODD = 30
TWELVE = (
    *("mulcross", "http", "smtp", "cover", "shuttle", "mammography", "donors", "pendigits", "annthyroid", "thyroid"),
    *("satellite", "campaign"),
)
DRIFTING = ("mulcross", "http", "cover", "donors", "shuttle")
DRIFT_ROWS = 60_000
say = Console(stderr=True).print


def main() -> None:
    """Measure one thing and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("speed")
    one.add_argument("--events", type=int, default=50_000, help="events on which scores must equal River's (50,000)")
    for name in ("quality", "drift", "calibration"):
        one = what.add_parser(name)
        one.add_argument("data", type=Path)
        one.add_argument("--seeds", default="11,12,13" if name == "drift" else "11,12,13,14")
    arguments = parser.parse_args()
    logging.getLogger("stream").setLevel(logging.ERROR)
    detectors.warm_kernels()
    if arguments.what == "speed":
        speed(arguments.events)
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    {"quality": quality, "drift": drift, "calibration": calibration}[arguments.what](arguments.data, seeds)


# Speed


def speed(events: int) -> None:
    """CPU µs per event, score then learn, beside River in the same rounds; and equality of scores."""
    rows = skewed(events)
    print("| trees × height, window | events | equal to River | most CPU µs of one call |\n|---|---|---|---|")
    for n_trees, height, window in ((10, 8, 250), (25, 8, 1000), (25, 15, 250)):
        say(f"{n_trees} × {height}, {window}: River takes a while")
        settings = {"n_trees": n_trees, "height": height, "window_size": window, "seed": 7}
        expected = np.array(list(river_scores(anomaly.HalfSpaceTrees(**settings), rows)))
        model = HalfSpaceTrees(**settings, features=names(FEATURES))
        parts, longest = [], 0.0
        for part in ragged(rows):
            began = time.process_time()
            parts.append(model.score_learn_many(part))
            longest = max(longest, time.process_time() - began)
        equal = "to the bit" if np.array_equal(np.concatenate(parts), expected) else "NO"
        print(f"| {n_trees} × {height}, {window} | {events:,} | {equal} | {longest * 1e6:,.0f} |", flush=True)
    print("\n| score, then learn | batch | µs | × River |\n|---|---|---|---|")
    for n_trees, height in ((10, 8), (25, 8)):
        label = f"{n_trees} × {height}"
        contenders = dict(trees_by_speed(n_trees, height, rows))
        measure(f"River {label}", contenders)
    measure(f"River {label}", dict(others_by_speed(rows)), shown_base=False)
    say("capymoa is left out: it brings a Java runtime and torch (2 GB)")


def trees_by_speed(n_trees: int, height: int, rows: Matrix) -> Iterator[tuple[str, tuple[Callable[[], None], int]]]:
    label, settings = f"{n_trees} × {height}", {"n_trees": n_trees, "height": height, "seed": 7}
    few = dicts(rows[:4000])

    def river() -> None:
        model = anomaly.HalfSpaceTrees(**settings)
        for x in few:
            model.score_one(x)
            model.learn_one(x)

    yield f"River {label}", (river, len(few))
    yield f"ours {label} | 1", (partial(ours_one_by_one, settings, few), len(few))
    for size in (32, 250, 2000):
        yield (
            f"ours {label} | {size:,}",
            (partial(ours_in_batches, settings, rows[:40_000], size), min(len(rows), 40_000)),
        )
    if installed("pysad"):
        yield f"pysad HalfSpaceTrees {label} | 1", (partial(pysad_trees, n_trees, height, rows[:2000]), 2000)


def ours_one_by_one(settings: Mapping[str, int], few: list[dict[str, float]]) -> None:
    model = HalfSpaceTrees(**settings)
    for x in few:
        model.score_one(x)
        model.learn_one(x)


def ours_in_batches(settings: Mapping[str, int], rows: Matrix, size: int) -> None:
    model = HalfSpaceTrees(**settings, features=names(FEATURES))
    for first in range(0, len(rows), size):
        model.score_learn_many(rows[first : first + size])


def pysad_trees(n_trees: int, height: int, rows: Matrix) -> None:
    from pysad.models import HalfSpaceTrees as Peer

    model = Peer(np.zeros(FEATURES), np.ones(FEATURES), num_trees=n_trees, max_depth=height, random_state=1)
    for row in rows:
        model.score_partial(row)
        model.fit_partial(row)


def others_by_speed(rows: Matrix) -> Iterator[tuple[str, tuple[Callable[[], object], int]]]:
    yield "River 25 × 8", (lambda: list(river_scores(anomaly.HalfSpaceTrees(25, 8, seed=7), rows[:2000])), 2000)
    some = rows[:40_000]
    for size in (250, 2000):
        yield f"ReferenceForest, all refits counted | {size:,}", (partial(forest_in_batches, some, size), len(some))
    fitted = ReferenceForest(names(FEATURES))
    fitted.learn_many(rows[:5000])
    for size in (250, 2000):
        parts = [some[first : first + size] for first in range(0, len(some), size)]
        yield (
            f"ReferenceForest, score only | {size:,}",
            (lambda parts=parts: [fitted.score_many(part) for part in parts], len(some)),
        )
    if installed("rcf3"):
        import rcf3

        def forest() -> None:
            model = rcf3.Forest(FEATURES, num_trees=25, capacity=256, seed=1)
            for row in rows[:4000].tolist():
                model.update_and_score(row)

        def online_isolation() -> None:
            model = rcf3.OnlineIForest(FEATURES, seed=1)
            for row in rows[:8000].tolist():
                model.update_and_score(row)

        yield "rcf3 random cut forest, 25 trees | 1", (forest, 4000)
        yield "rcf3 OnlineIForest | 1", (online_isolation, 8000)
    if installed("sklearn"):
        from sklearn.ensemble import IsolationForest

        batch = IsolationForest(random_state=1).fit(rows[:1000])
        yield "IsolationForest, score only | 2,000", (lambda: batch.score_samples(rows[:2000]), 2000)


def forest_in_batches(rows: Matrix, size: int) -> None:
    model = ReferenceForest(names(FEATURES))
    for first in range(0, len(rows), size):
        model.score_learn_many(rows[first : first + size])


def measure(base: str, contenders: Mapping[str, tuple[Callable[[], object], int]], shown_base: bool = True) -> None:
    """Interleaved rounds: medians of times, and of each round's ratio to the base."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for name, (run, _) in contenders.items():
        if name != base:
            run()
    for _ in range(ROUNDS):
        for name, (run, count) in contenders.items():
            began = time.process_time()
            run()
            spent[name].append((time.process_time() - began) / count * 1e6)
    for name, times in spent.items():
        if name == base and not shown_base:
            continue
        ratio = statistics.median(slow / fast for slow, fast in zip(spent[base], times, strict=True))
        label, _, size = name.partition(" | ")
        print(f"| {label} | {size or '1'} | {statistics.median(times):,.2f} | {ratio:,.1f} |", flush=True)


# Quality


class Labelled(NamedTuple):
    rows: Matrix
    labels: NDArray[np.bool_]


def quality(data: Path, seeds: list[int]) -> None:
    """AUC and average precision after the warm-up, shuffled and in one block."""
    sets = collected(data)
    listed = [name for name in TWELVE if name in sets] or list(sets)
    others = [name for name in sets if name not in listed]
    for order in ("shuffled", "block"):
        print(f"\n| {order} | seeds | **mean AUC of {len(listed)}** | mean AP | {' | '.join([*listed, *others])} |")
        print("|" + "---|" * (4 + len(sets)))
        for name, (run, count) in contenders().items():
            mine = seeds[:count]
            figures = {}
            for label in (*listed, *others):
                say(f"{order}: {name}: {label}")
                figures[label] = np.mean([judged(run, sets[label], order, seed) for seed in mine], axis=0)
            mean = np.mean([figures[label] for label in listed], axis=0)
            each = " | ".join(f"{figures[label][0]:.3f}" for label in (*listed, *others))
            print(f"| {name} | {len(mine)} | **{mean[0]:.3f}** | {mean[1]:.3f} | {each} |", flush=True)


Scorer = Callable[[Matrix, int], Matrix]


def contenders() -> dict[str, tuple[Scorer, int]]:
    """Each with the greatest number of seeds it is run with: slow ones get one."""

    def nothing(_: int) -> None:
        pass

    rows: dict[str, tuple[Scorer, int]] = {
        "**ReferenceForest**": (lambda rows, seed: detectors.reference_forest(rows, nothing, seed)[0], 99),
        "River 10 × 8, online min-max": (lambda rows, seed: detectors.half_space_trees(rows, nothing, seed), 99),
        "distance from the running mean": (lambda rows, _: detectors.from_mean(rows, nothing), 99),
    }
    if installed("sklearn"):
        rows["IsolationForest, first 1,000"] = (
            lambda rows, seed: detectors.isolation_forest(rows, nothing, seed),
            99,
        )
    if installed("pysad"):
        for name in ("HalfSpaceTrees", "LODA", "RSHash"):
            rows[f"pysad {name}"] = (partial(pysad, name), 1)
    return rows


def pysad(name: str, rows: Matrix, seed: int) -> Matrix:
    """A peer with its defaults; limits, where it asks for them, are those of the warm-up, which it learns first."""
    from pysad import models

    warm = rows[: detectors.warm_up(len(rows))]
    low, high = warm.min(axis=0), warm.max(axis=0)
    high = np.where(high > low, high, low + 1.0)
    settings = {} if name == "LODA" else {"feature_mins": low, "feature_maxes": high}
    if name == "HalfSpaceTrees":
        settings |= {"num_trees": 25, "max_depth": 8}
    model = getattr(models, name)(**settings, random_state=seed)
    scores = np.zeros(len(rows))
    np.seterr(all="ignore")
    for i, row in enumerate(rows):
        if i >= len(warm):
            scores[i] = np.nan_to_num(model.score_partial(row))
        model.fit_partial(row)
    return scores


def judged(run: Scorer, one: Labelled, order: str, seed: int) -> tuple[float, float]:
    rows, labels = ordered(one, order, seed)
    scores, first = run(rows, seed), detectors.warm_up(len(rows))
    return auc(labels[first:], scores[first:]), average_precision(labels[first:], scores[first:])


def ordered(one: Labelled, order: str, seed: int) -> Labelled:
    shuffled = np.random.default_rng(seed).permutation(len(one.rows))
    rows, labels = one.rows[shuffled], one.labels[shuffled]
    if order == "block":
        normal, odd = np.flatnonzero(~labels), np.flatnonzero(labels)
        half = len(normal) // 2
        at = np.concatenate((normal[:half], odd, normal[half:]))
        rows, labels = rows[at], labels[at]
    return Labelled(rows, labels)


def collected(data: Path, most: int = MOST_ROWS) -> dict[str, Labelled]:
    """The sets in a file or folder, by name."""
    if data.is_dir():
        found = {path.stem.partition("_")[2].lower(): np.load(path) for path in sorted(data.glob("*.npz"))}
        return {
            name: drawn(Labelled(one["X"].astype(float), one["y"].ravel() > 0), most) for name, one in found.items()
        }
    if not data.is_file():
        sys.exit(f"{data} cannot be read: no such file or folder")
    held = np.load(data)
    names = [name.removesuffix("_X") for name in held.files if name.endswith("_X")]
    return {name: Labelled(held[f"{name}_X"].astype(float), held[f"{name}_y"].ravel() > 0) for name in names}


def drawn(one: Labelled, most: int) -> Labelled:
    """So many rows of a set; all its anomalies too where fewer than `FEWEST_ODD` would be among them."""
    if len(one.rows) <= most:
        return one
    at = np.random.default_rng(0).choice(len(one.rows), most, replace=False)
    if one.labels[at].sum() < min(FEWEST_ODD, one.labels.sum()):
        normal = np.random.default_rng(0).choice(np.flatnonzero(~one.labels), most, replace=False)
        at = np.concatenate((np.flatnonzero(one.labels), normal))
    at = np.sort(at)
    return Labelled(one.rows[at], one.labels[at])


# Drift


def drift(data: Path, seeds: list[int]) -> None:
    """AUC around an abrupt change at one third: half of the features rescaled and shifted."""
    whole = collected(data, DRIFT_ROWS)
    whole["mulcross"] = mulcross(DRIFT_ROWS)
    missing = [name for name in DRIFTING if name not in whole]
    if missing:
        sys.exit(f"{data} lacks {', '.join(missing)}; give a folder of ADBench's files")
    print("| AUC | all | before | first 10,000 after | next 10,000 | rest |\n|---|---|---|---|---|---|")
    for name, (run, count) in contenders().items():
        if count == 1:
            continue
        figures = []
        for seed in seeds:
            for label in DRIFTING:
                say(f"{name}: {label}, seed {seed}")
                rows, labels = changed(ordered(whole[label], "shuffled", seed), seed)
                scores, at = run(rows, seed), len(rows) // 3
                spans = ((1000, None), (1000, at), (at, at + 10_000), (at + 10_000, at + 20_000), (at + 20_000, None))
                figures.append([auc(labels[a:b], scores[a:b]) for a, b in spans])
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in np.nanmean(figures, axis=0))} |", flush=True)


def changed(one: Labelled, seed: int) -> Labelled:
    random = np.random.default_rng(1000 + seed)
    rows, at = one.rows.copy(), len(one.rows) // 3
    width = rows.shape[1]
    for j in random.permutation(width)[: max(width // 2, 1)]:
        low, high = np.quantile(rows[:at, j], [0.05, 0.95])
        spread = (high - low) or 1.0
        factor = random.uniform(1.5, 3.0) ** random.choice([-1, 1])
        shift = random.uniform(1.0, 3.0) * random.choice([-1, 1]) * spread
        middle = (low + high) / 2
        rows[at:, j] = middle + (rows[at:, j] - middle) * factor + shift
    return Labelled(rows, one.labels)


def mulcross(n: int) -> Labelled:
    """Four normal features; a tenth of the rows in two dense clusters (Rocke & Woodruff 1996)."""
    random = np.random.default_rng(0)
    labels = random.random(n) < 0.1
    rows = random.normal(size=(n, 4))
    side = np.where(random.random(n) < 0.5, 1.0, -1.0)
    distance = 2 * np.sqrt(13.2767)  # the 99 % quantile of χ² with 4 degrees of freedom
    rows[labels] = rows[labels] * np.sqrt(0.1) + (side[labels] * distance / 2)[:, None]
    return Labelled(rows, labels)


# Calibration


def calibration(data: Path, seeds: list[int]) -> None:
    """How often "one in N" came, as a multiple of what was promised: on labelled sets, and on the demo's year."""
    print("| held-out stretch | events | one in 100 | one in 1,000 |\n|---|---|---|---|")
    sets = collected(data)
    pooled = np.zeros(2)
    total = 0
    for name, one in sets.items():
        found, seen = np.zeros(2), 0
        for seed in seeds:
            rows, _ = ordered(one, "shuffled", seed)
            rates = detectors.reference_forest(rows, lambda _: None, seed)[1][len(rows) // 2 :]
            found += [(rates <= 1 / 100).sum(), (rates <= 1 / 1000).sum()]
            seen += len(rates)
        came(f"{name}, second half, {len(seeds)} orders", seen, found)
        pooled, total = pooled + found, total + seen
    came("all sets", total, pooled)
    say("the demo's year through the whole stream")
    rates = through_the_stream()
    for first, end in ((10_000, 60_000), (60_000, 150_000), (150_000, len(rates))):
        part = rates[first:end]
        came(f"Complete Journey, events {first:,} to {end:,}", len(part), [(part <= 1 / n).sum() for n in (100, 1000)])


def came(label: str, events: int, found: Any) -> None:
    print(f"| {label} | {events:,} | {found[0] / events * 100:.2f} | {found[1] / events * 1000:.2f} |", flush=True)


def through_the_stream() -> Matrix:
    """The rate of each event of the demo, with the version that scored it."""
    rates: list[Matrix] = []

    def see(result: TickResult) -> None:
        version, entry = embedded.worker.version, result.entry
        assert version.number == entry.model_version
        rates.append(version.anomaly.rate_many(entry.scores) if version.anomaly.ready else np.ones(len(entry.scores)))

    settings = parse({"application": {"name": "journey", "timezone": TIMEZONE}})
    embedded = Embedded(settings, (TOPIC,), see)
    embedded.run({TOPIC: Journey().records()})
    return np.concatenate(rates)


# Rows


def skewed(n: int) -> Matrix:
    """Ten features in about [0, 1], skewed and correlated."""
    random = np.random.default_rng(0)
    return np.clip(random.beta(2, 5, (n, FEATURES)) + random.normal(0.0, 0.06, (n, 1)), -0.2, 1.2)


def ragged(rows: Matrix) -> Iterator[Matrix]:
    sizes, first = np.random.default_rng(1).integers(1, 700, 10**5), 0
    for size in sizes.tolist():
        if first >= len(rows):
            return
        yield rows[first : first + size]
        first += size


def names(width: int) -> list[str]:
    return [f"{j:05}" for j in range(width)]


def dicts(rows: Matrix) -> list[dict[str, float]]:
    return [dict(zip(names(rows.shape[1]), row, strict=True)) for row in rows.tolist()]


def river_scores(model: Any, rows: Matrix) -> Iterator[float]:
    for x in dicts(rows):
        yield model.score_one(x)
        model.learn_one(x)


def installed(package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        say(f"{package} is not installed and left out: pip install --group bench")
    return found


if __name__ == "__main__":
    main()
