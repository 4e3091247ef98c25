"""An application of its own on the real servers of the session, with clients where a test asks for them."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import redis
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from stream.backends.kafka import KafkaInputs, KafkaTopic
from stream.backends.redis import RedisStore
from stream.cli.run import clients
from stream.ports import Inputs, Outputs, Store, Topic
from stream.settings import Settings, parse
from tests.builders import NOW
from tests.conformance.backends import PARTITIONS


def settings_of(name: str, bootstrap: str = "127.0.0.1:1", url: str = "redis://127.0.0.1:1/0", **more: Any) -> Settings:
    """Settings with short time-outs; the input topics are those of the application alone."""
    return parse(
        {
            "application": {"name": name, "instance": more.get("instance", "one")},
            "kafka": {
                "bootstrap_servers": bootstrap,
                "session_timeout_s": 6,
                "start_at": more.get("start_at", "earliest"),
                "commit_timeout_s": more.get("commit_timeout_s", 20),
                "leave_on_stop": more.get("leave_on_stop", False),
                "client": more.get("client", "kafka-python"),
            },
            "topics": {"clickstream": f"{name}.clicks", "purchases": f"{name}.buys"},
            "redis": {"url": url, "timeout_s": more.get("timeout_s", 1.0), "kind": more.get("kind", "server")},
        }
    )


class OnServers:
    """A `Cluster` on the session's servers, under an application of its own. Clients are made where asked for."""

    def __init__(self, bootstrap: str = "", url: str = "", client: str = "kafka-python") -> None:
        self.client = client
        self.name = f"t-{uuid4().hex[:8]}"
        self._to_close: list[Any] = []
        self._bootstrap, self._url = bootstrap or "127.0.0.1:1", url or "redis://127.0.0.1:1/0"
        self._producer: KafkaProducer | None = None
        settings = self.settings()
        self.inputs = settings.inputs
        self.journal = settings.topic("journal")
        if bootstrap:
            with self.admin() as admin:
                # The records bear times of years ago: under a broker's usual retention they go at its next check.
                spec = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": {"retention.ms": "-1"}}
                admin.create_topics(dict.fromkeys((*self.inputs, self.journal), spec))

    def settings(self, instance: str = "one", **more: Any) -> Settings:
        more = {"client": self.client} | more
        return settings_of(self.name, self._bootstrap, self._url, instance=instance, **more)

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self._bootstrap)

    def make_inputs(self, instance: str = "one", start_at: str = "earliest", **more: Any) -> KafkaInputs:
        settings = self.settings(instance, start_at=start_at, **more)
        return self._kept(clients(settings)[0](settings))

    def make_outputs(self, name: str, inputs: Inputs | None, **more: Any) -> Outputs:
        """A writer; one that knows no inputs asks nobody whether its token holds."""
        settings = self.settings(**more)
        holds = (inputs.holds,) if inputs is not None else ()
        return self._kept(clients(settings)[1](settings, name, *holds))

    def make_topic(self, name: str) -> Topic:
        return self._kept(KafkaTopic(self.settings(), name))

    def make_store(self) -> Store:
        return self._kept(RedisStore(self.settings()))

    def take_out(self, customer: str) -> None:
        with redis.Redis.from_url(self._url) as client:
            assert client.delete(f"{{{self.name}:p0}}:c:{customer}") == 1

    def a_producer(self, transactional_id: str | None = None) -> KafkaProducer:
        """A producer outside of our backends, ready to begin where it is transactional."""
        producer = KafkaProducer(bootstrap_servers=self._bootstrap, transactional_id=transactional_id, linger_ms=5)
        self._to_close.append(_Closing(lambda: producer.close(timeout=1)))
        if transactional_id:
            producer.init_transactions()
        return producer

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        if self._producer is None:
            self._producer = self.a_producer()
        self._producer.send(topic, value, key, list(headers), partition, NOW)

    def flush(self) -> None:
        if self._producer is not None:
            self._producer.flush(timeout=20)

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        with self.admin() as admin:
            admin.delete_records({TopicPartition(topic, partition): offset})

    def close(self) -> None:
        """Close what was made, last first; some of it a test has closed already."""
        while self._to_close:
            self._to_close.pop().close()

    def _kept(self, made: Any) -> Any:
        self._to_close.append(made)
        return made


class _Closing:
    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close
