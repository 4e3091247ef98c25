"""/metrics, /livez and /readyz on one small server in a thread of its own; the only importer of an HTTP server."""

import http.client
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from stream.errors import Misconfigured
from stream.settings import Http

Check = Callable[[], str | None]
"""None when all is well, otherwise what is not."""


LONGEST_ANSWER_BYTES = 1_000_000


class _Server(ThreadingMixIn, WSGIServer):
    """A client that connects and says nothing keeps nobody else waiting."""

    daemon_threads = True
    block_on_close = False


class _Quiet(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: Any) -> None:
        """Probes and scrapes come every few seconds: their lines would bury the log."""


class HttpServer:
    """Serves until closed; `port` is the port in use."""

    def __init__(self, settings: Http, registry: CollectorRegistry, live: Check, ready: Check) -> None:
        metrics = make_wsgi_app(registry)
        checks = {"/livez": live, "/readyz": ready}

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                scraped: Iterable[bytes] = metrics(environ, start_response)
                return scraped
            check = checks.get(path)
            if check is None:
                status, text = "404 Not Found", "/metrics, /livez, /readyz"
            else:
                fault = check()
                status, text = ("200 OK", "ok") if fault is None else ("503 Service Unavailable", fault)
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [text.encode() + b"\n"]

        try:
            self._server = make_server(settings.host, settings.port, application, _Server, _Quiet)
        except OSError as error:
            raise Misconfigured(
                f"http.port {settings.port} on {settings.host}: {error.strerror}; set http.port to a free one"
            ) from None
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def probe(settings: Http, timeout_s: float) -> dict[str, tuple[int, str]] | None:
    """What answers at the port of the settings: status and text by path; None where nothing listens, empty where what
    listens speaks no HTTP in time."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)
    found: dict[str, tuple[int, str]] = {}
    for path in ("/livez", "/readyz", "/metrics"):
        connection = http.client.HTTPConnection(host, settings.port, timeout=timeout_s)
        try:
            connection.connect()
        except OSError:
            return found or None
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            found[path] = answer.status, answer.read(LONGEST_ANSWER_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return found
        finally:
            connection.close()
    return found
