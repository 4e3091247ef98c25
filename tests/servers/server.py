"""What both servers share: which way to run is chosen, when it answers, how it ends."""

import atexit
import random
import shutil
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

PORTS = range(12_000, 32_000)
"""Below those that systems give to who connects: a broker of three takes seconds to listen on the last of its own."""
_given: set[int] = set()


class ServerUnavailable(Exception):  # noqa: N818 - it names a state of the machine, not a mistake
    """No way to run a server works on this machine: `reason` says what was tried, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy


class Running(Protocol):
    """A local process or a container. Data outlive everything but `discard`; each verb may come in any state."""

    how: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def discard(self) -> None: ...

    def failure(self) -> str | None:
        """None while it runs, otherwise how it ended and its last lines."""


class Server(ABC):
    """One server on a free port of 127.0.0.1, with data of its own until `stop`. A context manager.

    Start it from the main thread: on Linux a local server is killed when the thread that started it ends.
    """

    product: str
    version: str
    START_TIMEOUT_S = 60.0

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self._running: Running | None = None
        self._directory: Path | None = None

    @property
    def how(self) -> str:
        """What runs and by which means: "Apache Kafka 4.3.1, local process, Java 17.0.15 from PATH"."""
        return f"{self.product} {self.version}, {self._running.how if self._running else 'not started'}"

    @property
    def log(self) -> Path | None:
        """Where a local process writes what it says; None where there is no such file."""
        path = self._directory / "server.log" if self._directory else None
        return path if path and path.exists() else None

    def start(self, *, wait: bool = True) -> None:
        """Bring it to where it answers: start, start again with the same data, or resume. Raises ServerUnavailable.

        Without `wait` it returns before it answers: a member of a cluster does so only when there are others.
        """
        if self._running is not None:
            self._running.start()
            if wait:
                self._wait_until_it_answers(self._running)
            return
        atexit.register(self.stop)
        self._directory = Path(tempfile.mkdtemp(prefix="driftline-server-"))
        try:
            self._start_the_first_way_that_works(self._directory, wait)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and delete its data. Does nothing if it is not running."""
        atexit.unregister(self.stop)
        if self._running is not None:
            self._running.discard()
            self._running = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def restart(self) -> None:
        """End it in order and start it again with its data and its port."""
        self._started().stop()
        self.start()

    def kill(self) -> None:
        """End it at once (SIGKILL) and keep its data; `start` brings it back."""
        self._started().kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers."""
        self._started().pause()

    def resume(self) -> None:
        self._started().resume()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _container(self) -> Running:
        """The container to start; raises ServerUnavailable where no engine answers."""

    @abstractmethod
    def _local(self, directory: Path) -> Running:
        """The process to start, its files in `directory`; raises ServerUnavailable where there is no program."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves clients now."""

    def _started(self) -> Running:
        if self._running is None:
            raise RuntimeError(f"{type(self).__name__} is not started: call start() first")
        return self._running

    def _start_the_first_way_that_works(self, directory: Path, wait: bool) -> None:
        refusals = []
        for way in (self._container, lambda: self._local(directory)):
            try:
                self._running = way()
                self._running.start()
                if wait:
                    self._wait_until_it_answers(self._running)
                return
            except ServerUnavailable as refusal:
                refusals.append(refusal)
                if self._running is not None:
                    self._running.discard()
                    self._running = None
        raise ServerUnavailable("; ".join(r.reason for r in refusals), " Or: ".join(r.remedy for r in refusals))

    def _wait_until_it_answers(self, running: Running) -> None:
        deadline = time.monotonic() + self.START_TIMEOUT_S
        while not self.answers():
            if failure := running.failure():
                raise ServerUnavailable(f"{running.how}: {failure}", "Read its last lines in the reason.")
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"{running.how}: no answer on port {self.port} after {self.START_TIMEOUT_S:.0f} s",
                    "Look for a firewall on 127.0.0.1 or a machine out of memory.",
                )
            time.sleep(0.05)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now, and that no connection takes before it is listened on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
