"""TLS towards Kafka and Redis: the files of the settings, and what to do about a handshake that failed."""

import logging
import ssl
from typing import Any

from stream.errors import Misconfigured
from stream.settings import Kafka, Redis

log = logging.getLogger(__name__)

REMEDIES = {
    "certificate has expired": "its certificate has expired: have it renewed, nothing here needs a change",
    "certificate is not yet valid": "its certificate is not valid yet: set this machine's clock, or wait",
    "ostname mismatch": "its certificate is for another name: write the name that the certificate has into {address}",
    "address mismatch": "its certificate is for another name: write the name that the certificate has into {address}",
    "certificate verify failed": "its certificate is signed by an authority that is not known here: set "
    "{section}.ssl_cafile to the file of that authority",
    "alert certificate expired": "this client's certificate has expired: renew {section}.ssl_certfile",
    " alert ": "it asks for a client's certificate, or does not take this one, as where it has expired: set "
    "{section}.ssl_certfile, or renew what that file holds",
    "WRONG_VERSION_NUMBER": "what listens there does not speak TLS: {plain}",
    "UNEXPECTED_EOF": "what listens there does not speak TLS: {plain}",
}
"""By what OpenSSL says of a handshake; the first that is found holds."""


def remedy(said: str, section: str, address: str, plain: str) -> str:
    """What to do about an error in whose text OpenSSL has spoken; empty where it has not.

    `address` is the setting that leads to the server, `plain` what to do where it does not speak TLS.
    """
    if "[SSL: " not in said:
        return ""
    known = next((known for sign, known in REMEDIES.items() if sign in said), "")
    return known.format(section=section, address=address, plain=plain)


class _Context(ssl.SSLContext):
    """TLS whose files are read again for each connection: one that is renewed needs no restart."""

    def load(self, files: Kafka | Redis, section: str) -> None:
        """Take what the files of a section hold. Raises Misconfigured."""
        self._named = files, section
        setting = "ssl_cafile"
        try:
            if files.ssl_cafile:
                self.load_verify_locations(files.ssl_cafile)
            setting = "ssl_certfile"
            if files.ssl_certfile:
                # With no password at all OpenSSL would ask for one at the terminal.
                self.load_cert_chain(files.ssl_certfile, files.ssl_keyfile, password="")
        except (OSError, ValueError) as error:
            named = " and ".join(f"{section}.{name}" for name in _both(setting, files))
            raise Misconfigured(
                f"{named} ({getattr(files, setting)}) cannot be used: {_said(error)}; PEM files are needed, a key "
                "without a password"
            ) from None

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:
        try:
            _Context(ssl.PROTOCOL_TLS_CLIENT).load(*self._named)  # files of which one is still the former leave no key
            self.load(*self._named)
        except Misconfigured as error:
            log.warning("a connection goes by what these files held before: %s", error)
        return super().wrap_socket(*arguments, **named)


def context(files: Kafka | Redis, section: str) -> ssl.SSLContext:
    """TLS by the files of a section of the settings; the system's authorities where none is named.

    Raises:
        Misconfigured: a file cannot be read, or does not hold what it should.
    """
    found = _Context(ssl.PROTOCOL_TLS_CLIENT)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    if not files.ssl_cafile:
        found.load_default_certs()
    found.load(files, section)
    return found


def _both(setting: str, files: Kafka | Redis) -> list[str]:
    return [setting, "ssl_keyfile"] if setting == "ssl_certfile" and files.ssl_keyfile else [setting]


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
