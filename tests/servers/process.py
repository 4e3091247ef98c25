"""A child process that does not outlive the one that started it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class LocalProcess:
    """`command` as a child, its output in the file `log`. Pausing needs POSIX signals."""

    STOP_TIMEOUT_S = 20.0

    def __init__(self, command: Sequence[str], log: Path, how: str) -> None:
        self.how = f"local process, {how}"
        self._command = command
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.failure() is None:
            self.resume()
            return
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal goes to the tests, which then end the server in order
                preexec_fn=_tied_to(os.getpid()),
            )

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a paused process acts on SIGTERM only when it goes on
        try:
            if self._child is not None:
                self._child.wait(self.STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        if self._child is not None and self._child.poll() is None:  # its threads may go on for a moment
            os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def discard(self) -> None:
        self.kill()  # its data go too, so there is nothing to close in order

    def failure(self) -> str | None:
        if self._child is None:
            return "not started"
        status = self._child.poll()
        if status is None:
            return None
        return f"ended with status {status}\n" + "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def _tied_to(parent: int):
    """What the child does first. Neither a fixture's teardown nor `atexit` runs when pytest is SIGKILLed, as by an
    out-of-memory killer or a CI time-out, and an orphaned broker keeps half a gigabyte; so on Linux the child asks the
    kernel to be killed when its parent ends. Elsewhere teardown and `atexit` are all there is."""
    if _libc is None:
        return None

    def tie() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the request
            os._exit(1)

    return tie
