"""The chart as tests see it: sets of values, and the objects that come of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import helm_python
import yaml

from tools.chart_values import CHART

LEAST: dict[str, Any] = {
    "image": {"repository": "registry.acme.example/broker"},
    "url": "https://broker.acme.example",
    "policies": {"issuers.yaml": "issuers: {}\n", "prod/svc-a.yaml": "a: {{ .Values.url }}\n"},
}
ALL: dict[str, Any] = {
    **LEAST,
    "image": {"repository": "registry.acme.example/broker", "digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
    "envs": ["prod", "dev"],
    "workers": 2,
    "limits": {"scopes_max": 20, "store_start_s_max": 600},
    "keyEncryptionKey": {"secret": "broker-key"},
    "tls": {"secret": "broker-tls"},
    "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
    "tracesEndpoint": "http://collector.observability:4318",
    "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
    "persistence": {"size": "20Gi", "storageClass": "fast"},
    "networkPolicy": {
        "ingressFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
        "adminFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "extraEgress": [{"ports": [{"port": 8443, "protocol": "TCP"}]}],
    },
    "podDisruptionBudget": {"enabled": True},
    "fullnameOverride": "exchange",
    "podAnnotations": {"c": "d"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "k", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
EXISTING = {key: value for key, value in LEAST.items() if key != "policies"} | {
    "existingPolicies": {"configMap": "acme-policies", "items": [{"key": "issuers", "path": "issuers.yaml"}]}
}


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    rendered = chart().render(values, name="broker", namespace="identity")
    texts = [text for name, text in rendered.items() if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def of(kind: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for found in objects(values) if found["kind"] == kind]


def pod(values: dict[str, Any]) -> dict[str, Any]:
    return of("StatefulSet", values)[0]["spec"]["template"]["spec"]


def containers(values: dict[str, Any]) -> list[dict[str, Any]]:
    spec = pod(values)
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(values: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in pod(values)["containers"][0]["env"]}
