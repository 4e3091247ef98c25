"""Run files of events through the worker in this process; alerts come out as JSON Lines.

The same files give the same bytes every time. Each file is in order of time; several are merged by event time.
"""

import argparse
import base64
import logging
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import orjson
from rich.console import Console

from stream.adapters import records
from stream.embedded import Embedded
from stream.errors import SettingsError
from stream.processing.journal import Published
from stream.processing.tick import DeadLetter, TickResult
from stream.processing.version import Version
from stream.settings import Settings

LATE_SHARE = 0.05


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="events: JSON Lines (Segment) or CSV")
    parser.add_argument(
        "--dead-letters", type=Path, metavar="FILE", help="write what could not be used here, as JSON Lines"
    )
    parser.add_argument(
        "--customers", type=Path, metavar="FILE", help="write every customer at the end here, as JSON Lines"
    )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Replay the files."""
    logging.getLogger("stream").setLevel(logging.WARNING)
    outputs = [path for path in (arguments.dead_letters, arguments.customers) if path is not None]
    for path in arguments.files:
        if not path.exists():
            raise SettingsError(f"{path} cannot be read: no such file")
        if any(output.exists() and output.samefile(path) for output in outputs):
            raise SettingsError(f"{path} is an input; name another file to write to")
    names = [f"file{i}-{path.name}" for i, path in enumerate(arguments.files)]
    counts: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    with ExitStack() as stack:
        letters = _open(stack, arguments.dead_letters)

        def see(result: TickResult) -> None:
            counts.update(result.counts)
            counts["events"] += len(result.entry.who)
            counts["alerts"] += len(result.entry.alerts)
            dead.update(letter.reason for letter in result.dead_letters)
            for alert in result.entry.alerts:
                sys.stdout.buffer.write(alert.value + b"\n")
            if letters is not None:
                letters.writelines(_letter(letter) for letter in result.dead_letters)

        def see_version(_: Version, alert: Published | None) -> None:
            if alert is not None:
                counts["alerts"] += 1
                sys.stdout.buffer.write(alert.value + b"\n")

        customers = _open(stack, arguments.customers)
        embedded = Embedded(settings, tuple(names), see, see_version)
        embedded.run({name: records(path, name) for name, path in zip(names, arguments.files, strict=True)})
        sys.stdout.flush()
        if customers is not None:
            customers.writelines(line + b"\n" for line in embedded.customers())
    _say(embedded, counts, dead)
    return 1 if dead and not counts["events"] else 0


def _say(embedded: Embedded, counts: Counter[str], dead: Counter[str]) -> None:
    """The summary on standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dead.most_common())
    console.print(
        f"{counts['events']:,} events, {counts['duplicate']:,} duplicates, {counts['alerts']:,} alerts, "
        f"{dead.total():,} dead letters{f' ({reasons})' if reasons else ''}"
    )
    if counts["late"] > LATE_SHARE * counts["events"]:
        console.print(
            f"{counts['late']:,} events are older than their customer's latest one: sort the files by time, or most of "
            "what the models look at is lost"
        )
    version = embedded.worker.version
    ready = {"anomaly": version.anomaly.ready, "segment": version.segments.ready, "churn": version.churn.ready}
    warming = [name for name, is_ready in ready.items() if not is_ready]
    if warming:
        console.print(f"still warming up at the end, so no alerts of their kind: {', '.join(warming)}")


def _open(stack: ExitStack, path: Path | None) -> BinaryIO | None:
    """A file to write to, opened before anything runs."""
    if path is None:
        return None
    try:
        return stack.enter_context(path.open("wb"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None


def _letter(letter: DeadLetter) -> bytes:
    record = letter.record
    value = record.value or b""
    try:
        body = {"value": value.decode()}
    except UnicodeDecodeError:
        body = {"value_base64": base64.b64encode(value).decode()}
    where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return orjson.dumps({"reason": letter.reason, "detail": letter.detail, **where, **body}) + b"\n"
