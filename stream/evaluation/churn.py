"""Churn risk at dates of the past, on your own events, beside what else one could use.

Rows, features and model are the stream's own. At each cut every customer who has ordered by then is scored; the outcome
is whether no order came within the horizon after it. Batch methods are fitted anew at each cut to the examples that had
matured by then, which the stream has learned one by one; BG/NBD and Pareto/NBD to all customers as they are.
"""

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from stream.adapters import records
from stream.errors import InvalidEvent, SettingsError
from stream.evaluation.churn_rivals import Asked, Cut, measured, rivals_of
from stream.evaluation.purchases import Shop, stretches
from stream.events import Event, Kind, decode
from stream.processing.alerts import rfc3339
from stream.processing.customer import DAY_MS
from stream.settings import Settings

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

OURS = "Driftline"
STEP_DAYS, BURN_IN_DAYS = 28, 90
MEASURES = ("auc", "auc_active", "log_loss", "log_loss_active", "calibration_error")


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--events",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="events as replay takes them",
    )
    parser.add_argument("--horizon", type=_days, metavar="DAYS", help="default: models.horizon_days")
    parser.add_argument(
        "--cuts",
        metavar="TIME,...",
        help="moments to score at, as 2026-03-02 or 2026-03-02T09:00:00Z; what happened until then, the moment "
        "included, is known (default: every 28 days after 90 days, or two horizons)",
    )
    parser.add_argument("--scores", type=Path, metavar="FILE", help="write our scores as CSV: customer,time,score")
    parser.add_argument(
        "--model", action="append", default=[], metavar="CLASS", help="a River classifier: river.naive_bayes.GaussianNB"
    )
    parser.add_argument("--ours", action="store_true", help="score with Driftline alone; the others take minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _days(text: str) -> float:
    days = float(text)
    if not 1 <= days <= 365:
        raise argparse.ArgumentTypeError(f"{text} days is no horizon; give 1 to 365")
    return days


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Evaluate and print."""
    if arguments.horizon is not None:
        models = settings.models.model_copy(update={"horizon_days": arguments.horizon})
        settings = settings.model_copy(update={"models": models})
    rivals = {} if arguments.ours else rivals_of(arguments.model)
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        bar = progress.add_task("reading", total=None)
        events, unusable = read(arguments.events, settings)
        cuts_ms = _cuts(arguments.cuts, events, settings.models.horizon_days)
        scores = _open(arguments.scores)
        progress.update(bar, total=len(cuts_ms) * (1 + len(rivals)))
        found = evaluate(
            events, cuts_ms, settings, rivals, scores, lambda what: progress.update(bar, advance=1, description=what)
        )
    if scores is not None:
        scores.close()
    if unusable:
        errors.print(f"{unusable:,} records could not be used: driftline replay --dead-letters FILE says which")
    if arguments.json:
        print(json.dumps(found))
    else:
        _print(found)
    return 0


def read(paths: Sequence[Path], settings: Settings) -> tuple[list[Event], int]:
    """The events of files, by time, and how many records could not be used.

    Raises:
        SettingsError: a file cannot be read, or holds no order of a known customer.
    """
    events: list[Event] = []
    unusable = 0
    for i, path in enumerate(paths):
        if not path.exists():
            raise SettingsError(f"{path} cannot be read: no such file")
        for record in records(path, f"file{i}-{path.name}"):
            try:
                events.append(decode(record, settings.event_rules))
            except InvalidEvent:
                unusable += 1
    if not any(event.kind is Kind.ORDER and not event.anonymous for event in events):
        raise SettingsError(
            f"{', '.join(map(str, paths))}: found {len(events):,} events and no order of a customer with an id; churn "
            "is measured on orders (Segment's Order Completed, or CSV lines without an event column)"
        )
    return sorted(events, key=lambda event: event.time_ms), unusable


def _cuts(text: str | None, events: Sequence[Event], horizon_days: float) -> list[int]:
    first, last = events[0].time_ms, (events[-1].time_ms // DAY_MS + 1) * DAY_MS
    if text is None:
        begin = (first // DAY_MS + math.ceil(max(BURN_IN_DAYS, 2 * horizon_days))) * DAY_MS
        found = list(range(begin, last - round(horizon_days * DAY_MS) + 1, STEP_DAYS * DAY_MS))
        if not found:
            days = (last - first) // DAY_MS
            raise SettingsError(
                f"the events span {days} days, too few for a cut with a past and a horizon of {horizon_days:g}; "
                "give --cuts, or a shorter --horizon"
            )
        return found
    found = []
    for part in text.split(","):
        try:
            moment = datetime.fromisoformat(part.strip())
        except ValueError:
            said = f"--cuts: {part.strip()!r} is no time; write 2026-03-02 or 2026-03-02T09:00:00Z"
            raise SettingsError(said) from None
        found.append(round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
    early = [cut for cut in found if cut < first]
    if early:
        raise SettingsError(f"--cuts: {rfc3339(early[0])} lies before the first event, {rfc3339(first)}")
    return sorted(set(found))


def _open(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None


def evaluate(
    events: Sequence[Event],
    cuts_ms: Sequence[int],
    settings: Settings,
    rivals: Mapping[str, Any],
    scores: Any = None,
    progress: Any = lambda _: None,
) -> dict[str, Any]:
    """Measures of ours and of each rival, by cut and in the mean of the cuts whose outcome is known."""
    shop, horizon = Shop(settings), settings.models.horizon_days
    orders = _orders(events)
    end_ms = (events[-1].time_ms // DAY_MS + 1) * DAY_MS
    writer = None if scores is None else csv.writer(scores, lineterminator="\n")
    if writer is not None:
        writer.writerow(("customer", "time", "score"))
    cuts: list[dict[str, Any]] = []
    waiting = list(cuts_ms)
    for part, now_ms in stretches(events, cuts_ms):
        if not waiting:
            break
        shop.advance(part, now_ms)
        if now_ms != waiting[0]:
            continue
        waiting.pop(0)
        index, columns = shop.columns(now_ms)
        names = shop.customers
        customers = [names[i] for i in index.tolist()]
        until_ms = now_ms + round(horizon * DAY_MS)
        churned = np.array([not _bought(orders[customer], now_ms, until_ms) for customer in customers], np.bool_)
        cut = Cut(now_ms, customers, columns, churned, until_ms <= end_ms)
        ours = shop.model.predict_proba_many(columns)
        if writer is not None:
            writer.writerows(
                (customer, rfc3339(now_ms), f"{score:.6f}")
                for customer, score in zip(customers, ours.tolist(), strict=True)
            )
            scores.flush()
        progress(f"{rfc3339(now_ms)[:10]} {OURS}")
        found = {OURS: measured(cut, ours, horizon)}
        asked = Asked(cut, shop.model.features_many(columns), *shop.examples(), horizon)
        for name, rival in rivals.items():
            found[name] = rival.measured(asked) if len(customers) else {}
            progress(f"{rfc3339(now_ms)[:10]} {name}")
        cuts.append(
            {
                "time": rfc3339(now_ms),
                "customers": len(customers),
                "churned": float(churned.mean()) if cut.known and len(customers) else None,
                "models": found,
            }
        )
    return {
        "horizon_days": horizon,
        "customers": len(shop.customers),
        "orders": sum(map(len, orders.values())),
        "labels": shop.model.n_labels,
        "cuts": cuts,
        "models": {
            name: {measure: _mean([cut["models"][name].get(measure) for cut in cuts]) for measure in MEASURES}
            for name in (OURS, *rivals)
        },
    }


def _orders(events: Sequence[Event]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in events:
        if event.kind is Kind.ORDER and not event.anonymous:
            found.setdefault(event.customer, []).append(event.time_ms)
    return found


def _bought(times: Sequence[int], after_ms: int, until_ms: int) -> bool:
    return any(after_ms < time_ms <= until_ms for time_ms in times)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _print(found: Mapping[str, Any]) -> None:
    known = [cut for cut in found["cuts"] if cut["churned"] is not None]
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=110)
    console.print(
        f"{found['customers']:,} customers, {found['orders']:,} orders; no order within {found['horizon_days']:g} "
        f"days; {len(known)} of {len(found['cuts'])} cuts have an outcome"
    )
    if not known:
        return
    table = Table(
        title=f"Mean of {len(known)} cuts, {known[0]['time'][:10]} to {known[-1]['time'][:10]}", title_justify="left"
    )
    table.add_column("model")
    for heading in ("AUC all", "AUC active", "log loss all", "log loss active", "ECE"):
        table.add_column(heading, justify="right")
    for name, measures in found["models"].items():
        table.add_row(name, *("–" if measures[one] is None else f"{measures[one]:.4f}" for one in MEASURES))
    console.print(table)
