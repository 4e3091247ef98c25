"""Two releases side by side in one group, and the step to the newer schema."""

from typing import Any

import pytest

from stream.processing.customer import SCHEMA
from tests.integration import oracle
from tests.integration.site import Running, Site, until

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
