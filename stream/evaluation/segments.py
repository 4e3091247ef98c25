"""How good segments are: at 20 moments of a shop's events, against a batch run on all customers of that moment.

The events go through the worker in this process, as in `driftline replay`. At each moment the centres that it works
with are held against a batch k-means on every customer who has a segment; beside them stand River's KMeans and
scikit-learn's MiniBatchKMeans, which learn each event once, and RFM cells. --scores writes what was compared:
customer, time, segment (the nearest), held (what the CRM was told) and the features in the model's standard units.
"""

import argparse
import csv
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream.adapters import records
from stream.embedded import Embedded
from stream.errors import SettingsError
from stream.evaluation import clusterings
from stream.evaluation.clusterings import Cut, Peer
from stream.processing.alerts import SEGMENT_CHANGED, rfc3339
from stream.processing.customer import DAY_MS, NO_SEGMENT
from stream.processing.features import segment_features
from stream.processing.names import SEGMENT_FEATURES
from stream.processing.tick import TickResult
from stream.processing.version import Version
from stream.settings import Settings

CHECKPOINTS = 20
WEEK_MS = 7 * DAY_MS
RFM = ([SEGMENT_FEATURES.index(name) for name in ("recency", "frequency", "amount")], (-1.0, 1.0, 1.0))
"""Recently active, often, and much."""
OURS, TOLD, CELLS = "Driftline: nearest centre", "Driftline: as the CRM was told", "RFM cells (mean rank, cut by size)"


class Moment(NamedTuple):
    """One checkpoint: customers with a segment, their features in standard units, and the cut of each contender."""

    time_ms: int
    customers: list[str]
    points: NDArray[np.float64]
    segments: NDArray[np.int64]
    held: NDArray[np.int64]
    batch: Cut
    again: Cut
    cuts: dict[str, Cut]


