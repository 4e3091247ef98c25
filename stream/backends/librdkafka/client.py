"""What both clients share: connection settings, and librdkafka's errors told as those of the default client."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from stream.backends import tls
from stream.backends.kafka.client import RECONNECT_MAX_MS, REQUEST_TIMEOUT_MS, error_of, mapping, refusals
from stream.settings import Kafka

log = logging.getLogger(__name__)

BY_LOCAL_CODE = {
    KafkaError._AUTHENTICATION: KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._UNKNOWN_TOPIC: KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION: KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._AUTO_OFFSET_RESET: KafkaError.OFFSET_OUT_OF_RANGE,
}
"""What librdkafka has codes of its own for, and a broker too."""


class ClientLog:
    """What librdkafka says for its log, and a call where a request or a session had no answer: it tells nobody else.

    Connections that fail are told of by the worker; here they would be many lines a second.
    """

    def __init__(self, unanswered: Callable[[], None] = lambda: None) -> None:
        self._unanswered = unanswered

    def log(self, level: int, text: str, facility: str, *more: object) -> None:
        if facility in ("REQTMOUT", "SESSTMOUT"):
            self._unanswered()
        log.log(logging.DEBUG if facility in ("FAIL", "REQTMOUT") else level, text, facility, *more)


def connection(settings: Kafka, client_id: str) -> dict[str, Any]:
    """Settings of every client.

    Raises:
        Misconfigured: a file for TLS cannot be used.
    """
    if settings.security_protocol.endswith("SSL"):
        tls.context(settings, "kafka")
    found = {
        "bootstrap.servers": settings.bootstrap_servers.replace(" ", ""),
        "client.id": client_id,
        "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
        "socket.timeout.ms": REQUEST_TIMEOUT_MS,
        "security.protocol": settings.security_protocol,
        "ssl.ca.location": settings.ssl_cafile,
        "ssl.certificate.location": settings.ssl_certfile,
        "ssl.key.location": settings.ssl_keyfile or settings.ssl_certfile,
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
        "error_cb": heard,
        "logger": ClientLog(),
    }
    return {name: value for name, value in found.items() if value is not None}


def translated(error: KafkaError, whose: str = "") -> Exception:
    """The default client's error of the same meaning, so that what to do about it is said in one place."""
    said = f"{whose}: {error.str()}" if whose else error.str()
    if error.code() == KafkaError._SSL or "SSL routines" in said:  # the latter where a server ends a handshake late
        said = f"[SSL: {said}]"
    return error_of(BY_LOCAL_CODE.get(error.code(), error.code()), said)


def heard(error: KafkaError) -> None:
    """Keep why connections fail: callers are told only that nothing has come in time."""
    refusals.hear(translated(error))
    log.debug("%s", error)  # as the client does


@contextmanager
def telling(doing: str) -> Iterator[None]:
    """Map every error of the client that leaves the block."""
    with mapping(doing):
        try:
            yield
        except KafkaException as error:
            raise translated(error.args[0]) from error
