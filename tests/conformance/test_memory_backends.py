"""The contract of the ports on the fakes of stream/backends/memory.py."""

import pytest

from stream.backends.memory import MemoryCluster, MemoryInputs, MemoryOutputs, MemoryStore, MemoryTopic
from stream.ports import Inputs, Outgoing, Outputs, Store, Topic
from tests.builders import BUYS, CLICKS, NOW

pytest.register_assert_rewrite("tests.conformance.backends")

from tests.conformance.backends import (  # noqa: E402  its assertions are rewritten first
    PARTITIONS,
    InputsContract,
    OutputsContract,
    StoreContract,
    TopicContract,
)


class InMemory:
    """A `Cluster` in this process."""

    inputs = (CLICKS, BUYS)
    journal = "journal"

    def __init__(self) -> None:
        self._cluster = MemoryCluster(self.inputs, PARTITIONS)
        self._cluster.now_ms = NOW
        self._store = MemoryStore()

    def make_inputs(self, instance: str = "one", start_at: str = "earliest") -> Inputs:
        return MemoryInputs(self._cluster, instance, start_at)

    def make_outputs(self, name: str, inputs: Inputs) -> Outputs:  # noqa: ARG002  the cluster knows the group
        return MemoryOutputs(self._cluster, name)

    def make_topic(self, name: str) -> Topic:
        return MemoryTopic(self._cluster, name)

    def make_store(self) -> Store:
        return self._store

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        self._cluster.produce(Outgoing(topic, partition, key, value, headers), NOW)

    def flush(self) -> None:
        """Everything is there at once."""

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        log = self._cluster.topic(topic)[partition]
        while log.first < offset:
            log.records.popleft()
            log.first += 1

    def take_out(self, customer: str) -> None:
        del self._store._rows[0][customer]


@pytest.fixture
def cluster() -> InMemory:
    return InMemory()


class TestInputs(InputsContract):
    pass


class TestOutputs(OutputsContract):
    pass


class TestTopic(TopicContract):
    pass


class TestStore(StoreContract):
    pass


def test_a_topic_that_keeps_so_many_records_forgets_the_oldest() -> None:
    cluster = MemoryCluster((CLICKS,), 1)
    topic = MemoryTopic(cluster, "journal", 1, keep=3)
    for i in range(5):
        cluster.produce(Outgoing("journal", 0, None, b"%d" % i), NOW)
    assert [(record.offset, record.value) for record in topic.read(0, 0, 10)] == [(2, b"2"), (3, b"3"), (4, b"4")]
