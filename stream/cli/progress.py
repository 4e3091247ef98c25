"""How far a long command has come, on standard error: a bar for a person, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Call what is yielded with the number of records just done."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task(what, total=total, completed=done)
            yield lambda more: bars.advance(bar, more)
        return
    said_at = time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, said_at
        done += more
        if time.monotonic() - said_at >= LINE_EVERY_S:
            said_at = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield advance
