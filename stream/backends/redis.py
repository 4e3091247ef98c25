"""Redis as the store of customers: a view of what Kafka has committed, never ahead of it.

Keys of a task share one hash tag, so that they lie in one slot, fail over together and one script covers them:

    {APP:pN}:m        hash: seq, inc, gen, body      how far the task has been applied
    {APP:pN}:c:ID     string: u2 schema, row bytes   one customer
    {APP:pN}:due      sorted set: ID by due time     index of due times, moved by the same script
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
import redis
from redis import exceptions

from stream.errors import DriftlineError, Misconfigured, NewerSchema, StoreUnavailable, TaskLost
from stream.ports import Marker
from stream.processing.customer import SCHEMA, Rows
from stream.processing.journal import TaskState
from stream.settings import Settings

log = logging.getLogger(__name__)

CHUNK_CUSTOMERS = 300
"""Customers a script call: 500 block the server for a millisecond."""
SCHEMA_BYTES = SCHEMA.to_bytes(2, "little")

DENIED_IN_SCRIPT = "ACL failure in script"
NEEDED = "+@connection +@read +@write +@scripting"
REMEDIES: dict[type[exceptions.RedisError], str] = {
    exceptions.ReadOnlyError: "it is a replica: point redis.url at the primary",
    exceptions.OutOfMemoryError: "raise its maxmemory, or lower customers.retention_days",
    exceptions.BusyLoadingError: "it reads its data after a start, and answers when that is done",
    exceptions.TimeoutError: "it is down or slow; redis.timeout_s is how long a call waits",
}

APPLY = """
-- KEYS: marker, due index, customers written, customers forgotten
-- ARGV: prev_seq, seq, inc, gen, written, last chunk?, body; then row and due time of each written; then all ids
local m = redis.call('HMGET', KEYS[1], 'seq', 'inc', 'gen')
local seq, inc, gen = tonumber(m[1] or '0'), tonumber(m[2] or '0'), tonumber(m[3] or '0')
local our_inc, our_gen = tonumber(ARGV[3]), tonumber(ARGV[4])
if our_inc < inc or (our_inc == inc and our_gen < gen) then return {-1, seq, inc, gen} end
if seq >= tonumber(ARGV[2]) then return {0, seq, inc, gen} end
if seq ~= tonumber(ARGV[1]) then return {-2, seq, inc, gen} end
local written = tonumber(ARGV[5])
local ids = 7 + 2 * written
for i = 1, written do
  redis.call('SET', KEYS[2 + i], ARGV[6 + 2 * i])
  redis.call('ZADD', KEYS[2], ARGV[7 + 2 * i], ARGV[ids + i])
end
for i = written + 1, #KEYS - 2 do
  redis.call('DEL', KEYS[2 + i])
  redis.call('ZREM', KEYS[2], ARGV[ids + i])
end
if ARGV[6] == '1' then
  redis.call('HSET', KEYS[1], 'seq', ARGV[2], 'inc', ARGV[3], 'gen', ARGV[4], 'body', ARGV[7])
end
return {1, tonumber(ARGV[2]), our_inc, our_gen}
"""
"""Applies one chunk of a committed tick: a no-op where it was applied, refused over a gap or from a former owner.

