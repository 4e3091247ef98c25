"""The worker on a real Kafka and a real Redis, through every failure of docs/delivery.md: nothing lost, nothing twice.

Each test ends with the oracle, which looks from outside and knows what must come of the shop's records.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from uuid import uuid4

import orjson
import pytest
import redis
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from stream.backends.kafka import KafkaTopic, create_topics
from stream.settings import Settings, load
from tests.integration import oracle
from tests.integration.oracle import Seen
from tests.integration.shop import Counts, Shop

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
SESSION_S = 6.0
WAIT_S = 60.0
PUBLISHED = '"published a model version"'
REDIS_MISSED = '"recovering: Redis at'
SMALL = {
    "KAFKA__SESSION_TIMEOUT_S": str(SESSION_S),
    "REDIS__TIMEOUT_S": "1",
    "TICK__MAX_EVENTS": "50",
    "TICK__MAX_SPAN_HOURS": "12",
    "TICK__IDLE_AFTER_S": "0.5",
    "ALERTS__ANOMALY_ONE_IN": "20",
    "ALERTS__ANOMALY_MIN_EVENTS": "5",
    "ALERTS__ANOMALY_COOLDOWN_HOURS": "24",
    "ALERTS__SEGMENT_MIN_ORDERS": "2",
    "ALERTS__SEGMENT_DWELL_DAYS": "0",
    "ALERTS__SEGMENT_MARGIN": "0.05",
    "ALERTS__CHURN_ENTER": "0.5",
    "MODELS__HORIZON_DAYS": "1",
    "MODELS__SEGMENTS": "3",
    "MODELS__REFERENCE_EVENTS": "200",
    "MODELS__FIRST_CUSTOMERS": "60",
    "MODELS__MIN_LABELS": "20",
    "MODELS__PUBLISH_MIN_EVENTS": "250",
    "HTTP__PORT": "0",
}
"""Models that are ready within the run, and ticks so small that there are many."""


def until(condition: Callable[[], Any], what: Callable[[], str] | str, wait_s: float = WAIT_S) -> Any:
    """Wait for a condition; returns what it answered."""
    deadline = time.monotonic() + wait_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {wait_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)
    return answer


class Running:
    """A child process with its output in files."""

    def __init__(self, command: list[str], environment: Mapping[str, str], directory: Path, name: str) -> None:
        number = len(list(directory.glob("*.out")))
        self._out, self._err = directory / f"{number}-{name}.out", directory / f"{number}-{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def errors(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def output(self) -> bytes:
        return self._out.read_bytes()

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of progress so far."""
        return [orjson.loads(line) for line in self.output.split(b"\n")[:-1]]

    def said(self, what: str, after: int = 0) -> list[dict[str, Any]]:
        return [line for line in self.lines()[after:] if line["what"] == what]

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], Any], what: str, wait_s: float = WAIT_S) -> Any:
        """Wait for a condition while the process lives."""

        def met() -> Any:
            answer = condition()
            if not answer and not self.alive():
                pytest.fail(f"{what}: ended with {self.process.returncode} before; {self.errors[-3000:]}")
            return answer

        return until(met, lambda: f"{what}; {self.errors[-3000:]}", wait_s)

    def end(self, wait_s: float = WAIT_S) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {wait_s:g} s; {self.errors[-3000:]}")

    def stop(self, wait_s: float = 15.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end(wait_s)

    def kill(self) -> None:
        if self.alive():
            self.process.kill()
        self.process.wait()


class Site:
    """One application with topics, shop and workers of its own."""

    def __init__(self, bootstrap: str, redis_url: str, directory: Path) -> None:
        self.name = f"t{uuid4().hex[:8]}"
        self.bootstrap, self.directory = bootstrap, directory
        self.environment = {
            f"DRIFTLINE_{key}": value
            for key, value in (
                SMALL
                | {
                    "APPLICATION__NAME": self.name,
                    "APPLICATION__INSTANCE": "w1",
                    "KAFKA__BOOTSTRAP_SERVERS": bootstrap,
                    "REDIS__URL": redis_url,
                    "TOPICS__CLICKSTREAM": f"{self.name}.clicks",
                    "TOPICS__PURCHASES": f"{self.name}.buys",
                }
            ).items()
        }
        self.redis_url = redis_url
        self.shop = Shop(*self.settings.inputs, partitions=PARTITIONS)
        create_topics(self.settings, PARTITIONS, 1)
        self.running: list[Running] = []
        self.asking = oracle.asking(self.settings)

    @property
    def settings(self) -> Settings:
        return load(environment=self.environment)

    def set(self, **values: str) -> None:
        self.environment |= {f"DRIFTLINE_{key}": value for key, value in values.items()}

    def feed(self, until: float = 1.0) -> None:
        self.shop.feed(self.bootstrap, until)

    def worker(self, instance: str = "w1", *arguments: str) -> Running:
        command = ["tests.integration.worker_process", "--app", self.name, "--instance", instance, *arguments]
        return self._start(command, instance)

    def command(self, *arguments: str) -> Running:
        """`driftline …` in a process of its own."""
        return self._start(["stream", *arguments], arguments[0])

    def ask(self, *arguments: str) -> bytes:
        """The output of a command that must succeed."""
        running = self.command(*arguments)
        assert running.end() == 0, running.errors
        return running.output

    def _start(self, command: list[str], name: str) -> Running:
        running = Running(command, self.environment, self.directory, name)
        self.running.append(running)
        return running

    def committed(self) -> dict[tuple[str, int], int]:
        found = oracle.committed(self.settings, PARTITIONS, self.asking)
        return {place: stamp[0] if stamp else 0 for place, stamp in found.items()}

    def wait_for_the_end(self, worker: Running) -> None:
        """Until every record fed is committed."""
        worker.wait_for(lambda: self.committed() == self.shop.ends(), f"the end of the input {self.shop.ends()}")

    def finish(self, worker: Running) -> Seen:
        """The end of the input, an orderly stop, and the oracle."""
        worker.wait_for(lambda: worker.said("ready"), "ready")
        self.wait_for_the_end(worker)
        assert worker.stop() == 0, worker.errors
        return oracle.check(self.settings, self.shop)

    def expel(self, instance: str) -> None:
        """Remove a worker that has ended from its groups, instead of waiting for its session to time out."""
        member = MemberToRemove(group_instance_id=f"{self.name}-{instance}")
        with KafkaAdminClient(bootstrap_servers=self.bootstrap) as admin:
            for group in (self.name, f"{self.name}.trainer"):
                with suppress(KafkaError):
                    admin.remove_group_members(group, [member])

    def redis(self) -> "redis.Redis[bytes]":
        return redis.Redis.from_url(self.redis_url)

    def seq(self, task: int = 0) -> int:
        """The tick that Redis has come to."""
        with self.redis() as client:
            return int(client.hget(f"{{{self.name}:p{task}}}:m", "seq") or 0)

    def saved(self, task: int = 0) -> dict[bytes, bytes]:
        """A task's keys as they are now, once what is committed has been applied."""
        last = len(oracle.ticks_of(self.settings, task))
        until(lambda: self.seq(task) == last, f"tick {last} applied")
        with self.redis() as client:
            return {key: client.dump(key) for key in client.scan_iter(f"{{{self.name}:p{task}}}:*", count=1_000)}

    def restore(self, saved: Mapping[bytes, bytes], task: int = 0) -> None:
        """What a failover to a replica that lagged behind does to a task."""
        with self.redis() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.delete(*client.scan_iter(f"{{{self.name}:p{task}}}:*", count=1_000))
            for key, value in saved.items():
                pipeline.restore(key, 0, value)
            pipeline.execute()


@pytest.fixture
def site(kafka_bootstrap: str, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(kafka_bootstrap, redis_url, tmp_path)
    yield site
    site.asking.close()
    for running in site.running:
        running.kill()


def kinds(seen: Seen) -> set[str]:
    return {orjson.loads(value)["data"]["kind"] for _, value in seen.alerts}


# A clean run


def test_a_clean_run_counts_every_customer_exactly_and_sets_every_unusable_record_aside(site):
    site.feed()
    seen = site.finish(site.worker())
    assert len(seen.models) >= 3, "no models were published: the run shows too little"
    assert "anomaly" in kinds(seen), kinds(seen)  # which others come hangs on where ticks end, that is on the machine
    assert max(one.entry.model_version for ticks in seen.ticks.values() for one in ticks) >= 2


def test_the_oracle_sees_what_is_tampered_with(site):
    site.feed()
    seen = site.finish(site.worker())
    counts, bad = site.shop.counts, site.shop.bad

    def refuted(check: Callable[..., None], changed: Seen, *expected: Any) -> str:
        with pytest.raises(AssertionError) as raised:
            check(changed, *expected)
        return str(raised.value)

    def with_tick(place: int, entry: Any) -> Seen:
        ticks = [*seen.ticks[0]]
        ticks[place] = ticks[place]._replace(entry=entry, data=oracle.encode(entry))
        return seen._replace(ticks={**seen.ticks, 0: ticks})

    last = seen.ticks[0][-1].entry
    topic = site.settings.topics.clickstream
    cut = {**seen.ticks, 0: seen.ticks[0][:3] + seen.ticks[0][4:]}
    assert "a tick lacks" in refuted(oracle.check_the_journal_tiles_the_input, seen._replace(ticks=cut))
    early = {**last.offsets_before, topic: last.offsets_before[topic] - 1}
    assert "a gap or an overlap" in refuted(
        oracle.check_the_journal_tiles_the_input, with_tick(-1, last._replace(offsets_before=early))
    )
    assert "not read to the end" in refuted(
        oracle.check_the_journal_tiles_the_input, seen._replace(ticks={**seen.ticks, 0: seen.ticks[0][:-1]})
    )
    place, entry = next((i, one.entry) for i, one in enumerate(seen.ticks[0]) if one.entry.alerts)
    assert "another journal record" in refuted(
        oracle.check_ticks_run_again_give_the_same_bytes, with_tick(place, entry._replace(alerts=entry.alerts[1:]))
    )
    rows = entry.rows.copy()
    rows["views"][0] += 1
    assert "another journal record" in refuted(
        oracle.check_ticks_run_again_give_the_same_bytes, with_tick(place, entry._replace(rows=rows))
    )
    assert "not those of the journal" in refuted(
        oracle.check_alerts_are_those_of_the_journal, seen._replace(alerts=seen.alerts[1:])
    )
    assert "not those of the journal" in refuted(
        oracle.check_alerts_are_those_of_the_journal, seen._replace(alerts=[*seen.alerts, seen.alerts[0]])
    )
    assert "more than once" in refuted(
        oracle.check_versions_learned_each_record_once, seen._replace(models=[*seen.models, *seen.models])
    )
    shorter = {task: ticks[1:] for task, ticks in seen.ticks.items()}
    assert "events and labels" in refuted(oracle.check_versions_learned_each_record_once, seen._replace(ticks=shorter))
    customer, row = next(iter(seen.rows[0].items()))
    other = {**seen.rows, 0: {**seen.rows[0], customer: row[:-1] + bytes([row[-1] ^ 1])}}
    assert "other rows" in refuted(oracle.check_redis_is_the_journal_folded, seen._replace(rows=other))
    fewer = {**seen.rows, 0: {name: row for name, row in seen.rows[0].items() if name != customer}}
    assert "other customers" in refuted(oracle.check_redis_is_the_journal_folded, seen._replace(rows=fewer))
    dues = {**seen.dues, 0: {**seen.dues[0], customer: 1}}
    assert "other due times" in refuted(oracle.check_redis_is_the_journal_folded, seen._replace(dues=dues))
    assert "the marker" in refuted(
        oracle.check_redis_is_the_journal_folded,
        seen._replace(markers={**seen.markers, 0: {**seen.markers[0], "seq": 1}}),
    )
    assert "dead letters" in refuted(oracle.check_dead_letters, seen._replace(letters=seen.letters[1:]), bad)
    assert "dead letters" in refuted(
        oracle.check_dead_letters, seen._replace(letters=[*seen.letters, seen.letters[0]]), bad
    )
    assert "dead letters" in refuted(
        oracle.check_dead_letters, seen, [bad[0]._replace(headers=(("a", b"b"),)), *bad[1:]]
    )
    assert customer in refuted(
        oracle.check_customers, seen, counts | {customer: counts[customer]._replace(spend_minor=-1)}
    )
    nowhere = {**seen.committed, (topic, 0): (1, seen.committed[topic, 0][1])}
    assert "committed 1 of" in refuted(oracle.check_the_group_is_at_the_end, seen._replace(committed=nowhere))
    oracle.check_all(seen, counts, bad)


# A worker dies


@pytest.mark.parametrize("step", ["before-commit", "in-transaction", "before-apply", "mid-apply"])
def test_a_worker_killed_at_any_point_goes_on_exactly_when_restarted(site, step):
    site.feed()
    killed = site.worker("w1", "--kill-at", f"{step}:12")
    assert killed.end() == -signal.SIGKILL, killed.errors
    assert killed.said("tick"), "it was to die in the middle"
    seen = site.finish(site.worker("w1"))
    assert seen.alerts


def test_a_worker_killed_again_and_again_goes_on_exactly(site):
    site.feed()
    for step in ("mid-apply", "in-transaction", "before-apply"):
        killed = site.worker("w1", "--kill-at", f"{step}:3")
        assert killed.end() == -signal.SIGKILL, killed.errors
    site.finish(site.worker("w1"))


def test_sigterm_ends_a_worker_with_0_within_seconds_and_a_restart_goes_on_exactly(site):
    site.feed()
    worker = site.worker()
    worker.wait_for(lambda: len(worker.said("tick")) > 10, "some ticks")
    began = time.monotonic()
    assert worker.stop() == 0, worker.errors
    assert time.monotonic() - began < 5
    assert site.committed() != site.shop.ends(), "it was to stop in the middle"
    site.finish(site.worker())


# Redis fails


def test_a_redis_emptied_while_the_worker_is_down_is_rebuilt_from_the_journal(site):
    site.feed(0.6)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with site.redis() as client:
        client.flushall()
    site.feed()
    site.finish(site.worker())


def test_a_redis_emptied_twice_while_the_worker_runs_is_rebuilt_from_the_journal(site):
    site.feed(0.2)
    worker = site.worker()
    site.wait_for_the_end(worker)
    for share in (0.3, 0.5):
        with site.redis() as client:
            client.flushall()
        site.feed(share)
        site.wait_for_the_end(worker)
    site.feed()
    site.finish(worker)


def test_a_redis_killed_for_seconds_holds_the_worker_up_and_loses_nothing(site, redis_server):
    site.feed(0.4)
    worker = site.worker()
    worker.wait_for(lambda: len(worker.said("tick")) > 10, "some ticks")
    for share in (0.7, 1.0):
        redis_server.kill()
        site.feed(share)
        before = worker.errors.count(REDIS_MISSED)
        worker.wait_for(lambda before=before: worker.errors.count(REDIS_MISSED) > before, "Redis missed")
        ticks = len(worker.said("tick"))
        redis_server.start()
        worker.wait_for(lambda ticks=ticks: len(worker.said("tick")) > ticks, "ticks after the outage")
    site.finish(worker)


def test_a_redis_that_does_not_answer_while_it_is_rebuilt_is_rebuilt_in_the_end(site, redis_server):
    site.feed(0.6)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    with site.redis() as client:
        client.flushall()
    worker = site.worker()
    worker.wait_for(lambda: any(site.seq(task) > 0 for task in range(PARTITIONS)), "the rebuilding begun", 30)
    redis_server.kill()
    worker.wait_for(lambda: REDIS_MISSED in worker.errors, "Redis missed")
    redis_server.start()
    site.feed()
    site.finish(worker)


def test_a_redis_rolled_back_is_brought_level_from_the_journal(site):
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    saved, before = site.saved(), site.seq()
    site.feed(0.6)
    site.wait_for_the_end(worker)
    until(lambda: site.seq() > before, "ticks to lose")
    site.restore(saved)
    assert site.seq() == before
    site.feed()
    site.finish(worker)
    assert "this worker at" in worker.errors, "the worker was to notice"


def test_a_redis_rolled_back_to_where_it_was_last_brought_level_is_brought_level_again(site):
    site.feed(0.2)
    worker = site.worker()
    site.wait_for_the_end(worker)
    kept = [site.saved()]
    site.feed(0.3)
    site.wait_for_the_end(worker)
    kept.append(site.saved())
    for saved, share in zip(kept, (0.4, 0.5), strict=True):
        site.restore(saved)
        site.feed(share)
        site.wait_for_the_end(worker)
    site.finish(worker)


# Several workers


def test_a_stopped_workers_tasks_go_to_the_other_one_and_a_joining_one_takes_its_share(site):
    site.feed(0.3)
    first, second = site.worker("a"), site.worker("b")
    for worker in (first, second):
        worker.wait_for(lambda worker=worker: any(line["tasks"] for line in worker.said("ready")), "tasks")
    site.wait_for_the_end(first)
    both = first.said("ready")[-1]["tasks"] + second.said("ready")[-1]["tasks"]
    assert sorted(both) == [0, 1, 2]
    site.feed(0.5)
    assert first.stop() == 0, first.errors
    second.wait_for(lambda: second.said("ready")[-1]["tasks"] == [0, 1, 2], "all tasks")
    site.feed(0.7)
    site.wait_for_the_end(second)
    third = site.worker("c")
    third.wait_for(lambda: any(line["tasks"] for line in third.said("ready")), "tasks")
    site.feed()
    site.wait_for_the_end(third)
    assert third.said("tick"), "the joining worker was to take its share"
    assert third.stop() == 0, third.errors
    site.finish(second)


def test_a_frozen_worker_whose_tasks_another_took_over_commits_nothing_when_it_thaws(site):
    site.feed()
    frozen = site.worker("a", "--freeze-at", "before-commit:5:0.1")
    frozen.wait_for(lambda: frozen.said("frozen"), "frozen", 30)
    frozen.process.send_signal(signal.SIGSTOP)
    ticks = len(frozen.said("tick"))
    other = site.worker("b")
    other.wait_for(lambda: len(other.said("tick")) > 10, "the other at work")
    frozen.process.send_signal(signal.SIGCONT)
    frozen.wait_for(lambda: frozen.said("recovering", ticks), "the loss noticed", 30)
    assert frozen.alive(), frozen.errors
    site.wait_for_the_end(other)
    assert frozen.stop() == 0, frozen.errors
    site.finish(other)


def test_a_trainer_frozen_while_another_publishes_goes_on_from_the_newest_version(site):
    site.feed(0.5)
    first = site.worker("a")
    first.wait_for(lambda: PUBLISHED in first.errors, "a version")
    site.wait_for_the_end(first)
    first.process.send_signal(signal.SIGSTOP)
    second = site.worker("b")
    site.feed(0.75)
    second.wait_for(lambda: PUBLISHED in second.errors, "a version of the other")
    first.process.send_signal(signal.SIGCONT)
    site.wait_for_the_end(second)
    assert second.stop() == 0, second.errors
    site.expel("b")
    own = first.errors.count(PUBLISHED)
    site.feed()
    first.wait_for(lambda: first.errors.count(PUBLISHED) > own, "the trainer back at work")
    site.finish(first)


def test_a_worker_slower_than_the_longest_poll_interval_does_not_commit_what_it_had_begun(site):
    site.feed()
    worker = site.worker("w1", "--freeze-at", "before-commit:9:10", "--max-poll-s", "7")
    worker.wait_for(lambda: worker.said("thawed"), "thawed")
    site.finish(worker)
    lost = [line for line in worker.errors.splitlines() if '"reason":"stale"' in line]
    assert lost, "the tick was to be refused"


# What an operator sees


def offsets_set(site: Site, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
    """Change the group's offsets, as soon as its last member is gone."""

    def accepted() -> bool:
        with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin, suppress(KafkaError):
            answers = admin.alter_group_offsets(site.name, offsets)
            return "NoError" in str(answers)
        return False

    site.expel("w1")
    until(accepted, "the group to be empty", 30)


@pytest.mark.parametrize("stamped", [True, False], ids=["stamp kept", "stamp gone"])
def test_a_worker_refuses_offsets_that_an_operator_has_reset(site, stamped):
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    before = oracle.committed(site.settings, PARTITIONS, site.asking)
    # The operators' tools write offsets without metadata.
    offsets_set(
        site,
        {
            TopicPartition(*place): OffsetAndMetadata(max(offset - 20, 0), metadata if stamped else "", -1)
            for place, (offset, metadata) in before.items()
        },
    )
    refused = site.worker()
    assert refused.end() == 1, refused.errors
    assert "StoreAhead" in refused.errors
    assert "offsets" in refused.errors
    offsets_set(site, {TopicPartition(*place): OffsetAndMetadata(*stamp, -1) for place, stamp in before.items()})
    site.feed()
    site.finish(site.worker())


def test_a_worker_whose_offsets_have_expired_goes_on_from_its_store(site):
    site.feed(0.3)
    worker = site.worker()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0, worker.errors
    site.expel("w1")

    def gone() -> bool:
        places = [TopicPartition(*place) for place in site.committed()]
        with KafkaAdminClient(bootstrap_servers=site.bootstrap) as admin, suppress(KafkaError):
            admin.delete_group_offsets(site.name, places)
        return not any(site.committed().values())

    until(gone, "the offsets to be gone", 30)
    site.feed()
    site.finish(site.worker())


def send(site: Site, topic: str, values: list[tuple[int, bytes, bytes]]) -> None:
    """(partition, key, value) of each record."""
    producer = KafkaProducer(bootstrap_servers=site.bootstrap, linger_ms=20)
    try:
        for partition, key, value in values:
            producer.send(topic, value, key, partition=partition)
        producer.flush()
    finally:
        producer.close()


def test_too_many_dead_letters_stop_the_worker_and_name_the_setting(site):
    site.set(DEAD_LETTERS__WINDOW="50")
    send(site, site.settings.topics.clickstream, [(i % PARTITIONS, b"k", b"{broken") for i in range(90)])
    run = site.command("run")
    assert run.end() == 1, run.errors
    assert "dead_letters.max_share" in run.errors.splitlines()[-1], run.errors


def test_a_wrong_partitioner_stops_the_worker_and_is_named(site):
    site.set(KAFKA__PARTITIONER="crc32", TICK__MAX_EVENTS="500")
    customers = [f"m-{i}" for i in range(1_800)]
    bodies = [orjson.dumps({"event": "Product Viewed", "messageId": name, "userId": name}) for name in customers]
    places = [site.shop.place(name) for name in customers]
    rows = [(p, name.encode(), body) for p, name, body in zip(places, customers, bodies, strict=True)]
    send(site, site.settings.topics.clickstream, rows)
    run = site.command("run")
    assert run.end() == 1, run.errors
    assert "kafka.partitioner" in run.errors.splitlines()[-1], run.errors


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except URLError:
        return 0, ""


def test_the_commands_show_a_running_worker_its_customers_and_its_alerts(site):
    site.feed()
    run = site.command("run")
    line = run.wait_for(lambda: [one for one in run.errors.splitlines() if '"http_port"' in one], "the port")
    port = orjson.loads(line[0])["http_port"]
    run.wait_for(lambda: get(port, "/readyz")[0] == 200, "readiness")
    assert get(port, "/livez")[0] == 200
    site.wait_for_the_end(run)
    events = sum(one.events for one in site.shop.counts.values())

    def counted() -> float:
        lines = get(port, "/metrics")[1].splitlines()
        return sum(float(one.split()[-1]) for one in lines if one.startswith("driftline_events_total{"))

    run.wait_for(lambda: counted() == events, f"{events} events in the metrics")
    assert run.stop() == 0, run.errors
    seen = oracle.check(site.settings, site.shop)

    customer = next(name for name, one in site.shop.counts.items() if one.orders > 2)
    known = orjson.loads(site.ask("customer", customer, "--json"))
    assert {"customer_id", "events", "orders", "spend_minor", "first_seen", "last_seen", "due"} <= set(known)
    assert (known["customer_id"], set(known["churn"]) >= {"probability", "horizon_days"}) == (customer, True)
    assert "rate" in known["anomaly"]
    assert known["segment"] is None or {"id", "name"} <= set(known["segment"])
    assert Counts(known["events"], known["orders"], known["spend_minor"]) == site.shop.counts[customer]

    printed = site.ask("alerts", "--from-beginning", "--until-end").splitlines()
    assert sorted(printed) == sorted(value for _, value in seen.alerts)
    assert printed


# What the guarantees rest on


def test_a_topic_read_again_from_the_same_offset_answers_the_same_records(site):
    site.feed(0.2)
    topic = KafkaTopic(site.settings, site.settings.topics.clickstream)
    try:
        first = [one.offset for one in topic.read(0, 0, 10)]
        assert [one.offset for one in topic.read(0, 0, 10)] == first
        assert [one.offset for one in topic.read(0, 10, 10)] == list(range(10, 20))
        assert [one.offset for one in topic.read(0, 10, 10)] == list(range(10, 20))
    finally:
        topic.close()
