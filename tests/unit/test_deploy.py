"""What lies under deploy/, in docker-compose.yml and in examples/ names things that exist."""

import importlib.util
import json
import re
import sqlite3
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest
import yaml
from pydantic import SecretStr

from deploy.grafana import write
from stream.cli import COMMANDS
from stream.events import Record
from stream.metrics import Metrics
from stream.settings import Settings, load, parse
from tests.servers.kafka import KAFKA_VERSION

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+(-[\w.]+)?")
BUILT_IN = {"job", "instance", "le", "alertname", "alertstate"}
OF_OTHERS = {"up", "ALERTS", "process_start_time_seconds", "process_resident_memory_bytes"}
"""Series that Prometheus itself and its client library make."""


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


SERVICES: dict[str, dict[str, Any]] = read("docker-compose.yml")["services"]
DASHBOARDS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")
}
RULES: list[dict[str, Any]] = [
    rule for group in read("deploy/prometheus/rules.yml")["groups"] for rule in group["rules"]
]
RULE_TESTS = ("rules.test.yml", "rules-days.test.yml")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
EXAMPLE = DEPLOY / "driftline.example.toml"


def queries() -> Iterator[tuple[str, str]]:
    """Where each query stands, and the query."""
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}: {panel['title']}", target["expr"]
        for annotation in dashboard["annotations"]["list"]:
            yield f"{name}: {annotation['name']}", annotation["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def exposed() -> dict[str, set[str]]:
    """The labels of every series that /metrics has, by its whole name."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    labels = {metric._name: set(metric._labelnames) for metric in vars(Metrics()).values() if hasattr(metric, "_name")}
    return {
        family.name + suffix: labels[family.name]
        for family in Metrics().registry.collect()
        for suffix in suffixes[family.type]
    }


def source(name: str) -> ModuleType:
    """A script, imported from its path."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Metrics


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_names_series_and_labels_that_exist(where: str, query: str) -> None:
    series = exposed()
    names = set(re.findall(r"\bdriftline_\w+", query))
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        labels |= {label.strip() for label in group.split(",")}
    assert names <= set(series)
    assert names or any(re.search(rf"\b{name}\b", query) for name in OF_OTHERS)
    assert labels <= set().union(*(series[name] for name in names), BUILT_IN)


def test_every_metric_is_in_a_dashboard() -> None:
    text = " ".join(query for where, query in queries() if ":" in where)
    assert [name for name in exposed() if not re.search(rf"\b{name}\b", text) and not name.endswith("_sum")] == []


@pytest.mark.parametrize("name", write.DASHBOARDS)
def test_a_dashboard_is_what_its_table_says(name: str) -> None:
    written = (DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text("utf-8")
    assert written == write.dashboard(name), "run `python -m deploy.grafana.write`"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_of_their_own_say_what_they_show_and_do_not_overlap(name: str) -> None:
    cells: list[tuple[int, int]] = []
    panels = DASHBOARDS[name]["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells += [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel["description"]] == []


def test_the_first_dashboard_asks_three_questions_and_leads_to_the_other() -> None:
    assert [panel["title"] for panel in DASHBOARDS["driftline"]["panels"] if panel["type"] == "row"] == [
        "Is it keeping up?",
        "Is it right?",
        "What is it telling the CRM?",
    ]
    assert [link["url"] for link in DASHBOARDS["driftline"]["links"]] == ["/d/driftline-models"]
    assert {name: dashboard["uid"] for name, dashboard in DASHBOARDS.items()} == {name: name for name in DASHBOARDS}


def test_grafana_finds_the_datasource_and_the_dashboard() -> None:
    sources = {
        entry["uid"]: entry for entry in read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    }
    panels = [panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
    used = {target["datasource"]["uid"] for panel in panels for target in panel.get("targets", [])}
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    (provider,) = read("deploy/grafana/provisioning/dashboards/driftline.yml")["providers"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert used == set(sources) == {"prometheus"}
    assert sources["prometheus"]["url"] == "http://prometheus:9090"
    assert (ROOT / mounts[provider["options"]["path"]] / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]


def test_prometheus_scrapes_the_worker_under_the_job_that_the_rules_name() -> None:
    config = read("deploy/prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    jobs = {name for rule in RULES for name in re.findall(r'job="(\w+)"', rule["expr"])}
    assert job["static_configs"] == [{"targets": [f"worker:{Settings().http.port}"]}]
    assert jobs == {job["job_name"]}
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])


# Rules


def test_every_rule_has_a_summary_a_description_and_a_heading_of_its_own_in_the_runbook() -> None:
    anchors = [rule["annotations"]["runbook"].removeprefix("docs/runbook.md#") for rule in RULES]
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", anchor) for anchor in anchors)
    assert len(set(anchors)) == len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_runbook_has_a_heading_for_every_rule_and_no_other_but_how_to_look() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    headings = {h.strip().lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", text, re.M)}
    how = {"doctor", "first-look", "follow-one-customer", "follow-one-tick"}
    assert {rule["annotations"]["runbook"].partition("#")[2] for rule in RULES} == headings - how


def test_every_rule_is_shown_to_fire() -> None:
    tests = "".join((DEPLOY / "prometheus" / name).read_text("utf-8") for name in RULE_TESTS)
    assert set(re.findall(r'alertname="(\w+)"', tests)) == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules.yml"), ("test", "rules", *RULE_TESTS)], ids=lambda words: words[0]
)
def test_promtool_agrees(arguments: tuple[str, ...], promtool: str) -> None:
    run = subprocess.run([promtool, *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# Compose and image


def test_every_image_is_pinned_to_a_version() -> None:
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    images = {service["image"] for service in SERVICES.values()} - built
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M))
    images |= set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) - stages
    assert [image for image in images if not PINNED.fullmatch(image)] == []
    assert all(image.endswith(":local") for image in built)


def test_the_broker_is_the_release_that_the_tests_run_on() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_every_port_is_published_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


@pytest.mark.parametrize("name", SERVICES)
def test_every_driftline_variable_of_a_service_is_a_setting(name: str) -> None:
    environment = SERVICES[name].get("environment", {}) | dict(re.findall(r"(DRIFTLINE_\w+)=(\S+)", DOCKERFILE))
    ours = {key: value for key, value in environment.items() if key.startswith("DRIFTLINE_")}
    assert all("__" in key for key in ours)
    load(environment=ours)


def test_containers_find_each_other() -> None:
    settings = load(environment=SERVICES["worker"]["environment"])
    internal = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")[0]
    assert internal == f"INTERNAL://{settings.kafka.bootstrap_servers}"
    assert settings.redis.url.get_secret_value().startswith("redis://redis:6379/")
    assert f"--topic={settings.topic('alerts')}" in SERVICES["crm"]["command"]
    for name in ("shop", "crm"):
        assert settings.kafka.bootstrap_servers in " ".join(SERVICES[name]["command"])


def test_services_run_commands_that_exist() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M))
    copied = {f"/opt/shop/{Path(name).name}" for name in re.findall(r"\S+\.py(?= )", DOCKERFILE)}
    for service in SERVICES.values():
        if "build" in service:
            target = service["build"]["target"]
            assert target in stages
            assert service["command"][0] in (COMMANDS if target == "worker" else copied)
            assert "healthcheck" in service  # the image's is the worker's


def test_a_service_waits_for_what_can_become_true() -> None:
    for service in SERVICES.values():
        waits = service.get("depends_on", {})
        for other, how in waits.items() if isinstance(waits, dict) else ():
            assert how["condition"] in {"service_healthy", "service_completed_successfully"}
            assert ("test" in SERVICES[other].get("healthcheck", {})) == (how["condition"] == "service_healthy")


def test_redis_keeps_what_it_is_told() -> None:
    assert SERVICES["redis"]["command"][1:] == ["--appendonly", "yes", "--maxmemory-policy", "noeviction"]


def test_what_is_mounted_or_copied_exists_and_reaches_the_build() -> None:
    mounts = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert all((ROOT / mount).is_dir() for mount in mounts if mount.startswith("."))
    copied = [n for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for n in line.split()[:-1]]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert set(copied) == let_in


def test_the_image_runs_as_a_user_without_rights() -> None:
    for stage in DOCKERFILE.split("\nFROM ")[-2:]:
        assert "\nUSER driftline\nENTRYPOINT" in stage


def test_the_image_finds_its_machine_code_where_it_was_built() -> None:
    *building, running = (
        re.findall(r"(NUMBA_\w+)=(\S+)", DOCKERFILE)[:2],
        re.findall(r"(NUMBA_\w+)=(\S+)", DOCKERFILE)[2:],
    )
    assert building == [running]
    assert dict(running)["NUMBA_CACHE_DIR"].startswith("/opt/driftline/")  # what is copied from stage to stage


# Settings


def test_the_example_settings_load() -> None:
    assert load(EXAMPLE, environment={}).application.name == "shop"


def test_the_example_settings_show_every_setting_with_its_default() -> None:
    """All but the SASL password, which has no place in a file."""
    shown = tomllib.loads(re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.M))
    changed = {key for table in tomllib.loads(EXAMPLE.read_text("utf-8")).values() for key in table}
    defaults = Settings()
    spoken = {"kafka": {"security_protocol": "SSL"}, "redis": {"url": "rediss://redis:6379/0"}}
    parse({name: table | spoken.get(name, {}) for name, table in shown.items()})  # files of TLS are shown, and no TLS
    for section in Settings.model_fields:
        keys = type(getattr(defaults, section)).model_fields
        assert list(shown[section]) == [key for key in keys if key != "sasl_password"]
        for key, value in shown[section].items():
            default = getattr(getattr(defaults, section), key)
            if default not in (None, {}) and not isinstance(default, SecretStr) and key not in changed | {"instance"}:
                assert value == default, f"{section}.{key}"


