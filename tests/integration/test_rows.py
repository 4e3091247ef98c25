"""Rows on real servers: two releases side by side, the step to the newer schema, rows that wake and end."""

import time
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from stream.processing.customer import SCHEMA
from tests.integration import oracle
from tests.integration.shop import DAY_MS
from tests.integration.site import PARTITIONS, Running, Site, until

pytestmark = pytest.mark.servers


def old_worker(site: Site, instance: str) -> Running:
    """A worker of the release before."""
    return site._start(["tests.integration.old_release", "--app", site.name, "--instance", instance], instance)


def schemas(seen: oracle.Seen) -> set[int]:
    """Of all journal records."""
    return {one.entry.state.schema for ticks in seen.ticks.values() for one in ticks}


def rows_of(seen: oracle.Seen) -> set[int]:
    """The schemas of the rows in Redis."""
    return {int.from_bytes(data[:2], "little") for rows in seen.rows.values() for data in rows.values()}


def test_two_releases_share_a_group_until_the_newer_schema_is_asked_for(site: Any) -> None:
    site.feed(0.25)
    old = old_worker(site, "old")
    site.wait_for_the_end(old)
    new = site.worker("new")
    new.wait_for(lambda: new.said("ready"), "the new release beside the old one")
    site.feed(0.5)
    new.wait_for(lambda: new.said("tick"), "a tick of the new release")
    old.wait_for(lambda: len(old.said("ready")) >= 2, "the old release still has its share")
    site.wait_for_the_end(new)
    assert new.stop() == 0, new.errors
    site.expel("new")
    site.feed(0.6)  # the old release goes on where the new one was
    site.wait_for_the_end(old)
    assert old.stop() == 0, old.errors
    site.expel("old")
    seen = oracle.check(site.settings, site.shop)
    assert schemas(seen) == rows_of(seen) == {1}

    site.set(JOURNAL__SCHEMA_VERSION=str(SCHEMA))
    site.feed()
    told = site.worker("new")
    seen = site.finish(told)
    assert schemas(seen) == {1, SCHEMA}
    assert SCHEMA in rows_of(seen)

    site.set(JOURNAL__SCHEMA_VERSION="1")
    late = old_worker(site, "old")
    assert late.end() == 1
    assert f"has schema {SCHEMA}, this release reads 1 to 1; upgrade this worker" in late.errors


def test_an_old_worker_that_meets_the_newer_schema_leaves_its_tasks_to_the_others(site: Any) -> None:
    site.feed(0.3)
    new = site.worker("new")
    site.wait_for_the_end(new)
    old = old_worker(site, "old")
    assert old.end() == 1
    assert "upgrade this worker" in old.errors
    site.feed()
    until(lambda: site.committed() == site.shop.ends(), "the new release has the tasks of the old one")
    site.finish(new)


def test_rows_deleted_from_redis_are_missed_and_their_task_is_rebuilt(site: Any) -> None:
    site.feed(0.6)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with site.redis() as client:
        keys = sorted(client.keys(f"{{{site.name}:p*}}:c:*"))
        assert client.delete(*keys[::2]) > PARTITIONS
    site.feed()
    again = site.worker()
    site.finish(again)
    assert "somebody deleted keys" in again.errors


def test_rows_that_something_else_has_cut_in_redis_are_written_again_from_the_journal(site: Any) -> None:
    site.feed(0.6)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with site.redis() as client:
        for key in sorted(client.keys(f"{{{site.name}:p*}}:c:*"))[::2]:
            client.set(key, client.get(key)[:-1])
    site.feed()
    again = site.worker()
    site.finish(again)
    assert "something else wrote it" in again.errors


def test_silent_rows_wake_expire_by_a_tombstone_and_begin_anew(site: Any) -> None:
    site.set(CUSTOMERS__RETENTION_DAYS="2", CUSTOMERS__ANONYMOUS_RETENTION_DAYS="1", TICK__LIVE_WITHIN_S="1e6")
    now_ms = time.time_ns() // 1_000_000
    # In the partition of one who stays time goes on while the other is away.
    returns = next(
        name for name in map("returns-{}".format, range(99)) if site.shop.place(name) == site.shop.place("stays")
    )
    lives = {
        "stays": [9.0 - half / 2 for half in range(18)],
        "goes": [9.0],
        returns: [9.0, 8.9, 1.0],
        "anon:passes": [9.0, 8.9],
    }
    sent = []
    for customer, days in lives.items():
        for ago in days:
            kind, _, bare = customer.rpartition(":")
            at = datetime.fromtimestamp((now_ms - ago * DAY_MS) / 1000, UTC).isoformat()
            who = {"anonymousId": bare} if kind else {"userId": customer}
            body = {
                "type": "track",
                "event": "Product Viewed",
                "messageId": f"{customer}/{ago}",
                "timestamp": at,
                **who,
            }
            sent.append((ago, site.shop.place(bare), bare.encode(), orjson.dumps(body)))
    site.send(site.settings.topics.clickstream, [record for _, *record in sorted(sent, key=lambda one: -one[0])])
    worker = site.worker()

    def known() -> list[str]:
        with site.redis() as client:
            keys = client.keys(f"{{{site.name}:p*}}:c:*")
        return sorted(key.decode().partition(":c:")[2] for key in keys)

    # Silent topics let go after idle_after_s, and timers follow the wall clock to the present.
    until(lambda: known() == [returns, "stays"], lambda: f"found {known()}; {worker.errors[-2000:]}")
    counts = [orjson.loads(site.ask("customer", name, "--json"))["events"] for name in known()]
    assert counts == [1, 18]
    assert worker.stop() == 0, worker.errors
    seen = oracle.look(site.settings, PARTITIONS)
    oracle.check_ticks_run_again_give_the_same_bytes(seen)
    oracle.check_redis_is_the_journal_folded(seen)
    entries = [one.entry for ticks in seen.ticks.values() for one in ticks]
    assert sorted(name for entry in entries for name in entry.forgotten) == ["anon:passes", "goes", returns]
    assert sum(len(entry.wakes) for entry in entries) >= 3
