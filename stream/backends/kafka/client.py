"""What all Kafka clients of ours share: connection settings, and the client's errors mapped to ours."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from kafka import errors as kafka_errors

from stream.backends import tls
from stream.backends.kafka import workarounds
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


refusals = _Refusals()
logging.getLogger("kafka.net.connection").addFilter(refusals)
workarounds.apply()


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