# Scripts


CRM = source("examples/crm.py")
EVENTS = json.loads((DEPLOY / "schemas" / "cloudevent.v1.json").read_text("utf-8"))["examples"]


def crm_database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.execute(CRM.TABLE)
    return db


def test_the_crm_knows_what_to_do_about_every_kind() -> None:
    actions = [CRM.decide(orjson.dumps(event)) for event in EVENTS]
    assert [action.action for action in actions] == ["review", "mail", "mail", "review"]
    assert [action.id for action in actions] == [event["id"] for event in EVENTS]


def test_the_crm_calls_dear_customers() -> None:
    dear = next(event for event in EVENTS if event["type"] == "io.driftline.churn_risk.v1")
    dear = dear | {"data": dear["data"] | {"spend_minor": CRM.DEAR_MINOR}}
    assert CRM.decide(orjson.dumps(dear)).action == "call"


def test_the_crm_acts_once_on_an_alert_delivered_twice() -> None:
    actions = [CRM.decide(orjson.dumps(event)) for event in EVENTS]
    db = crm_database()
    assert CRM.store(db, actions[:2]) == actions[:2]
    assert CRM.store(db, [*actions, *actions]) == actions[2:]
    db.close()


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[]",
        b"{}",
        orjson.dumps(EVENTS[0] | {"type": "io.driftline.came_later.v1"}),
        orjson.dumps(EVENTS[0] | {"type": "io.driftline.anomaly.v2"}),
    ],
)
def test_the_crm_skips_what_it_does_not_know(value: bytes | None) -> None:
    assert CRM.decide(value) is None


def test_the_feed_moves_events_in_time_and_leaves_out_what_is_older() -> None:
    def record(time_ms: int) -> Record:
        body = {"event": "Order Completed", "timestamp": "then", "messageId": str(time_ms)}
        return Record("t", 0, 0, time_ms, b"c-1", orjson.dumps(body))

    moved = source("deploy/shop/feed.py").moved(iter([record(1_000), record(2_000)]), 2_000, 1_488_412_798_000)
    assert [body for _, body in moved] == [
        {"event": "Order Completed", "timestamp": "2017-03-02T00:00:00.000Z", "messageId": "2000"}
    ]
