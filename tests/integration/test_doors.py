"""Shut doors: Kafka over SASL_SSL with SCRAM and access lists, Redis over TLS with a user of its own, both real.

What is granted is `stream/privileges.py`, from which docs/security.md is written: all of it is enough, and without any
part of it the error names what lacks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import orjson
import pytest

from stream import privileges
from stream.cli import COMMANDS
from stream.privileges import Grant
from stream.settings import load
from tests.integration import oracle
from tests.integration.doors import KAFKA_PASSWORD, REDIS_PASSWORD, Doors, through
from tests.integration.site import Running, Site, until

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with Doors(tmp_path_factory.mktemp("doors")) as doors:
        yield doors


def site_behind(doors: Doors, directory: Path) -> Site:
    """An application whose hands go in by the plain doors; in a database that is not the first."""
    return Site(doors.kafka.bootstrap_servers, doors.redis.url.replace("/0", "/1"), directory)


@pytest.fixture
def site(doors: Doors, tmp_path: Path) -> Iterator[Site]:
    site = site_behind(doors, tmp_path)
    yield site
    site.close()


def admit(doors: Doors, site: Site, grants: Sequence[Grant], commands: Sequence[str]) -> tuple[dict[str, str], ...]:
    """A new user of both servers with these rights alone; the settings to come as that user."""
    user = f"u{uuid4().hex[:8]}"
    doors.know([user])
    doors.grant(user, grants)
    doors.redis_user(user, privileges.redis_rule(site.settings, (*commands, *privileges.REDIS_ASIDE)))
    return doors.kafka_as(user), doors.redis_as(user)


def worker_user(doors: Doors, site: Site) -> tuple[dict[str, str], ...]:
    return admit(doors, site, privileges.worker(site.settings), privileges.REDIS_WORKER)


def test_a_worker_with_the_least_privileges_processes_a_shop_exactly(doors, site):
    site.feed()
    with through(site, *worker_user(doors, site)):
        worker = site.worker()
    site.finish(worker)
    assert "level\":\"warning" not in worker.errors


# Commands


@pytest.fixture(scope="module")
def processed(doors: Doors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A shop whose events a worker has processed."""
    site = site_behind(doors, tmp_path_factory.mktemp("processed"))
    site.feed(0.5)
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    site.expel("w1")
    yield site
    site.close()


ARGUMENTS = {
    "topics create": ("--partitions", "3", "--replication", "1"),
    "topics check": (),
    "doctor": (),
    "alerts": ("--from-beginning", "--until-end"),
    "customer": ("c-000",),
    "customers export": (),
    "forget": ("c-001", "--wait-s", "0"),
    "repartition": ("{0}.clicks", "{0}.copy", "--partitions", "2"),
    "rewind": ("--to", "earliest", "--yes"),  # last: nothing is level any more
}


def command_user(doors: Doors, site: Site, command: str) -> tuple[dict[str, str], ...]:
    listed = privileges.commands(site.settings, site.settings.topics.clickstream, f"{site.name}.copy")
    return admit(doors, site, listed[command], privileges.REDIS_COMMANDS.get(command, ()))


@pytest.mark.parametrize("command", ARGUMENTS)
def test_what_is_listed_for_a_command_is_enough_for_it(doors, processed, command):
    with through(processed, *command_user(doors, processed, command)):
        done = processed.command(*command.split(), *(one.format(processed.name) for one in ARGUMENTS[command]))
    assert done.end() == 0, (done.output, done.errors)
    assert b"wrong  " not in done.output
    for sign in ("Authorization", "NOPERM", "without the segment"):
        assert sign not in done.output.decode() + done.errors, (done.output, done.errors)


def test_what_is_listed_for_the_creation_of_topics_and_for_a_backfill_is_enough(doors, site, tmp_path):
    topics = {"TOPICS__CLICKSTREAM": f"{site.name}.views", "TOPICS__PURCHASES": f"{site.name}.orders"}
    history = tmp_path / "history.jsonl"
    history.write_bytes(b"\n".join(one.value for one in site.shop.records[:200] if one.value and b"userId" in one.value))
    site.set(APPLICATION__NAME=f"{site.name}x", **topics)
    for command, *more in (("topics create", "--partitions", "2"), ("backfill", str(history))):
        with through(site, *command_user(doors, site, command)):
            done = site.command(*command.split(), *more)
        assert done.end() == 0, done.errors
    assert b"created" in site.running[0].output
    assert b"events of the past" in site.running[1].output


def test_every_command_that_talks_to_kafka_is_listed_and_tried(site):
    listed = privileges.commands(site.settings)
    assert set(ARGUMENTS) | {"backfill"} == set(listed)
    assert set(privileges.REDIS_COMMANDS) <= set(listed)
    assert {name.split()[0] for name in listed} == set(COMMANDS) - {"demo", "replay", "run", "evaluate"}
