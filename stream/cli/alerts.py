"""Follow the alerts, committed ones only, as JSON Lines."""

import argparse
import sys
import time

from stream.backends.kafka import KafkaTopic
from stream.settings import Settings

WAIT_S = 0.2


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--from-beginning", action="store_true", help="begin with the oldest alert kept")
    parser.add_argument("--until-end", action="store_true", help="stop at the end instead of waiting for more")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print alerts until interrupted."""
    topic = KafkaTopic(settings, settings.topic("alerts"))
    try:
        positions = dict.fromkeys(range(topic.partitions()), 0 if arguments.from_beginning else topic.END)
        while True:
            count = 0
            for partition, start in positions.items():
                records = topic.read(partition, start, 500)
                positions[partition] = records[-1].offset + 1 if records else topic.position(partition)
                for record in records:
                    sys.stdout.buffer.write((record.value or b"") + b"\n")
                count += len(records)
            sys.stdout.flush()
            if not count:
                if arguments.until_end:
                    return 0
                time.sleep(WAIT_S)
    except KeyboardInterrupt:
        return 0
    finally:
        topic.close()
