"""The chart: what it renders is valid and locked down (attacks D01-D04, D07)."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest

from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.config import SETTINGS, Limits
from tests.packaging.charts import ALL, EXISTING, LEAST, chart, containers, environment, objects, of, pod
from tools.chart_values import CHART

ROOT = Path(__file__).parents[2]
OLDEST, NEWEST = "1.25.0", "1.37.0"
TODAY = 1_795_478_400  # 2026-11-24
VALUES = {"the least": LEAST, "everything": ALL, "an existing ConfigMap": EXISTING}
OBJECTS = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


@OBJECTS
def test_lint_finds_nothing_but_a_missing_icon(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@OBJECTS
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_the_schema_of_kubernetes(values: dict[str, Any], version: str) -> None:
    for found in objects(values):
        kubernetes_validate.validate(found, version, strict=True)


def test_it_is_one_replica_with_one_volume() -> None:
    spec = of("StatefulSet", ALL)[0]["spec"]
    assert spec["replicas"] == 1
    assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == ["data"]
    services = {found["metadata"]["name"]: found["spec"] for found in of("Service", ALL)}
    assert services[spec["serviceName"]]["clusterIP"] == "None"


def test_what_is_set_reaches_the_broker_as_variables_that_it_knows() -> None:
    known = {"BROKER_" + name.upper() for name in (*SETTINGS, *(field.name for field in fields(Limits)))}
    found = environment(ALL)
    assert {name for name in found if name.startswith("BROKER_")} <= known
    assert found["BROKER_URL"] == "https://broker.acme.example"
    assert found["BROKER_WORKERS"] == "2"
    assert found["BROKER_ENVS"] == "prod,dev"
    assert found["BROKER_TRUSTED_PROXIES"] == "10.0.0.0/8,fd00::/8"
    assert found["BROKER_STORE_START_S_MAX"] == "600"
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.observability:4318"


def test_kubernetes_puts_no_variables_of_its_own_beside_them() -> None:
    """A Service called `broker` would make BROKER_PORT=tcp://…"""
    assert pod(LEAST)["enableServiceLinks"] is False


def test_a_digest_wins_over_a_tag() -> None:
    assert pod(ALL)["containers"][0]["image"].endswith("@sha256:" + "0" * 64)
    assert pod(LEAST)["containers"][0]["image"] == "registry.acme.example/broker:" + chart().metadata["appVersion"]


def test_the_version_is_the_brokers() -> None:
    from broker import __version__

    assert chart().metadata["appVersion"] == __version__


# The policies


