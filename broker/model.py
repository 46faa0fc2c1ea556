"""The frozen values that cross rooms.

Trust is visible in types: an `UnverifiedToken` may be measured, hashed and routed by its `iss`, nothing else; a `Workload`
is built in identity/subject_token.py only, after verification.  Instants are epoch seconds, durations end in `_s`.
What each exchange makes anew is a msgspec Struct: as frozen as a dataclass, and made ten times as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NewType

from msgspec import Struct

from broker.protocol.claims import ClaimSpec, ClaimValue, Reading
from broker.protocol.revocations import Facts, fact

UnverifiedToken = NewType("UnverifiedToken", str)


# Who may identify workloads


@dataclass(frozen=True, slots=True)
class Issuer:
    """An entry of issuers.yaml, compiled with its preset: all that verification needs to know.

    `url` is compared byte for byte with `iss`; a SPIFFE entry has `trust_domain` instead and `url` is then
    `spiffe://` and the trust domain.  `audiences` maps env to the accepted values; None means the env's own issuer URL
    and its token endpoint.  `claims` are the typed claims; without a preset, those that rules and `identity` mention.
    """

    name: str
    url: str
    preset: str | None = None
    algorithms: tuple[str, ...] = ("RS256",)
    audiences: Mapping[str, tuple[str, ...]] | None = None
    jwks_url: str | None = None
    jwks_file: str | None = None
    ca_file: str | None = None
    max_age_s: int = 3600
    max_lifetime_s: int = 86400
    replay: Literal["reject", "allow"] = "allow"
    trust_domain: str | None = None
    key_use: str = "sig"
    required: tuple[str, ...] = ("iss", "sub", "aud", "exp", "iat")
    claims: Mapping[str, ClaimSpec] = field(default_factory=dict)
    families: tuple[ClaimSpec, ...] = ()
    stable_ids: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    tenant_ids: tuple[str, ...] = ()
    reading: Reading = field(init=False, repr=False, compare=False)
    needed: frozenset[str] = field(init=False, repr=False, compare=False)
    facts: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """What every token of this issuer would work out again: how claims are read, which must be there, which are facts."""
        object.__setattr__(self, "reading", Reading.of(self.claims, self.families))
        object.__setattr__(self, "needed", frozenset({"sub", "aud", "exp", *self.required}))
        object.__setattr__(self, "facts", tuple(dict.fromkeys((*self.recorded, *self.stable_ids, *self.tenant_ids))))

    def accepted_audiences(self, env: str, base_url: str) -> tuple[str, ...]:
        """Audiences that a token for `env` may carry, the advertised one first; empty refuses."""
        if self.audiences is None:
            return (f"{base_url}/{env}", f"{base_url}/{env}/token")
        return self.audiences.get(env, ())


@dataclass(frozen=True, slots=True)
class Issuers:
    """All entries of one tree, found as a token names them."""

    by_url: Mapping[str, Issuer] = field(default_factory=dict)
    by_trust_domain: Mapping[str, Issuer] = field(default_factory=dict)
    by_name: Mapping[str, Issuer] = field(default_factory=dict)


# One request


class Client(Struct, frozen=True):
    """Where a request came from, as far as that can be told: for the record, never for a decision."""

    address: str = ""
    user_agent: str = ""
    client_id: str = ""


class ExchangeRequest(Struct, frozen=True):
    """One request to the token endpoint, read strictly from its form (RFC 8693 §2.1, RFC 7523 §2.1).

    `scope` is None where the request names none.  `check` marks a dry run.
    """

    env: str
    request_id: str
    trace_id: str
    grant_type: str
    subject_token: UnverifiedToken
    subject_token_type: str | None = None
    audience: tuple[str, ...] = ()
    resource: tuple[str, ...] = ()
    scope: tuple[str, ...] | None = None
    service_account: str | None = None
    ttl_s: int | None = None
    check: bool = False
    client: Client = Client()

    def __repr__(self) -> str:
        """Says which request, and nothing of its token."""
        return f"ExchangeRequest({self.env} {self.request_id})"


# Who asks


class SingleUse(Struct, frozen=True):
    """The claim that a commit makes on a subject token: its hash, held until `until` (epoch seconds)."""

    key: str
    until: int


class Workload(Struct, frozen=True):
    """Who presented a token, after every check of it.

    `iss` is the token's issuer (SPIFFE: `spiffe://` and trust domain); `claims` holds what rules may look at, typed,
    under short names; `recorded` what the record and revocations see.  `tenant` keys the budget of recorded refusals.
    """

    issuer: str
    iss: str
    subject: str
    claims: Mapping[str, ClaimValue]
    ids: Mapping[str, str]
    recorded: Mapping[str, str | None]
    token_sha256: str
    key_id: str
    expires_at: int
    single_use: SingleUse | None
    tenant: str = ""


# What it may have


class Finding(Struct, frozen=True, omit_defaults=True):
    """One thing that deciding looked at: which rule, which claim, whether it held, what was expected and what was seen."""

    rule: str
    claim: str
    held: bool
    expected: str = ""
    seen: str = ""
    place: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The form of the audit record's `reasons`."""
        body = {"rule": self.rule, "claim": self.claim, "held": self.held, "expected": self.expected, "seen": self.seen}
        return body | ({"place": self.place} if self.place else {})


class Grant(Struct, frozen=True):
    """A yes: which account, by which rule, for what, for how long at most (`ttl_s`, whole seconds).

    `own` says whether the workload is the rule's own (it may be told of a revocation).  `place` is file:line of the rule.
    """

    env: str
    service_account: str
    owner: str
    trust_rule: str
    place: str
    apis: tuple[str, ...]
    audience: tuple[str, ...]
    scope: tuple[str, ...]
    ttl_s: int
    algorithm: str
    own: bool
    policy_revision: str
    reasons: tuple[Finding, ...] = ()


# What it gets


class Draft(Struct, frozen=True):
    """All that will be signed once the commit has succeeded, and nothing that is secret."""

    kind: str
    env: str
    jti: str
    key_id: str
    algorithm: str
    claims: Mapping[str, Any]
    issued_at: int
    expires_at: int
    facts: Facts


class Issued(Struct, frozen=True):
    """What the caller receives (RFC 8693 §2.2.1); `expires_in` in whole seconds."""

    access_token: str
    issued_token_type: str
    token_type: str
    expires_in: int
    scope: tuple[str, ...]

    def __repr__(self) -> str:
        """Says what was issued, and nothing of the credential."""
        return f"Issued({self.issued_token_type} for {self.expires_in} s)"


class WouldIssue(Struct, frozen=True):
    """What `/check` answers: the exchange would have been granted so."""

    grant: Grant
    expires_in: int


def facts_of(workload: Workload, grant: Grant) -> Facts:
    """What revocations can look at: the same at the exchange, in the registration, at introspection."""
    return Facts(
        service_account=grant.service_account,
        issuer=workload.issuer,
        iss=workload.iss,
        subject=fact(workload.subject),
        trust_rule=grant.trust_rule,
        claims=workload.recorded,
    )
