"""Measure a model's quality on your own events, beside River's models, the batch method and the trivial baseline.

Every prediction is made before its outcome is learned.
"""

import argparse
import importlib

from stream.settings import Settings

KINDS = ("anomaly", "segments", "churn")


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind in KINDS:
        module = importlib.import_module(f"stream.evaluation.{kind}")
        said = module.__doc__ or ""
        module.add(kinds.add_parser(kind, help=said.partition("\n")[0], description=said))


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Evaluate one kind of model."""
    code: int = importlib.import_module(f"stream.evaluation.{arguments.kind}").main(arguments, settings)
    return code
