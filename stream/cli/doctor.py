"""Check settings, brokers, topics, Redis, clocks, versions, permissions and disks: what is wrong, and how to mend it.

The first thing to run on a bad night. It changes nothing, works whether or not workers run, and ends within a minute
whatever does not answer. Exit code 0 if nothing is wrong, warnings or not.
"""

import argparse
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator

import orjson
from rich.console import Console
from rich.text import Text

from stream.cli.checks import CHECKS, KAFKA, REDIS, Check, Site
from stream.diagnosis import OK, WARNING, WRONG, Finding, counted, listed, warning, wrong
from stream.errors import BrokerUnavailable, CannotTell, DriftlineError, Retriable, StoreUnavailable
from stream.settings import Settings

CHECK_S, ALL_S = 15.0, 60.0
"""The longest that one check, and that all of them, may take."""
AGAIN_WITHIN_S = AGAIN_AFTER_S = 1.0
"""A server that is unavailable at once may be electing a leader or failing over: it is asked a second time."""
COLOURS = {OK: "green", WARNING: "yellow", WRONG: "bold red"}


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object: findings and their count by level")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run every check; exit 1 if something is wrong."""
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL)  # what would be logged is told as findings, by those who hear it
    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for name, finding in examine(Site(settings, arguments.config)):
        findings.append((name, finding))
        if not arguments.json:
            console.print(_line(name, finding))
    counts = Counter(finding.level for _, finding in findings)
    if arguments.json:
        listing = [{"check": name, **finding._asdict()} for name, finding in findings]
        print(orjson.dumps({"counts": {level: counts[level] for level in COLOURS}, "findings": listing}).decode())
    else:
        console.print(f"\n{counts[WRONG]} wrong, {counted(counts[WARNING], 'warning')}, {counts[OK]} ok")
    return 1 if counts[WRONG] else 0


def examine(site: Site) -> Iterator[tuple[str, Finding]]:
    """Each finding with its check's name, as it is found. A server that has once not answered is not asked again."""
    ends_at = time.monotonic() + ALL_S
    silent: set[str] = set()
    skipped: list[str] = []
    for check in CHECKS:
        left_s = ends_at - time.monotonic()
        if check.needs & silent or left_s <= 0:
            skipped.append(check.name)
            continue
        for finding in _bounded(check, site, min(CHECK_S, left_s), silent):
            yield check.name, finding
    if skipped:
        why = f"{listed(sorted(silent))} did not answer" if silent else f"the others took {ALL_S:.0f} s"
        yield "not checked", warning(f"{listed(skipped, len(skipped))}: {why}", "mend what is wrong and ask again")


def _bounded(check: Check, site: Site, limit_s: float, silent: set[str]) -> list[Finding]:
    """A check's findings, or why there are none; marks who did not answer as silent."""
    found: list[Finding] = []
    errors: list[Exception] = []
    ended = threading.Event()
    began = time.monotonic()

    def ask() -> None:
        for last in (False, True):
            try:
                found[:] = []
                found.extend(check.ask(site))
                break
            except Exception as error:  # whatever it is, the other checks go on
                if last or not isinstance(error, Retriable) or time.monotonic() - began > AGAIN_WITHIN_S:
                    errors.append(error)
                    break
                time.sleep(AGAIN_AFTER_S)
        ended.set()

    # A daemon: the clients' own time-outs end it sooner or later, and nothing waits for it.
    threading.Thread(target=ask, name=check.name, daemon=True).start()
    if not ended.wait(limit_s):
        silent |= check.needs
        whom = listed(sorted(check.needs)) or "this machine"
        return [*found, wrong(f"no answer within {limit_s:.0f} s", f"see whether {whom} is overloaded")]
    if errors and isinstance(errors[0], BrokerUnavailable | StoreUnavailable):
        silent.add(KAFKA if isinstance(errors[0], BrokerUnavailable) else REDIS)
    return [*found, *map(_failed, errors)]


def _failed(error: Exception) -> Finding:
    """A check that came to no end."""
    if isinstance(error, CannotTell):
        return warning(f"cannot be told: {error}", "see whether another check says why")
    if isinstance(error, DriftlineError):
        found, _, remedy = str(error).rpartition("; ")
        return wrong(found or remedy, remedy if found else "as it says")
    return warning(f"cannot be told: {type(error).__name__}: {error}", "please report this: the check has a fault")


def _line(name: str, finding: Finding) -> Text:
    line = Text(f"{finding.level:8} ", COLOURS[finding.level])
    line.append(f"{name:16} {finding.found}", "default")
    if finding.remedy:
        line.append(f" → {finding.remedy}", "italic")
    return line
