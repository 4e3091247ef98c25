"""Servers for the tests that ask for one: started once per session, and named at the end of the run."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

import pytest
import redis

from tests.servers import KafkaServer, RedisServer, ServerUnavailable
from tests.servers.server import Server

RAN_ON = pytest.StashKey[list[str]]()
UNAVAILABLE = pytest.StashKey[list[tuple[str, ServerUnavailable]]]()


@pytest.fixture(scope="session")
def kafka_server(pytestconfig: pytest.Config) -> Iterator[KafkaServer]:
    """The session's Kafka. A test may kill or pause it: `kafka_bootstrap` brings it back for the next one."""
    _start(server := KafkaServer(), pytestconfig)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RedisServer]:
    """The session's Redis, append-only. A test may kill or pause it: `redis_url` brings it back for the next one."""
    _start(server := RedisServer(appendonly=True), pytestconfig)
    yield server
    server.stop()


@pytest.fixture
def kafka_bootstrap(kafka_server: KafkaServer) -> str:
    """Address of a Kafka that answers. Topics of earlier tests are still there: name yours anew."""
    kafka_server.start()
    return kafka_server.bootstrap_servers


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Address of a Redis that answers and is empty."""
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def prometheus_or_none(pytestconfig: pytest.Config) -> str | None:
    """The program `prometheus` on PATH. Its absence is said at the end of the run, and fails nothing."""
    return _program("prometheus", pytestconfig)


@pytest.fixture(scope="session")
def prometheus(prometheus_or_none: str | None) -> str:
    """The same, for tests that can do nothing without it."""
    return prometheus_or_none or pytest.skip("no prometheus on PATH")  # no promise needs it; a banner says so


@pytest.fixture(scope="session")
def promtool(pytestconfig: pytest.Config) -> str:
    """The program `promtool`, in the same way."""
    return _program("promtool", pytestconfig) or pytest.skip("no promtool on PATH")  # only the rules' own tests need it


def _program(name: str, config: pytest.Config) -> str | None:
    found = shutil.which(name)
    if found is None:
        missing = ServerUnavailable(f"no {name} on PATH", "Debian: apt-get install prometheus.")
        config.stash.setdefault(UNAVAILABLE, []).append((name, missing))
    return found


def _start(server: Server, config: pytest.Config) -> None:
    try:
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            server.start()  # uncaptured: the first start fetches, and says so
    except ServerUnavailable as error:
        _did_not_run(config, server.product, error)
    config.stash.setdefault(RAN_ON, []).append(server.how)


@pytest.fixture
def did_not_run(pytestconfig: pytest.Config) -> Callable[[str, ServerUnavailable], NoReturn]:
    """For what else a machine may lack: call it with what needs it, and why there is none."""
    return partial(_did_not_run, pytestconfig)


def _did_not_run(config: pytest.Config, product: str, error: ServerUnavailable) -> NoReturn:
    """End a test that this machine cannot run: it is said in a banner, and fails where `CI` is set."""
    config.stash.setdefault(UNAVAILABLE, []).append((product, error))
    (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))  # skipped only without CI; a banner says so


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    """Say last, under every other summary, which servers the tests ran on and which tests a missing one kept away."""
    result = yield
    for product, error in config.stash.get(UNAVAILABLE, []):
        terminalreporter.section(f"TESTS ON {product.upper()} DID NOT RUN", sep="!", red=True)
        terminalreporter.line(f"reason: {error.reason}")
        terminalreporter.line(f"remedy: {error.remedy}")
    if ran_on := config.stash.get(RAN_ON, []):
        terminalreporter.line("servers: " + " · ".join(ran_on))
    return result
