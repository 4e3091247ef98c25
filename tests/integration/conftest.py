"""What the tests of whole workers share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.site import Site


@pytest.fixture
def client(request: pytest.FixtureRequest) -> str:
    """What the workers of a site read and commit with; the marks of tests/integration/site.py choose."""
    return str(getattr(request, "param", "kafka-python"))


@pytest.fixture
def site(kafka_bootstrap: str, redis_url: str, tmp_path: Path, client: str) -> Iterator[Site]:
    """An application of its own on the session's servers."""
    site = Site(kafka_bootstrap, redis_url, tmp_path, KAFKA__CLIENT=client)
    yield site
    site.close()


@pytest.fixture
def delayed(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Records how long a failure held the worker up, in seconds: the figures of docs/delivery.md."""

    def record(failure: str, seconds: float) -> None:
        record_property("delayed", f"{failure}: {seconds:.1f} s")

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests measured."""
    said = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "delayed" and report.when == "call"
    ]
    if said:
        terminalreporter.section("delayed by failures")
        for line in said:
            terminalreporter.line(line)
