"""What only a real Kafka and its clients can get wrong."""

import asyncio
import gc
import inspect
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError, Producer
from kafka import ConsumerGroupMetadata, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import KafkaInputs, KafkaOutputs, KafkaTopic, check_topics, create_topics, workarounds
from stream.backends.kafka import inputs as kafka_inputs
from stream.backends.kafka import outputs as kafka_outputs
from stream.backends.kafka import topic as kafka_topic
from stream.backends.kafka.client import connection, mapped
from stream.backends.kafka.offsets import committed
from stream.backends.librdkafka import LibrdkafkaInputs, LibrdkafkaOutputs
from stream.backends.librdkafka import client as librdkafka_client
from stream.backends.librdkafka import inputs as librdkafka_inputs
from stream.backends.librdkafka import outputs as librdkafka_outputs
from stream.backends.librdkafka.inputs import generation_of, member_of
from stream.errors import BrokerUnavailable, Misconfigured, OutcomeUnknown, TaskLost, TransactionOpen
from stream.ports import UNSTAMPED, Committed, Inputs, Offset, Outgoing, Token
from stream.settings import Settings, parse
from tests.conformance.backends import (
    NOTHING,
    PARTITIONS,
    join,
    note,
    poll_for,
    poll_until,
    polling,
    read_all,
    shared,
    stamps,
)
from tests.integration.backends.on_servers import OnServers, settings_of
from tests.integration.site import until
from tests.servers import KafkaServer
from tests.servers.server import free_port

pytestmark = pytest.mark.servers


def member(on_kafka: OnServers, token: Token) -> ConsumerGroupMetadata:
    """The member a token stands for, as kafka-python would have it."""
    metadata = token.proof.metadata
    if on_kafka.client == "kafka-python":
        return metadata
    return ConsumerGroupMetadata(on_kafka.name, token.generation, member_of(metadata), f"{on_kafka.name}-one")


def of_the_former_generation(token: Token) -> Token:
    """A token whose member the broker would have known before the last rebalance."""
    metadata = token.proof.metadata
    if isinstance(metadata, bytes):
        assert generation_of(metadata) == token.generation
        former: Any = metadata[:7] + struct.pack("=i", token.generation - 1) + metadata[11:]
    else:
        former = metadata._replace(generation_id=metadata.generation_id - 1)
    return token._replace(proof=token.proof._replace(metadata=former))


# Kafka: what must fit together before anything starts


