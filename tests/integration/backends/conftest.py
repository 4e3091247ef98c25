"""The clients that the tests of the backends are run on."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.conformance.backends")

from tests.integration.backends.on_servers import OnServers  # noqa: E402  which imports it


@pytest.fixture(params=["kafka-python", "librdkafka"])
def client(request: pytest.FixtureRequest) -> str:
    """What is true of one client is to be true of the other."""
    return str(request.param)


@pytest.fixture
def on_kafka(kafka_bootstrap: str, client: str) -> Iterator[OnServers]:
    made = OnServers(bootstrap=kafka_bootstrap, client=client)
    yield made
    made.close()


@pytest.fixture
def on_kafka_python(kafka_bootstrap: str) -> Iterator[OnServers]:
    """For what only the default client does."""
    made = OnServers(bootstrap=kafka_bootstrap)
    yield made
    made.close()


@pytest.fixture
def on_redis(redis_url: str) -> Iterator[OnServers]:
    made = OnServers(url=redis_url)
    yield made
    made.close()
