"""A container by testcontainers, whose reaper removes it should the tests be killed."""

import gc
import os
import sys
import warnings
from collections.abc import Mapping
from functools import cache

from docker.errors import DockerException
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from tests.servers.server import ServerUnavailable


class Container:
    """`image` with `port` published under the same number on 127.0.0.1. Raises ServerUnavailable without an engine."""

    def __init__(
        self, image: str, port: int, *, command: list[str] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        _require_an_engine()
        self.how = f"container {image}"
        self._container = DockerContainer(image).with_envs(**(env or {}))
        if command:
            self._container.with_command(command)
        # A fixed host port, and not the random one of `with_exposed_ports`: Kafka has to advertise it from the start,
        # and a restarted server has to be found where it was.
        self._container.ports[f"{port}/tcp"] = ("127.0.0.1", port)
        self._created = False

    def start(self) -> None:
        if self._created:
            self.resume()
            self._container.get_wrapped_container().start()
            return
        print(f"starting {self.how}; the engine fetches the image the first time", file=sys.stderr, flush=True)
        try:
            self._container.start()
        except (DockerException, OSError) as error:
            raise ServerUnavailable(
                f"{self.how}: {error}", "Set DRIFTLINE_SERVERS=local to go without Docker."
            ) from error
        self._created = True

    def stop(self) -> None:
        self.resume()
        self._container.get_wrapped_container().stop(timeout=20)

    def kill(self) -> None:
        if self._status() in ("running", "paused"):
            self._container.get_wrapped_container().kill()

    def pause(self) -> None:
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        if self._status() == "paused":
            self._container.get_wrapped_container().unpause()

    def discard(self) -> None:
        self._container.stop()

    def failure(self) -> str | None:
        if (status := self._status()) in ("created", "running", "paused", "restarting"):
            return None
        return f"{status}\n{self._container.get_wrapped_container().logs(tail=15).decode(errors='replace')}"

    def _status(self) -> str:
        container = self._container.get_wrapped_container()
        container.reload()
        return str(container.status)


def _require_an_engine() -> None:
    if os.environ.get("DRIFTLINE_SERVERS") == "local":
        raise ServerUnavailable("DRIFTLINE_SERVERS=local excludes Docker", "Unset DRIFTLINE_SERVERS.")
    if not _an_engine_answers():
        raise ServerUnavailable("no Docker engine answers", "Start Docker.")


@cache
def _an_engine_answers() -> bool:
    try:
        client = DockerClient().client
        client.ping()
        client.close()
    except (DockerException, OSError):
        answers = False
    else:
        answers = True
    with warnings.catch_warnings():  # the library leaves its socket open when nothing answers
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return answers
