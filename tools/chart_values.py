"""The chart's values: the limits in its schema, from broker/config.py; the table in docs/operations/chart.md, from the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from broker.config import Limits

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "broker"
PAGE = ROOT / "docs" / "operations" / "chart.md"
_BLOCK = re.compile(r"(<!-- values -->\n).*?(<!-- end -->)", re.DOTALL)


def render_schema() -> str:
    """values.schema.json with every limit of this version."""
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    schema["properties"]["limits"]["properties"] = {field.name: {"type": "integer", "minimum": 1} for field in fields(Limits)}
    return json.dumps(schema, indent=2) + "\n"


def render_page() -> str:
    """The page with a fresh table between its marks."""
    schema = json.loads(render_schema())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    table = "\n| value | default | what |\n|---|---|---|\n"
    for name, default, what in _rows(schema, defaults, ""):
        table += f"| `{name}` | {default} | {what} |\n"
    return _BLOCK.sub(lambda match: match[1] + table + "\n" + match[2], PAGE.read_text("utf-8"))


def _rows(schema: dict[str, Any], defaults: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, below in schema["properties"].items():
        if name == "global":
            continue
        if "description" not in below:
            yield from _rows(below, defaults[name], f"{prefix}{name}.")
            continue
        value = defaults[name]
        shown = f"`{json.dumps(value)}`" if value not in ("", [], {}) else "–"
        yield prefix + name, shown, below["description"].replace("|", "\\|")
