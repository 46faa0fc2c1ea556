"""docs/schemas/*.json: the JSON Schema of each file kind, for editors; what `broker policy schema KIND` prints."""

from __future__ import annotations

import json

from broker.compiler.schema import schemas


def render() -> dict[str, str]:
    """File name -> text."""
    return {f"{kind}.schema.json": json.dumps(schema, indent=2) + "\n" for kind, schema in schemas().items()}
