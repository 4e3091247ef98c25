"""Metrics and health over HTTP, asked as Prometheus and Kubernetes ask."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from stream.backends.http import HttpServer
from stream.errors import Misconfigured
from stream.metrics import Metrics
from stream.settings import Http


class Health:
    """What the checks answer; None = well."""

    live: str | None = None
    ready: str | None = None


HEALTH = Health()


@pytest.fixture
def health() -> Iterator[Health]:
    yield HEALTH
    HEALTH.live = HEALTH.ready = None


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def server(metrics: Metrics) -> Iterator[HttpServer]:
    server = HttpServer(Http(port=0), metrics.registry, lambda: HEALTH.live, lambda: HEALTH.ready)
    yield server
    server.close()


def get(server: HttpServer, path: str, host: str = "127.0.0.1", timeout_s: float = 5.0) -> tuple[int, str, str]:
    """Status, media type and body."""
    connection = http.client.HTTPConnection(host, server.port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read().decode()
    finally:
        connection.close()


def test_metrics_shows_every_metric_as_it_stands_now(server: HttpServer, metrics: Metrics) -> None:
    metrics.ticks.inc(3)
    metrics.alerts.labels("churn_risk").inc()
    status, kind, text = get(server, "/metrics")
    assert (status, kind) == (200, "text/plain")
    assert "driftline_ticks_total 3.0" in text.splitlines()
    assert 'driftline_alerts_total{kind="churn_risk"} 1.0' in text.splitlines()
    metrics.ticks.inc()
    assert "driftline_ticks_total 4.0" in get(server, "/metrics")[2].splitlines()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_check_without_fault_answers_200(server: HttpServer, path: str) -> None:
    assert get(server, path) == (200, "text/plain", "ok\n")


def test_a_worker_that_does_not_turn_is_not_live_and_says_why(server: HttpServer, health: Health) -> None:
    health.live = "the loop has not turned for 61 s"
    assert get(server, "/livez") == (503, "text/plain", "the loop has not turned for 61 s\n")
    assert get(server, "/readyz")[0] == 200
    health.live = None
    assert get(server, "/livez")[0] == 200


def test_a_worker_that_recovers_is_not_ready_and_says_why(server: HttpServer, health: Health) -> None:
    health.ready = "recovering task 3 of „Łódź“"
    assert get(server, "/readyz") == (503, "text/plain", "recovering task 3 of „Łódź“\n")
    assert get(server, "/livez")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metric", "/livez/", "/readyz/x", "/favicon.ico"])
def test_any_other_path_answers_404_with_the_paths_there_are(server: HttpServer, path: str) -> None:
    assert get(server, path) == (404, "text/plain", "/metrics, /livez, /readyz\n")


def test_a_port_in_use_is_a_misconfiguration_that_names_the_setting(server: HttpServer, metrics: Metrics) -> None:
    with pytest.raises(Misconfigured, match=rf"http\.port {server.port} on 127\.0\.0\.1: .*in use"):
        HttpServer(Http(port=server.port), metrics.registry, lambda: None, lambda: None)


def test_it_listens_on_127_0_0_1_alone(server: HttpServer) -> None:
    assert get(server, "/livez")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(server, "/livez", host="127.0.0.2")


def test_it_listens_where_it_is_told_to(metrics: Metrics) -> None:
    server = HttpServer(Http(host="127.0.0.2", port=0), metrics.registry, lambda: None, lambda: None)
    try:
        assert get(server, "/livez", host="127.0.0.2")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            get(server, "/livez")
    finally:
        server.close()


def test_a_client_that_says_nothing_does_not_keep_the_probes_waiting(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert get(server, "/livez", timeout_s=2.0)[0] == 200


def test_a_client_that_says_nothing_does_not_keep_it_from_closing(metrics: Metrics) -> None:
    server = HttpServer(Http(port=0), metrics.registry, lambda: None, lambda: None)
    with socket.create_connection(("127.0.0.1", server.port)):
        time.sleep(0.2)  # accepted
        closing = threading.Thread(target=server.close)
        closing.start()
        closing.join(2.0)
        waits = closing.is_alive()
    closing.join()
    assert not waits


def test_after_close_the_port_is_free_and_the_thread_has_ended(metrics: Metrics) -> None:
    before = set(threading.enumerate())
    server = HttpServer(Http(port=0), metrics.registry, lambda: None, lambda: None)
    server.close()
    assert set(threading.enumerate()) <= before
    HttpServer(Http(port=server.port), metrics.registry, lambda: None, lambda: None).close()


def test_requests_are_not_logged(server: HttpServer, capfd: pytest.CaptureFixture[str]) -> None:
    get(server, "/livez")
    assert capfd.readouterr() == ("", "")
