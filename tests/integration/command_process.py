"""One command in a process of its own, with small batches, which can be told to die at a point of its N-th commit.

    python -m tests.integration.command_process --kill-at in-transaction:3 -- backfill history.jsonl

Settings come from the environment as ever.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import stream.cli
import stream.rewind
from stream.backends.kafka.outputs import KafkaOutputs
from stream.cli import backfill, repartition
from stream.ports import Offset, Outgoing, Token

STEPS = ("before-commit", "in-transaction", "after-commit")
BATCH = 50
PART_CUSTOMERS = 5


def main() -> int:
    """Run the command; the exit code is its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill-at", metavar="STEP:N")
    parser.add_argument("command", nargs="+")
    parsed = parser.parse_args()
    backfill.BATCH = repartition.BATCH = BATCH
    stream.rewind.PART_CUSTOMERS = PART_CUSTOMERS
    if parsed.kill_at:
        step, number = parsed.kill_at.split(":")
        assert step in STEPS, step
        _die_at(step, int(number))
    return stream.cli.main(parsed.command)


def _die_at(step: str, number: int) -> None:
    """Put the points around and inside the commit."""
    commit, count = KafkaOutputs.commit, 0

    def reach(where: str) -> None:
        if where == step and count >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(
        self: KafkaOutputs, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token
    ) -> Sequence[int]:
        nonlocal count
        count += 1
        reach("before-commit")
        producer = self._ensure()
        commit_transaction = type(producer).commit_transaction

        def at_the_end() -> None:
            producer.flush()  # all of it lies on the broker, undecided
            reach("in-transaction")
            commit_transaction(producer)

        producer.commit_transaction = at_the_end
        written = commit(self, records, offsets, token)
        reach("after-commit")
        return written

    KafkaOutputs.commit = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
