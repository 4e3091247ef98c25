"""Redis as the store of customers: a view of what Kafka has committed, never ahead of it.

Keys of a task share one hash tag, so that they lie in one slot, fail over together and one script covers them:

    {APP:pN}:m        hash: seq, inc, gen, body      how far the task has been applied
                      part: SEQ:N                    the chunks of the next tick that have been
    {APP:pN}:c:ID     string: u2 schema, row bytes   one customer
    {APP:pN}:due      sorted set: ID by due time     index of due times, moved by the same script
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import orjson
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from stream.aliases import called
from stream.backends import tls
from stream.diagnosis.facts import RedisFacts, Rights
from stream.errors import CannotTell, DriftlineError, Misconfigured, RowsLost, StoreUnavailable, TaskLost
from stream.ports import Marker
from stream.privileges import REDIS_ASIDE, REDIS_CLUSTER, REDIS_WORKER, redis_rule
from stream.processing import sections
from stream.processing.customer import ROWS, Rows, as_read, as_written
from stream.processing.journal import TaskState, check_schema
from stream.settings import Redis as RedisSettings
from stream.settings import Settings

log = logging.getLogger(__name__)

NODE_PORT, SENTINEL_PORT = 6379, 26379
ANSWER_S = 5.0
CHUNK_CUSTOMERS = 300
"""Customers a script call: 500 block the server for a millisecond."""

DENIED = ("ACL failure in script", "NOPERM", "EXEC without MULTI")
"""What else says that a command is denied: in a script, as the reason of a discarded transaction, by its absence."""
REMEDIES: dict[type[exceptions.RedisError], str] = {
    exceptions.ReadOnlyError: "it is a replica: point redis.url at the primary",
    exceptions.OutOfMemoryError: "raise its maxmemory, or lower customers.retention_days",
    exceptions.BusyLoadingError: "it reads its data after a start, and answers when that is done",
    exceptions.TimeoutError: "it is down or slow; redis.timeout_s is how long a call waits",
}

FAULTS = (exceptions.RedisError, exceptions.RedisClusterException)
"""What the library raises; the second is no kind of the first."""

APPLY = """
-- KEYS: marker, due index, customers written, customers forgotten
-- ARGV: prev_seq, seq, inc, gen, written, body (of the last chunk alone), chunk;
--       then row and due time of each written; then all ids
local m = redis.call('HMGET', KEYS[1], 'seq', 'inc', 'gen', 'part')
local seq, inc, gen = tonumber(m[1] or '0'), tonumber(m[2] or '0'), tonumber(m[3] or '0')
local our_inc, our_gen = tonumber(ARGV[3]), tonumber(ARGV[4])
if our_inc < inc or (our_inc == inc and our_gen < gen) then return {-1, seq, inc, gen} end
if seq >= tonumber(ARGV[2]) then return {0, seq, inc, gen} end
if seq ~= tonumber(ARGV[1]) then return {-2, seq, inc, gen} end
local chunk = tonumber(ARGV[7])
if chunk > 0 and m[4] ~= ARGV[2] .. ':' .. chunk then return {-2, seq, inc, gen} end
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
if ARGV[6] == '' then
  redis.call('HSET', KEYS[1], 'part', ARGV[2] .. ':' .. (chunk + 1))
else
  redis.call('HSET', KEYS[1], 'seq', ARGV[2], 'inc', ARGV[3], 'gen', ARGV[4], 'body', ARGV[6])
  redis.call('HDEL', KEYS[1], 'part')
end
return {1, tonumber(ARGV[2]), our_inc, our_gen}
"""
"""Applies one chunk of a committed tick: a no-op where it was applied, refused over a gap or from a former owner.

