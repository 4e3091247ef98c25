"""Certificates made for a test, and TLS in front of a server that does not speak it."""

import asyncio
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat


class Identity(NamedTuple):
    """PEM files: a certificate with its chain, its key, and both in one, as Kafka takes them."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """A certificate authority of the test's own; `cafile` is what its clients trust."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA()
        self.cafile = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.cafile))

    def issue(self, name: str, *hosts: str, lives_s: float | None = None, common_name: str | None = None) -> Identity:
        """A certificate for these hosts (names or addresses), in files called `name`; one that has, expires so soon."""
        not_after = None if lives_s is None else datetime.now(UTC) + timedelta(seconds=lives_s)
        issued = self._ca.issue_cert(*hosts, not_after=not_after, common_name=common_name)
        identity = Identity(*(self._directory / f"{name}{suffix}" for suffix in (".crt", ".key", ".pem")))
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        pem, pkcs8, plain = (
            Encoding.PEM,
            PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )  # Java reads no other format
        identity.key.write_bytes(key.private_bytes(pem, pkcs8, plain))
        identity.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        identity.both.write_bytes(identity.key.read_bytes() + identity.certificate.read_bytes())
        return identity


class Terminator:
    """TLS on a port of its own, passed on to a plain one: as a proxy does before a managed Redis. A context manager."""

    def __init__(self, port: int, to: int, identity: Identity) -> None:
        self.port, self._to = port, to
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.present(identity)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls", daemon=True)
        self._open: set[asyncio.StreamWriter] = set()

    def present(self, identity: Identity) -> None:
        """The certificate shown from the next connection on."""
        self.context.load_cert_chain(identity.certificate, identity.key)

    def cut(self) -> None:
        """End every connection, as a restarted proxy does."""
        self._loop.call_soon_threadsafe(self._cut)

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.context)
        asyncio.run_coroutine_threadsafe(serving, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, behind_writer}
        self._open |= ends
        try:
            await asyncio.gather(_pass(reader, behind_writer), _pass(behind_reader, writer))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()  # neither protocol leaves a connection half open
