"""How well unusual events are found: on a shop's events, or on a table of numbers.

Every row is scored before it is learned. A table is an .npz with X (and y), or a CSV of numbers (with a column label
or y, and messageId if it has one; else the row's number from 0); its rows are taken in their order, as a stream. Rows
of the warm-up (the first 1,000; a smaller table's first 500; in a shop's events those before the first model version)
are scored as soon as anything can be said, 0 before, and count in no figure.
"""

import argparse
import csv
import json
import logging
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream.errors import SettingsError
from stream.evaluation import detectors
from stream.evaluation.anomaly_rows import Rows, labelled, read
from stream.evaluation.detectors import Verdict
from stream.evaluation.measures import auc, average_precision
from stream.settings import Settings

ONE_IN = (100, 1_000)
OURS = "Driftline: ReferenceForest"
INSTALL = "needs scikit-learn: pip install '.[evaluate]' where Driftline's source is"


def add(parser: argparse.ArgumentParser) -> None:
    """The kind's arguments."""
    parser.add_argument(
        "--events", type=Path, required=True, metavar="FILE", help="events (JSON Lines, CSV) or a table (.npz, CSV)"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="CSV messageId,label; what is not listed is normal")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="write messageId,score,one_in of every row here")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--model", action="append", default=[], metavar="CLASS", help="a River detector to compare with, by its class"
    )
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="shuffle a table's rows first; it may be sorted by label"
    )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Evaluate, print, and write the scores."""
    logging.getLogger("stream").setLevel(logging.WARNING)
    for path in arguments.model:
        detectors.river_class(path)
    inputs = [path for path in (arguments.events, arguments.labels) if path is not None]
    if arguments.scores is not None and arguments.scores in inputs:
        raise SettingsError(f"{arguments.scores} is an input; name another file to write to")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        reading = progress.add_task("reading", total=None)
        rows = read(arguments.events, settings, lambda fed: progress.advance(reading, fed))
        progress.remove_task(reading)
        if arguments.labels is not None:
            rows = labelled(rows, arguments.labels)
        if arguments.shuffle is not None:
            rows = _shuffled(rows, arguments.shuffle)
        warm = _warm_up(rows)
        verdicts = _verdicts(rows, arguments.model, progress)
    if arguments.scores is not None:
        _write(arguments.scores, rows, verdicts[0])
    results = [_result(verdict, rows, warm) for verdict in verdicts]
    if arguments.json:
        print(json.dumps(_summary(rows, warm) | {"results": results}, indent=2))
    else:
        _print(rows, warm, results)
    return 0


def _shuffled(rows: Rows, seed: int) -> Rows:
    if rows.scores is not None:
        raise SettingsError("--shuffle is for tables; a shop's events have an order of their own")
    order = np.random.default_rng(seed).permutation(len(rows.ids))
    return Rows(
        [rows.ids[i] for i in order.tolist()], rows.values[order], None if rows.labels is None else rows.labels[order]
    )


def _warm_up(rows: Rows) -> int:
    if rows.scores is None:
        return detectors.warm_up(len(rows.ids))
    scored = np.flatnonzero(rows.scores)
    if not len(scored):
        raise SettingsError(
            f"{len(rows.ids):,} events are too few: the first model version comes after models.publish_min_events; "
            "lower it"
        )
    return int(scored[0])


def _verdicts(rows: Rows, models: list[str], progress: Progress) -> list[Verdict]:
    values = detectors.filled(rows.values)
    runs: list[tuple[str, detectors.Run]] = [
        ("our half-space trees, as River's", partial(detectors.half_space_trees, values)),
        ("River: MinMaxScaler | HalfSpaceTrees", partial(detectors.river_default, values)),
        ("IsolationForest, fitted once on the warm-up", partial(detectors.isolation_forest, values)),
        ("distance from the running mean", partial(detectors.from_mean, values)),
        *((f"River: MinMaxScaler | {path}", partial(detectors.named, path, values)) for path in models),
    ]
    verdicts = []
    if rows.scores is None:
        runs.insert(0, (OURS, partial(detectors.reference_forest, rows.values)))
    else:
        verdicts.append(Verdict(OURS, rows.scores, rows.rates))
    detectors.warm_kernels()
    task = progress.add_task("", total=len(runs) * len(rows.ids))
    for name, run in runs:
        progress.update(task, description=name)
        try:
            verdicts.append(detectors.timed(name, run, partial(progress.advance, task)))
        except ImportError:
            progress.advance(task, len(rows.ids))
            verdicts.append(Verdict(name, np.zeros(0), missing=INSTALL))
    return verdicts


def _result(verdict: Verdict, rows: Rows, warm: int) -> dict[str, Any]:
    result: dict[str, Any] = {"name": verdict.name}
    if verdict.missing:
        return result | {"missing": verdict.missing}
    judged = len(rows.ids) - warm
    if rows.labels is not None:
        labels, scores = rows.labels[warm:], verdict.scores[warm:]
        result |= {
            "auc": _number(auc(labels, scores)),
            "average_precision": _number(average_precision(labels, scores)),
        }
    if verdict.seconds:
        result["us_per_row"] = round(verdict.seconds / len(rows.ids) * 1e6, 3)
    if verdict.rates is not None:
        rates = verdict.rates[warm:]
        result["one_in"] = {
            str(n): {"promised": round(judged / n, 2), "found": int((rates <= 1 / n).sum())} for n in ONE_IN
        }
    return result


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _summary(rows: Rows, warm: int) -> dict[str, Any]:
    summary: dict[str, Any] = {"rows": len(rows.ids), "features": rows.values.shape[1], "warm_up": warm}
    if rows.labels is not None:
        summary["anomalies"] = int(rows.labels.sum())
        summary["anomalies_after_warm_up"] = int(rows.labels[warm:].sum())
    return summary


def _print(rows: Rows, warm: int, results: list[dict[str, Any]]) -> None:
    console = Console()
    said = f"{len(rows.ids):,} rows, {rows.values.shape[1]} features, the first {warm:,} not judged"
    if rows.labels is not None:
        said += f"; {int(rows.labels[warm:].sum()):,} anomalies after them"
    table = Table(title=said, title_justify="left")
    table.add_column("scored before learned")
    for heading in ("AUC", "average precision", "µs per row"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result["name"],
            *(_shown(result.get(key), digits) for key, digits in (("auc", 3), ("average_precision", 3))),
            _shown(result.get("us_per_row"), 2) if "missing" not in result else result["missing"],
        )
    console.print(table)
    for n, found in next((result["one_in"] for result in results if "one_in" in result), {}).items():
        console.print(
            f'"One in {int(n):,}": {found["promised"]:,.1f} promised, {found["found"]:,} came.', highlight=False
        )
    if rows.labels is None:
        console.print("No labels: give --labels FILE (messageId,label) for AUC and average precision.", highlight=False)


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _write(path: Path, rows: Rows, verdict: Verdict) -> None:
    """Every row, in the order in which it was scored."""
    rates = verdict.rates if verdict.rates is not None else np.ones(len(rows.ids))
    try:
        with path.open("w", newline="", encoding="utf-8") as text:
            lines = csv.writer(text, lineterminator="\n")
            lines.writerow(("messageId", "score", "one_in"))
            for name, score, rate in zip(rows.ids, verdict.scores.tolist(), rates.tolist(), strict=True):
                lines.writerow((name, f"{score:.9g}", f"{1 / rate:.6g}"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None
    print(f"wrote {len(rows.ids):,} scores to {path}", file=sys.stderr)
