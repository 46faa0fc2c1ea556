"""The compiled policy: frozen values that decide reads.  Built by compile alone; stands on model.

Whatever a decision would otherwise compute again and again (expected texts, places, narrowed access, findings of literal
matches) is made once here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from broker.model import Finding, Issuers
from broker.policy.condition import Condition
from broker.policy.index import Entry, Index
from broker.policy.match import Matcher
from broker.protocol.claims import ClaimValue

Sensitivity = Literal["low", "medium", "high"]
SENSITIVITIES: Final[tuple[Sensitivity, ...]] = ("low", "medium", "high")  # the least first
Access = Mapping[str, tuple[str, ...]]

BROKER_API: Final = "broker"
BROKER_AUDIENCE: Final = "broker:api"  # stands for the env's own administration; whoever knows the base URL resolves it


Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a policy tree: where (1-based), what, and what would be right."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.message}{hint}"


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope of an Api.  One that says nothing is of low sensitivity."""

    name: str
    sensitivity: Sensitivity = "low"
    description: str = ""


@dataclass(frozen=True, slots=True)
class Api:
    """A protected resource.  `audience` maps env to URL; `*` stands for all envs."""

    name: str
    audience: Mapping[str, str]
    scopes: Mapping[str, Scope]
    algorithm: str = "ES256"

    def url(self, env: str) -> str | None:
        """The audience that a credential of this env names, None if the Api is not there."""
        return self.audience.get(env, self.audience.get("*"))


@dataclass(frozen=True, slots=True)
class Env:
    """An env: its limits in seconds, the issuers that it is open to, the Apis by audience URL."""

    name: str
    max_ttl_s: int
    default_ttl_s: int
    issuers: frozenset[str]
    administration: bool = False
    targets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """One operator on one claim.  `held` is the finding of a success, made once where the value can only be one."""

    claim: str
    matcher: Matcher
    place: str
    held: Finding | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StrangerCheck:
    """A run in which a stranger's code is at work, and that this rule does not pin.  Holds of a token that is no such run."""

    claims: tuple[str, ...]
    match: Matcher | None
    low_allowed: bool
    expected: str

    def met(self, claims: Mapping[str, ClaimValue]) -> bool:
        """Whether a token is of such a run.  A missing claim never is."""
        if self.match is not None:
            return self.match.holds(claims.get(self.claims[0]))
        one, other = (claims.get(claim) for claim in self.claims)
        return one is not None and other is not None and one != other


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A trust rule.  `own` holds, for each own pin that it satisfies, which of its checks pin it; `expires_at` epoch seconds."""

    name: str
    account: str
    env: str
    issuer: str
    file: str
    place: str
    position: int
    checks: tuple[Check, ...]
    condition: Condition | None
    condition_place: str
    strangers: tuple[StrangerCheck, ...]
    own: tuple[tuple[int, ...], ...]
    access: Access
    low_access: Access
    max_ttl_s: int | None
    expires_at: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A `tests:` block: a workload by its claims, a request, what must come of it."""

    name: str
    issuer: str
    claims: Mapping[str, ClaimValue]
    audience: tuple[str, ...]
    resource: tuple[str, ...]
    scope: tuple[str, ...] | None
    service_account: str | None
    ttl_s: int | None
    allow: bool
    reason: str
    now: float | None
    place: str


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """A service account with its rules.  `max_ttl_s` is the least of its own and its folders' limits."""

    name: str
    env: str
    file: str
    owner: str
    contact: str
    description: str
    tags: Mapping[str, str]
    expires_at: int
    access: Access
    default_scopes: Access
    max_ttl_s: int | None
    rules: tuple[Rule, ...]
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole policy in force.  `parts` is what the next compilation may use again."""

    revision: str
    issuers: Issuers
    envs: Mapping[str, Env]
    apis: Mapping[str, Api]
    accounts: Mapping[tuple[str, str], Account]
    index: Index[Rule]
    warnings: tuple[Problem, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    context: Any = field(default=None, repr=False)

    def account(self, env: str, name: str) -> Account | None:
        """The service account of this name in an env."""
        return self.accounts.get((env, name))

    @property
    def rules(self) -> int:
        """How many trust rules there are."""
        return sum(len(account.rules) for account in self.accounts.values())
