"""The contract of the ports on the servers of the simulation: what it calls Kafka and Redis behaves as they do."""

import random
from typing import Any

import pytest

from stream.events import Record
from stream.ports import Inputs, Outputs, Store, Topic
from tests.builders import BUYS, CLICKS, NOW
from tests.simulation.actors import STEP_S, Stage
from tests.simulation.kafka import Broker, SimInputs, SimOutputs, SimTopic
from tests.simulation.redis import Server, SimStore

pytest.register_assert_rewrite("tests.conformance.backends")

from tests.conformance.backends import (  # noqa: E402  its assertions are rewritten first
    PARTITIONS,
    InputsContract,
    OutputsContract,
    StoreContract,
    TopicContract,
)


class Alone:
    """An actor that nobody else takes turns with: a pause lets time pass for the broker."""

    done = False
    frozen_until = 0.0

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.broker: Broker | None = None

    def pause(self, where: str, seconds: float = 0.0) -> None:  # noqa: ARG002  nobody watches
        self._stage.now += seconds + STEP_S
        if self.broker is not None:
            self.broker.pass_time()


class Simulated:
    """A `Cluster` of the simulation in which nothing goes wrong."""

    inputs = (CLICKS, BUYS)
    journal = "journal"

    def __init__(self) -> None:
        stage = Stage(random.Random(1))
        self._actor: Any = Alone(stage)
        self._actor.broker = self._broker = Broker(stage, self.inputs, PARTITIONS, frozenset())
        self._group = self._broker.group("workers", PARTITIONS)
        self._server = Server(stage, frozenset())

    def make_inputs(self, instance: str = "one", start_at: str = "earliest") -> Inputs:
        return SimInputs(self._broker, self._group, instance, self._actor, start_at)

    def make_outputs(self, name: str, inputs: Inputs) -> Outputs:
        assert isinstance(inputs, SimInputs)
        return SimOutputs(self._broker, name, self._actor, self._group, inputs)

    def make_topic(self, name: str) -> Topic:
        return SimTopic(self._broker, name, self._actor)

    def make_store(self) -> Store:
        return SimStore(self._server, self._actor)

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        record = Record(topic, partition, 0, NOW, key, value, headers)
        self._broker.topic(topic)[partition].append(record, None)

    def flush(self) -> None:
        """Everything is there at once."""

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        self._broker.topic(topic)[partition].first = offset

    def take_out(self, customer: str) -> None:
        contents = self._server.tasks[0]
        rows = {name: row for name, row in contents.rows.items() if name != customer}
        self._server.tasks[0] = contents._replace(rows=rows)


@pytest.fixture
def cluster() -> Simulated:
    return Simulated()


class TestInputs(InputsContract):
    pass


class TestOutputs(OutputsContract):
    pass


class TestTopic(TopicContract):
    pass


class TestStore(StoreContract):
    pass
