"""What only a real Redis can get wrong."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import redis

from stream.backends.redis import RedisStore
from stream.errors import DriftlineError, Misconfigured, NewerSchema, StoreUnavailable, TaskLost
from stream.ports import Store
from stream.processing.customer import ROW, SCHEMA
from tests.builders import NOW
from tests.conformance.backends import apply, marker
from tests.integration.backends.on_servers import OnServers, settings_of
from tests.servers import RedisServer

pytestmark = pytest.mark.servers


PASSWORD = "geheim"


def test_a_row_of_a_newer_release_is_refused(on_redis: OnServers, redis_url: str) -> None:
    store = on_redis.make_store()
    apply(store, marker(1), {"a": 1, "b": 2})
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys("*:c:b")
        row = client.get(key)
        assert int.from_bytes(row[:2], "little") == SCHEMA
        client.set(key, (SCHEMA + 1).to_bytes(2, "little") + row[2:])
    assert list(store.load(0, ["a"])[1]) == ["a"]
    with pytest.raises(NewerSchema, match=f"has schema {SCHEMA + 1}"):
        store.load(0, ["a", "b"])
    with pytest.raises(NewerSchema):
        list(store.scan(0))


def test_a_chunk_that_a_failover_took_away_is_missed_by_the_next_one(
    on_redis: OnServers, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.backends.redis.CHUNK_CUSTOMERS", 2)
    store = on_redis._kept(RedisStore(on_redis.settings()))
    apply(store, marker(1), {"a": 1, "b": 2, "c": 3})
    run_script = store._apply
    calls = 0

    def fails_over(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The replica that takes over has not heard of the first chunk."""
        nonlocal calls
        with redis.Redis.from_url(redis_url) as client:
            saved = {key: client.dump(key) for key in client.keys("*}:*")}
            answer = run_script(keys, arguments)
            calls += 1
            if calls == 1:
                client.delete(*client.keys("*}:*"))
                for key, value in saved.items():
                    client.restore(key, 0, value)
        return answer

    monkeypatch.setattr(store, "_apply", fails_over)
    with pytest.raises(TaskLost, match="is at tick 1"):
        apply(store, marker(2), {"a": 4, "b": 5, "c": 6})
    apply(store, marker(2), {"a": 4, "b": 5, "c": 6})
    found, rows = store.load(0, ["a", "b", "c"])
    assert found == marker(2)
    assert [np.frombuffer(rows[name], ROW)["due"][0] for name in "abc"] == [4, 5, 6]


def test_it_knows_the_tasks_of_its_application_only(on_redis: OnServers, redis_url: str) -> None:
    mine = on_redis._kept(RedisStore(on_redis.settings()))
    other = on_redis._kept(RedisStore(settings_of("other", url=redis_url)))
    assert mine.tasks() == []
    rows = np.empty(0, [("due", "i8")])
    for task in (0, 11, 2):
        mine.apply(task, 0, marker(1), [], rows, [])
    other.apply(5, 0, marker(1), [], rows, [])
    assert mine.tasks() == [0, 2, 11]
    assert other.tasks() == [5]


def test_every_key_of_a_task_shares_its_hash_tag(on_redis: OnServers, redis_url: str) -> None:
    apply(on_redis.make_store(), marker(1), {"a": 1, "{b}": 2})
    with redis.Redis.from_url(redis_url) as client:
        keys = client.keys("*")
    assert len(keys) == 4
    assert all(key.startswith(b"{%s:p0}:" % on_redis.name.encode()) for key in keys)


def test_a_redis_that_would_forget_customers_is_refused(on_redis: OnServers, redis_url: str) -> None:
    store = on_redis._kept(RedisStore(on_redis.settings()))
    store.check()
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(Misconfigured, match="allkeys-lru"):
                store.check()
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def every_call(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.load(0, ["a"]),
        lambda: apply(store, marker(2), {"a": 2}),
        lambda: store.due(0, NOW, 10),
        lambda: list(store.scan(0)),
    ]


@pytest.mark.parametrize("break_it", [RedisServer.pause, RedisServer.kill])
def test_without_an_answer_every_call_says_unavailable_and_goes_on_once_it_is_back(
    on_redis: OnServers, redis_server: RedisServer, break_it: Callable[[RedisServer], None]
) -> None:
    store = on_redis._kept(RedisStore(on_redis.settings(timeout_s=0.1)))
    rows = apply(store, marker(1), {"a": 1})
    break_it(redis_server)
    try:
        for call in every_call(store):
            with pytest.raises(StoreUnavailable, match="Redis at redis://127"):
                call()
    finally:
        redis_server.start()
    found = store.load(0, ["a"])
    assert found[0] in (marker(1), marker(2))  # a paused server may have read the tick and apply it when it wakes
    apply(store, marker(2), {"a": 2})
    assert (found[1]["a"] == rows[0].tobytes()) == (found[0] == marker(1))
    assert store.due(0, NOW, 10) == ["a"]


def test_a_call_without_an_answer_fails_after_the_time_out(on_redis: OnServers, redis_server: RedisServer) -> None:
    store = on_redis._kept(RedisStore(on_redis.settings(timeout_s=0.3)))
    store.load(0, ["a"])
    redis_server.pause()
    began = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable):
            store.load(0, ["a"])
        took_s = time.monotonic() - began
    finally:
        redis_server.resume()
    assert took_s < 1.0, "redis.timeout_s is 0.3 s"


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PASSWORD}@127.0.0.1:1/0",
        f"redis://user:{PASSWORD}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?password={PASSWORD}",
        f"redis://:{PASSWORD}/{PASSWORD}@127.0.0.1:1/0",
        f"redis://:{PASSWORD}#{PASSWORD}@127.0.0.1:1/0",
        f"http://:{PASSWORD}@127.0.0.1/0",
        f"redis://:12/{PASSWORD}@127.0.0.1:1/0",
    ],
)
def test_no_error_shows_the_password(address: str) -> None:
    with pytest.raises(DriftlineError) as caught:  # noqa: PT012  some addresses are refused when the store is made
        store = RedisStore(settings_of("app", url=address, timeout_s=0.2))
        try:
            store.load(0, ["a"])
        finally:
            store.close()
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value.__cause__)


def test_a_wrong_password_is_a_misconfiguration_that_does_not_show_it(redis_url: str) -> None:
    store = RedisStore(settings_of("app", url=redis_url.replace("redis://", f"redis://nobody:{PASSWORD}@")))
    try:
        with pytest.raises(Misconfigured, match=r"redis\.url") as caught:
            store.load(0, ["a"])
    finally:
        store.close()
    assert PASSWORD not in str(caught.value)
