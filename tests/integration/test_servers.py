"""Facts about Kafka and Redis that Driftline's guarantees rest on, shown on the real servers."""

import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import redis
from kafka import ConsumerGroupMetadata, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CommitFailedError, KafkaTimeoutError, ProducerFencedError
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import consuming
from tests.servers import RedisServer

pytestmark = pytest.mark.servers


def new_partition(bootstrap: str) -> TopicPartition:
    """The one partition of a new topic."""
    topic = f"events-{uuid4().hex[:8]}"
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    return TopicPartition(topic, 0)


@pytest.fixture
def partition(kafka_bootstrap: str) -> TopicPartition:
    return new_partition(kafka_bootstrap)


@pytest.fixture
def group() -> str:
    return f"workers-{uuid4().hex[:8]}"


@pytest.fixture
def a_producer(kafka_bootstrap: str) -> Iterator[Callable[..., KafkaProducer]]:
    """Builds transactional producers that are ready to begin."""
    built = []

    def build(transactional_id: str | None = None) -> KafkaProducer:
        producer = KafkaProducer(
            bootstrap_servers=kafka_bootstrap,
            transactional_id=transactional_id or uuid4().hex,
            transaction_timeout_ms=10_000,
        )
        built.append(producer)
        producer.init_transactions()
        return producer

    yield build
    for producer in built:
        producer.close(timeout=1)


