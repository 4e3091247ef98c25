"""What a shop needs, from the constants that the other benchmarks measured: `python -m benchmarks.capacity`.

docs/scaling.md tells where each constant comes from and how far to trust the answer.
"""

import argparse
import math
import sys

from rich.console import Console
from rich.table import Table

DAY_S = 86_400
# Measured on 2 cores, Python 3.11; docs/scaling.md has the commands.
EVENT_S = 21e-6
"""CPU of an event where ticks are full, the trainer included."""
LIVE_CORES = 0.3
"""CPU that a live worker spends on turns, whatever is in them."""
LEARN_S = 2.2e-6
"""CPU of an event in the trainer, part of the above."""
RECOVERY_S = 15e-6
"""Wall time of a customer that is brought back from the journal."""
REDIS_BYTES = 970
ROW_BYTES = 930
"""A customer in the memory of a worker, its place in the index included."""
TASK_BYTES = 27e6
"""What a task holds of one input topic while it waits for the other: twice `tick.max_events`, and a poll."""
WORKER_BYTES = 0.75e9
"""What a worker holds besides: Python, compiled loops, models, the clients' buffers when there is a backlog."""
JOURNAL_BYTES = (280, 860)
"""An event's in the journal before compression: of a busy shop, whose customers come with several events in a tick, and
at the most, where each comes with one."""
COMPRESSED = 0.2
BUSY = 0.7
"""How much of a core is planned to be used at the peak."""


def worker_bytes(rows: float, tasks: float) -> float:
    """Memory of a worker that keeps so many customers and has so many tasks, while one topic waits for the other."""
    return rows * ROW_BYTES + tasks * TASK_BYTES + WORKER_BYTES


def main() -> None:
    """Print the plan of one shop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=1e9, help="a day (1e9)")
    parser.add_argument("--customers", type=float, default=1e8, help="who are remembered (1e8)")
    parser.add_argument("--peak", type=float, default=3, help="of the mean rate (3)")
    parser.add_argument("--partitions", type=int, default=64, help="of each input topic (64)")
    parser.add_argument("--replicas", type=int, default=3, help="of a topic (3)")
    parser.add_argument("--journal-days", type=float, default=7, help="journal.retention_days (7)")
    parser.add_argument("--cache-rows", type=int, default=200_000, help="customers.cache_rows (200,000)")
    one = parser.parse_args()
    mean = one.events / DAY_S
    peak = mean * one.peak
    workers = max(math.ceil(peak * EVENT_S / (BUSY - LIVE_CORES)), 1)
    rows = min(one.cache_rows * one.partitions, one.customers)
    low, high = (one.events * size * COMPRESSED * one.journal_days * one.replicas / 1e12 for size in JOURNAL_BYTES)
    table = Table(title=f"{one.events:,.0f} events a day, {one.customers:,.0f} customers", title_justify="left")
    table.add_column("what")
    table.add_column("needs", justify="right")
    for what, needs in (
        ("events a second: mean, peak", f"{mean:,.0f}, {peak:,.0f}"),
        ("workers at the peak, and one more for the time of a restart", f"{workers} + 1"),
        (
            f"memory of a worker where {workers} are left",
            f"{worker_bytes(rows / workers, one.partitions / workers) / 1e9:,.1f} GB",
        ),
        ("the one trainer at the peak, of a core", f"{peak * LEARN_S:.0%}"),
        ("Redis, without its replicas", f"{one.customers * REDIS_BYTES / 1e9:,.0f} GB"),
        ("journal, written at the peak", f"{peak * JOURNAL_BYTES[0] * COMPRESSED / 1e6:,.0f} MB/s a replica or more"),
        ("journal on the brokers' disks, replicas included", f"{low:,.1f} to {high:,.1f} TB"),
        ("Redis rebuilt from nothing", f"{one.customers * RECOVERY_S / 60 / workers:,.0f} min"),
    ):
        table.add_row(what, needs)
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    main()
