"""Processes that start at once: forked from one that has imported everything and holds the compiled loops.

A worker of its own takes 3 s to start where nothing else runs, most of a round; a forked one is as much a process.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import TimeoutExpired

from tests.integration.site import ROOT, Running

PRELOADED = "tests.faults.preloaded"


def nursery() -> ForkServerContext:
    """What forks; the first call starts it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


class Child:
    """A forked process with the verbs of `subprocess.Popen`."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forked(Running):
    """As `Running`, forked."""

    def _spawn(self, command: list[str], environment: Mapping[str, str]) -> Child:
        process = nursery().Process(
            target=_become, args=(command, dict(environment), self._out, self._err), daemon=True
        )
        process.start()
        return Child(process)


def _become(command: list[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    """`python -m command`, in this process."""
    os.chdir(ROOT)
    os.environ.update(environment)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, stream.fileno())
        os.close(file)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
