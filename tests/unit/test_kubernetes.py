"""The manifests under deploy/kubernetes/ keep to the published schemas, and to what the program is and does."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from benchmarks import capacity
from stream import cli, worker
from stream.backends.http import HttpServer
from stream.cli.run import stalled_after_s
from stream.processing.customer import ROW
from stream.settings import Http, Settings, load, parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OLDEST = "1.31"
"""The oldest release that the README promises."""
VERSIONS = [OLDEST, kubernetes_validate.latest_version()]
UNPUBLISHED = {"Kustomization", "ScaledObject"}
"""Kinds whose schemas no package carries; the README says how they are checked."""


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


FILES = {path.name: documents(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.yaml"))}
MANIFESTS = [document for found in FILES.values() for document in found]
BLOCKS = [
    yaml.safe_load(text)
    for text in re.findall(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text("utf-8"), re.DOTALL)
]


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (one for one in [*MANIFESTS, *BLOCKS] if one.get("kind") == kind)
    return found


KUSTOMIZATION, STATEFUL_SET, JOB = manifest("Kustomization"), manifest("StatefulSet"), manifest("Job")
SERVICE, SCALED_OBJECT, SECRET = manifest("Service"), manifest("ScaledObject"), manifest("Secret")
PODS = {"workers": STATEFUL_SET["spec"]["template"], "topics": JOB["spec"]["template"]}
CONTAINERS = {
    container["name"]: (pod["spec"], container)
    for pod in PODS.values()
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
}
WORKER = CONTAINERS["worker"][1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
IMAGE = dict(re.findall(r"(DRIFTLINE_\w+)=(\S+)", DOCKERFILE))


def environment(name: str) -> dict[str, str]:
    """What a container finds set: by the image, by its Secret, by its own `env`, where a field is the pod's name."""
    container = CONTAINERS[name][1]
    assert [source["secretRef"]["name"] for source in container["envFrom"]] == [SECRET["metadata"]["name"]]
    own = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container.get("env", [])}
    return IMAGE | SECRET["stringData"] | {name: {"metadata.name": "driftline-0"}[path] for name, path in own.items()}


def settings(name: str = "worker") -> Settings:
    return load(FOLDER / "driftline.toml", environment(name))


def partitions() -> int:
    arguments = cli.parser().parse_args(CONTAINERS["create"][1]["args"])
    count: int = arguments.partitions
    return count


# Schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name, found in FILES.items() if found[0]["kind"] not in UNPUBLISHED])
def test_a_manifest_keeps_to_the_published_schema(name: str, version: str) -> None:
    for document in FILES[name]:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_does_not_keep_to_it() -> None:
    wrong = copy.deepcopy(STATEFUL_SET)
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_scaling_behaves_as_a_horizontal_pod_autoscaler_can(version: str) -> None:
    scaling = SCALED_OBJECT["spec"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": SCALED_OBJECT["metadata"],
        "spec": {
            "scaleTargetRef": scaling["scaleTargetRef"],
            "minReplicas": scaling["minReplicaCount"],
            "maxReplicas": scaling["maxReplicaCount"],
            "behavior": scaling["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    kubernetes_validate.validate(autoscaler, version, strict=True)


# What is applied together


def test_the_kustomization_lists_every_file_but_the_example_and_what_needs_keda() -> None:
    text = (FOLDER / "kustomization.yaml").read_text("utf-8")
    assert set(KUSTOMIZATION["resources"]) == set(FILES) - {
        "kustomization.yaml",
        "secret.example.yaml",
        "scaledobject.yaml",
    }
    assert "\n  # - scaledobject.yaml\n" in text
    assert KUSTOMIZATION["configMapGenerator"] == [{"name": "driftline", "files": ["driftline.toml"]}]


def test_the_namespace_is_the_one_that_all_are_put_into() -> None:
    names = {manifest("Namespace")["metadata"]["name"], KUSTOMIZATION["namespace"], SECRET["metadata"]["namespace"]}
    assert names == {"driftline"}


def test_every_image_is_this_release() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert {container["image"] for _, container in CONTAINERS.values()} == {image["name"]}
    assert image["newTag"] == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_selectors_select_workers_and_nothing_else() -> None:
    selectors = [
        STATEFUL_SET["spec"]["selector"]["matchLabels"],
        SERVICE["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in PODS["workers"]["spec"]["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        chosen = [name for name, pod in PODS.items() if selector.items() <= pod["metadata"]["labels"].items()]
        assert chosen == ["workers"]
    assert STATEFUL_SET["spec"]["serviceName"] == SERVICE["metadata"]["name"]


# The program


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_runs_a_command_of_the_program_on_the_mounted_settings(name: str) -> None:
    pod, container = CONTAINERS[name]
    arguments = cli.parser().parse_args(container["args"])
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert arguments.command in cli.COMMANDS
    assert arguments.config == Path(mount["mountPath"]) / "driftline.toml"
    assert (mount["name"], volume["configMap"]["name"]) == (
        volume["name"],
        KUSTOMIZATION["configMapGenerator"][0]["name"],
    )


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_containers_settings_load(name: str) -> None:
    assert all("__" in key for key in environment(name) if key.startswith("DRIFTLINE_"))
    assert "CHANGE-ME" in settings(name).redis.url.get_secret_value()


def test_a_worker_is_named_after_its_pod() -> None:
    assert settings().application.instance == "driftline-0"


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_the_images_user_and_can_do_nothing_more(name: str) -> None:
    pod, container = CONTAINERS[name]
    user = re.search(r'"--uid", "(\d+)"', DOCKERFILE)
    assert user is not None
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]


def test_the_port_is_the_one_that_the_program_serves_to_others() -> None:
    (port,) = WORKER["ports"]
    (served,) = SERVICE["spec"]["ports"]
    assert settings().http == Http(host="0.0.0.0", port=port["containerPort"])
    assert (served["port"], served["targetPort"]) == (Settings().http.port, port["name"])


def test_probes_ask_for_paths_that_are_answered() -> None:
    server = HttpServer(Http(port=0), CollectorRegistry(), lambda: None, lambda: None)
    try:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = WORKER[probe]["httpGet"]
            assert asked["port"] == WORKER["ports"][0]["name"]
            with urlopen(f"http://127.0.0.1:{server.port}{asked['path']}", timeout=5) as answer:
                assert answer.read() == b"ok\n"
    finally:
        server.close()
    assert WORKER["readinessProbe"]["httpGet"]["path"] == "/readyz"


# Numbers


def longest_turn_s(ours: Settings) -> float:
    """A tick's commit, its abort and a version's commit without an answer; a step of recovery, a call to Redis."""
    return 3 * ours.kafka.commit_timeout_s + worker.RECOVERY_TURN_S + ours.redis.timeout_s


def test_a_pod_is_given_the_time_of_the_longest_turn_to_end() -> None:
    assert PODS["workers"]["spec"]["terminationGracePeriodSeconds"] >= longest_turn_s(settings())


@pytest.mark.parametrize(("commit_s", "redis_s"), [(2, 0.1), (20, 5), (40, 60)])
def test_the_longest_turn_does_not_look_dead_whatever_the_time_outs(commit_s: float, redis_s: float) -> None:
    ours = parse({"kafka": {"commit_timeout_s": commit_s}, "redis": {"timeout_s": redis_s}})
    assert stalled_after_s(ours) > longest_turn_s(ours)


def test_one_lost_answer_of_the_probe_kills_no_worker() -> None:
    assert WORKER["livenessProbe"]["failureThreshold"] > 1


def test_a_rollout_waits_until_the_group_has_noticed() -> None:
    assert STATEFUL_SET["spec"]["minReadySeconds"] > settings().kafka.session_timeout_s


def test_the_last_worker_left_has_memory_for_all_tasks() -> None:
    (size,) = re.findall(r"^(\d+)Mi$", WORKER["resources"]["limits"]["memory"])
    tasks = partitions()
    assert ROW.itemsize < capacity.ROW_BYTES < ROW.itemsize + 200  # its place in the index
    assert int(size) * 2**20 >= capacity.worker_bytes(tasks * settings().customers.cache_rows, tasks)
    assert WORKER["resources"]["requests"]["memory"] == WORKER["resources"]["limits"]["memory"]


# Scaling


def test_keda_scales_the_workers_between_two_and_the_number_of_partitions() -> None:
    scaling = SCALED_OBJECT["spec"]
    target = {key: STATEFUL_SET[key] for key in ("apiVersion", "kind")} | {"name": STATEFUL_SET["metadata"]["name"]}
    assert scaling["scaleTargetRef"] == target
    assert 2 <= scaling["minReplicaCount"] <= scaling["maxReplicaCount"] <= partitions()
    assert "replicas" not in STATEFUL_SET["spec"]


def test_keda_asks_for_the_lag_of_both_input_topics_where_the_workers_read_and_commit() -> None:
    ours = settings()
    lags = [trigger["metadata"] for trigger in SCALED_OBJECT["spec"]["triggers"] if trigger["type"] == "kafka"]
    assert tuple(lag["topic"] for lag in lags) == ours.inputs
    for lag in lags:
        assert lag["bootstrapServers"] == ours.kafka.bootstrap_servers
        assert lag["consumerGroup"] == ours.application.name
        assert lag["offsetResetPolicy"] == ours.kafka.start_at


def test_keda_asks_for_the_cpu_time_of_a_container_that_requests_some() -> None:
    (cpu,) = (trigger for trigger in SCALED_OBJECT["spec"]["triggers"] if trigger["type"] == "cpu")
    assert cpu["metadata"]["containerName"] == WORKER["name"]
    assert WORKER["resources"]["requests"]["cpu"]


# The README's blocks


def test_the_password_that_keda_is_given_is_the_workers() -> None:
    (reference,) = re.findall(r"authenticationRef: \{name: (\w+)\}", (FOLDER / "README.md").read_text("utf-8"))
    authentication = manifest("TriggerAuthentication")
    given = authentication["spec"]["secretTargetRef"]
    found = load(environment={one["key"]: one["parameter"] for one in given}).kafka
    assert authentication["metadata"] == {"name": reference, "namespace": KUSTOMIZATION["namespace"]}
    assert {one["name"] for one in given} == {SECRET["metadata"]["name"]}
    assert found.sasl_password is not None
    assert (found.sasl_username, found.sasl_password.get_secret_value()) == ("username", "password")


def test_prometheus_finds_the_service_under_the_job_that_the_rules_name() -> None:
    (scrape,) = (block["scrape_configs"] for block in BLOCKS if "scrape_configs" in block)
    (job,) = scrape
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text("utf-8")
    (port,) = SERVICE["spec"]["ports"]
    place = f"{SERVICE['metadata']['name']}.{KUSTOMIZATION['namespace']}.svc.cluster.local"
    assert set(re.findall(r'job="(\w+)"', rules)) == {job["job_name"]}
    assert job["dns_sd_configs"] == [{"names": [f"_{port['name']}._tcp.{place}"]}]


def test_the_readme_promises_the_oldest_release_that_is_tested() -> None:
    assert set(re.findall(r"Kubernetes (\d+\.\d+)", (FOLDER / "README.md").read_text("utf-8"))) == {OLDEST}
