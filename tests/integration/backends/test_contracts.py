"""The contract of the ports, on a real Kafka and a real Redis."""

import pytest

from tests.conformance.backends import InputsContract, OutputsContract, StoreContract, TopicContract
from tests.integration.backends.on_servers import OnServers

pytestmark = pytest.mark.servers


class TestInputs(InputsContract):
    @pytest.fixture
    def cluster(self, on_kafka: OnServers) -> OnServers:
        return on_kafka


class TestOutputs(OutputsContract):
    @pytest.fixture
    def cluster(self, on_kafka: OnServers) -> OnServers:
        return on_kafka


class TestTopic(TopicContract):
    @pytest.fixture
    def cluster(self, on_kafka_python: OnServers) -> OnServers:
        return on_kafka_python


class TestStore(StoreContract):
    @pytest.fixture
    def cluster(self, on_redis: OnServers) -> OnServers:
        return on_redis
