"""What is known of one customer."""

import argparse
import sys
from contextlib import closing
from typing import Any

import orjson

from stream.aliases import alias
from stream.backends.kafka import KafkaTopic
from stream.backends.redis import RedisStore
from stream.errors import DriftlineError
from stream.processing.version import Version
from stream.profile import profile
from stream.settings import Settings
from stream.versions import Versions


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("id", help="customer id: a userId, or anon: and an anonymousId")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print the customer; exit 1 if there is none of that id."""
    store = RedisStore(settings)
    logged = alias(arguments.id)
    try:
        found = [(row, task) for task in store.tasks() for row in store.load(task, [arguments.id])[1].values()]
    finally:
        store.close()
    if not found:
        print(
            f"driftline: no customer {arguments.id!r} in application {settings.application.name!r}; "
            f"hashed, logs would call it {logged}",
            file=sys.stderr,
        )
        return 1
    try:
        version = newest_version(settings)
    except DriftlineError as error:
        print(f"driftline: without the segment's name: {error}", file=sys.stderr)
        version = None
    row, task = found[0]
    known = shown(arguments.id, row, task, version, settings)
    if arguments.json:
        print(orjson.dumps(known).decode())
    else:
        for name, value in known.items():
            text = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            print(f"{name:14} {text}")
    return 0


def shown(customer: str, row: bytes, task: int, version: Version | None, settings: Settings) -> dict[str, Any]:
    """What is printed of a customer: the profile, where it lies, and what logs call it."""
    return profile(customer, row, version, settings) | {"task": task, "log_alias": alias(customer)}


def newest_version(settings: Settings) -> Version | None:
    """The newest model version, for the names of segments; None while there is none."""
    with closing(KafkaTopic(settings, settings.topic("models"))) as topic:
        return Versions(topic).refresh()
