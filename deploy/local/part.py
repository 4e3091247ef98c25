"""One part of the stack: a process of its own that nothing but its own end ends.

Nobody supervises the parts, so that a part an operator kills stays dead until it is restarted. What is known of one
lies in `RUN/parts/NAME.json`; that it lives is a lock on `RUN/parts/NAME.lock` which it inherits, and which the kernel
lets go of with its last breath: a process id that was given to somebody else is never taken for ours.
"""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05


class Failed(Exception):  # noqa: N818 - what the operator reads, not a mistake
    """The message says what was found, where, and what to do."""


@dataclass
class Part:
    """What to run and where it answers; `pid` is that of the last start."""

    run: Path
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    address: str = ""
    pid: int = 0

    @classmethod
    def read(cls, run: Path, name: str) -> "Part":
        return cls(run, **json.loads((run / "parts" / f"{name}.json").read_text("utf-8")))

    @property
    def log(self) -> Path:
        return self.run / "logs" / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        with self._lock.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def paused(self) -> bool:
        """Whether a signal has stopped it; without /proc nobody can tell, and it only does not answer."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def start(self) -> None:
        with self._lock.open("ab") as lock, self.log.open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            child = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C and its end are not for the stack
                pass_fds=[lock.fileno()],
            )
        self.pid = child.pid
        child.returncode = 0  # nobody waits for it: `alive` tells, to whichever command asks
        kept = {name: value for name, value in asdict(self).items() if name != "run"}
        (self.run / "parts" / f"{self.name}.json").write_text(json.dumps(kept), "utf-8")

    def signal(self, number: signal.Signals) -> None:
        if not self.alive:
            raise Failed(f"{self.name} is not running; start it by `restart {self.name}`")
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it at once, paused or not."""
        if self.alive:
            self.signal(signal.SIGKILL)
        self._wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """End it in order, or at once where it does not within `STOP_TIMEOUT_S`."""
        if self.alive:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a paused process acts on SIGTERM only when it goes on
            if not self._wait(STOP_TIMEOUT_S):
                self.kill()

    def last_lines(self, count: int) -> list[str]:
        with suppress(FileNotFoundError):
            return self.log.read_text("utf-8", errors="replace").splitlines()[-count:]
        return []

    @property
    def _lock(self) -> Path:
        return self.run / "parts" / f"{self.name}.lock"

    def _wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True
