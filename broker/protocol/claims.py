"""Typed claims: where a claim stands in a payload, which JSON types it may have, and reading it so.

A claim name is never split at dots (`kubernetes.io` and `oidc.circleci.com/project-id` are names): presets give short names
to paths, and without a preset a name that starts with `/` is a JSON pointer (RFC 6901).
A claim that is missing, null or of another type is not there: it matches nothing (promise 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

ClaimType = Literal["string", "integer", "boolean", "list", "object"]
ClaimValue = str | int | bool | tuple[Any, ...] | Mapping[str, Any]

PYTHON_TYPES: Final[Mapping[str, type]] = {"string": str, "integer": int, "boolean": bool, "list": list, "object": dict}


@dataclass(frozen=True, slots=True)
class ClaimSpec:
    """One claim of an issuer: its short name, its place, the JSON types that it may have.

    `family` marks a name that ends in `*` and stands for all claims with that prefix (GitHub's `repo_property_*`).
    """

    name: str
    path: tuple[str, ...]
    types: tuple[ClaimType, ...] = ("string",)
    always: bool = False
    family: bool = False

    def read(self, payload: Mapping[str, Any]) -> ClaimValue | None:
        """The claim's value in a verified payload, or None if it is absent, null or of another type.  Lists come as tuples."""
        value: Any = payload
        for step in self.path:
            if type(value) is not dict or step not in value:
                return None
            value = value[step]
        return typed(value, self.types)


def typed(value: Any, types: tuple[ClaimType, ...]) -> ClaimValue | None:
    """`value` if its exact JSON type is among `types` (a boolean is no integer), lists as tuples; else None."""
    for name in types:
        if type(value) is PYTHON_TYPES[name]:
            return tuple(value) if type(value) is list else value
    return None


def pointer(name: str) -> tuple[str, ...]:
    """The path that a claim name means where no preset gives it one: a JSON pointer if it starts with `/`, else itself."""
    if not name.startswith("/"):
        return (name,)
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in name[1:].split("/"))