Only committed after-images are ever written, so a chunk applied without its marker does no harm: it is written again.
"""


class RedisStore:
    """One application's customers."""

    def __init__(self, settings: Settings) -> None:
        self._application = settings.application.name
        self._url = settings.shown_redis_url
        self._user = urlsplit(settings.redis.url.get_secret_value()).username
        timeout_s = settings.redis.timeout_s
        try:
            # The library types every answer as a union of all it could be; ours are bytes.
            self._redis: Any = redis.Redis.from_url(
                settings.redis.url.get_secret_value(), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
            )
        except ValueError:
            # The library's own text may hold a part of the password.
            raise Misconfigured("redis.url cannot be read; write it as redis://USER:PASSWORD@HOST:PORT/DB") from None
        self._apply = self._redis.register_script(APPLY)

    def check(self) -> None:
        """Raise what is wrong with the server, if anything."""
        with self._mapping():
            try:
                policy = self._redis.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
            except exceptions.ResponseError as error:  # managed services switch CONFIG off
                log.warning("Redis does not say its maxmemory-policy, make sure that it is noeviction: %s", error)
                return
        if policy != "noeviction":
            raise Misconfigured(
                f"Redis at {self._url} has maxmemory-policy {policy}: it would forget customers at random. "
                "Set it to noeviction"
            )

    def load(self, task: int, customers: Sequence[str]) -> tuple[Marker | None, Mapping[str, bytes]]:
        with self._mapping():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hget(self._key(task, "m"), "body")
            if customers:
                pipeline.mget([self._key(task, f"c:{customer}") for customer in customers])
            body, *values = pipeline.execute()
        rows = dict(zip(customers, values[0], strict=True)) if values else {}
        found = {customer: self._row(customer, data) for customer, data in rows.items() if data is not None}
        return _marker(body), found

    def apply(
        self, task: int, prev_seq: int, marker: Marker, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]
    ) -> None:
        work = [(customer, i) for i, customer in enumerate(customers)] + [(customer, -1) for customer in forgotten]
        dues = rows["due"].tolist()
        body = orjson.dumps(
            {
                "state": marker.state.to_json(),
                "generation": marker.generation,
                "journal_offset": marker.journal_offset,
                "partitions": marker.partitions,
            }
        )
        for first in range(0, max(len(work), 1), CHUNK_CUSTOMERS):
            chunk = work[first : first + CHUNK_CUSTOMERS]
            written = [(customer, i) for customer, i in chunk if i >= 0]
            last = first + CHUNK_CUSTOMERS >= len(work)
            arguments: list[Any] = [prev_seq, marker.state.seq, marker.state.incarnation, marker.generation]
            arguments += [len(written), int(last), body if last else b""]
            for _, i in written:
                arguments += [SCHEMA_BYTES + rows[i].tobytes(), dues[i]]
            arguments += [customer for customer, _ in chunk]
            keys = [self._key(task, "m"), self._key(task, "due")]
            keys += [self._key(task, f"c:{customer}") for customer, _ in chunk]
            with self._mapping():
                answer, seq, incarnation, generation = self._apply(keys, arguments)
            if answer == 0:
                return
            if answer < 0:
                raise TaskLost(
                    f"task {task}: the store is at tick {seq} of ({incarnation}, {generation}), this tick follows "
                    f"{prev_seq} of ({marker.state.incarnation}, {marker.generation})"
                )

    def due(self, task: int, until_ms: int, limit: int) -> Sequence[str]:
        with self._mapping():
            found = self._redis.zrangebyscore(self._key(task, "due"), "-inf", until_ms, start=0, num=limit)
        return [customer.decode() for customer in found]

    def scan(self, task: int) -> Iterator[tuple[str, bytes]]:
        cursor, seen = 0, set[str]()
        while True:
            with self._mapping():
                cursor, found = self._redis.zscan(self._key(task, "due"), cursor, count=500)
            ids = [name for name in (one.decode() for one, _ in found) if name not in seen]
            seen.update(ids)
            yield from self.load(task, ids)[1].items()
            if cursor == 0:
                return

    def tasks(self) -> list[int]:
        """Every task that has a marker here."""
        pattern = f"{{{self._application}:p*}}:m"
        with self._mapping():
            keys = [key.decode() for key in self._redis.scan_iter(pattern, count=1_000)]
        return sorted(int(key.rpartition(":p")[2].partition("}")[0]) for key in keys)

    def close(self) -> None:
        self._redis.close()

    def _key(self, task: int, rest: str) -> str:
        return f"{{{self._application}:p{task}}}:{rest}"

    def _row(self, customer: str, data: bytes) -> bytes:
        schema = int.from_bytes(data[:2], "little")
        if schema != SCHEMA:
            remedy = "upgrade Driftline" if schema > SCHEMA else "empty this application's keys and restart"
            raise NewerSchema(
                f"the row of customer {customer!r} has schema {schema}, this release reads {SCHEMA}; {remedy}"
            )
        return data[2:]

    @contextmanager
    def _mapping(self) -> Iterator[None]:
        try:
            yield
        except exceptions.RedisError as error:
            raise self._mapped(error) from error

    def _mapped(self, error: exceptions.RedisError) -> DriftlineError:
        said = f"Redis at {self._url}: {type(error).__name__}: {error}"
        if isinstance(error, exceptions.AuthenticationError):
            return Misconfigured(f"{said}; check user and password in redis.url")
        if isinstance(error, exceptions.NoPermissionError) or str(error).startswith(DENIED_IN_SCRIPT):
            return Misconfigured(
                f"{said}; grant this user its commands and keys: ACL SETUSER {self._user or 'default'} {NEEDED} "
                f"~{{{self._application}:*"
            )
        if isinstance(error, exceptions.ReadOnlyError):
            # After a failover this connection may lead to the former primary: the next call looks the name up anew.
            self._redis.connection_pool.disconnect()
        remedy = next((remedy for kind, remedy in REMEDIES.items() if isinstance(error, kind)), "")
        if "MISCONF" in str(error):
            remedy = "it cannot write its own file: make room on its disk"
        return StoreUnavailable(f"{said}; {remedy or 'is it running, and is redis.url right?'}")


def _marker(body: bytes | None) -> Marker | None:
    if body is None:
        return None
    values = orjson.loads(body)
    return Marker(
        TaskState.from_json(values["state"]), values["generation"], values["journal_offset"], values["partitions"]
    )
