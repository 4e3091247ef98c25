"""One command in a process of its own, with small batches, told to die or to stop at a point of its N-th commit.

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
from stream.cli import batches
from stream.ports import Offset, Outgoing, Token

STEPS = ("before-commit", "in-transaction", "after-commit")
BATCH = 50
PART_CUSTOMERS = 5


def main() -> int:
    """Run the command; the exit code is its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill-at", metavar="STEP:N")
    parser.add_argument("--stop-at", metavar="STEP:N", help="says so on standard error, and waits for SIGCONT")
    parser.add_argument("command", nargs="+")
    parsed = parser.parse_args()
    batches.BATCH = BATCH
    stream.rewind.PART_CUSTOMERS = PART_CUSTOMERS
    for at, number in ((parsed.kill_at, signal.SIGKILL), (parsed.stop_at, signal.SIGSTOP)):
        if at:
            step, _, count = at.partition(":")
            assert step in STEPS, step
            _fail_at(step, int(count), number)
    return stream.cli.main(parsed.command)


def _fail_at(step: str, number: int, fault: signal.Signals) -> None:
    """Put the points around and inside the commit."""
    commit, count = KafkaOutputs.commit, 0

    def reach(where: str) -> None:
        if where == step and count == number:
            print(f"reached {step}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), fault)

    def failing(
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

    KafkaOutputs.commit = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
