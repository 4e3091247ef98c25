"""What kafka-python 3.0.12 does wrong for every client of ours, mended in the client itself (decision 7).

Faults that concern one kind of client are worked around where it is used.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

from kafka import errors as kafka_errors
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net.inet import KafkaNetSocket
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport


def apply() -> None:
    """Change the client's classes; once, before the first client is made."""
    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        _hear_last_words(transport)
    _close_what_fails(KafkaNetSocket, "sock_connect", lambda _self, _net, sock, *_: sock)
    _close_what_fails(KafkaSSLTransport, "handshake", lambda transport: transport._sock)
    _ask_those_who_may_answer(ClusterMetadata)
    _ask_who_leads_now(Fetcher)
    Fetcher.fetch_records = _fetch_records
    # A poll lasts until the next heartbeat at most, which the client's other thread sends: while one has no answer, a
    # poll would turn around at full speed.
    ConsumerCoordinator.time_to_next_heartbeat = lambda _: math.inf


def _hear_last_words(transport: Any) -> None:
    """Take in what arrives together with the end of a connection.

    The client throws it away, and a broker that refuses a password says so and closes. Read again, the socket
    is at its end.
    """
    receive = transport._sock_recv

    def heard(self: Any) -> tuple[bytes, Exception | None]:
        data, error = receive(self)
        return data, None if data else error

    transport._sock_recv = heard


def _close_what_fails(owner: Any, step: str, socket_of: Callable[..., Any]) -> None:
    """Close the socket of a connection that has not come about.

    The client leaves that to Python's search for cycles, which may be long in coming: while a broker is away,
    the files that a process may have open run out.
    """
    connect = getattr(owner, step)

    async def closing(*arguments: Any, **named: Any) -> Any:
        try:
            return await connect(*arguments, **named)
        except BaseException:
            socket_of(*arguments).close()
            raise

    setattr(owner, step, closing)


def _ask_those_who_may_answer(cluster: Any) -> None:
    """Have a client begin with the bootstrap servers that have not just failed.

    The client draws one at random, again and again, and waits out the back-off of one that is down each time:
    where some are down it may give up without having asked the one that is up.
    """
    every = cluster.bootstrap_brokers

    def ready_first(self: Any) -> list[Any]:
        brokers: list[Any] = every(self)
        waits = [self._manager.connection_delay(one.node_id) if self._manager else 0 for one in brokers]
        return [one for one, wait in zip(brokers, waits, strict=True) if wait == min(waits)]

    cluster.bootstrap_brokers = ready_first


def _fetch_records(
    self: Any, max_records: int | None = None, update_offsets: bool = True, timeout_ms: float = 0
) -> tuple[Any, bool]:
    """What was fetched, waited for where nothing lies ready; and whether there was nothing to wait for.

    The client raises an error on its own thread to end a wait in vain. The error, the frames up to our loop
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


def _ask_who_leads_now(fetcher: Any) -> None:
    """Have a consumer that asks for offsets look for a partition's leader where it is told that another one leads.

    The client asks the former one on and on, until something else has renewed what it knows of the cluster:
    `metadata_max_age_ms`, 5 min. A partition that nobody leads it leaves out of its answer.
    """
    ask = fetcher._send_list_offsets_requests

    async def asked(self: Any, timestamps: Any) -> tuple[Any, Any]:
        found, again = await ask(self, timestamps)
        if len(found) < len(timestamps):
            raise kafka_errors.StaleMetadata
        return found, again

    fetcher._send_list_offsets_requests = asked
