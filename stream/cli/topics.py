"""Create the topics a worker needs, or check those that exist."""

import argparse

from stream.backends.kafka import check_topics, create_topics
from stream.settings import Settings


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create what is missing; existing topics are left as they are")
    create.add_argument("--partitions", type=int, default=8, metavar="N", help="of missing input topics (8)")
    create.add_argument("--replication", type=int, default=-1, metavar="N", help="replicas (default: the broker's)")
    actions.add_parser("check", help="exit 1 if a topic is missing or unfit, saying why")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Create or check."""
    if arguments.action == "create":
        for name in create_topics(settings, arguments.partitions, arguments.replication):
            print(f"created {name}")
        return 0
    checks = check_topics(settings)
    for check in checks:
        print(f"{check.name}: {'; '.join(check.faults) or f'ok, {check.partitions} partitions'}")
    return 1 if any(check.faults for check in checks) else 0
