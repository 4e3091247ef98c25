"""Run schedules: python -m tests.simulation --seeds 0:10000"""

import argparse
import logging
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from rich.progress import Progress

from tests.simulation.world import ScheduleError, World


def outcome(seed: int) -> tuple[int, str | None, dict[str, int]]:
    """One schedule: what failed, if anything did, and what happened in it."""
    logging.disable()  # workers tell every fault
    world = World(seed)
    try:
        seen = world.run()
    except ScheduleError as failure:
        return seed, str(failure), {}
    happened = Counter({f"fault: {name}": count for name, count in world.injected.items()})
    happened["steps"] = world.stage.steps
    happened["ticks"] = sum(map(len, seen.ticks.values()))
    happened["alerts"] = len(seen.alerts)
    happened["alerts of timers"] = sum(b'"cause":"due-' in value for _, value in seen.alerts)
    happened["alerts of versions"] = len(seen.lineage)
    happened["model versions"] = len(seen.models)
    return seed, None, happened


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:300", help="one seed, or FIRST:END (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="print every step of one seed")
    arguments = parser.parse_args()
    first, _, end = arguments.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    if arguments.trace:
        World(seeds[0], heard=print).run()
        return 0
    failures: list[str] = []
    happened: Counter[str] = Counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool, Progress() as progress:
        bar = progress.add_task("schedules", total=len(seeds))
        for seed, failure, counts in pool.map(outcome, seeds, chunksize=4):
            happened.update(counts)
            if failure:
                failures.append(failure)
                progress.console.print(
                    f"[red]{failure}[/red]\n  again: python -m tests.simulation --seeds {seed} --trace"
                )
            progress.advance(bar)
    for name, count in sorted(happened.items()):
        print(f"{count:10,} {name}")
    print(f"{len(seeds)} schedules, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
