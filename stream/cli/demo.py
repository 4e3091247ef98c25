"""Show the main job on a year of real purchases, in this process.

84.51° Complete Journey: 155,848 baskets of 2,469 households. The purchases are real, their calendar is assigned by the
publisher, and one page view per basket is derived from it and marked so in the event.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections import Counter
from itertools import islice
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream.embedded import Embedded
from stream.journey import TIMEZONE, TOPIC, Journey
from stream.processing.alerts import ANOMALY, CHURN_RISK, KINDS, SEGMENT_CHANGED, SEGMENT_LINEAGE
from stream.processing.journal import Published
from stream.processing.tick import TickResult
from stream.processing.version import Version
from stream.settings import Settings

SHOWN_EVERY_S = 0.25
"""While the year goes by, at most one alert of each kind is printed in this time."""
TOP = 5


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--events", type=_count, metavar="N", help="stop after N events (default: the whole year)")
    parser.add_argument("--json", action="store_true", help="print every alert as JSON Lines instead of the summary")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is no number of events; give 1 or more")
    return count


class Summary:
    """What happened, as it happens and at the end."""

    def __init__(self, console: Console, as_json: bool) -> None:
        self._console = console
        self._as_json = as_json
        self._began = time.monotonic()
        self._shown: dict[str, float] = {}
        self.first_alert_s: float | None = None
        self.alerts: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        self.held: Counter[tuple[str, str]] = Counter()
        self.customers = self.ticks = self.events = 0

    def see(self, result: TickResult) -> None:
        """Take note of a committed tick."""
        self.ticks += 1
        self.events += len(result.entry.who)
        self.customers = result.entry.state.customers
        self.held.update(result.held)
        for published in result.entry.alerts:
            self._take(published)

    def see_version(self, _: Version, published: Published | None) -> None:
        """Take note of a model version, and of what it changed of the segments."""
        if published is not None:
            self._take(published)

    def _take(self, published: Published) -> None:
        if self.first_alert_s is None:
            self.first_alert_s = time.monotonic() - self._began
        alert = orjson.loads(published.value)
        self.alerts[alert["data"]["kind"]].append(alert)
        if self._as_json:
            print(published.value.decode())
        else:
            self._show(alert)

    def _show(self, alert: dict[str, Any]) -> None:
        kind, now = alert["data"]["kind"], time.monotonic()
        if now - self._shown.get(kind, 0.0) >= SHOWN_EVERY_S:
            self._shown[kind] = now
            self._console.print(line(alert), highlight=False, soft_wrap=True)

    def print_to(self, console: Console) -> None:
        """The summary one wants to read."""
        console.print(
            f"\n[bold]{self.customers:,} customers[/], {self.events:,} events in {self.ticks:,} ticks; "
            f"first alert after {self.first_alert_s or 0:.1f} s, all in {time.monotonic() - self._began:.0f} s."
        )
        tables = (
            (SEGMENT_CHANGED, _moves(self.alerts[SEGMENT_CHANGED])),
            (ANOMALY, _strongest(self.alerts[ANOMALY], "Strongest anomalies", "one in", "one_in")),
            (
                CHURN_RISK,
                _strongest(self.alerts[CHURN_RISK], "Dearest customers drifting away", "spent", "spend_minor"),
            ),
        )
        for kind, table in tables:
            console.print(table if self.alerts[kind] else f"No {kind} alert yet: its model was still warming up.")
        command = "driftline" if shutil.which("driftline") else f"{os.path.relpath(sys.executable)} -m stream"
        held = ", ".join(f"{count:,} {kind} ({reason})" for (kind, reason), count in self.held.most_common())
        console.print(f"Held back: {held or 'nothing'}.")
        console.print(
            "Real: households, baskets, amounts, times of day. Derived: one page view a basket. Calendar: assigned.\n\n"
            "[bold]Next[/]\n"
            f"  {command} demo --json | head -1      one alert, whole\n"
            f"  {command} replay YOUR_EVENTS.jsonl   the same on your own events (Segment JSON Lines or CSV)\n"
            f"  {command} run                        a worker on your Kafka and Redis (docs/configuration.md)",
            highlight=False,
            soft_wrap=True,
        )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the demo."""
    logging.getLogger("stream").setLevel(logging.WARNING)
    errors = Console(stderr=True)
    with errors.status("Loading Complete Journey (84.51°): a year of grocery baskets"):
        journey = Journey()
    count = min(arguments.events or journey.count, journey.count)
    settings = settings.model_copy(
        update={"application": settings.application.model_copy(update={"name": "journey", "timezone": TIMEZONE})}
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        bar = progress.add_task(f"{count:,} events of {journey.households:,} households, 2017", total=count)
        # One console draws bar and lines when both go to a terminal, so that neither overwrites the other.
        console = progress.console if sys.stdout.isatty() and not arguments.json else Console()
        summary = Summary(console, arguments.json)
        embedded = Embedded(settings, (TOPIC,), summary.see, summary.see_version)
        embedded.run({TOPIC: islice(journey.records(), count)}, lambda fed: progress.advance(bar, fed))
    if not arguments.json:
        summary.print_to(console)
    return 0


def line(alert: dict[str, Any]) -> str:
    """One alert in one line.

    >>> line({"time": "2017-03-02T00:00:00.000Z", "subject": "c-1", "data": {"kind": "churn_risk", "probability": 0.61,
    ...       "reasons": [{"text": "68 days since the last order; usually every 36"}]}})
    '2017-03-02 [red]churn_risk     [/] c-1  61% risk: 68 days since the last order; usually every 36'
    """
    data = alert["data"]
    kind = data["kind"]
    why = "; ".join(reason["text"] for reason in data["reasons"][:2])
    if kind == SEGMENT_CHANGED:
        colour, what = "cyan", f"{data['from_name']} → {data['to_name']}"
    elif kind == ANOMALY:
        colour, what = "yellow", f"one event in {data['one_in']:,}"
    elif kind == CHURN_RISK:
        colour, what = "red", f"{data['probability']:.0%} risk"
    elif kind == SEGMENT_LINEAGE:
        colour, what = "cyan", f"{len(data['changes'])} changes, {len(data['segments'])} segments"
    else:
        colour, what = "magenta", "held back"
    return f"{alert['time'][:10]} [{colour}]{kind:15}[/] {alert['subject']}  {what}: {why}"


def _moves(alerts: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Customers who moved between segments: {len(alerts):,} times", title_justify="left")
    table.add_column("to segment")
    for heading in ("share", "arrived", "left"):
        table.add_column(heading, justify="right")
    table.add_column("most came from")
    arrived = Counter(alert["data"]["to"] for alert in alerts)
    left = Counter(alert["data"]["from"] for alert in alerts)
    latest = {alert["data"]["to"]: alert["data"] for alert in alerts}
    for segment, count in arrived.most_common():
        came = Counter(alert["data"]["from_name"] for alert in alerts if alert["data"]["to"] == segment)
        data = latest[segment]
        table.add_row(
            data["to_name"], f"{data['to_share']:.0%}", f"{count:,}", f"{left[segment]:,}", came.most_common(1)[0][0]
        )
    return table


def _strongest(alerts: list[dict[str, Any]], title: str, heading: str, key: str) -> Table:
    table = Table(title=f"{title}: {min(TOP, len(alerts))} of {len(alerts):,}", title_justify="left")
    for name in ("customer", "when", heading, "why"):
        table.add_column(name, justify="right" if name == heading else "left")
    for alert in sorted(alerts, key=lambda alert: -alert["data"][key])[:TOP]:
        data = alert["data"]
        shown = f"{data[key] / 100:,.2f} USD" if key == "spend_minor" else f"{data[key]:,}"
        why = "; ".join(reason["text"] for reason in data["reasons"])
        risk = f"{data['probability']:.0%} risk: " if "probability" in data else ""
        table.add_row(alert["subject"], alert["time"][:10], shown, risk + why)
    return table
