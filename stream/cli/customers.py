"""All customers, one JSON object a line: the object that `driftline customer ID --json` prints.

Works while workers run: each line is the customer as Redis has it at that moment.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stream.backends.redis import RedisStore
from stream.cli.customer import newest_version
from stream.errors import DriftlineError, SettingsError
from stream.processing.customer import ROW
from stream.processing.version import Version
from stream.profile import profile
from stream.settings import Settings

SHOWN_EVERY = 500
"""Customers between two moves of the progress bar."""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write every customer to standard output, as JSON Lines")
    export.add_argument("--segment", metavar="S", help="only the customers of this segment: its name or its id")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Write the customers; how many is told on standard error."""
    version = _version(settings, needed=arguments.segment is not None)
    segment = None if arguments.segment is None else segment_id(arguments.segment, version)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    written = 0
    with closing(RedisStore(settings)) as store:
        markers = {task: store.load(task, ())[0] for task in store.tasks()}
        total = sum(marker.state.customers for marker in markers.values() if marker is not None)
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            bar = progress.add_task(f"{total:,} customers", total=total)
            for seen, (customer, row) in enumerate(_rows(store, list(markers)), start=1):
                if segment is None or int(np.frombuffer(row, ROW)["segment"][0]) == segment:
                    sys.stdout.buffer.write(orjson.dumps(profile(customer, row, version, settings)) + b"\n")
                    written += 1
                if seen % SHOWN_EVERY == 0:
                    progress.update(bar, completed=seen)
        sys.stdout.flush()
    where = "" if segment is None or version is None else f" of segment {segment}, {version.segment_names[segment]!r}"
    errors.print(f"{written:,} customers{where} of application {settings.application.name}", markup=False)
    return 0


def segment_id(wanted: str, version: Version | None) -> int:
    """The id of a segment given by its id or its name, in any case.

    Raises:
        SettingsError: there is no such segment; the known ones are listed.
    """
    names = version.segment_names if version else {}
    for number, name in names.items():
        if wanted == str(number) or wanted.casefold() == name.casefold():
            return number
    known = "".join(f"\n  {number}  {name}" for number, name in sorted(names.items()))
    raise SettingsError(f"there is no segment {wanted!r}; " + (f"known are{known}" if known else "none is formed yet"))


def _version(settings: Settings, needed: bool) -> Version | None:
    """The newest model version. Where only names hang on it, an export goes on without them."""
    try:
        return newest_version(settings)
    except DriftlineError as error:
        if needed:
            raise
        print(f"driftline: without the segments' names: {error}", file=sys.stderr)
        return None


def _rows(store: RedisStore, tasks: list[int]) -> Iterator[tuple[str, bytes]]:
    """Every customer once. Of one task at a time the ids are held, rows only a few hundred."""
    for task in tasks:
        yield from store.scan(task)