@pytest.fixture
def a_consumer(kafka_bootstrap: str) -> Iterator[Callable[..., KafkaConsumer]]:
    """Builds consumers that see committed records only, from the first one on."""
    built = []

    def build(group: str | None = None, isolation_level: str = "read_committed") -> KafkaConsumer:
        consumer = KafkaConsumer(
            bootstrap_servers=kafka_bootstrap,
            group_id=group,
            isolation_level=isolation_level,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        built.append(consumer)
        return consumer

    yield build
    for consumer in built:
        consumer.close()  # may come twice


def read_until(last: bytes, consumer: KafkaConsumer, partition: TopicPartition) -> list[bytes]:
    """The values it sees from the first record to `last`."""
    consumer.assign([partition])
    seen: list[bytes] = []
    deadline = time.monotonic() + 20
    while last not in seen:
        assert time.monotonic() < deadline, seen
        seen += [record.value for records in consumer.poll(timeout_ms=500).values() for record in records]
    return seen


def join(consumer: KafkaConsumer, *topics: str) -> ConsumerGroupMetadata:
    """Subscribe, wait for the generation that follows, and return the membership."""
    before = consumer.group_metadata().generation_id
    for topic in topics:
        consumer.partitions_for_topic(topic)  # without it a first assignment may be empty and stay so
    consumer.subscribe(topics)
    deadline = time.monotonic() + 20
    while consumer.group_metadata().generation_id <= before or len(consumer.assignment()) < len(topics):
        assert time.monotonic() < deadline, consumer.group_metadata()
        consumer.poll(timeout_ms=1_000)  # a shorter one may leave a question open: see the test of stale offsets
    return consumer.group_metadata()


def test_a_member_polled_briefly_begins_its_join_anew_for_ever_and_joins_in_a_longer_poll(partition, group, a_consumer):
    consumer = a_consumer(group)
    consumer.partitions_for_topic(partition.topic)
    consumer.subscribe([partition.topic])
    for _ in range(12):
        consumer.poll(timeout_ms=1)
        time.sleep(0.3)
    assert consumer.group_metadata().generation_id > 3
    assert not consumer.assignment()
    consumer.poll(timeout_ms=500)
    assert consumer.assignment() == {partition}


def test_a_join_for_new_partitions_that_ends_between_two_polls_is_forgotten_by_the_client_and_begun_anew_by_ours(
    partition, group, a_consumer, kafka_bootstrap
):
    consumer = a_consumer(group)
    join(consumer, partition.topic)
    with KafkaAdminClient(bootstrap_servers=kafka_bootstrap) as admin:
        admin.create_partitions({partition.topic: 3})
    deadline = time.monotonic() + 20
    while not consumer._coordinator.need_rejoin():
        assert time.monotonic() < deadline, "the new partitions are not seen"
        consumer._client.cluster.request_update()
        time.sleep(0.1)
    consumer.poll(timeout_ms=0)
    time.sleep(1)
    for _ in range(6):
        consumer.poll(timeout_ms=500)
    assert (consumer.assignment(), consumer._coordinator.need_rejoin()) == ({partition}, False)
    while len(consumer.assignment()) < 3:
        assert time.monotonic() < deadline, consumer.assignment()
        consuming.poll(consumer, 1)


def test_a_poll_that_has_joined_the_group_does_not_wait_for_records_before_it_says_so(partition, group, a_consumer):
    consumer = a_consumer(group)
    consumer.partitions_for_topic(partition.topic)
    consumer.subscribe([partition.topic])
    began = time.monotonic()
    consuming.poll(consumer, 30_000)
    assert consumer.assignment() == {partition}
    assert time.monotonic() - began < 30


def commit(producer: KafkaProducer, partition: TopicPartition, offset: int, membership: ConsumerGroupMetadata) -> None:
    producer.begin_transaction()
    producer.send_offsets_to_transaction({partition: OffsetAndMetadata(offset)}, membership)
    producer.commit_transaction()


def test_a_transaction_commits_records_and_offsets_together(partition, group, a_producer, a_consumer):
    consumer, producer = a_consumer(group), a_producer()
    membership = join(consumer, partition.topic)
    producer.begin_transaction()
    producer.send(partition.topic, b"alert")
    producer.send_offsets_to_transaction({partition: OffsetAndMetadata(7, '{"seq":1}')}, membership)
    producer.commit_transaction()

    committed = consumer.committed(partition, metadata=True)
    assert (committed.offset, committed.metadata) == (7, '{"seq":1}')
    assert read_until(b"alert", a_consumer(), partition) == [b"alert"]


def test_records_of_an_aborted_transaction_are_invisible_to_read_committed(partition, a_producer, a_consumer):
    producer = a_producer()
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.send(partition.topic, value).get(10)
        end()

    assert read_until(b"committed", a_consumer(), partition) == [b"committed"]
    assert read_until(b"committed", a_consumer(isolation_level="read_uncommitted"), partition) == [
        b"aborted",
        b"committed",
    ]


def test_the_broker_accepts_a_transactional_commit_of_generation_minus_one(partition, group, a_producer, a_consumer):
    """The trap: a client that has lost its membership reports exactly this, and the broker does not stop it although
    the group is live. Refusing a negative generation is the worker's own duty."""
    member = a_consumer(group)
    join(member, partition.topic)

    commit(a_producer(), partition, 5, ConsumerGroupMetadata(group, -1, "", None))

    assert member.committed(partition) == 5


def test_the_broker_refuses_a_transactional_commit_of_an_old_generation(
    partition, group, kafka_bootstrap, a_producer, a_consumer
):
    member, producer = a_consumer(group), a_producer()
    old = join(member, partition.topic)
    join(member, partition.topic, new_partition(kafka_bootstrap).topic)

    with pytest.raises(CommitFailedError):
        commit(producer, partition, 5, old)
    producer.abort_transaction()

    producer.begin_transaction()  # refused and not broken: the same producer goes on
    producer.send(partition.topic, b"next")
    producer.commit_transaction()
    assert read_until(b"next", a_consumer(), partition) == [b"next"]
    assert member.committed(partition) is None


def test_a_second_producer_with_the_same_transactional_id_fences_the_first(partition, a_producer, a_consumer):
    first = a_producer("worker-0")
    first.begin_transaction()
    first.send(partition.topic, b"zombie").get(10)
    second = a_producer("worker-0")

    with pytest.raises(ProducerFencedError):
        first.commit_transaction()

    second.begin_transaction()
    second.send(partition.topic, b"owner")
    second.commit_transaction()
    assert read_until(b"owner", a_consumer(), partition) == [b"owner"]


def test_under_read_committed_a_new_owner_waits_for_offsets_in_an_open_transaction(
    partition, group, a_producer, a_consumer
):
    old_owner, new_owner = a_producer(), a_consumer(group)
    old_owner.begin_transaction()
    old_owner.send_offsets_to_transaction({partition: OffsetAndMetadata(7)}, ConsumerGroupMetadata(group))

    with pytest.raises(KafkaTimeoutError):
        new_owner.committed(partition, timeout_ms=1_500)
    assert a_consumer(group, "read_uncommitted").committed(partition) is None

    old_owner.commit_transaction()
    assert new_owner.committed(partition) == 7


def test_committed_may_answer_what_an_earlier_poll_asked_and_the_second_answer_is_fresh(
    partition, group, a_producer, a_consumer
):
    """A trap of kafka-python 3.0.12: a poll that ends before its question for the offset is answered leaves it behind,
    over rebalances too, and who asks next for the same partitions, a later poll included, gets that old answer."""
    consumer, other_worker = a_consumer(group), a_producer()
    consumer.committed(TopicPartition(partition.topic, 1))  # finds the coordinator
    consumer.assign([partition])
    consumer.poll(timeout_ms=0)
    time.sleep(0.5)  # the answer arrives: no offset yet

    commit(other_worker, partition, 5, ConsumerGroupMetadata(group))

    assert [consumer.committed(partition), consumer.committed(partition)] == [None, 5]


def test_kafka_keeps_committed_records_when_it_is_killed(partition, kafka_server, a_producer, a_consumer):
    """Killed after a reader has seen them. `commit_transaction` returns before the partition holds the marker that ends
    the transaction, and a single broker killed in between may never write it: 2 times in 7 on 4.3.1."""
    producer = a_producer()
    producer.begin_transaction()
    producer.send(partition.topic, b"kept")
    producer.commit_transaction()
    producer.close()  # the client leaks a socket at each refused connection
    with a_consumer() as reader:
        read_until(b"kept", reader, partition)

    kafka_server.kill()
    kafka_server.start()

    assert read_until(b"kept", a_consumer(), partition) == [b"kept"]


@pytest.mark.parametrize("end", [RedisServer.restart, RedisServer.kill])
def test_an_append_only_redis_keeps_its_data_when_it_is_restarted_or_killed(end, redis_url, redis_server):
    with redis.Redis.from_url(redis_url) as client:
        client.set("customer:1", "state")
        # While an earlier write is on its way to a busy disk, Redis holds the next one back for up to two seconds.
        assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1
        end(redis_server)
        redis_server.start()
        assert client.get("customer:1") == b"state"


def test_a_paused_redis_accepts_and_does_not_answer_until_it_is_resumed(redis_url, redis_server):
    with redis.Redis.from_url(redis_url, socket_timeout=0.3, retry=None) as client:
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.resume()
        assert client.ping()
