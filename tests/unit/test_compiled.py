"""Where machine code is kept, and when it is out of date. Each run is a process of its own, as a worker is."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

ROOT = Path(__file__).parents[2]
DROP_CAPABILITY, WRITE_ANYWHERE = 24, 1  # prctl(2): PR_CAPBSET_DROP; capabilities(7): CAP_DAC_OVERRIDE

CALLER = """
from online_models.compiled import compiled
from callee import part

@compiled
def whole(x: int) -> int:
    return part(x) + 1

print(whole(1), getattr(whole, "stats", None) and sum(whole.stats.cache_hits.values()))
"""
CALLEE = """
from online_models.compiled import compiled

@compiled
def part(x: int) -> int:
    return x * {}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user may read."""
    path = Path(mkdtemp(prefix="driftline-compiled-"))
    path.chmod(0o755)
    (path / "caller.py").write_text(CALLER)
    (path / "callee.py").write_text(CALLEE.format(10))
    yield path
    rmtree(path)


def obey_permissions() -> None:
    """Root could write everywhere."""
    if os.getuid() == 0:
        assert ctypes.CDLL(None).prctl(DROP_CAPABILITY, WRITE_ANYWHERE, 0, 0, 0) == 0


def said(folder: Path, **environment: str) -> list[str]:
    """What the caller prints: its result, and how often it found machine code."""
    found = subprocess.run(
        [sys.executable, "-B", str(folder / "caller.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "user"), **environment},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=obey_permissions,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_machine_code_is_kept_for_the_next_process(folder: Path) -> None:
    assert [said(folder), said(folder)] == [["11", "0"], ["11", "1"]]


def test_machine_code_is_out_of_date_when_a_function_that_it_calls_has_changed(folder: Path) -> None:
    said(folder)
    (folder / "callee.py").write_text(CALLEE.format(20))
    assert said(folder) == ["21", "0"]


def test_machine_code_is_read_from_a_directory_that_cannot_be_written(folder: Path) -> None:
    kept = folder / "kept"
    said(folder, NUMBA_CACHE_DIR=str(kept))
    for path in (folder, kept, *kept.iterdir()):
        path.chmod(0o555)
    found = said(folder, NUMBA_CACHE_DIR=str(kept))
    for path in (folder, kept, *kept.iterdir()):
        path.chmod(0o755)
    assert found == ["11", "1"]


def test_what_cannot_be_kept_is_compiled_anew(folder: Path) -> None:
    folder.chmod(0o555)
    found = [said(folder) for _ in range(2)]
    folder.chmod(0o755)
    assert found == [["11", "0"]] * 2


def test_without_compiling_the_result_is_the_same(folder: Path) -> None:
    assert said(folder, NUMBA_DISABLE_JIT="1") == ["11", "None"]