Only committed after-images are ever written, so a chunk applied without its marker does no harm: it is written again.
A failover between two chunks may take the first one away: a chunk is refused unless those before it are there.
"""


def connected(settings: RedisSettings) -> Any:
    """A client of what `redis.url` leads to: the server, the primary that sentinels name, or the cluster.

    The library types every answer as a union of all it could be; ours are bytes. User, password and TLS are those of
    the server or the nodes; sentinels are asked without user and password.

    Raises:
        Misconfigured: the URL cannot be read.
    """
    url = settings.url.get_secret_value()
    more: dict[str, Any] = {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.timeout_s,
        **(_tls(settings) if url.startswith("rediss:") else {}),
    }
    try:
        if settings.kind == "server":
            return redis.Redis.from_url(url, **more)
        parts = urlsplit(url)
        login, _, places = parts.netloc.rpartition("@")
        servers = [urlsplit(f"//{place}") for place in places.split(",")]
        found = parse_url(parts._replace(netloc=f"{login}@{servers[0].netloc}").geturl())  # type: ignore[no-untyped-call]
    except ValueError:
        # The library's own text may hold a part of the password.
        raise Misconfigured("redis.url cannot be read; write it as redis://USER:PASSWORD@HOST:PORT/DB") from None
    more["ssl"] = url.startswith("rediss:")
    login_and_db = {name: found[name] for name in ("username", "password", "db") if name in found}
    if settings.kind == "cluster":
        nodes = [ClusterNode(server.hostname or "", server.port or NODE_PORT) for server in servers]  # type: ignore[no-untyped-call]
        return redis.RedisCluster(startup_nodes=nodes, **login_and_db, **more)
    sentinels = [(server.hostname or "", server.port or SENTINEL_PORT) for server in servers]
    return Sentinel(sentinels, sentinel_kwargs=more).master_for(settings.primary, **login_and_db, **more)  # type: ignore[no-untyped-call]


class RedisStore:
    """One application's customers."""

    def __init__(self, settings: Settings) -> None:
        self._application = settings.application.name
        self._url = settings.shown_redis_url
        self._naming = settings.log.customers
        self._rule = redis_rule(settings, (*REDIS_WORKER, *REDIS_ASIDE))
        self._user = urlsplit(settings.redis.url.get_secret_value()).username
        self._clustered = settings.redis.kind == "cluster"
        with self._mapping():
            self._redis = connected(settings.redis)
        self._apply = self._redis.register_script(APPLY)

    def check(self) -> None:
        """Raise what is wrong with the server, if anything."""
        with self._mapping():
            for server in self._servers():
                try:
                    policy = server.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
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
                prefix = self._key(task, "c:")
                # Not `mget`: that of a cluster's pipeline refuses keys although they lie in one slot.
                pipeline.execute_command("MGET", *[prefix + customer for customer in customers])
            body, *values = pipeline.execute()
        rows = dict(zip(customers, values[0], strict=True)) if values else {}
        self._miss(task, [customer for customer, data in rows.items() if data is None])
        found = {customer: self._row(customer, data) for customer, data in rows.items() if data is not None}
        return _marker(body), found

    def _miss(self, task: int, absent: Sequence[str]) -> None:
        """A row that is absent is a new customer's, unless the index of due times knows it."""
        if not absent:
            return
        with self._mapping():
            pipeline = self._redis.pipeline(transaction=True)  # together: the owner may be writing the row
            pipeline.execute_command("MGET", *[self._key(task, f"c:{customer}") for customer in absent])
            pipeline.zmscore(self._key(task, "due"), list(absent))
            rows, dues = pipeline.execute()
        lost = sum(row is None and due is not None for row, due in zip(rows, dues, strict=True))
        if lost:
            raise RowsLost(
                f"task {task}: Redis has the due times of {lost} customers and not their rows: somebody deleted keys, "
                "or Redis evicted them. The task is rebuilt from the journal"
            )

    def discard(self, task: int) -> None:
        with self._mapping():
            self._redis.delete(self._key(task, "m"))

    def apply(
        self, task: int, prev_seq: int, marker: Marker, customers: Sequence[str], rows: Rows, forgotten: Sequence[str]
    ) -> None:
        work = [(customer, i) for i, customer in enumerate(customers)] + [(customer, -1) for customer in forgotten]
        dues = rows["due"].tolist()
        schema = marker.state.schema.to_bytes(2, "little")
        images = as_written(rows, marker.state.schema)
        data, size = images.tobytes(), images.itemsize
        prefix = self._key(task, "c:")
        body = orjson.dumps(
            {
                "state": marker.state.to_json(),
                "generation": marker.generation,
                "journal_offset": marker.journal_offset,
                "partitions": marker.partitions,
            }
        )
        for number, first in enumerate(range(0, max(len(work), 1), CHUNK_CUSTOMERS)):
            chunk = work[first : first + CHUNK_CUSTOMERS]
            written = [(customer, i) for customer, i in chunk if i >= 0]
            last = first + CHUNK_CUSTOMERS >= len(work)
            arguments: list[Any] = [prev_seq, marker.state.seq, marker.state.incarnation, marker.generation]
            arguments += [len(written), body if last else b"", number]
            for _, i in written:
                arguments += [schema + data[i * size : (i + 1) * size], dues[i]]
            arguments += [customer for customer, _ in chunk]
            keys = [self._key(task, "m"), self._key(task, "due")]
            keys += [prefix + customer for customer, _ in chunk]
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

    def _servers(self) -> list[Any]:
        """The server, or each primary of the cluster."""
        if not self._clustered:
            return [self._redis]
        return [self._redis.get_redis_connection(node) for node in self._redis.get_primaries()]

    def _key(self, task: int, rest: str) -> str:
        return f"{{{self._application}:p{task}}}:{rest}"

    def _row(self, customer: str, data: bytes) -> bytes:
        schema = int.from_bytes(data[:2], "little")
        name = f"the row of customer {called(customer, self._naming) or '(not named)'}"
        check_schema(schema, name)
        if len(data) != 2 + ROWS[schema].itemsize:
            raise RowsLost(
                f"{name} in Redis has {len(data)} bytes, not {2 + ROWS[schema].itemsize}: something else wrote it. The "
                "task is rebuilt from the journal"
            )
        return as_read(data[2:], schema).tobytes()

    @contextmanager
    def _mapping(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            raise self._mapped(error) from error

    def _mapped(self, error: Exception) -> DriftlineError:
        said = f"Redis at {self._url}: {type(error).__name__}: {error}"
        if isinstance(error, exceptions.AuthenticationError):
            return Misconfigured(f"{said}; check user and password in redis.url")
        if isinstance(error, exceptions.NoPermissionError) or any(sign in str(error) for sign in DENIED):
            return Misconfigured(
                f"{said}; grant this user what docs/security.md says it needs, a worker: ACL SETUSER "
                f"{self._user or 'default'} {self._rule}"
            )
        if isinstance(error, exceptions.ReadOnlyError):
            # After a failover this connection may lead to the former primary: the next call looks the name up anew.
            for server in self._servers():
                server.connection_pool.disconnect()
        plain = "write the port that does, or redis://, into redis.url"
        if handshake := tls.remedy(str(error), "redis", "redis.url", plain):
            return StoreUnavailable(f"{said}; {handshake}")
        remedy = next((remedy for kind, remedy in REMEDIES.items() if isinstance(error, kind)), "")
        if "Cluster mode is not enabled" in str(error):  # so says the client of a refusal too
            remedy = "set redis.kind to server if it is none; else grant its user +" + " +".join(REDIS_CLUSTER)
        if "MISCONF" in str(error):
            remedy = "it cannot write its own file: make room on its disk"
        if "Timeout connecting" in str(error) and self._url.startswith("rediss:"):
            remedy = f"it is down or slow, or it does not speak TLS: {plain}"
        elif "EOF occurred" in str(error):
            remedy = "is it running? Where it asks for a client's certificate, set redis.ssl_certfile"
        elif any(end in str(error) for end in ("closed by server", "reset by peer")) and self._url.startswith("redis:"):
            remedy = "is it running, and is redis.url right? Where it speaks TLS, write rediss://"
        return StoreUnavailable(f"{said}; {remedy or 'is it running, and is redis.url right?'}")


def _tls(settings: RedisSettings) -> dict[str, Any]:
    tls.context(settings, "redis")  # the library reads the files at its first connection, and says less
    files = {
        "ssl_ca_certs": settings.ssl_cafile,
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile or settings.ssl_certfile,
    }
    return {name: value for name, value in files.items() if value} | {"ssl_password": ""}


def _marker(body: bytes | None) -> Marker | None:
    if body is None:
        return None
    with sections.reading("a task's marker in Redis"):
        values = orjson.loads(body)
        numbers = values["generation"], values["journal_offset"], values["partitions"]
        if any(type(number) is not int for number in numbers):
            raise TypeError(f"generation, journal_offset and partitions are {numbers}")
        return Marker(TaskState.from_json(values["state"]), *numbers)


class RedisQuestions(RedisStore):
    """The same store, asked by `driftline doctor`: nothing is changed, and no question waits for longer than seconds.

    Raises `CannotTell` where this user may not ask.
    """

    def __init__(self, settings: Settings) -> None:
        timeout_s = min(settings.redis.timeout_s, ANSWER_S)
        super().__init__(
            settings.model_copy(update={"redis": settings.redis.model_copy(update={"timeout_s": timeout_s})})
        )
        self._redis.set_retry(Retry(NoBackoff(), 0))

    @cached_property
    def found(self) -> list[int]:
        """The tasks that the store knows; it looks through all keys of the server once."""
        return self.tasks()

    def facts(self) -> RedisFacts:
        """The server's INFO, how long a ping takes (the best of three), and its clock less ours."""
        with self._asking("INFO"):
            info = self._servers()[0].info()
        times = []
        with self._asking("TIME"):
            for _ in range(3):
                began, wall = time.monotonic(), time.time()
                seconds, micros = self._servers()[0].time()
                took = time.monotonic() - began
                times.append((took, seconds + micros / 1e6 - wall - took / 2))
        return RedisFacts(info, *min(times))

    def setting(self, name: str) -> str | None:
        """One of the server's settings, None where it does not say (managed services switch CONFIG off)."""
        with suppress(exceptions.ResponseError), self._mapping_unavailable():
            value = self._servers()[0].config_get(name).get(name)
            return None if value is None else str(value)
        return None

    def rights(self) -> Rights:
        """What this user may not do of what a worker does, by asking for a dry run."""
        key = self._key(0, "c:driftline-doctor")
        with self._mapping_unavailable():
            try:
                user = str(_text(self._servers()[0].acl_whoami()))
                answers = {
                    command[0]: self._servers()[0].execute_command("ACL", "DRYRUN", user, *command)
                    for command in _commands(key, self._key(0, "m"), self._key(0, "due"))
                }
            except exceptions.ResponseError as error:
                return Rights("?", self._denied_reads(key), f"may not ask what it may do ({error})")
        return Rights(user, tuple(name for name, answer in answers.items() if _text(answer) != "OK"), "")

    def _denied_reads(self, key: str) -> tuple[str, ...]:
        denied = []
        for command in (("MGET", key), ("HGET", self._key(0, "m"), "body"), ("ZCARD", self._key(0, "due"))):
            try:
                self._redis.execute_command(*command)
            except exceptions.NoPermissionError:
                denied.append(command[0])
        return tuple(denied)

    def markers(self, tasks: Iterable[int]) -> dict[int, Marker]:
        """How far these tasks have come; one that the store does not know is left out."""
        found = {task: self.load(task, ())[0] for task in tasks}
        return {task: marker for task, marker in found.items() if marker is not None}

    def counts(self) -> dict[int, int]:
        """Customers by task."""
        with self._mapping():
            return {task: int(self._redis.zcard(self._key(task, "due"))) for task in self.found}

    def missing(self, sample: int) -> tuple[int, int]:
        """Of a sample of each task's index: how many customers have no row, and how many were asked for."""
        lacking = asked = 0
        for task in self.found:
            with self._asking("ZRANDMEMBER"):
                names = [name.decode() for name in self._redis.zrandmember(self._key(task, "due"), sample)]
                asked += len(names)
                rows = self._redis.mget([self._key(task, f"c:{name}") for name in names]) if names else []
                gone = [name for name, row in zip(names, rows, strict=True) if row is None]
                # One that a worker has forgotten meanwhile has left the index as well.
                lacking += sum(self._redis.zscore(self._key(task, "due"), name) is not None for name in gone)
        return lacking, asked

    @contextmanager
    def _asking(self, command: str) -> Iterator[None]:
        with self._mapping_unavailable():
            try:
                yield
            except exceptions.ResponseError as error:
                raise CannotTell(f"{command}: {error}") from error

    @contextmanager
    def _mapping_unavailable(self) -> Iterator[None]:
        """As `_mapping`, but a refusal by the server is left to the caller."""
        try:
            yield
        except exceptions.AuthenticationError as error:
            raise self._mapped(error) from error
        except exceptions.ResponseError:
            raise
        except FAULTS as error:
            raise self._mapped(error) from error


def _commands(customer: str, marker: str, due: str) -> list[tuple[str, ...]]:
    """What a worker sends, the commands within its script included."""
    return [
        ("EVALSHA", "0" * 40, "1", marker),
        ("SCRIPT", "LOAD", "return 1"),
        ("MGET", customer),
        ("SET", customer, "x"),
        ("DEL", customer),
        ("HGET", marker, "body"),
        ("HMGET", marker, "seq"),
        ("HSET", marker, "seq", "1"),
        ("HDEL", marker, "part"),
        ("ZADD", due, "1", "x"),
        ("ZREM", due, "x"),
        ("ZRANGEBYSCORE", due, "-inf", "0"),
        ("ZMSCORE", due, "x"),
        ("MULTI",),
        ("EXEC",),
    ]


def _text(answer: bytes | str) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)