class Customers:
    """The latest features and the segment of each customer, and how often segments change."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._place: dict[str, int] = {}
        self.features = np.zeros((0, len(SEGMENT_FEATURES)))
        self.held = np.zeros(0, np.int64)
        self.known = np.zeros(0, np.bool_)
        self._left: dict[tuple[int, int], int] = {}
        self.returns = 0
        self.weeks = 0.0
        self._time_ms = 0

    def see(self, names: list[str], features: NDArray[np.float64], held: NDArray[np.int32], time_ms: int) -> None:
        """Take note of customers as a tick left them."""
        if self._time_ms:
            self.weeks += int((self.known & (self.held != NO_SEGMENT)).sum()) * (time_ms - self._time_ms) / WEEK_MS
        self._time_ms = time_ms
        for name in names:
            if name not in self._place:
                self._place[name] = len(self.names)
                self.names.append(name)
        missing = len(self.names) - len(self.held)
        if missing > 0:
            room = max(missing, len(self.held))
            self.features = np.concatenate([self.features, np.zeros((room, len(SEGMENT_FEATURES)))])
            self.held = np.concatenate([self.held, np.full(room, NO_SEGMENT)])
            self.known = np.concatenate([self.known, np.zeros(room, np.bool_)])
        at = np.array([self._place[name] for name in names], np.int64)
        moved = (self.held[at] != held) & (self.held[at] != NO_SEGMENT)
        for place, segment in zip(at[moved].tolist(), held[moved].tolist(), strict=True):
            if time_ms - self._left.get((place, segment), -WEEK_MS - 1) <= WEEK_MS:
                self.returns += 1
            self._left[place, int(self.held[place])] = time_ms
        self.features[at], self.held[at], self.known[at] = features, held, True

    def forget(self, names: list[str]) -> None:
        """These are no customers any more."""
        for name in names:
            if name in self._place:
                self.known[self._place[name]] = False


class Evaluation:
    """Watches a run of the worker, and compares at checkpoints."""

    def __init__(self, settings: Settings, events: int, models: list[str], checkpoints: int = CHECKPOINTS) -> None:
        self._settings = settings
        self._k, self._seed = settings.models.segments, settings.models.seed
        self._bounds = [(i + 1) * events // checkpoints for i in range(checkpoints)]
        self._batch = clusterings.batch()
        small = clusterings.mini_batch(self._k, self._seed)
        self.peers: list[Peer] = [
            *(clusterings.river_kmeans(self._k, step, self._seed) for step in (0.5, 0.05)),
            *([small] if small else []),
            *(clusterings.named(path, self._k, self._seed) for path in models),
        ]
        self.missing = [] if small else [f"scikit-learn: MiniBatchKMeans (to compare: {clusterings.INSTALL})"]
        self.customers = Customers()
        self.moments: list[Moment] = []
        self.held: Counter[tuple[str, str]] = Counter()
        self.moves = 0
        self.lineage = 0
        self._passed = 0
        self.embedded: Embedded | None = None

    def see(self, result: TickResult) -> None:
        """Take note of a committed tick."""
        entry = result.entry
        self.held.update(result.held)
        self.moves += result.alert_kinds.count(SEGMENT_CHANGED) if len(result.alert_kinds) else 0
        rows = entry.rows
        least = self._settings.alerts.segment_min_orders
        anonymous = np.array([name.startswith("anon:") for name in entry.customers], np.bool_)
        index = np.flatnonzero(~anonymous & (rows["order_days"] >= least)) if len(rows) else np.zeros(0, np.int64)
        time_ms = entry.state.stream_time_ms
        features = segment_features(rows[index], np.maximum(time_ms, rows["last_seen"][index]))
        self.customers.see([entry.customers[i] for i in index.tolist()], features, rows["segment"][index], time_ms)
        self.customers.forget(list(entry.forgotten))
        with_events = features[np.isin(index, entry.who)]
        for peer in self.peers:
            peer.learn(with_events)
        processed = sum(entry.state.offsets.values())
        due = sum(bound <= processed for bound in self._bounds)
        if due > self._passed:
            self._passed = due
            assert self.embedded is not None
            version = self.embedded.worker.version
            if version is not None and version.segments.ready:
                self.moments.append(self._compare(version, time_ms))

    def _compare(self, version: Version, time_ms: int) -> Moment:
        model, customers = version.segments, self.customers
        at = np.flatnonzero(customers.known)
        rows, held = customers.features[at], customers.held[at]
        points = model.standard(rows)
        batch, again = (self._batch.run(points, self._k, self._seed + i) for i in range(2))
        cuts = {OURS: clusterings.by_centres(points, model.profile())}
        segments = model.ids[cuts[OURS].labels].astype(np.int64)
        cuts[TOLD] = clusterings.by_means(points, np.where(held == NO_SEGMENT, segments, held))
        for peer in self.peers:
            cut = peer.cut(rows, points)
            if cut is not None:
                cuts[peer.name] = cut
        cuts[CELLS] = clusterings.by_rank(points, self._k, *RFM)
        names = [customers.names[i] for i in at.tolist()]
        return Moment(time_ms, names, points, segments, held, batch, again, cuts)

    def summary(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        assert self.embedded is not None
        version = self.embedded.worker.version
        assert version is not None
        weeks = max(self.customers.weeks, 1e-9)
        names = list(self.moments[-1].cuts)
        return {
            "segments": self._k,
            "customers": len(self.moments[-1].customers),
            "checkpoints": [rfc3339(one.time_ms) for one in self.moments],
            "batch": self._batch.name,
            "batch_agreement": _mean(
                [clusterings.agreement(one.batch.labels, one.again.labels) for one in self.moments]
            ),
            "results": [self._result(name) for name in names],
            "missing": self.missing,
            "changes": {
                "customer_weeks": round(weeks, 1),
                "moves_per_customer_year": round(self.moves / weeks * 52.18, 3),
                "returns_within_a_week_per_week": round(self.customers.returns / weeks, 5),
                "by_retraining_per_week": round(self.held[SEGMENT_CHANGED, "new_model_version"] / weeks, 5),
                "versions": version.number,
                "versions_that_changed_segments": self.lineage,
            },
            "now": [version.segment(segment) for segment in version.segments.ids.tolist()],
        }

    def _result(self, name: str) -> dict[str, Any]:
        pairs = [(one, one.cuts[name]) for one in self.moments if name in one.cuts]
        ratios = [cut.inertia / max(one.batch.inertia, 1e-12) for one, cut in pairs]
        sizes = [np.unique(cut.labels, return_counts=True)[1] / len(cut.labels) for _, cut in pairs]
        return {
            "name": name,
            "inertia_ratio": _mean(ratios),
            "worst": round(max(ratios), 4),
            "agreement": _mean([clusterings.agreement(cut.labels, one.batch.labels) for one, cut in pairs]),
            "fewest_groups": min(len(size) for size in sizes),
            "smallest_share": round(min(float(size.min()) for size in sizes), 4),
        }


def add(parser: argparse.ArgumentParser) -> None:
    """The kind's arguments."""
    parser.add_argument(
        "--events", type=Path, required=True, metavar="FILE", help="events: JSON Lines (Segment) or CSV"
    )
    parser.add_argument(
        "--scores", type=Path, metavar="FILE", help="write customers, segments and features here, as CSV"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--segments", type=_number, metavar="K", help="number of segments (default: models.segments)")
    parser.add_argument(
        "--model", action="append", default=[], metavar="CLASS", help="a River clusterer to compare with, by its class"
    )


def _number(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= 20:
        raise argparse.ArgumentTypeError(f"{text} is no number of segments; give 2 to 20")
    return int(text)


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Evaluate, print, and write what was compared."""
    logging.getLogger("stream").setLevel(logging.WARNING)
    if arguments.segments is not None:
        models = settings.models.model_copy(update={"segments": arguments.segments})
        settings = settings.model_copy(update={"models": models})
    path: Path = arguments.events
    if not path.is_file():
        raise SettingsError(f"{path} cannot be read: no such file")
    if arguments.scores is not None and arguments.scores.exists() and arguments.scores.samefile(path):
        raise SettingsError(f"{arguments.scores} is an input; name another file to write to")
    events = sum(1 for _ in records(path, path.name))
    evaluation = Evaluation(settings, events, arguments.model)
    run(evaluation, settings, path.name, records(path, path.name), events)
    if not evaluation.moments:
        raise SettingsError(
            f"{path}: no segments were formed: {int(evaluation.customers.known.sum()):,} customers came to "
            f"{settings.alerts.segment_min_orders} purchase occasions (alerts.segment_min_orders), "
            f"{settings.models.first_customers:,} are needed (models.first_customers)"
        )
    if arguments.scores is not None:
        _write(arguments.scores, evaluation.moments)
    summary = evaluation.summary()
    if arguments.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        _print(summary, Console())
    return 0


def run(evaluation: Evaluation, settings: Settings, topic: str, source: Any, events: int) -> None:
    """Run events through the worker under the evaluation's eyes."""

    def see_version(_: Version, alert: object) -> None:
        evaluation.lineage += alert is not None

    evaluation.embedded = Embedded(settings, (topic,), evaluation.see, see_version)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("evaluating", total=events)
        evaluation.embedded.run({topic: iter(source)}, lambda fed: progress.advance(bar, fed))


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def _print(summary: dict[str, Any], console: Console) -> None:
    checkpoints = summary["checkpoints"]
    table = Table(
        title=f"{len(checkpoints)} checkpoints from {checkpoints[0][:10]} to {checkpoints[-1][:10]}, "
        f"{summary['segments']} segments, {summary['customers']:,} customers at the end",
        title_justify="left",
    )
    table.add_column("against a " + summary["batch"])
    for heading in ("inertia ratio", "worst", "adjusted Rand", "groups", "smallest"):
        table.add_column(heading, justify="right")
    for one in summary["results"]:
        table.add_row(
            one["name"],
            f"{one['inertia_ratio']:.3f}",
            f"{one['worst']:.3f}",
            f"{one['agreement']:.2f}",
            f"{one['fewest_groups']}",
            f"{one['smallest_share']:.1%}",
        )
    table.add_row("a second batch run, another seed", "", "", f"{summary['batch_agreement']:.2f}", "", "")
    for name in summary["missing"]:
        table.add_row(name, *["–"] * 5)
    console.print(table)
    changes = summary["changes"]
    console.print(
        f"Alerted moves: {changes['moves_per_customer_year']:.2f} a customer and year. Of 100 customers a week "
        f"{changes['returns_within_a_week_per_week'] * 100:.2f} return to a segment left within a week, "
        f"{changes['by_retraining_per_week'] * 100:.2f} are moved by retraining. {changes['versions']} versions, "
        f"{changes['versions_that_changed_segments']} of them with other segments.",
        highlight=False,
    )
    now = Table("", *(f"{one['id']}: {one['name']}" for one in summary["now"]), title="Segments at the end")
    now.add_row("share", *(f"{one['share']:.0%}" for one in summary["now"]))
    now.add_row("customers", *(f"{one['customers']:,}" for one in summary["now"]))
    for name in next(iter(summary["now"]))["profile"]:
        now.add_row(name.replace("_", " "), *(f"{one['profile'][name]:,.3g}" for one in summary["now"]))
    console.print(now)


def _write(path: Path, moments: list[Moment]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as text:
            lines = csv.writer(text, lineterminator="\n")
            lines.writerow(("customer", "time", "segment", "held", *SEGMENT_FEATURES))
            for one in moments:
                time = rfc3339(one.time_ms)
                held = ("" if segment == NO_SEGMENT else segment for segment in one.held.tolist())
                for name, segment, told, point in zip(
                    one.customers, one.segments.tolist(), held, one.points.tolist(), strict=True
                ):
                    lines.writerow((name, time, segment, told, *(f"{value:.6g}" for value in point)))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None
