"""Run rounds: python -m tests.faults --seed 1 --rounds 20"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.faults.round import DifferenceError, Round, schedule
from tests.faults.servers import Pair
from tests.faults.table import FAULTS


def told(round: Round, difference: DifferenceError, folder: Path) -> str:
    """A round that failed: what was done, the first divergence, and where the logs lie."""
    story = "\n".join(f"  {line}" for line in round.story)
    again = f"its schedule again: python -m tests.faults {round.asked}"
    return f"{round.name} FAILED\n{story}\nfirst divergence: {difference}\nlogs: {folder}\n{again}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first round (%(default)s)")
    parser.add_argument("--round", type=int, metavar="N", help="this one alone")
    parser.add_argument(
        "--only", nargs="+", default=(), choices=sorted(FAULTS), metavar="FAULT", help="draw from these"
    )
    parser.add_argument("--client", choices=("kafka-python", "librdkafka"), default="kafka-python")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="of Kafka (%(default)s)")
    parser.add_argument("--list", action="store_true", help="the table of faults")
    parser.add_argument("--plan", action="store_true", help="print what is drawn, and run nothing")
    parser.add_argument("--story", action="store_true", help="print what was done in each round")
    parser.add_argument("--logs", type=Path, help="where the logs of a round that fails are kept")
    parsed = parser.parse_args(arguments)
    numbers = range(parsed.first, parsed.first + parsed.rounds)
    if parsed.round is not None:
        numbers = range(parsed.round, parsed.round + 1)
    if parsed.list:
        for name, fault in FAULTS.items():
            print(f"{fault.weight:4g}  {name}{'  (of three brokers)' if fault.brokers > 1 else ''}")
        return 0
    if parsed.plan:
        for number in numbers:
            print(f"round {number}: {schedule(parsed.seed, number, parsed.only, parsed.brokers)}")
        return 0
    logs = parsed.logs or Path(tempfile.gettempdir()) / "driftline-faults"
    return run(parsed, numbers, logs)


def run(asked: argparse.Namespace, numbers: range, logs: Path) -> int:
    """All rounds on one set of servers; progress on standard error, what came of them on standard output."""
    seed: int = asked.seed
    say = Console(stderr=True, highlight=False).print
    happened: Counter[str] = Counter()
    failed = []
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends, and the small disk goes
    with Pair(asked.brokers) as pair:
        say(pair.how, soft_wrap=True)
        for number in numbers:
            folder = logs / f"seed-{seed}-round-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            pair.mend()
            pair.clear()
            started = time.monotonic()
            round = Round(pair, seed, number, folder, asked.only, asked.client)
            try:
                seen = round.run()
            except DifferenceError as difference:
                pair.mend()
                pair.save_logs(folder)
                text = told(round, difference, folder)
                (folder / "report.txt").write_text(text + "\n")
                print(text, flush=True)
                failed.append(number)
            else:
                ticks = sum(map(len, seen.ticks.values()))
                happened.update(ticks=ticks, alerts=len(seen.alerts), events=len(round.site.shop.records))
                happened["model versions"] += len(seen.models)
                shutil.rmtree(folder)
                faults = ", ".join(round.happened.elements())
                say("\n".join(round.story) if asked.story else "", end="\n" if asked.story else "", soft_wrap=True)
                say(f"{round.name}: {time.monotonic() - started:.0f} s, {ticks} ticks; {faults}", soft_wrap=True)
            happened.update({f"fault: {name}": times for name, times in round.happened.items()})
    for name, times in sorted(happened.items()):
        if times:
            print(f"{times:10,} {name}")
    which = f": {', '.join(map(str, failed))}" if failed else ""
    print(
        f"seed {seed}: {len(numbers)} rounds in {(time.monotonic() - began) / 60:.0f} min, {len(failed)} failed{which}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
