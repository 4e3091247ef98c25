"""All customers, one JSON object a line: the object that `driftline customer ID --json` prints.

Works while workers run: each line is the customer as Redis has it at that moment.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import orjson

from stream.backends.redis import RedisStore
from stream.cli.customer import newest_version, shown
from stream.cli.progress import progress
from stream.errors import DriftlineError, SettingsError
from stream.processing.customer import ROW
from stream.processing.version import Version
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
    written = 0
    with closing(RedisStore(settings)) as store:
        markers = {task: store.load(task, ())[0] for task in store.tasks()}
        total = sum(marker.state.customers for marker in markers.values() if marker is not None)
        with progress("writing customers", total) as advance:
            for seen, (task, customer, row) in enumerate(_rows(store, list(markers)), start=1):
                if segment is None or int(np.frombuffer(row, ROW)["segment"][0]) == segment:
                    sys.stdout.buffer.write(orjson.dumps(shown(customer, row, task, version, settings)) + b"\n")
                    written += 1
                if seen % SHOWN_EVERY == 0:
                    advance(SHOWN_EVERY)
        sys.stdout.flush()
    where = "" if segment is None or version is None else f" of segment {segment}, {version.segment_names[segment]!r}"
    print(f"{written:,} customers{where} of application {settings.application.name}", file=sys.stderr)
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


def _rows(store: RedisStore, tasks: list[int]) -> Iterator[tuple[int, str, bytes]]:
    """Every customer once, with their task. Of one task at a time the ids are held, rows only a few hundred."""
    for task in tasks:
        yield from ((task, customer, row) for customer, row in store.scan(task))
