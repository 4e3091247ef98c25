"""Draws docs/demo.svg: `python -m docs.picture` runs the demo and keeps its summary as a picture."""

import io
from pathlib import Path

from rich.console import Console

from stream.cli.demo import Summary
from stream.embedded import Embedded
from stream.journey import TIMEZONE, TOPIC, Journey
from stream.settings import parse

if __name__ == "__main__":
    console = Console(record=True, width=120, file=io.StringIO())
    summary = Summary(Console(quiet=True), as_json=False)
    settings = parse({"application": {"name": "journey", "timezone": TIMEZONE}})
    Embedded(settings, (TOPIC,), summary.see).run({TOPIC: Journey().records()})
    summary.print_to(console)
    console.save_svg(str(Path(__file__).parent / "demo.svg"), title="driftline demo")
