"""Every model learns and answers the same bytes with its loops compiled and as they are written."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numba

from tests.conformance.test_models import MODELS

ROOT = Path(__file__).parents[2]
ROWS = 270


def digests() -> dict[str, str]:
    """By model: what it has learned, and what it answers."""
    found = {}
    for param in MODELS:
        case = param.values[0]
        model, digest = case.new(), hashlib.sha256()
        case.learn(model, case.stream(ROWS))
        for name, array in sorted(model.to_arrays().items()):
            digest.update(name.encode() + array.tobytes())
        for answer in case.answers(model, case.stream(40, seed=4)):
            digest.update(answer)
        found[param.id] = digest.hexdigest()
    return found


def test_compiled_and_uncompiled_give_the_same_bytes() -> None:
    assert not numba.config.DISABLE_JIT
    code = "import json; from tests.conformance.test_uncompiled import digests; print(json.dumps(digests()))"
    elsewhere = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert json.loads(elsewhere.stdout) == digests()
