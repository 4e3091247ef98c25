"""Every rule and every panel, asked of a real Prometheus that scrapes a real worker."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from deploy.local.part import Part
from stream.metrics import Metrics
from tests.integration.site import SESSION_S, Site, until
from tests.servers.server import free_port
from tests.unit.test_deploy import OF_OTHERS, RULES, queries

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
RATE_INTERVAL = "5m"
"""In place of Grafana's variable: the whole run, so that a rate of something that happened is not 0."""
ONLY_AFTER_A_FAILURE = {
    'driftline_last_alert_timestamp_seconds{kind="churn_wave"}': "no feed was lost: no wave was alerted",
}
FIRING = "ALERTS"
"""Made by Prometheus when a rule fires; which do is hidden by nothing here, as one of them is made to."""


class Prometheus(NamedTuple):
    """One server with our rules, asked by its HTTP API."""

    address: str

    def api(self, path: str, **parameters: str) -> Any:
        with urlopen(f"http://{self.address}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant; raises HTTPError where the expression is none."""
        found: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return found

    def total(self, expression: str) -> float:
        return sum(float(sample["value"][1]) for sample in self.query(expression))

    def ready(self) -> bool:
        try:
            with urlopen(f"http://{self.address}/-/ready", timeout=2):
                return True
        except URLError:
            return False


@pytest.fixture
def watching(prometheus: str, tmp_path: Path, site: Site) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the site's worker from before it starts."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "logs").mkdir()
    site.set(HTTP__PORT=str(free_port()))
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 1s}\n"
        f"rule_files: [{json.dumps(str(ROOT / 'deploy' / 'prometheus' / 'rules.yml'))}]\n"
        "scrape_configs: [{job_name: driftline, static_configs: "
        f"[{{targets: ['127.0.0.1:{site.settings.http.port}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    part = Part(tmp_path, "prometheus", [*command, f"--web.listen-address={address}"], {})
    part.start()
    server = Prometheus(address)
    until(server.ready, lambda: "\n".join(part.last_lines(10)))
    yield server
    part.kill()


def selectors(expression: str) -> Sequence[str]:
    """The series an expression asks for, by name and labels."""
    names = "|".join(OF_OTHERS)
    return [match[0] for match in re.finditer(rf"\b(?:driftline_\w+|{names})\b(?:\{{[^}}]*\}})?", expression)]


def readyz(site: Site) -> str:
    """What the worker says to the probe; empty while there is no server."""
    try:
        with urlopen(f"http://127.0.0.1:{site.settings.http.port}/readyz", timeout=5) as answer:
            return answer.read().decode()
    except HTTPError as error:
        return error.read().decode()
    except URLError:
        return ""


def test_every_query_of_rules_and_dashboards_has_data_after_a_run_and_a_rule_fires_where_it_should(site, watching):
    worker = site.command("run")
    until(lambda: watching.total("up") == 1, "the worker scraped")
    site.feed()
    site.wait_for_the_end(worker)
    accepted = sum(count.events for count in site.shop.counts.values())
    until(lambda: watching.total("driftline_events_total") == accepted, "the last scrape")
    until(lambda: watching.total("driftline_model_ready") >= 2, "models", 20)

    for family in Metrics().registry.collect():
        name = family.name + {"counter": "_total", "histogram": "_count"}.get(family.type, "")
        assert watching.query(name), f"{name} has no series"
    asked = {where: query.replace("$__rate_interval", RATE_INTERVAL) for where, query in queries()}
    for where, query in asked.items():
        for selector in selectors(query):
            if selector not in ONLY_AFTER_A_FAILURE and not selector.startswith(FIRING):
                assert watching.query(selector), f"{where}: {selector} has no series"
        samples = watching.query(query)
        if where.startswith("driftline") and not query.startswith(FIRING):
            assert samples, f"{where} shows nothing: {query}"
            assert all(math.isfinite(float(sample["value"][1])) for sample in samples), f"{where}: {samples}"
    for selector in ONLY_AFTER_A_FAILURE:
        assert any(selector in query for query in asked.values()), f"{selector} is asked for by nothing"
        assert not watching.query(selector), f"{selector} has data: it needs no exception"

    # The shop's litter has records in the wrong partition.
    until(lambda: watching.query('ALERTS{alertname="DriftlineMisplacedKeys", alertstate="firing"}'), "misplaced keys")
    (group,) = watching.api("rules")["groups"]
    assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"]} == {r["alert"]: "" for r in RULES}
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    worker.kill()
    until(lambda: watching.query('ALERTS{alertname="DriftlineWorkerDown", alertstate="pending"}'), "a worker down")


def test_an_idle_worker_notices_that_kafka_does_not_answer_and_says_so(site, kafka_server):
    site.set(HTTP__PORT=str(free_port()))
    worker = site.command("run")
    until(lambda: readyz(site) == "ok\n", lambda: worker.errors)
    worker.wait_for(lambda: "trainer takes over" in worker.errors, "the end of its start: only then is it idle")
    kafka_server.pause()
    worker.wait_for(lambda: "Kafka has answered no heartbeat" in worker.errors, "a warning", 3 * SESSION_S)
    assert "Kafka does not answer" in readyz(site)
    kafka_server.resume()
    until(lambda: readyz(site) == "ok\n", lambda: worker.errors)
    assert worker.errors.count("Kafka has answered no heartbeat") == 1
    site.feed()
    site.wait_for_the_end(worker)
    assert worker.stop() == 0


def test_a_worker_whose_start_kafka_leaves_without_an_answer_is_not_ready(site, kafka_server):
    site.set(HTTP__PORT=str(free_port()))
    worker = site.command("run")
    worker.wait_for(lambda: '"message":"recovered","task":2' in worker.errors, "the last task")
    kafka_server.pause()
    # Each call that has no answer takes 10 s; what the probe hears must not wait for them all.
    until(lambda: readyz(site) != "ok\n", lambda: worker.errors, 2 * SESSION_S)
    until(lambda: "Kafka does not answer" in readyz(site), lambda: worker.errors, 6 * SESSION_S)
    kafka_server.resume()
    until(lambda: readyz(site) == "ok\n", lambda: worker.errors)
    assert worker.stop() == 0


def test_a_worker_says_that_it_waits_for_anothers_open_transaction(site):
    site.set(KAFKA__TRANSACTION_TIMEOUT_S="25")  # beyond the time in which the heir starts
    site.feed()
    killed = site.worker("w1", "--kill-at", "in-transaction:5")
    assert killed.end() < 0
    site.expel("w1")
    heir = site.worker("w2")
    heir.wait_for(lambda: '"reason":"open_transaction"' in heir.errors, "the reason it waits for")
    assert "Unknown error fetching offsets" not in heir.errors
    assert "is Kafka running" not in heir.errors
    site.finish(heir)