def test_the_shipped_tree_given_as_values_is_mounted_as_it_was(tmp_path: Path) -> None:
    source = ROOT / "policies"
    files = {str(path.relative_to(source)): path.read_text("utf-8") for path in sorted(source.rglob("*.yaml"))}
    values = LEAST | {"policies": files}
    data = of("ConfigMap", values)[0]["data"]
    volume = next(each for each in pod(values)["volumes"] if each["name"] == "policies")["configMap"]
    for item in volume["items"]:
        (tmp_path / item["path"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / item["path"]).write_text(data[item["key"]], "utf-8")
    trees = [compile_tree(read_tree(folder, Limits()), limits=Limits(), today=TODAY) for folder in (source, tmp_path)]
    assert trees[0].revision == trees[1].revision


def test_braces_in_a_policy_are_text() -> None:
    assert of("ConfigMap", LEAST)[0]["data"]["prod__svc-a.yaml"] == "a: {{ .Values.url }}\n"


@pytest.mark.parametrize(
    "values", [{key: value for key, value in LEAST.items() if key != "policies"}, LEAST | EXISTING], ids=["none", "both"]
)
def test_policies_come_from_exactly_one_place(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError, match="polic"):
        objects(values)


# D01: the container


@OBJECTS
def test_d01_no_container_is_root_or_may_become_it(values: dict[str, Any]) -> None:
    spec = pod(values)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(values):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
        assert container["resources"]["limits"]["memory"]


@OBJECTS
def test_d01_nothing_of_the_host_is_shared(values: dict[str, Any]) -> None:
    spec = pod(values)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert not [port for container in containers(values) for port in container.get("ports", []) if "hostPort" in port]


# D02: the API server


@OBJECTS
def test_d02_no_token_for_the_api_server_and_no_rights(values: dict[str, Any]) -> None:
    assert pod(values)["automountServiceAccountToken"] is False
    assert of("ServiceAccount", values)[0]["automountServiceAccountToken"] is False
    assert not {found["kind"] for found in objects(values)} & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


# D03: secrets


def test_d03_secrets_are_named_and_never_values() -> None:
    assert of("Secret", ALL) == []
    for container in containers(ALL):
        assert all(set(each) == {"name", "value"} for each in container.get("env", []))
        assert not container.get("envFrom")
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    assert set(schema["properties"]["keyEncryptionKey"]["properties"]) == {"secret", "key"}


def test_d03_the_key_is_copied_into_memory_and_the_secret_is_not_seen_by_the_broker() -> None:
    spec = pod(ALL)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["secret"]["secret"]["defaultMode"] == 0o400
    assert volumes["keys"]["emptyDir"]["medium"] == "Memory"
    broker, copier = spec["containers"][0], spec["initContainers"][0]
    mounts = {mount["name"]: mount for mount in broker["volumeMounts"]}
    assert "secret" not in mounts
    assert mounts["keys"]["readOnly"] is True
    source, target = copier["command"][-2:]
    secret = next(mount for mount in copier["volumeMounts"] if mount["name"] == "secret")
    assert source == f"{secret['mountPath']}/{volumes['secret']['secret']['items'][0]['path']}"
    assert environment(ALL)["BROKER_KEY_FILE"] == target
    assert target.startswith(mounts["keys"]["mountPath"])


def test_d03_a_restart_does_not_open_the_files_of_the_volume_to_a_group() -> None:
    assert pod(LEAST)["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    mount = next(mount for mount in pod(LEAST)["containers"][0]["volumeMounts"] if mount["name"] == "data")
    # The volume's own root belongs to root, and the broker wants a folder of its own.
    assert Path(environment(LEAST)["BROKER_DATA"]).parent == Path(mount["mountPath"])


# The network (D04)


def test_the_network_is_closed_but_for_what_is_needed() -> None:
    policy = of("NetworkPolicy", LEAST)[0]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["public"]
    blocks = [peer["ipBlock"] for rule in policy["egress"] for peer in rule.get("to", [])]
    assert "169.254.0.0/16" in blocks[0]["except"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 443}
    assert of("NetworkPolicy", LEAST | {"networkPolicy": {"enabled": False}}) == []


def test_the_admin_port_is_on_a_service_of_its_own_and_open_to_whom_is_named() -> None:
    public, admin = of("Service", ALL)
    assert [port["targetPort"] for port in public["spec"]["ports"]] == ["public"]
    assert [port["targetPort"] for port in admin["spec"]["ports"]] == ["admin"]
    rules = of("NetworkPolicy", ALL)[0]["spec"]["ingress"]
    assert rules[1]["from"] == ALL["networkPolicy"]["adminFrom"]


# D07: probes and the end


@OBJECTS
def test_d07_liveness_looks_at_the_process_alone(values: dict[str, Any]) -> None:
    container = pod(values)["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    starts_within_s = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert starts_within_s > 2 * Limits().store_start_s_max
    assert {container[name]["httpGet"]["port"] for name in ("startupProbe", "livenessProbe", "readinessProbe")} == {"admin"}


def test_d07_probes_speak_tls_where_the_broker_does() -> None:
    for values, scheme in ((LEAST, "HTTP"), (ALL, "HTTPS")):
        assert pod(values)["containers"][0]["livenessProbe"]["httpGet"]["scheme"] == scheme


def test_d07_there_is_time_to_finish_and_to_stop_the_store() -> None:
    from broker.web.supervisor import KILL_AFTER_S

    limits = Limits()
    needed_s = limits.shutdown_s_max + KILL_AFTER_S + limits.store_stop_s_max
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    assert pod(LEAST)["terminationGracePeriodSeconds"] >= needed_s
    assert schema["properties"]["terminationGracePeriodSeconds"]["minimum"] >= needed_s


def test_d07_evictions_can_be_refused() -> None:
    assert of("PodDisruptionBudget", LEAST) == []
    assert of("PodDisruptionBudget", ALL)[0]["spec"]["maxUnavailable"] == 0


def test_the_install_command_of_the_page_renders() -> None:
    page = (ROOT / "docs" / "operations" / "chart.md").read_text("utf-8")
    words = shlex.split(page[page.index("helm install") : page.index("```", page.index("helm install"))].replace("\\\n", " "))
    assert words[:4] == ["helm", "install", "broker", "helm/broker"]
    values: dict[str, Any] = {"image": {}, "policies": {}}
    for flag, expression in zip(words[4::2], words[5::2], strict=True):
        given = expression.replace("=policies/", f"={ROOT}/policies/")
        parsed = helm_python.parse_set_string(given) if flag == "--set" else helm_python.parse_set_file(given)
        for name, value in parsed.items():
            values[name] = values[name] | value if isinstance(value, dict) else value
    assert of("ConfigMap", values)[0]["data"]["apis.yaml"] == (ROOT / "policies" / "apis.yaml").read_text("utf-8")


def test_the_notes_name_the_next_command() -> None:
    notes = chart().render(ALL, name="broker", namespace="identity")["broker/templates/NOTES.txt"]
    assert "kubectl --namespace identity exec exchange-0 -c broker -- /opt/broker/bin/broker doctor" in notes