def test_nobody_waits_for_a_bootstrap_server_that_is_down_while_another_has_not_been_asked(
    kafka_server: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    down = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    settings = parse({"kafka": {"bootstrap_servers": ",".join([*down, kafka_server.bootstrap_servers])}})
    for _ in range(10):
        KafkaAdminClient(**connection(settings.kafka, "one")).close()
    assert "Connection refused" in caplog.text or "ECONNREFUSED" in caplog.text
    assert "not ready; waiting" not in caplog.text


def test_missing_input_topics_are_named_with_the_command_that_creates_them(kafka_bootstrap: str) -> None:
    settings = settings_of(f"t-{uuid4().hex[:8]}", kafka_bootstrap)
    with pytest.raises(Misconfigured, match="driftline topics create") as caught:
        KafkaInputs(settings)
    assert all(topic in str(caught.value) for topic in settings.inputs)
    with pytest.raises(Misconfigured, match=r"driftline topics create"):
        KafkaTopic(settings, settings.topic("journal"))


def test_topics_that_the_brokers_know_a_moment_later_are_waited_for(kafka_bootstrap: str) -> None:
    """As where a broker that has just started answers without any."""
    settings = settings_of(f"t-{uuid4().hex[:8]}", kafka_bootstrap)
    creating = threading.Timer(1.5, create_topics, (settings, 3, 1))
    creating.start()
    try:
        inputs = KafkaInputs(settings)
    finally:
        creating.join()
    assert inputs.partitions == 3
    inputs.close()


def test_unequal_partition_counts_are_refused(kafka_bootstrap: str) -> None:
    settings = settings_of(f"t-{uuid4().hex[:8]}", kafka_bootstrap)
    with KafkaAdminClient(bootstrap_servers=kafka_bootstrap) as admin:
        admin.create_topics(
            {name: {"num_partitions": 2 + i, "replication_factor": 1} for i, name in enumerate(settings.inputs)}
        )
    with pytest.raises(Misconfigured, match="equal") as caught:
        KafkaInputs(settings)
    assert all(f"'{topic}': {count}" in str(caught.value) for topic, count in zip(settings.inputs, (2, 3), strict=True))
    checks = {check.name: check for check in check_topics(settings)}
    assert "2 partitions" in checks[settings.inputs[0]].faults[0]
    assert checks[settings.inputs[1]].faults == ()


def test_topics_that_were_created_pass_the_check_and_are_not_created_again(kafka_bootstrap: str) -> None:
    settings = settings_of(f"t-{uuid4().hex[:8]}", kafka_bootstrap)
    ours = [settings.topic(kind) for kind in ("alerts", "dead_letters", "journal", "models")]
    assert {check.name: check.faults for check in check_topics(settings)} == dict.fromkeys(
        [*settings.inputs, *ours], ("does not exist: run `driftline topics create`",)
    )
    assert create_topics(settings, 3, 1) == sorted([*settings.inputs, *ours])
    checks = check_topics(settings)
    assert {check.name: check.partitions for check in checks} == {
        **dict.fromkeys([*settings.inputs, *ours], 3),
        settings.topic("models"): 1,
    }
    assert [check.faults for check in checks if check.faults] == []
    assert create_topics(settings, 5, 1) == []


def test_topics_created_beside_existing_inputs_have_as_many_partitions(kafka_bootstrap: str) -> None:
    settings = settings_of(f"t-{uuid4().hex[:8]}", kafka_bootstrap)
    with KafkaAdminClient(bootstrap_servers=kafka_bootstrap) as admin:
        admin.create_topics({settings.inputs[1]: {"num_partitions": 5, "replication_factor": 1}})
    create_topics(settings, 2, 1)
    counts = {check.name: check.partitions for check in check_topics(settings)}
    assert {name: counts[name] for name in (*settings.inputs, settings.topic("journal"))} == dict.fromkeys(
        (*settings.inputs, settings.topic("journal")), 5
    )


def test_the_check_names_a_setting_of_a_topic_that_is_not_as_it_should_be(on_kafka: OnServers) -> None:
    def faults() -> tuple[str, ...]:
        return {check.name: check.faults for check in check_topics(on_kafka.settings())}[on_kafka.journal]

    until(lambda: "max.message.bytes is 1048588, should be 2000000" in faults(), "the fault", 10)


# Kafka: who may write


def test_a_worker_whose_name_another_has_taken_is_told_the_setting_at_its_next_polls(on_kafka: OnServers) -> None:
    older = on_kafka.make_inputs("same")
    join(older)
    join(on_kafka.make_inputs("same"))

    def poll_on() -> None:
        until = time.monotonic() + 5  # heartbeats are sent every 1.5 s
        while time.monotonic() < until:
            older.poll(0.2, NOTHING)

    with pytest.raises(Misconfigured, match=r"application\.instance"):
        poll_on()


def test_a_worker_whose_name_another_has_taken_does_not_take_it_out_of_the_group_when_it_leaves(
    on_kafka: OnServers, caplog: pytest.LogCaptureFixture
) -> None:
    older = on_kafka.make_inputs("same", leave_on_stop=True)
    join(older)
    newer = on_kafka.make_inputs("same")
    token = join(newer)
    older.close()
    assert "did not leave the group" in caplog.text
    assert "FencedInstanceIdError" in caplog.text
    until = time.monotonic() + 3  # heartbeats are sent every 1.5 s
    while time.monotonic() < until:
        assert newer.poll(0.2, NOTHING).token == token


def test_a_worker_that_leaves_gives_its_tasks_up_at_once(on_kafka: OnServers) -> None:
    leaving = on_kafka.make_inputs("leaves", leave_on_stop=True)
    join(leaving)
    began = time.monotonic()
    leaving.close()
    join(on_kafka.make_inputs("stays"))
    assert time.monotonic() - began < 4, "the session is 6 s"


@pytest.mark.parametrize("leave_on_stop", [False, True])
def test_a_client_whose_broker_is_away_is_closed_all_the_same(
    on_kafka: OnServers, kafka_server: KafkaServer, leave_on_stop: bool
) -> None:
    inputs = on_kafka.make_inputs(leave_on_stop=leave_on_stop)
    topic = on_kafka._kept(
        KafkaTopic(on_kafka.settings(leave_on_stop=leave_on_stop), on_kafka.journal, owner="trainer")
    )
    join(inputs)
    until = time.monotonic() + 20
    while not topic.owned():
        assert time.monotonic() < until
    kafka_server.pause()
    try:
        began = time.monotonic()
        inputs.close()
        topic.close()
        assert time.monotonic() - began < 10
    finally:
        kafka_server.resume()


def test_a_member_that_polls_briefly_and_seldom_joins_while_another_does(on_kafka: OnServers) -> None:
    """A join that ends between two polls is begun anew by kafka-python 3.0.12: see the test of the bare client."""
    members = [on_kafka.make_inputs(name) for name in ("one", "two")]
    until = time.monotonic() + 20
    while True:
        tokens = [one.poll(0.001, NOTHING).token for one in members]
        if None not in tokens and sum(len(token.tasks) for token in tokens if token) == PARTITIONS:
            break
        assert time.monotonic() < until, tokens
        time.sleep(0.3)
    assert [token.generation for token in tokens if token] == [max(token.generation for token in tokens if token)] * 2
    assert max(token.generation for token in tokens if token) <= 4


def test_a_trickle_of_events_is_gathered_before_it_is_answered(on_kafka: OnServers) -> None:
    """A transaction costs the same for one event as for a hundred."""
    inputs = on_kafka.make_inputs()
    for task in join(inputs).tasks:
        inputs.start(task, dict.fromkeys(on_kafka.inputs, 0))
    poll_for(inputs)
    with polling(inputs) as answers:
        began = time.monotonic()
        for _ in range(100):
            on_kafka.produce(on_kafka.inputs[0], 0, b"key", b"value")
            time.sleep(0.02)
        on_kafka.flush()
        while sum(len(one.records) for one in answers) < 100:
            assert time.monotonic() < began + 30
            time.sleep(0.05)
    most = (time.monotonic() - began) / (on_kafka.settings().tick.max_wait_ms / 1000)
    assert len([one for one in answers if one.records]) < 1.5 * most


def test_topics_read_to_their_end_are_known_to_have_ended_by_who_comes_back_into_the_group_too(
    on_kafka: OnServers,
) -> None:
    """With incremental fetch sessions the broker says an end once: the client forgets it with the assignment."""
    for topic in on_kafka.inputs:
        for partition in range(PARTITIONS):
            on_kafka.produce(topic, partition, b"key", b"value")
    on_kafka.flush()
    inputs = on_kafka.make_inputs("one")
    before = join(inputs)
    for task in before.tasks:
        inputs.start(task, dict.fromkeys(on_kafka.inputs, 0))
    _until_ended(inputs)
    with on_kafka.admin() as admin:
        admin.remove_group_members(on_kafka.name, [MemberToRemove(group_instance_id=f"{on_kafka.name}-one")])
    until = time.monotonic() + 20
    while inputs.poll(0.1, NOTHING).token in (None, before):
        assert time.monotonic() < until
    for task in before.tasks:
        inputs.start(task, dict.fromkeys(on_kafka.inputs, 1))
    _until_ended(inputs)


def test_a_topic_that_is_not_asked_for_has_not_ended_since_whatever_was_said_before(on_kafka: OnServers) -> None:
    """It may have got more meanwhile: the other topic would run ahead of it."""
    clicks, buys = on_kafka.inputs
    inputs = on_kafka.make_inputs("one")
    for task in join(inputs).tasks:
        inputs.start(task, dict.fromkeys(on_kafka.inputs, 0))
    _until_ended(inputs)
    held = frozenset((clicks, task) for task in range(PARTITIONS))
    paused = time.monotonic()
    while time.monotonic() < paused + 1.5:  # an answer may still be on its way
        inputs.poll(0.1, held)
    since = time.monotonic()
    on_kafka.produce(clicks, 0, b"key", b"value")
    on_kafka.flush()
    while time.monotonic() < since + 1.5:
        assert not inputs.poll(0.1, held).records
    until = time.monotonic() + 5  # asked for it, the client tells a while later
    while inputs.ended(0, since) != {buys}:
        assert time.monotonic() < until, inputs.ended(0, since)
        assert not inputs.poll(0.1, held).records
    if on_kafka.client == "kafka-python":
        assert inputs.ended(0) == {clicks, buys}, "what was said before"
    records, _ = poll_until(inputs, lambda found: found and inputs.ended(0, since) == {clicks, buys})
    assert len(records) == 1


def _until_ended(inputs: Inputs) -> None:
    """Poll until every topic of every task has ended."""
    until = time.monotonic() + 10
    while any(inputs.ended(task) != frozenset(inputs.topics) for task in range(PARTITIONS)):
        assert time.monotonic() < until, {task: inputs.ended(task) for task in range(PARTITIONS)}
        inputs.poll(0.1, NOTHING)


def test_a_worker_whose_name_another_has_taken_commits_nothing_and_is_told_the_setting(on_kafka: OnServers) -> None:
    older = on_kafka.make_inputs("same")
    old, old_outputs = join(older), on_kafka.make_outputs("same", older)
    newer = on_kafka.make_inputs("same")
    token, outputs = join(newer), on_kafka.make_outputs("same", newer)

    def insist() -> None:
        for _ in range(3):
            try:
                old_outputs.commit([note(on_kafka, b"older")], stamps(on_kafka, 7, 1), old)
            except (TaskLost, OutcomeUnknown):
                old_outputs.reset()

    with pytest.raises(Misconfigured, match=r"application\.instance"):
        insist()
    assert newer.committed(0) is None
    outputs.reset()
    outputs.commit([note(on_kafka, b"newer")], stamps(on_kafka, 8, 1), token)
    assert [record.value for record in read_all(on_kafka.make_topic(on_kafka.journal), 0, 1)] == [b"newer"]


def test_the_broker_too_refuses_an_old_generation(on_kafka: OnServers) -> None:
    """Where the assignment changes after our own check."""
    with shared(on_kafka) as (first, _, _, _, ours, _):
        unguarded = on_kafka.make_outputs("unguarded", None)
        task = min(ours.tasks)
        with pytest.raises(TaskLost):
            unguarded.commit(
                [note(on_kafka, b"stale")],
                stamps(on_kafka, 7, 1, task),
                of_the_former_generation(ours),
            )
        assert first.committed(task) is None
        unguarded.commit([note(on_kafka, b"fresh")], stamps(on_kafka, 8, 1, task), ours)
        assert [record.value for record in read_all(on_kafka.make_topic(on_kafka.journal), 0, 1)] == [b"fresh"]


def test_offsets_that_the_broker_refused_are_not_sent_with_the_next_tick(on_kafka: OnServers) -> None:
    """kafka-python 3.0.12 keeps them, and the broker does not ask who owns a task: they would undo its owner's."""
    with shared(on_kafka) as (first, _, _, _, ours, theirs):
        unguarded = on_kafka.make_outputs("unguarded", None)
        task, given_away = min(ours.tasks), min(theirs.tasks)
        with pytest.raises(TaskLost):
            unguarded.commit(
                [note(on_kafka)],
                stamps(on_kafka, 7, 1, given_away),
                of_the_former_generation(ours),
            )
        unguarded.commit([note(on_kafka)], stamps(on_kafka, 8, 1, task), ours)
        assert first.committed(task) is not None
        assert first.committed(given_away) is None


def test_a_record_that_the_client_did_not_send_is_not_missing_from_a_transaction_that_is_committed(
    on_kafka_python: OnServers,
) -> None:
    """kafka-python answers a send to a topic that its metadata deny with a failed future, and commits the rest."""
    on_kafka = on_kafka_python
    inputs = on_kafka.make_inputs()
    token = join(inputs)
    outputs = on_kafka._kept(KafkaOutputs(on_kafka.settings(), "one", inputs.holds))

    def denied(topic: str, *_: object) -> None:  # as the client does once new metadata lack the topic
        raise kafka_errors.TopicAuthorizationFailedError({topic})

    outputs._ensure()._wait_on_metadata = denied
    offset = Offset(on_kafka.inputs[0], 0, 7, 1, 0)
    with pytest.raises(Misconfigured, match=on_kafka.journal):
        outputs.commit([Outgoing(on_kafka.journal, 0, b"0", b"tick", ())], [offset], token)
    outputs.reset()
    assert inputs.committed(0) is None


def test_committed_waits_for_an_open_transaction_and_then_knows_its_offsets(
    on_kafka: OnServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_inputs, "COMMITTED_TIMEOUT_MS", 400)
    inputs = on_kafka.make_inputs()
    token = join(inputs)
    former_owner = on_kafka.a_producer("former-owner")
    former_owner.begin_transaction()
    offsets = {TopicPartition(topic, 0): OffsetAndMetadata(7, '{"seq":1,"inc":0}', -1) for topic in on_kafka.inputs}
    former_owner.send_offsets_to_transaction(offsets, member(on_kafka, token))
    with pytest.raises(TransactionOpen, match="task 0"):
        inputs.committed(0)
    former_owner.commit_transaction()
    monkeypatch.undo()
    assert inputs.committed(0) == Committed(dict.fromkeys(on_kafka.inputs, 7), 1, 0)


def test_committed_does_not_answer_what_an_earlier_call_gave_up_waiting_for(
    on_kafka: OnServers, kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python 3.0.12 remembers the question and would answer the next one with what was committed then."""
    inputs = on_kafka.make_inputs()
    token = join(inputs)
    outputs = on_kafka.make_outputs("other", inputs)
    outputs.commit([note(on_kafka)], stamps(on_kafka, 1, 1), token)
    assert inputs.committed(0) is not None
    monkeypatch.setattr(kafka_inputs, "COMMITTED_TIMEOUT_MS", 300)
    kafka_server.pause()
    try:
        with pytest.raises(BrokerUnavailable):
            inputs.committed(0)
    finally:
        kafka_server.resume()
    monkeypatch.undo()
    until = time.monotonic() + 1  # the answer arrives
    while time.monotonic() < until:
        inputs.poll(0.1, NOTHING)
    outputs.commit([note(on_kafka)], stamps(on_kafka, 2, 2), join(inputs))
    assert inputs.committed(0) == Committed(dict.fromkeys(on_kafka.inputs, 2), 2, 0)


@pytest.mark.parametrize(("writes", "reads"), [("kafka-python", "librdkafka"), ("librdkafka", "kafka-python")])
def test_what_one_client_has_committed_the_other_goes_on_from(kafka_bootstrap: str, writes: str, reads: str) -> None:
    """librdkafka commits a zero byte behind each stamp."""
    cluster = OnServers(bootstrap=kafka_bootstrap, client=writes)
    try:
        inputs = cluster.make_inputs()
        token, outputs = join(inputs), cluster.make_outputs("one", inputs)
        outputs.commit([note(cluster)], stamps(cluster, 7, seq=3, incarnation=2), token)
        cluster.client = reads
        later = cluster.make_inputs()
        join(later)
        assert later.committed(0) == Committed(dict.fromkeys(cluster.inputs, 7), 3, 2)
        place = (cluster.inputs[0], 0)
        assert committed(cluster.settings(), cluster.name, [place]) == {place: (7, '{"seq":3,"inc":2}')}
    finally:
        cluster.close()


def test_a_header_key_that_is_not_utf_8_is_named_with_its_record_and_the_client_that_reads_it(
    kafka_bootstrap: str,
) -> None:
    class Odd(str):
        def encode(self, *_: object) -> bytes:
            return b"\xff\xfe"

    cluster = OnServers(bootstrap=kafka_bootstrap, client="librdkafka")
    try:
        cluster.produce(cluster.inputs[0], 0, b"k", b"fine")
        cluster.produce(cluster.inputs[0], 0, b"k", b"odd", ((Odd("h"), b"1"),))
        cluster.flush()
        inputs = cluster.make_inputs()
        join(inputs)
        inputs.start(0, None)
        with pytest.raises(Misconfigured, match=rf"{cluster.inputs[0]}-0-1.*set kafka\.client to kafka-python"):
            poll_until(inputs, lambda records: len(records) > 1)
    finally:
        cluster.close()


def commit_as_a_stranger(on_kafka: OnServers, metadata: str) -> KafkaInputs:
    inputs = on_kafka.make_inputs()
    token = join(inputs)
    stranger = on_kafka.a_producer("stranger")
    stranger.begin_transaction()
    stranger.send_offsets_to_transaction(
        {TopicPartition(on_kafka.inputs[0], 0): OffsetAndMetadata(7, metadata, -1)},
        member(on_kafka, token),
    )
    stranger.commit_transaction()
    return inputs


def test_offsets_stamped_by_something_else_are_refused(on_kafka: OnServers) -> None:
    inputs = commit_as_a_stranger(on_kafka, "somebody's note")
    with pytest.raises(Misconfigured, match=r"application\.name"):
        inputs.committed(0)


def test_offsets_without_a_stamp_are_told_as_such(on_kafka: OnServers) -> None:
    inputs = commit_as_a_stranger(on_kafka, "")
    assert inputs.committed(0) == Committed({on_kafka.inputs[0]: 7}, UNSTAMPED, UNSTAMPED)


def test_a_reader_sees_nothing_of_aborted_and_open_transactions(on_kafka: OnServers) -> None:
    producer = on_kafka.a_producer("writer")
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.send(on_kafka.journal, value, partition=0).get(10)
        end()
    producer.begin_transaction()
    producer.send(on_kafka.journal, b"open", partition=0).get(10)
    topic = on_kafka.make_topic(on_kafka.journal)
    (read,) = read_all(topic, 0, 1)
    assert read.value == b"committed"
    assert topic.read(0, read.offset + 1, 10) == []
    producer.abort_transaction()
    assert topic.read(0, read.offset + 1, 10) == []


# Kafka: nothing to read


def test_polls_that_find_nothing_leave_nothing_for_the_garbage_collector(on_kafka: OnServers) -> None:
    """kafka-python 3.0.12 leaves cycles that hold on to whatever the callers of the poll have at hand."""
    inputs, topic = on_kafka.make_inputs(), on_kafka.make_topic(on_kafka.journal)
    join(inputs)
    topic.read(0, 0, 1)
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            inputs.poll(0.01, NOTHING)
            topic.read(0, 0, 1)
        assert gc.collect() < 100
    finally:
        gc.enable()


# Kafka: no answer


def test_a_poll_of_a_broker_that_keeps_silent_waits_and_does_not_turn_around_at_full_speed(
    on_kafka: OnServers, kafka_server: KafkaServer
) -> None:
    inputs = on_kafka.make_inputs()
    join(inputs)
    kafka_server.pause()
    try:
        time.sleep(3.5)  # the second heartbeat is due, the first one having had no answer
        began = time.process_time()
        inputs.poll(1.0, NOTHING)
        assert time.process_time() - began < 0.2
    finally:
        kafka_server.resume()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every wait for a broker ends within a second."""
    for client in (KafkaConsumer, KafkaProducer, KafkaAdminClient):
        monkeypatch.setitem(client.DEFAULT_CONFIG, "bootstrap_timeout_ms", 500)
    for module in (kafka_inputs, kafka_outputs, kafka_topic, librdkafka_inputs, librdkafka_outputs):
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_MS", 500)
    monkeypatch.setattr(kafka_inputs, "COMMITTED_TIMEOUT_MS", 500)
    yield
    with warnings.catch_warnings():  # a client whose constructor fails leaves sockets open
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    "make",
    [
        KafkaInputs,
        LibrdkafkaInputs,
        lambda settings: KafkaTopic(settings, "nowhere"),
        lambda settings: KafkaOutputs(settings, "one"),
        lambda settings: LibrdkafkaOutputs(settings, "one"),
        check_topics,
        lambda settings: create_topics(settings, 1, 1),
    ],
    ids=["inputs", "librdkafka inputs", "topic", "outputs", "librdkafka outputs", "check", "create"],
)
def test_a_broker_that_does_not_answer_is_unavailable_from_the_start(
    make: Callable[[Settings], object], impatient: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BrokerUnavailable):
        make(settings_of("nobody", f"127.0.0.1:{silent.getsockname()[1]}"))


def unconnected() -> set[int]:
    """The open sockets of this process that are for TCP and lead nowhere."""
    found = set()
    for one in gc.get_objects():
        if isinstance(one, socket.socket) and one.family == socket.AF_INET and one.fileno() >= 0:
            try:
                one.getpeername()
            except OSError:
                found.add(one.fileno())
    return found


@contextmanager
def who_speaks_no_tls() -> Iterator[int]:
    """A port whose server has other words for everybody."""

    def answer(listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                with listener.accept()[0] as one:
                    one.sendall(b"220 ready" * 10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_connections_that_fail_leave_no_open_sockets_to_the_garbage_collector(impatient: None, protocol: str) -> None:
    with who_speaks_no_tls() as tls_port:
        before = unconnected()
        settings = settings_of("nobody", f"127.0.0.1:{free_port() if protocol == 'PLAINTEXT' else tls_port}")
        kafka = settings.kafka.model_copy(update={"security_protocol": protocol})
        gc.disable()
        try:
            with pytest.raises(BrokerUnavailable):
                KafkaTopic(settings.model_copy(update={"kafka": kafka}), "nowhere")
            assert unconnected() <= before
        finally:
            gc.enable()


def test_a_partition_that_nobody_leads_is_asked_for_again_and_not_left_out_of_the_answer() -> None:
    class Half:
        async def _send_list_offsets_requests(self, timestamps: dict[str, int]) -> tuple[dict[str, int], set[str]]:
            return dict.fromkeys(list(timestamps)[:1], 7), set()

    workarounds._ask_who_leads_now(Half)
    assert asyncio.run(Half()._send_list_offsets_requests({"led": -1})) == ({"led": 7}, set())
    with pytest.raises(kafka_errors.StaleMetadata):
        asyncio.run(Half()._send_list_offsets_requests({"led": -1, "not": -1}))


@pytest.mark.parametrize("facility", ["REQTMOUT", "SESSTMOUT"])
def test_librdkafka_says_in_its_log_alone_what_had_no_answer(facility: str) -> None:
    """A client that is fenced after that has fenced itself."""
    heard: list[str] = []
    librdkafka_client.ClientLog(lambda: heard.append(facility)).log(20, "%s %s", facility, "nobody answered")
    assert heard == [facility]


def test_a_transaction_on_librdkafka_whose_connections_fail_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tells either thread of it."""
    monkeypatch.setattr(librdkafka_outputs, "SHAKEN_S", 0.2)
    outputs = LibrdkafkaOutputs.__new__(LibrdkafkaOutputs)  # one that has no broker
    outputs._settings, outputs._shaken = settings_of("nobody"), False
    goes_on = threading.Event()

    def transact() -> None:
        outputs._hear(KafkaError(KafkaError._TRANSPORT))
        goes_on.wait()

    began = time.monotonic()
    thread = threading.Thread(target=transact)
    thread.start()
    outputs._watch(thread, Producer({}))
    goes_on.set()
    assert time.monotonic() - began < outputs._settings.kafka.commit_timeout_s / 2


def test_a_broker_that_stops_answering_is_unavailable_and_all_go_on_once_it_is_back(
    on_kafka: OnServers, kafka_server: KafkaServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = on_kafka.make_inputs()
    token, topic = join(inputs), on_kafka.make_topic(on_kafka.journal)
    with monkeypatch.context() as patient:  # librdkafka looks for its coordinator twice a second
        patient.setattr(librdkafka_outputs, "REQUEST_TIMEOUT_MS", 10_000)
        outputs = on_kafka.make_outputs("one", inputs, commit_timeout_s=2)
    outputs.commit([note(on_kafka, b"before")], stamps(on_kafka, 1, 1), token)
    kafka_server.pause()
    try:
        for call in (
            lambda: inputs.committed(0),
            lambda: inputs.start(0, None),
            lambda: topic.read(0, 0, 10),
        ):
            with pytest.raises(BrokerUnavailable):
                call()
        with pytest.raises(OutcomeUnknown):
            outputs.commit([note(on_kafka, b"unknown")], stamps(on_kafka, 2, 2), token)
        with pytest.raises(BrokerUnavailable):
            outputs.reset()
        assert not inputs.poll(0.1, NOTHING).records
    finally:
        kafka_server.resume()
    monkeypatch.undo()
    outputs = on_kafka.make_outputs("one", inputs)
    known = None
    for _ in range(20):
        token, known = join(inputs), inputs.committed(0)
        assert known is not None
        try:
            outputs.commit([note(on_kafka, b"after")], stamps(on_kafka, 3, known.seq + 1), token)
            break
        except TaskLost:  # the group has ended a session that was silent for too long, and the client is told late
            inputs.poll(1.0, NOTHING)
    assert known is not None
    values = [record.value for record in read_all(topic, 0, known.seq + 1)]
    assert values == ([b"before", b"unknown", b"after"] if known.seq == 2 else [b"before", b"after"])


# Errors


def test_every_error_of_the_kafka_client_has_one_of_ours() -> None:
    classes = [one for _, one in inspect.getmembers(kafka_errors, inspect.isclass) if issubclass(one, BaseException)]
    assert len(classes) > 100
    assert [one for one in classes if not issubclass(one, kafka_errors.KafkaError)] == []  # `mapping` passes these by
    for error in classes:
        ours = mapped(error.__new__(error), "doing this")
        assert type(ours) in (Misconfigured, BrokerUnavailable), error
        assert str(ours).startswith("doing this: ")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (kafka_errors.TopicAuthorizationFailedError, "kafka.sasl_username"),
        (kafka_errors.GroupAuthorizationFailedError, "kafka.sasl_username"),
        (kafka_errors.TransactionalIdAuthorizationFailedError, "kafka.sasl_username"),
        (kafka_errors.SaslAuthenticationFailedError, "kafka.sasl_password"),
        (kafka_errors.FencedInstanceIdError, "application.instance"),
        (kafka_errors.OffsetOutOfRangeError, "rewind --to store"),
        (kafka_errors.MessageSizeTooLargeError, "max.message.bytes"),
        (kafka_errors.UnknownTopicOrPartitionError, "driftline topics create"),
    ],
)
def test_an_error_that_waiting_does_not_mend_says_what_to_do(error: type[Exception], named: str) -> None:
    ours = mapped(error(), "doing this")
    assert isinstance(ours, Misconfigured)
    assert named in str(ours)
