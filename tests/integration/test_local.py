"""`make up` and `make down`: the whole stack comes up by one command, and goes without a trace."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.servers.server import listens

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
FAST = 864_000
"""Ten days a second: enough events for the first models within seconds."""


class Local:
    """`python -m deploy.local` on a folder of its own."""

    def __init__(self, run: Path, path: str = os.environ["PATH"]) -> None:
        self.run, self._path = run, path

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", "--run", str(self.run), *arguments],
            cwd=ROOT,
            env={**os.environ, "PATH": self._path},
            capture_output=True,
            text=True,
            check=False,
        )

    def states(self) -> dict[str, tuple[int, str, str]]:
        """Process id, address and state of each part, as `status` prints them."""
        lines = re.findall(r"^(\S+) +(\d+)  (\S*) +(\S.*)$", self("status").stdout, re.M)
        return {name: (int(pid), address, state) for name, pid, address, state in lines}


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    local = Local(tmp_path / "run")
    yield local
    local("down")


def running(pid: int) -> bool:
    """Whether a process of that id lives; one that waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def eventually(condition: Callable[[], bool], wait_s: float = 20.0) -> bool:
    deadline = time.monotonic() + wait_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def test_the_stack_comes_up_delivers_alerts_shows_what_is_broken_and_goes_without_a_trace(local, prometheus_or_none):
    began = local("up", "--speed", str(FAST))
    assert began.returncode == 0, began.stderr
    assert re.search(r"the CRM has its first \d+ alerts", began.stdout), began.stdout
    states = local.states()
    expected = ["kafka", "redis", "worker-1", "worker-2", "crm", "shop"] + ["prometheus"] * bool(prometheus_or_none)
    assert list(states) == expected
    assert {state for name, (_, _, state) in states.items() if name != "shop"} == {"ready"}
    if prometheus_or_none:
        assert eventually(lambda: targets(states["prometheus"][1]) == ["up", "up"])
    again = local("up")
    assert again.returncode == 1
    assert "it is up already" in again.stderr

    assert local("kill", "worker-1").returncode == 0
    assert local.states()["worker-1"][2] == "ended without a last word: killed?"
    assert local("pause", "redis").returncode == 0
    assert local.states()["redis"][2] == "paused (SIGSTOP)"
    assert local("resume", "redis").returncode == 0
    assert local("restart", "worker-1").returncode == 0
    assert eventually(lambda: local.states()["worker-1"][2] == "ready")

    assert local("down").stdout.split(", ")[0] == "kafka"
    assert not local.run.exists()
    assert [name for name, (pid, _, _) in states.items() if running(pid)] == []
    assert [name for name, (_, address, _) in states.items() if address and listens(int(address.split(":")[1]))] == []


def test_an_up_that_fails_says_which_part_did_and_leaves_nothing_behind(tmp_path, local):
    broken = tmp_path / "bin" / "prometheus"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    broken.chmod(0o755)
    failed = Local(local.run, f"{broken.parent}:{os.environ['PATH']}")("up", "--speed", str(FAST))
    assert failed.returncode == 1
    assert "prometheus: ended; its last line: the disk is on fire" in failed.stderr
    assert not local.run.exists()
    assert left_over(str(local.run)) == []


def test_down_removes_nothing_that_up_did_not_make(local):
    local.run.mkdir()
    (local.run / "thesis.txt").write_text("all of it")
    assert "was not made by `up`" in local("down").stderr
    assert (local.run / "thesis.txt").exists()
    (local.run / "thesis.txt").unlink()
    local.run.rmdir()


def targets(address: str) -> list[str]:
    """Health of each of Prometheus's targets."""
    with urlopen(f"http://{address}/api/v1/targets") as answer:
        return [target["health"] for target in json.load(answer)["data"]["activeTargets"]]


def left_over(run: str) -> list[str]:
    """Command lines of processes that still name the folder; empty where there is no /proc to look into."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended meanwhile
            continue
    return [line for line in lines if run in line]
