"""What a rehearsal leaves for the processes after it, each a process of its own."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream.rehearsal import rehearse

ROOT = Path(__file__).parents[2]

RUN = """
import sys
from tests.builders import run, settings, shop
from tests.unit.test_batches import WholeBatches, batch, taken
assert taken(WholeBatches, batch([(1_000, b"k", b"v", [("h", b"1")])]), 0, 10)
run(settings(), shop(customers=60, days=90))
loops = [one for name, module in list(sys.modules.items()) if name.startswith(("stream.", "online_models."))
         for one in vars(module).values() if hasattr(one, "stats")]
loaded = {one.__qualname__ for one in loops if one.stats.cache_hits}
print(len(loaded), *sorted({one.__qualname__ for one in loops if one.stats.cache_misses}))
"""


def process(program: str, cache: Path) -> str:
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_nothing_is_compiled_after_a_rehearsal(tmp_path: Path) -> None:
    process("from stream.rehearsal import rehearse; rehearse()", tmp_path)
    loaded, *compiled = process(RUN, tmp_path).split()
    assert (int(loaded) > 10, compiled) == (True, [])


def test_a_rehearsal_has_every_model_ready_and_logs_nothing_of_its_shop(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    version = rehearse().worker.version
    assert caplog.messages == []
    assert logging.root.manager.disable == logging.NOTSET
    assert (version.anomaly.ready, version.segments.ready, version.churn.ready) == (True, True, True)
