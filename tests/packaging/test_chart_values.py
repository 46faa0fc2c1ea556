"""The chart's values: what is unknown, empty, null or of another type is refused (attack D08)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from tests.packaging.charts import LEAST, objects
from tools.chart_values import CHART


def with_value(path: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(LEAST)
    node = values
    *above, last = path.split(".")
    for name in above:
        node = node.setdefault(name, {})
    node[last] = value
    return values


def paths(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, below in schema.get("properties", {}).items():
        yield prefix + name
        yield from paths(below, f"{prefix}{name}.")


REFUSED = {
    "an unknown value": ("replicas", 2),
    "an unknown value below another": ("image.repo", "x"),
    "a limit that does not exist": ("limits.scopes_maximum", 2),
    "a limit of zero": ("limits.scopes_max", 0),
    "no repository": ("image.repository", ""),
    "a template as repository": ("image.repository", "{{ .Values.url }}"),
    "a digest that is none": ("image.digest", "latest"),
    "no url": ("url", ""),
    "a plain http url": ("url", "http://broker.acme.example"),
    "a url that ends in a slash": ("url", "https://broker.acme.example/"),
    "a url with a template": ("url", "https://{{ .Release.Name }}.example"),
    "workers as text": ("workers", "2"),
    "no worker": ("workers", 0),
    "an env that is no name": ("envs", ["Prod"]),
    "a proxy that is no address": ("trustedProxies", ["everyone"]),
    "too little time to stop": ("terminationGracePeriodSeconds", 10),
    "an empty policy file": ("policies", {"issuers.yaml": ""}),
    "a policy file outside the folder": ("policies", {"../x.yaml": "a"}),
    "an absolute policy file": ("policies", {"/etc/x.yaml": "a"}),
    "a policy file whose key would meet another's": ("policies", {"prod__svc-a.yaml": "a"}),
    "a ConfigMap without its files": ("existingPolicies", {"configMap": "x"}),
    "a size that is none": ("persistence.size", "lots"),
    "an unknown service type": ("service.type", "ExternalName"),
    "a log level that does not exist": ("logLevel", "trace"),
}


@pytest.mark.parametrize(("path", "value"), REFUSED.values(), ids=REFUSED)
def test_d08_a_value_that_cannot_be_meant_is_refused(path: str, value: Any) -> None:
    with pytest.raises(helm_python.HelmError):
        objects(with_value(path, value))


SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
PATHS = [path for path in paths(SCHEMA) if not path.startswith(("global", "limits."))]


@pytest.mark.parametrize("path", PATHS)
def test_d08_a_wrong_type_is_refused(path: str) -> None:
    for value in (3.5, [[]]):
        with pytest.raises(helm_python.HelmError):
            objects(with_value(path, value))


@pytest.mark.parametrize("path", PATHS)
def test_d08_null_takes_no_default_away(path: str) -> None:
    with pytest.raises(helm_python.HelmError):
        objects(with_value(path, None))


def test_d08_the_least_needs_nothing_else() -> None:
    for name in ("image", "url", "policies"):
        with pytest.raises(helm_python.HelmError):
            objects({key: value for key, value in LEAST.items() if key != name})


def test_values_and_schema_name_the_same_things() -> None:
    def named(values: dict[str, Any], below: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            yield prefix + name
            if isinstance(value, dict) and "properties" in below["properties"][name] and name != "limits":
                yield from named(value, below["properties"][name], f"{prefix}{name}.")

    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert set(named(defaults, SCHEMA)) - {"resources.requests", "resources.limits"} == set(PATHS)
