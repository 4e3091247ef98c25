"""Real workers on a real Kafka and a real Redis, under a steady stream, while a seeded schedule of faults is run.

    python -m tests.faults --seed 1 --rounds 20     # a round that ends with a difference is named, with what it found
    python -m tests.faults --seed 1 --round 7       # its schedule again; what the machine makes of it varies

`table` holds the faults, `servers` and `network` what they are done to, `round` draws a schedule, runs it and asks the
oracle of tests/integration. The same idea in memory, to the same step every time: tests/simulation.
"""
