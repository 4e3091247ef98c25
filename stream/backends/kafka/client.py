"""What all Kafka clients of ours share: connection settings, and the client's errors mapped to ours."""

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from kafka import errors as kafka_errors
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net.inet import KafkaNetSocket
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from stream.backends import tls
from stream.errors import BrokerUnavailable, DriftlineError, Misconfigured
from stream.settings import Kafka

REQUEST_TIMEOUT_MS = 10_000
COORDINATOR_RETRY_S = 0.05
RECONNECT_MAX_MS = 2_000
"""The client's 30 s would be added to every long outage."""
MAX_REQUEST_BYTES = 2_000_000
"""Above the client's 1 MiB: a dead letter carries a record of up to that size and headers of ours."""


NEEDED = {
    kafka_errors.TopicAuthorizationFailedError: "DESCRIBE and READ on the topic if it is an input, WRITE too if it is "
    "one of ours",
    kafka_errors.GroupAuthorizationFailedError: "READ on the consumer groups that begin with the application's name",
    kafka_errors.TransactionalIdAuthorizationFailedError: "DESCRIBE and WRITE on the transactional ids that begin with "
    "the application's name",
}
"""What a worker's user needs; docs/security.md says it of each command."""
HEARD_WITHIN_S = 15.0
TLS_ALERT = 0x1503
"""What an answer in TLS begins with, where the client reads a length."""


class _Refusals(logging.Filter):
    """Hears why connections fail: the client tells its log, and its caller only that they have not come about in time.

    The one heard last holds, unless it says nothing and one before it did: a broker that turns a user away closes
    the connection too, and the client may see that first.
    """

    heard: tuple[float, str, str] = (0.0, "", "")

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        errors = [one for one in arguments if isinstance(one, Exception)]
        if errors:
            self.hear(errors[0])
        return True

    def hear(self, error: Exception) -> None:
        said, remedy = str(error), _refused(error)
        if remedy or not self.why()[1]:
            self.heard = time.monotonic(), said, remedy

    def why(self) -> tuple[str, str]:
        """What was said within the last seconds, and what to do about it; empty where that is not known."""
        at, said, remedy = self.heard
        return (said, remedy) if time.monotonic() - at < HEARD_WITHIN_S else ("", "")


def _refused(error: Exception) -> str:
    said = str(error)
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return "check kafka.sasl_username and kafka.sasl_password"
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return "set kafka.sasl_mechanism to one that the brokers have enabled (sasl.enabled.mechanisms)"
    length = said.rpartition("Invalid frame length: ")[2]
    if length.isdecimal() and int(length) >> 16 == TLS_ALERT:
        return "TLS is spoken there: set kafka.security_protocol to SSL or SASL_SSL"
    plain = "name the port that does, or set kafka.security_protocol to PLAINTEXT or SASL_PLAINTEXT"
    return tls.remedy(said, "kafka", "kafka.bootstrap_servers (and the broker's advertised.listeners)", plain)


def _hear_last_words(transport: Any) -> None:
    """Take in what arrives together with the end of a connection.

    kafka-python 3.0.12 throws it away, and a broker that refuses a password says so and closes. Read again, the socket
    is at its end.
    """
    receive = transport._sock_recv

    def heard(self: Any) -> tuple[bytes, Exception | None]:
        data, error = receive(self)
        return data, None if data else error

    transport._sock_recv = heard


refusals = _Refusals()
logging.getLogger("kafka.net.connection").addFilter(refusals)
for _transport in (KafkaTCPTransport, KafkaSSLTransport):
    _hear_last_words(_transport)


