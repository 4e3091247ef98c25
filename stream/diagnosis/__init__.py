"""What `driftline doctor` makes of what it finds. Pure: facts, settings and the time come in as arguments.

`facts.py` holds what can be asked of the servers, the other modules judge it: each function gives the findings of one
check.
"""

from collections.abc import Iterable
from typing import NamedTuple

OK, WARNING, WRONG = "ok", "warning", "wrong"


class Finding(NamedTuple):
    """What one check found: its level, what was found, and what to do about it."""

    level: str
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    """Nothing to do."""
    return Finding(OK, found)


def warning(found: str, remedy: str = "") -> Finding:
    """It works, but somebody should look; or it cannot be told."""
    return Finding(WARNING, found, remedy)


def wrong(found: str, remedy: str) -> Finding:
    """Something does not work, or soon will not."""
    return Finding(WRONG, found, remedy)


def listed(values: Iterable[object], most: int = 8) -> str:
    """Values in one line, the first few of many.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    texts = [str(value) for value in values]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, what: str) -> str:
    """A count with its noun.

    >>> counted(1, "broker"), counted(2_000, "task")
    ('1 broker', '2,000 tasks')
    """
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def lasting(seconds: float) -> str:
    """A length of time in its largest unit.

    >>> lasting(0.25), lasting(90), lasting(7200), lasting(200_000)
    ('0.2 s', '1.5 min', '2.0 h', '2.3 d')
    """
    for size, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes in a unit for people.

    >>> size(512), size(3_000_000_000)
    ('512 B', '3.0 GB')
    """
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} B"
