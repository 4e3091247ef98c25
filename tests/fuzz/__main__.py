"""Run the targets under the coverage-guided fuzzer: python -m tests.fuzz --runs 100000 [TARGET ...]

Each target runs in a process of its own. What coverage kept is in .fuzz/TARGET, and is gone on from; an input that
broke a promise is printed with its traceback and kept beside it.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".fuzz"
TIMEOUT_S = 20
MEMORY_MB = 3_000
LOOPS = ["stream.processing.update", "stream.processing.features", "stream.backends.kafka.batches"]
"""Where numba compiles, beside `online_models`: it cannot read code that has been instrumented."""


def fuzz(name: str, runs: int) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    uncompiled = os.environ.get("NUMBA_DISABLE_JIT") == "1"
    packages, left_out = (["stream", "online_models"], []) if uncompiled else (["stream"], LOOPS)
    with atheris.instrument_imports(include=packages, exclude=left_out):
        from tests.fuzz.mutations import WORDS
        from tests.fuzz.targets import TARGETS
    import random

    from tests.fuzz.mutations import mutated

    target = TARGETS[name]
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.seeds()):
        (corpus / f"seed-{i}").write_bytes(seed)
    words = FOLDER / "words.dict"
    words.write_text("".join(f'"{word}"\n' for word in WORDS if word.isascii()))
    for one in (
        *target.seeds(),
        *target.large(),
    ):  # what is made once is not to count as a hang, nor megabytes as seeds
        target.check(one)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, random.Random(seed), lambda whole: atheris.Mutate(whole, max_size))[:max_size]

    options = [f"-runs={runs}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={target.max_bytes}"]
    options += [f"-dict={words}", f"-artifact_prefix={FOLDER}/{name}-", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.check, custom_mutator=mutator)
    atheris.Fuzz()


def outcome(name: str, runs: int, uncompiled: bool) -> bool:
    """Fuzz one target in a process of its own and print a row of the record; whether every promise was kept."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz", "--here", name, "--runs", str(runs)]
    environment = os.environ | ({"NUMBA_DISABLE_JIT": "1"} if uncompiled else {})
    # libFuzzer's log goes to a file: a target's own writing is not to stop at a full pipe.
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / f"{name}{'-uncompiled' if uncompiled else ''}.log"
    with log.open("wb") as to:
        code = subprocess.run(command, env=environment, stdout=to, stderr=to, check=False).returncode
    said = log.read_text(errors="replace")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", said)
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    if not executed or code:
        print(said[-8_000:], file=sys.stderr)
    edges, features, kept = coverage[-1] if coverage else ("0", "0", "0")
    label = f"{name}, uncompiled" if uncompiled else name
    count = int(executed[-1]) if executed else 0
    row = (label, f"{count:,}", f"{time.monotonic() - began:.0f}", edges, features, kept, "yes" if code else "none")
    print(f"| {' | '.join(row)} |", flush=True)
    return code == 0 and bool(executed)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by default all")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs per target (%(default)s)")
    parser.add_argument("--here", metavar="TARGET", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        fuzz(arguments.here, arguments.runs)
    from tests.fuzz.targets import TARGETS

    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    print("| target | inputs | seconds | edges | features | corpus | broken |\n|---|---|---|---|---|---|---|")
    kept = True
    for name in arguments.targets or TARGETS:
        kept &= outcome(name, arguments.runs, uncompiled=False)
        if TARGETS[name].loops:
            kept &= outcome(name, max(arguments.runs // TARGETS[name].loops, 1), uncompiled=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