def _close_what_fails(connector: Any) -> None:
    """Close the socket of a connection that has not come about.

    kafka-python 3.0.12 leaves that to Python's search for cycles, which may be long in coming: while a broker is away,
    the files that a process may have open run out.
    """
    connect = connector.sock_connect

    async def closing(self: Any, net: Any, sock: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return await connect(self, net, sock, *arguments, **named)
        except BaseException:
            sock.close()
            raise

    connector.sock_connect = closing


_close_what_fails(KafkaNetSocket)


def _ask_those_who_may_answer(cluster: Any) -> None:
    """Have a client begin with the bootstrap servers that have not just failed.

    kafka-python 3.0.12 draws one at random, again and again, and waits out the back-off of one that is down each time:
    where some are down it may give up without having asked the one that is up.
    """
    every = cluster.bootstrap_brokers

    def ready_first(self: Any) -> list[Any]:
        brokers: list[Any] = every(self)
        waits = [self._manager.connection_delay(one.node_id) if self._manager else 0 for one in brokers]
        return [one for one, wait in zip(brokers, waits, strict=True) if wait == min(waits)]

    cluster.bootstrap_brokers = ready_first


_ask_those_who_may_answer(ClusterMetadata)


def _fetch_records(
    self: Any, max_records: int | None = None, update_offsets: bool = True, timeout_ms: float = 0
) -> tuple[Any, bool]:
    """What was fetched, waited for where nothing lies ready; and whether there was nothing to wait for.

    kafka-python 3.0.12 raises an error on its own thread to end a wait in vain. The error, the frames up to our loop
    and so a whole turn's records and ticks then hold each other, and lie in memory until Python looks for cycles.
    """
    records, partial = self.fetched_records(max_records, update_offsets=update_offsets)
    if not partial:
        self.send_fetches()
    if records:
        return records, False
    awaited = [*self._fetch_futures, *(task for task in [self._reset_task] if task is not None and not task.is_done)]
    if not awaited:
        return records, True
    arrived = threading.Event()
    for one in awaited:
        one.add_both(lambda _: arrived.set())
    arrived.wait(timeout_ms / 1000)
    return self.fetched_records(max_records, update_offsets=update_offsets)[0], False


Fetcher.fetch_records = _fetch_records
# A poll of kafka-python 3.0.12 lasts until the next heartbeat at most, which its other thread sends: while one has no
# answer, a poll would turn around at full speed.
ConsumerCoordinator.time_to_next_heartbeat = lambda _: math.inf


def _ask_who_leads_now(fetcher: Any) -> None:
    """Have a consumer that asks for offsets look for a partition's leader where it is told that another one leads.

    kafka-python 3.0.12 asks the former one on and on, until something else has renewed what it knows of the cluster:
    `metadata_max_age_ms`, 5 min.
    """
    ask = fetcher._send_list_offsets_requests

    async def asked(self: Any, timestamps: Any) -> tuple[Any, Any]:
        found, again = await ask(self, timestamps)
        if again:
            raise kafka_errors.StaleMetadata
        return found, again

    fetcher._send_list_offsets_requests = asked


_ask_who_leads_now(Fetcher)


def unavailable(found: str) -> str:
    """A sentence on a Kafka that does not answer: what was found, why as far as the client has said, what to do."""
    said, remedy = refusals.why()
    if remedy:
        return f"{found}: {said}; {remedy}"
    fits = ", and does kafka.security_protocol fit that port" if "socket disconnected" in said else ""
    return f"{found}; is Kafka running, and is kafka.bootstrap_servers right{fits}?"


def connection(settings: Kafka, client_id: str) -> dict[str, Any]:
    """Keyword arguments of every client.

    Raises:
        Misconfigured: the package crc32c is missing; without it a record costs nine times as much.
    """
    if find_spec("crc32c") is None:
        raise Misconfigured("the package crc32c is not installed; run `pip install crc32c`")
    found = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": client_id,
        "bootstrap_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
        "security_protocol": settings.security_protocol,
        "ssl_context": tls.context(settings, "kafka") if settings.security_protocol.endswith("SSL") else None,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def mapped(error: Exception, doing: str) -> DriftlineError:
    """Our error for one of the client's: what cannot be mended by waiting is `Misconfigured`."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, kafka_errors.AuthorizationError):
        needed = next((needed for kind, needed in NEEDED.items() if isinstance(error, kind)), "the permission")
        return Misconfigured(
            f"{doing}: {said}; grant this user {needed} (docs/security.md has the whole list), or set "
            "kafka.sasl_username to one who has it"
        )
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return Misconfigured(f"{doing}: {said}; check kafka.sasl_username and kafka.sasl_password")
    if isinstance(error, kafka_errors.FencedInstanceIdError):
        return Misconfigured(
            f"{doing}: another worker has the same application.instance; give each worker a name of its own"
        )
    if isinstance(error, kafka_errors.OffsetOutOfRangeError):
        return Misconfigured(
            f"{doing}: {said}; records were removed by the topic's retention before they were processed, or the "
            "topic was created anew. Raise retention.ms of the input topics; to go on with what they still hold, stop "
            "the workers and run `driftline rewind --to store`: it says how many records are lost"
        )
    if isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError):
        return Misconfigured(f"{doing}: {said}; raise max.message.bytes of the topic (`driftline topics check`)")
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return Misconfigured(f"{doing}: {said}; create the topic (`driftline topics create`)")
    if isinstance(error, kafka_errors.KafkaConfigurationError):
        return Misconfigured(f"{doing}: {said}")
    return BrokerUnavailable(unavailable(f"{doing}: {said}"))


def error_of(code: int, said: str) -> Exception:
    """The client's error for a code of the protocol; for any other number an error without a kind."""
    kind: type[Exception] = kafka_errors.for_code(code) if code > 0 else kafka_errors.KafkaError
    return kind(said)


def unpark(consumer: Any) -> None:
    """Call after partitions were resumed.

    kafka-python 3.0.12 gives back what it had fetched of a paused partition only while it holds no other batch, and
    an emptied batch counts as one: the resumed partition would never be read again.
    """
    fetcher = consumer._fetcher
    if fetcher._next_partition_records is not None and not fetcher._next_partition_records:
        fetcher._next_partition_records = None


def keep_requests(producer: Any) -> None:
    """Let a transaction survive the loss of its coordinator.

    kafka-python 3.0.12 forgets the request it was about to send where the coordinator cannot be reached: it expects
    `await_ready` to answer no, which raises instead. The transaction would wait for its watchdog.
    """
    client = producer._sender._client
    await_ready = client.await_ready

    def answer(node: Any, timeout_ms: int) -> bool:
        try:
            return bool(await_ready(node, timeout_ms=timeout_ms))
        except kafka_errors.KafkaConnectionError:
            time.sleep(COORDINATOR_RETRY_S)  # it asks for the coordinator at once, and is told the old one for seconds
            return False

    client.await_ready = answer


def is_fenced(consumer: Any) -> bool:
    """Whether another client has taken this static member's place; true for a moment in a rebalance as well.

    kafka-python 3.0.12 only logs it and stops its heartbeats; it goes on calling itself a stable member.
    """
    coordinator = consumer._coordinator
    return bool(coordinator.stable() and not coordinator._heartbeat_enabled)


def fenced() -> DriftlineError:
    """What a worker is told whose place another has taken."""
    return mapped(kafka_errors.FencedInstanceIdError(), "heartbeat of the consumer group")


@contextmanager
def mapping(doing: str) -> Iterator[None]:
    """Map every error of the client that leaves the block."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise mapped(error, doing) from error
    except UnicodeDecodeError as error:
        raise Misconfigured(
            f"{doing}: a record has a header key that is not UTF-8 ({error}); the client cannot read past it. Delete "
            "it from its partition, or let it expire"
        ) from error
