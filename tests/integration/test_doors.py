"""Shut doors: Kafka over SASL_SSL with SCRAM and access lists, Redis over TLS with a user of its own, both real.

What is granted is `stream/privileges.py`, from which docs/security.md is written: all of it is enough, and without any
part of it the error names what lacks.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from confluent_kafka import Consumer
from prometheus_client import CollectorRegistry

from stream import privileges
from stream.backends.http import HttpServer
from stream.backends.kafka import check_topics, client
from stream.backends.librdkafka import client as librdkafka
from stream.backends.redis import RedisStore
from stream.cli import COMMANDS
from stream.cli.run import assemble
from stream.errors import DriftlineError, Misconfigured
from stream.metrics import Metrics
from stream.ports import Marker
from stream.privileges import Grant
from stream.processing.customer import blank
from stream.processing.journal import TaskState
from stream.settings import Http, Settings, load
from tests.integration.doors import KAFKA_PASSWORD, REDIS_PASSWORD, Doors, through
from tests.integration.site import Site, both_clients, get, until
from tests.servers.server import free_port
from tests.servers.tls import Identity

pytestmark = pytest.mark.servers


SECRETS = (KAFKA_PASSWORD, REDIS_PASSWORD, "falsch-4711")


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
    given = (*commands, *privileges.REDIS_ASIDE)
    doors.redis_user(user, privileges.redis_rule(site.settings, given, writes="set" in commands))
    return doors.kafka_as(user), doors.redis_as(user)


def worker_user(doors: Doors, site: Site) -> tuple[dict[str, str], ...]:
    return admit(doors, site, privileges.worker(site.settings), privileges.REDIS_WORKER)


@both_clients
def test_a_worker_with_the_least_privileges_processes_a_shop_exactly(doors, site, client):
    site.set(KAFKA__CLIENT=client)
    site.feed()
    with through(site, *worker_user(doors, site)):
        worker = site.worker()
    site.finish(worker)
    assert 'level":"warning' not in worker.errors


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
    history.write_bytes(
        b"\n".join(one.value for one in site.shop.records[:200] if one.value and b"userId" in one.value)
    )
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


# A permission that lacks


def without(grants: Sequence[Grant], number: int, operation: str) -> list[Grant]:
    """The grants without one operation of one of them."""
    left = list(grants)
    left[number] = grants[number]._replace(
        operations=tuple(one for one in grants[number].operations if one != operation)
    )
    return [one for one in left if one.operations]


EACH = [
    pytest.param(number, operation, id=f"{operation} {grant.name.replace('shop', 'NAME')}")
    for number, grant in enumerate(privileges.worker(Settings()))
    for operation in grant.operations
]


def run_until_refused(settings: Settings) -> str:
    """A worker in this process, for twenty seconds at most; what it was refused with."""
    worker = None
    try:
        worker = assemble(settings, Metrics())
        until = time.monotonic() + 20
        while time.monotonic() < until:
            worker.turn()
    except Misconfigured as error:
        return str(error)
    finally:
        if worker is not None:
            worker.close()
    return ""


@pytest.mark.parametrize(("number", "operation"), EACH)
def test_a_worker_that_lacks_one_permission_of_the_table_stops_and_names_it(doors, site, number, operation):
    site.feed(0.05)
    grants = privileges.worker(site.settings)
    with through(site, *admit(doors, site, without(grants, number, operation), privileges.REDIS_WORKER)):
        said = run_until_refused(site.settings)
    assert grants[number].name in said
    assert "rant this user" in said
    assert operation in said


def use_the_store(store: RedisStore) -> None:
    """Everything that a worker asks of it."""
    store.check()
    rows = blank(1)
    store.load(0, ["a", "b"])
    store.apply(0, 0, Marker(TaskState(seq=1), 1, 1, 1), ["a"], rows, ["b"])
    store.due(0, 1, 10)
    store.discard(0)


@pytest.mark.parametrize("lacks", privileges.REDIS_WORKER)
def test_a_redis_user_who_lacks_one_command_of_the_table_is_told_the_whole_grant(doors, site, lacks):
    commands = [one for one in (*privileges.REDIS_WORKER, *privileges.REDIS_ASIDE) if one != lacks]
    user = f"r-{site.name}"
    doors.redis_user(user, privileges.redis_rule(site.settings, commands))
    with redis.Redis.from_url(site.redis_url) as client:
        client.script_flush()
    with through(site, doors.redis_as(user)):
        store = RedisStore(site.settings)
    with closing(store), pytest.raises(Misconfigured) as caught:
        use_the_store(store)
    said = str(caught.value)
    assert lacks in said.partition("grant this user")[0].lower().replace("script load", "script|load"), said
    rule = said.partition(f"ACL SETUSER {user} ")[2]
    with redis.Redis.from_url(site.redis_url) as client:
        client.execute_command("ACL", "SETUSER", user, *rule.split())
    use_the_store(store)


# A permission withdrawn, a certificate expired, while a worker runs


def test_permissions_withdrawn_under_a_worker_stop_it_each_time_and_once_granted_again_nothing_lacks(doors, site):
    _, _, _, _, journal, _, group, *_ = privileges.worker(site.settings)
    as_worker = worker_user(doors, site)
    user = as_worker[0]["KAFKA__SASL_USERNAME"]
    for share, grant in enumerate((group, journal._replace(operations=("WRITE",))), start=1):
        with through(site, *as_worker):
            worker = site.worker()
        site.feed(share * 0.2 - 0.1)
        worker.wait_for(partial(worker.said, "tick"), "a tick")
        doors.withdraw(user, grant)
        site.feed(share * 0.2)
        assert worker.end(30) == 1, worker.errors
        said = worker.errors.splitlines()[-1]
        assert "grant this user" in said, said
        assert worker.errors.count("recovering: ") < 10, worker.errors
        doors.grant(user, [grant])
    with through(site, *as_worker):
        worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    everything = (*privileges.REDIS_WORKER, *privileges.REDIS_ASIDE)
    doors.redis_user(user, privileges.redis_rule(site.settings, [one for one in everything if one != "zadd"]))
    site.feed(0.9)
    assert worker.end(30) == 1, worker.errors
    assert "grant this user" in worker.errors.splitlines()[-1]
    doors.redis_user(user, privileges.redis_rule(site.settings, everything))
    site.feed()
    with through(site, *as_worker):
        worker = site.worker()
    site.finish(worker)


def test_a_certificate_that_expires_under_a_worker_is_named_and_once_renewed_nothing_lacks(doors, site):
    with through(site, *worker_user(doors, site)):
        worker = site.worker()
    site.feed(0.4)
    worker.wait_for(lambda: worker.said("tick"), "a tick")
    terminator = doors.terminators["good"]
    began = time.monotonic()
    terminator.present(doors.expired)
    terminator.cut()
    try:
        site.feed(0.6)
        worker.wait_for(lambda: "its certificate has expired" in worker.errors, "the reason")
        time.sleep(3)
        assert worker.errors.count("its certificate has expired") < 3 * (time.monotonic() - began)
    finally:
        terminator.present(doors.good)
    site.feed()
    site.finish(worker)


def by_certificate(doors: Doors, files: Identity) -> dict[str, str]:
    """Settings of who comes in by a certificate alone."""
    return {
        "KAFKA__BOOTSTRAP_SERVERS": doors.addresses["MUTUAL"],
        "KAFKA__SECURITY_PROTOCOL": "SSL",
        "KAFKA__SSL_CAFILE": str(doors.authority.cafile),
        "KAFKA__SSL_CERTFILE": str(files.certificate),
        "KAFKA__SSL_KEYFILE": str(files.key),
    }


def test_a_clients_certificate_that_expires_under_a_worker_is_named_and_once_renewed_in_its_file_nothing_lacks(
    doors, site
):
    renew = partial(doors.authority.issue, "renewed", "worker", common_name="worker")
    doors.grant("worker", privileges.worker(site.settings))
    with through(site, by_certificate(doors, renew())):
        worker = site.worker()
    site.feed(0.2)
    site.wait_for_the_end(worker)
    renew(lives_s=2)
    time.sleep(3)
    site.feed(0.4)
    site.wait_for_the_end(worker)  # a connection that stands is not asked again
    doors.kafka.restart()
    site.feed(0.6)
    worker.wait_for(lambda: "or renew what that file holds" in worker.errors, "the reason")
    renew()
    site.feed()
    site.finish(worker)


def test_librdkafka_is_told_of_a_certificate_that_is_not_taken_what_the_default_client_is(doors, monkeypatch):
    monkeypatch.setattr(client.refusals, "heard", (0.0, "", ""))
    expired = doors.authority.issue("over", "worker", common_name="worker", lives_s=-60)
    settings = load(environment={f"DRIFTLINE_{key}": value for key, value in by_certificate(doors, expired).items()})
    consumer = Consumer(librdkafka.connection(settings.kafka, "somebody") | {"group.id": "somebody"})
    consumer.subscribe(["nothing"])
    until(lambda: [consumer.poll(0.1), client.refusals.why()[1]][1], "the reason", 10)
    consumer.close()
    assert "set kafka.ssl_certfile, or renew what that file holds" in client.refusals.why()[1]


# What is refused at the door


def refusals(doors: Doors) -> dict[str, tuple[dict[str, str], str]]:
    """The settings somebody comes with, and what they must be told."""
    kafka, plain = doors.kafka_as("somebody"), {"KAFKA__BOOTSTRAP_SERVERS": doors.kafka.bootstrap_servers}
    mutual = kafka | {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__BOOTSTRAP_SERVERS": doors.addresses["MUTUAL"]}
    shop = doors.redis_as("somebody")
    unencrypted = {"REDIS__URL": shop["REDIS__URL"].replace("rediss:", "redis:")}
    return {
        "kafka password": (
            kafka | {"KAFKA__SASL_PASSWORD": "falsch-4711"},
            "check kafka.sasl_username and kafka.sasl_password",
        ),
        "kafka mechanism": (kafka | {"KAFKA__SASL_MECHANISM": "PLAIN"}, "set kafka.sasl_mechanism to"),
        "kafka certificate expired": (
            doors.kafka_as("somebody", "EXPIRED"),
            "its certificate has expired: have it renewed",
        ),
        "kafka certificate of another name": (
            doors.kafka_as("somebody", "ELSEWHERE"),
            "write the name that the certificate has into kafka.bootstrap_servers",
        ),
        "kafka authority unknown": (
            kafka | {"KAFKA__SSL_CAFILE": str(doors.stranger.cafile)},
            "set kafka.ssl_cafile to the file of that authority",
        ),
        "kafka certificate of the client lacks": (mutual, "set kafka.ssl_certfile"),
        "kafka plain where TLS is spoken": (
            {"KAFKA__BOOTSTRAP_SERVERS": doors.addresses["SCRAM"]},
            "kafka.security_protocol",
        ),
        "kafka TLS where it is not spoken": (kafka | plain, "what listens there does not speak TLS"),
        "kafka no SASL where it is asked for": (
            kafka | {"KAFKA__SECURITY_PROTOCOL": "SSL"},
            "does kafka.security_protocol fit that port",
        ),
        "kafka authority's file missing": (
            kafka | {"KAFKA__SSL_CAFILE": "/nowhere.pem"},
            "kafka.ssl_cafile (/nowhere.pem) cannot be used: No such file",
        ),
        "redis password": (
            shop | {"REDIS__URL": shop["REDIS__URL"].replace(REDIS_PASSWORD, "falsch-4711")},
            "check user and password in redis.url",
        ),
        "redis certificate expired": (
            doors.redis_as("somebody", "expired"),
            "its certificate has expired: have it renewed",
        ),
        "redis certificate of another name": (
            doors.redis_as("somebody", "elsewhere"),
            "write the name that the certificate has into redis.url",
        ),
        "redis authority unknown": (
            shop | {"REDIS__SSL_CAFILE": str(doors.stranger.cafile)},
            "set redis.ssl_cafile to the file of that authority",
        ),
        "redis plain where TLS is spoken": (unencrypted, "Where it speaks TLS, write rediss://"),
        "redis TLS where it is not spoken": (
            shop | {"REDIS__URL": f"rediss://somebody:{REDIS_PASSWORD}@127.0.0.1:{doors.redis.port}/1"},
            "or it does not speak TLS",
        ),
        "redis permission": (shop, "ACL SETUSER somebody ~{"),
    }


NAMES = (
    *("kafka password", "kafka mechanism", "kafka certificate expired", "kafka certificate of another name"),
    *("kafka authority unknown", "kafka certificate of the client lacks", "kafka plain where TLS is spoken"),
    *("kafka TLS where it is not spoken", "kafka no SASL where it is asked for", "kafka authority's file missing"),
    *("redis password", "redis certificate expired", "redis certificate of another name", "redis authority unknown"),
    *("redis plain where TLS is spoken", "redis TLS where it is not spoken", "redis permission"),
)


def ask_redis(settings: Settings) -> None:
    short = settings.redis.model_copy(update={"timeout_s": 1.0})
    with closing(RedisStore(settings.model_copy(update={"redis": short}))) as store:
        store.load(0, ["x"])


@pytest.mark.parametrize("name", NAMES)
def test_who_is_refused_at_the_door_is_told_why_and_what_to_do(doors, monkeypatch, name):
    monkeypatch.setattr(client, "REQUEST_TIMEOUT_MS", 1_500)  # each attempt meets the same refusal
    monkeypatch.setattr(client.refusals, "heard", (0.0, "", ""))
    doors.know(["somebody"])
    doors.redis_user("somebody", "~nothing")
    assert set(NAMES) == set(refusals(doors))
    settings, told = refusals(doors)[name]
    asked = load(environment={f"DRIFTLINE_{key}": value for key, value in settings.items()})
    ask = partial(check_topics, asked) if name.startswith("kafka") else partial(ask_redis, asked)
    with pytest.raises(DriftlineError) as caught:
        ask()
    said = str(caught.value)
    assert told in said
    assert "\n" not in said
    for secret in SECRETS:
        assert secret not in said + repr(caught.value.__cause__)


def test_a_client_with_a_certificate_comes_in_by_it_alone(doors, site):
    doors.grant("worker", privileges.commands(site.settings)["topics check"])
    with through(site, by_certificate(doors, doors.client)):
        assert [one.faults for one in check_topics(site.settings)] == [()] * 6


# Secrets


def test_no_secret_stands_in_a_log_a_page_a_report_or_a_repr(doors, site):
    as_worker = worker_user(doors, site)
    user = as_worker[0]["KAFKA__SASL_USERNAME"]
    port = free_port()
    told: list[str] = []
    with through(site, *as_worker, LOG__LEVEL="DEBUG", HTTP__PORT=str(port)):
        worker = site.command("run")
        site.feed(0.3)
        worker.wait_for(lambda: get(port, "/readyz")[0] == 200, "ready")
        told += [get(port, path)[1] for path in ("/metrics", "/readyz", "/livez", "/config")]
        report = site.command("doctor", "--json")
        report.end()
        doors.terminators["good"].cut()
        doors.redis_user(user, "~nothing")
        site.feed(0.4)
        assert worker.end() == 1
        settings = site.settings
        told += [
            repr(settings),
            str(settings),
            settings.model_dump_json(),
            repr(settings.redis),
            settings.shown_redis_url,
        ]
        told += [settings.config_text.decode(), repr(RedisStore(settings)), repr(vars(RedisStore(settings)))]
        refused = [site.command("run")]
        site.set(KAFKA__SASL_PASSWORD="falsch-4711")
        refused.append(site.command("topics", "check"))
        site.set(REDIS__URL=site.environment["DRIFTLINE_REDIS__URL"].replace(REDIS_PASSWORD, "falsch-4711"))
        refused.append(site.command("run"))
        assert [one.end() for one in refused] == [1, 1, 1]
    told += [one.errors + one.output.decode() for one in (worker, *refused, report)]
    assert "driftline_" in told[0]
    assert "DRIFTLINE_KAFKA__SASL_PASSWORD=***" in told[-1]
    for text in told:
        for secret in SECRETS:
            assert secret not in text


# Endpoints


def test_a_worker_listens_on_127_0_0_1_alone_unless_it_is_told_otherwise():
    assert Settings().http.host == "127.0.0.1"
    for host, everywhere in ((Settings().http.host, False), ("0.0.0.0", True)):
        server = HttpServer(Http(host=host, port=0), CollectorRegistry(), lambda: None, lambda: None)
        try:
            for address in ("127.0.0.1", "127.0.0.2"):
                with socket.socket() as asking:
                    refused = asking.connect_ex((address, server.port))
                assert bool(refused) == (address != "127.0.0.1" and not everywhere)
        finally:
            server.close()
