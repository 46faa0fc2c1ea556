"""The administrative acts as values: who does what, to what, why.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts.  `kind` is `operator` (a person on the node's machine) or `broker` (a schedule); `scopes` what it may do."""

    kind: str
    name: str
    scopes: frozenset[str]

    def as_dict(self) -> dict[str, str]:
        """The record's `actor`."""
        return {"kind": self.kind, "name": self.name}


@dataclass(frozen=True, slots=True)
class Revoke:
    """Cut off whatever the selectors cover, in these envs, until lifted or `until` (epoch seconds).  `id` makes a retry safe.

    No env means every env, those included that are opened later.
    """

    id: str
    selectors: Mapping[str, Any]
    envs: tuple[str, ...]
    reason: str
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Lift:
    """End a revocation, in these envs or in all.  `id` is this act's own, `lifts` that of the revocation."""

    id: str
    lifts: str
    envs: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RotateKeys:
    """Replace the signing keys of an env: by the published next pair, or `fresh` by one that was never published."""

    env: str
    reason: str
    fresh: bool = False


Act = Revoke | Lift | RotateKeys


@dataclass(frozen=True, slots=True)
class Done:
    """An act that took effect: for each env, what the store answered; under `system`, for those that are opened later."""

    act: Act
    results: Mapping[str, Any] = field(default_factory=dict)
