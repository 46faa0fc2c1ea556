"""What a preset is: frozen values.  Stands on protocol; filled by reading.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from broker.protocol.claims import ClaimSpec


@dataclass(frozen=True, slots=True)
class Pin:
    """One alternative: all of `claims` pinned by one of `operators`.

    Literals must meet `matches`, the fixed beginning of a prefix glob `prefix_matches`, where a claim has one.
    """

    claims: tuple[str, ...]
    operators: frozenset[str] = frozenset({"equals", "in"})
    matches: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    prefix_matches: Mapping[str, re.Pattern[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StrangerRun:
    """Tokens of runs that a stranger drives: `claim` is one of `values`, fits one of `globs`, is none of `other_than`, or is
    `present`; or the two claims of `differ` are there and not equal.  A missing claim meets none of these.
    """

    claim: str = ""
    values: tuple[str | int | bool, ...] = ()
    globs: tuple[str, ...] = ()
    other_than: tuple[str | int | bool, ...] = ()
    present: bool = False
    differ: tuple[str, ...] = ()
    low_allowed: bool = False

    @property
    def claims(self) -> tuple[str, ...]:
        """The claims that a rule must pin to be matched by such a token."""
        return self.differ or (self.claim,)


@dataclass(frozen=True, slots=True)
class Danger:
    """A way to write a rule that is known to hurt."""

    id: str
    severity: str
    pattern: str
    why: str


@dataclass(frozen=True, slots=True)
class Careful:
    """The rule to begin with: `pins` are compared by equals, in this order, with the values of a real token; `where` holds
    claims that are better compared otherwise, as in a policy; `find` says how an owner without a token comes by a value.
    """

    pins: tuple[str, ...]
    where: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    find: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fixture:
    """A realistic token: header, payload, and payloads of variants by name.  Tests alone may sign it."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Preset:
    """One file, checked.  `stranger_runs` is None where they are not known; `shared` maps url patterns (`*`: all others) to
    whether strangers use the same issuer, None where that is not known; `unconfirmed` are phrases that say what nobody could
    confirm; `sensitivity_max` is the most sensitive scope that a rule for this issuer may grant, None for no ceiling.
    """

    name: str
    title: str
    urls: tuple[str, ...]
    url_pattern: re.Pattern[str] | None
    algorithms: tuple[str, ...]
    key_use: str
    max_lifetime_s: int
    max_age_s: int
    replay_default: Literal["reject", "allow"]
    required: tuple[str, ...]
    absent: tuple[str, ...]
    claims: Mapping[str, ClaimSpec]
    families: tuple[ClaimSpec, ...]
    values: Mapping[str, tuple[str, ...]]
    stable_ids: tuple[str, ...]
    recorded: tuple[str, ...]
    ids: Mapping[str, tuple[str, ...]]
    identity_pins: tuple[Pin, ...]
    own_pins: tuple[Pin, ...]
    stranger_runs: tuple[StrangerRun, ...] | None
    shared: tuple[tuple[re.Pattern[str] | None, bool | None], ...]
    audience_free: bool
    audience_fixed: tuple[str, ...]
    unconfirmed: tuple[str, ...]
    sensitivity_max: Literal["low", "medium", "high"] | None
    careful: Careful
    dangers: tuple[Danger, ...]
    fixture: Fixture

    def claim(self, name: str) -> ClaimSpec | None:
        """The claim of this name, a member of a family included; None if this issuer sends no such claim."""
        if (spec := self.claims.get(name)) is not None:
            return spec
        for family in self.families:
            prefix = family.name.removesuffix("*")
            if name.startswith(prefix) and name != prefix:
                step = family.path[-1].removesuffix("*") + name.removeprefix(prefix)
                return ClaimSpec(name, (*family.path[:-1], step), family.types)
        return None

    def is_shared(self, url: str) -> bool:
        """Whether strangers may hold tokens of this very issuer; what is not known counts as shared."""
        for pattern, shared in self.shared:
            if pattern is None or pattern.fullmatch(url):
                return shared is not False
        return True
