"""The command `driftline`. Results go to standard output, everything else to standard error.

Exit codes: 0 = done, 1 = failed, 2 = wrong usage or settings.
"""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stream.cli import logs
from stream.errors import DriftlineError, SettingsError
from stream.settings import Settings, load

COMMANDS = (
    *("demo", "replay", "run", "topics", "customer", "customers", "alerts", "doctor"),
    *("backfill", "forget", "rewind", "repartition", "evaluate"),
)
"""Each is a module of this package with `add(parser)` and `main(arguments, settings) -> int`."""


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    root = argparse.ArgumentParser("driftline", description="Streaming customer intelligence on Kafka.")
    root.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML; any key also as DRIFTLINE_SECTION__KEY"
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"stream.cli.{name}")
        said = module.__doc__ or ""
        module.add(commands.add_parser(name, help=said.partition("\n")[0], description=said))
    return root


def collect_rarely() -> None:
    """Look for cycles of garbage less often: a tick makes thousands of objects, which reference counts take away."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = parser().parse_args(arguments)
    try:
        settings: Settings = load(parsed.config)
        logs.configure(settings.log)
        collect_rarely()
        code: int = importlib.import_module(f"stream.cli.{parsed.command}").main(parsed, settings)
        return code
    except SettingsError as error:
        print(f"driftline: {error}", file=sys.stderr)
        return 2
    except DriftlineError as error:
        print(f"driftline: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
