"""The network between one client and one server: a port that passes bytes on until it is told otherwise."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from tests.servers.server import free_port

CHUNK = 65_536


class Link:
    """One way to a server: connections to `port` lead to `target`, and may be held up, slowed or broken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: int, address: str, port: int) -> None:
        self.address, self.port, self.target = address, port, target
        self._loop = loop
        self._there, self._back = asyncio.Event(), asyncio.Event()
        self._there.set()
        self._back.set()
        self._refuses = False
        self._delay_s = 0.0
        self._writers: set[asyncio.StreamWriter] = set()

    def hold(self) -> None:
        """Nothing arrives any more, and nobody is told; what was sent arrives when the link passes on again."""
        self._soon(self._there.clear)
        self.hold_answers()

    def hold_answers(self) -> None:
        """What is asked arrives, and what is answered does not, until the link passes on again."""
        self._soon(self._back.clear)

    def slow(self, delay_s: float) -> None:
        """Everything sent takes this much longer."""
        self._soon(lambda: setattr(self, "_delay_s", delay_s))

    def refuse(self) -> None:
        """Break every connection, and each new one."""

        def act() -> None:
            self._refuses = True
            for writer in self._writers:
                writer.transport.abort()

        self._soon(act)

    def reset(self) -> None:
        """Break every connection; new ones are welcome."""
        self._soon(lambda: [writer.transport.abort() for writer in self._writers])

    def mend(self) -> None:
        """Pass on, at once."""

        def act() -> None:
            self._refuses, self._delay_s = False, 0.0
            self._there.set()
            self._back.set()

        self._soon(act)

    async def listen(self) -> None:
        await asyncio.start_server(self._connected, self.address, self.port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._there.wait()
        with suppress(OSError):
            if not self._refuses:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
                both = {writer, far_writer}
                self._writers |= both
                try:
                    there = self._pass(reader, far_writer, self._there)
                    await asyncio.gather(there, self._pass(far_reader, writer, self._back))
                finally:
                    self._writers -= both
                    far_writer.transport.abort()
        writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await passes.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    def _soon(self, act: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(act)


class Network:
    """Links, kept by one thread. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def link(self, target: int, address: str = "127.0.0.1", port: int | None = None) -> Link:
        """A link to a port of 127.0.0.1, at a port of an address. Raises OSError where that cannot be listened at."""
        link = Link(self._loop, target, address, port or free_port())
        asyncio.run_coroutine_threadsafe(link.listen(), self._loop).result(10)
        return link

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
