"""Run files of events through the worker in this process; alerts come out as JSON Lines.

The same files give the same bytes every time. Several files are merged by event time, each in its own order.
"""

import argparse
import base64
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import orjson
from rich.console import Console

from stream.adapters import records
from stream.embedded import Embedded
from stream.errors import SettingsError
from stream.processing.tick import DeadLetter, TickResult
from stream.settings import Settings


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
    console = Console(stderr=True)
    names = [f"file{i}-{path.name}" for i, path in enumerate(arguments.files)]
    counts = {"events": 0, "alerts": 0, "dead": 0}
    with ExitStack() as stack:
        letters = _open(stack, arguments.dead_letters)

        def see(result: TickResult) -> None:
            counts["events"] += len(result.entry.who)
            counts["alerts"] += len(result.entry.alerts)
            counts["dead"] += len(result.dead_letters)
            for alert in result.entry.alerts:
                sys.stdout.buffer.write(alert.value + b"\n")
            if letters is not None:
                letters.writelines(_letter(letter) for letter in result.dead_letters)

        customers = _open(stack, arguments.customers)
        embedded = Embedded(settings, tuple(names), see)
        embedded.run({name: records(path, name) for name, path in zip(names, arguments.files, strict=True)})
        sys.stdout.flush()
        if customers is not None:
            customers.writelines(line + b"\n" for line in embedded.customers())
    console.print(f"{counts['events']:,} events, {counts['alerts']:,} alerts, {counts['dead']:,} dead letters")
    return 0


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
