"""The real worker, recovery, trainer and processing over a Kafka and a Redis in memory that fail on a seeded schedule.

    python -m tests.simulation --seeds 0:10000      # a failing seed is named, and replays to the same step
    python -m tests.simulation --seeds 17 --trace   # every step of one

`actors` lets processes take turns on a clock of their own, `kafka` and `redis` model the servers with what makes
exactly-once hard, `world` runs one schedule and asks the oracle of tests/integration.
"""
