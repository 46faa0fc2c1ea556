"""Every error that a caller can meet, each with its texts for its readers.

    BrokerError
    ├── RequestRejected            the form itself is wrong; nothing was looked up
    │   ├── MalformedRequest       ├── MalformedTarget      ├── MalformedScope
    │   ├── UnsupportedGrantType   ├── ClientAuthentication └── TtlInvalid
    ├── TokenRejected              the caller's own token is at fault; told to anyone who holds it
    │   ├── TokenMalformed
    │   ├── TokenUntrusted
    │   │   ├── IssuerUnknown      ├── AlgorithmNotAllowed  ├── KeyUnknown
    │   │   └── SignatureInvalid   └── OwnCredential
    │   ├── TokenExpired           └── TokenTooOld          └── TokenLivesTooLong
    │   ├── TokenNotYetValid       ├── TokenAudience        └── TokenReplayed
    ├── Refused                    the policy, or a revocation, says no
    │   ├── NoRuleMatched          ├── EnvNotOpen           └── RevokedUnseen
    │   ├── ClaimsNotSatisfied     ├── AmbiguousAccount
    │   ├── TargetUnknown          └── TargetsNotCombinable
    │   ├── ScopeNotGranted        ├── ScopeMissing         └── Revoked
    ├── RateLimited
    ├── Unavailable                try again later: the answer is not a verdict
    │   ├── StoreUnavailable       ├── IssuerUnavailable    ├── KeysUnavailable
    │   ├── PolicyUnavailable      └── Stopping
    └── OperatorError              what a person at a terminal reads: one line, then hints
        ├── SettingsInvalid        ├── PolicyInvalid        ├── CannotStart
        ├── CannotReach            └── ActRefused

`public` is a constant sentence for strangers, in the characters that RFC 6749 §5.2 allows.  `detail` goes to the audit
record and to `policy explain`; `cause` (`__cause__`) goes to the log.  `reason` is exact and stable: records, metrics and
docs/errors.md carry it.  `wire_reason` is the member of the small public set that the caller sees.
HTTP is unknown here: web/errors.py holds the one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class BrokerError(Exception):
    """Base of all: carries the texts, and what may be told beside them."""

    reason: ClassVar[str]
    wire_reason: ClassVar[str]
    public: ClassVar[str]

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.public)
        self.detail = detail

    @property
    def told(self) -> Mapping[str, Any]:
        """Members that the answer carries beside the constant sentence (claim names, open scopes); none by default."""
        return {}


class RequestRejected(BrokerError):
    """The request is wrong before anything was looked up; the same for every caller.

    `detail` is told: it is made of constants and names of parameters, never of what the caller sent.
    """


class MalformedRequest(RequestRejected):
    """A parameter is missing, repeated, undecodable or unsupported."""

    reason = wire_reason = "malformed_request"
    public = "the request is malformed"


class MalformedTarget(RequestRejected):
    """A `resource` that is no absolute URI without fragment (RFC 8707 §2)."""

    reason = "malformed_target"
    wire_reason = "malformed_request"
    public = "resource must be an absolute URI without a fragment"


class MalformedScope(RequestRejected):
    """A `scope` outside the grammar of RFC 6749 §3.3, or too many of them."""

    reason = "malformed_scope"
    wire_reason = "malformed_request"
    public = "scope must be scope names separated by single spaces"


class UnsupportedGrantType(RequestRejected):
    """A grant type other than token exchange and jwt-bearer."""

    reason = wire_reason = "unsupported_grant_type"
    public = "grant_type must be urn:ietf:params:oauth:grant-type:token-exchange or urn:ietf:params:oauth:grant-type:jwt-bearer"


class ClientAuthentication(RequestRejected):
    """The request carries client authentication; no client is registered here."""

    reason = wire_reason = "client_authentication"
    public = "this server takes no client authentication; send the request without client credentials"


class TtlInvalid(RequestRejected):
    """`ttl` is no whole number of seconds above zero."""

    reason = wire_reason = "ttl_invalid"
    public = "ttl must be a whole number of seconds, at least 1"


class TokenRejected(BrokerError):
    """The subject token itself is at fault."""


class TokenMalformed(TokenRejected):
    """No strict compact JWS with strict JSON inside, or a claim that the issuer always sends is missing or of a wrong type."""

    reason = wire_reason = "token_malformed"
    public = "the subject token is not a well-formed signed JWT of a kind that is accepted here"


class TokenUntrusted(TokenRejected):
    """Nobody trusted here signed this token."""

    reason = wire_reason = "token_untrusted"
    public = "the subject token was not signed by an issuer that is trusted here"


class IssuerUnknown(TokenUntrusted):
    """No entry of issuers.yaml has exactly this `iss` or trust domain."""

    reason = "issuer_unknown"


class AlgorithmNotAllowed(TokenUntrusted):
    """The header's `alg` is outside the issuer's allow-list."""

    reason = "algorithm_not_allowed"


class KeyUnknown(TokenUntrusted):
    """The issuer publishes no usable key of this `kid` for this algorithm."""

    reason = "key_unknown"


class SignatureInvalid(TokenUntrusted):
    """The signature does not verify."""

    reason = "signature_invalid"


class OwnCredential(TokenUntrusted):
    """One of the broker's own credentials was shown as an identity (promise 7)."""

    reason = "own_credential"


class TokenExpired(TokenRejected):
    """`exp` lies in the past."""

    reason = wire_reason = "token_expired"
    public = "the subject token has expired or is too old; fetch a fresh one just before the exchange"


class TokenTooOld(TokenExpired):
    """`iat` lies further back than the issuer's max_age."""

    reason = "token_too_old"


class TokenLivesTooLong(TokenExpired):
    """`exp - iat` is larger than the issuer's max_lifetime."""

    reason = "token_lives_too_long"
    public = "the subject token lives longer than is accepted here; ask its platform for a shorter one"


class TokenNotYetValid(TokenRejected):
    """`nbf` or `iat` lies in the future."""

    reason = wire_reason = "token_not_yet_valid"
    public = "the subject token is not valid yet; check the clock of the machine that made it"


class TokenAudience(TokenRejected):
    """`aud` names nobody accepted here; the expected value is public metadata and is told."""

    reason = wire_reason = "token_audience"
    public = "the subject token is meant for another audience; request it for the audience in expected_audience"

    def __init__(self, expected: Sequence[str], detail: str = "") -> None:
        super().__init__(detail)
        self.expected = tuple(expected)

    @property
    def told(self) -> Mapping[str, Any]:
        return {"expected_audience": self.expected[0]} if self.expected else {}


class TokenReplayed(TokenRejected):
    """The token was exchanged before, and its issuer's entry asks for single use."""

    reason = wire_reason = "token_replayed"
    public = "the subject token was already exchanged; fetch a fresh one for each exchange"


class Refused(BrokerError):
    """The token is good; policy or a revocation says no.  `reasons` is what decide() found, for the record."""

    def __init__(self, detail: str = "", *, reasons: Sequence[Any] = ()) -> None:
        super().__init__(detail)
        self.reasons = tuple(reasons)


class NoRuleMatched(Refused):
    """What everyone hears who is no rule's own workload, whatever was asked."""

    reason = wire_reason = "no_rule_matched"
    public = "no trust rule lets this workload have what it asks for"


class EnvNotOpen(NoRuleMatched):
    """environments.yaml does not open this env to the token's issuer."""

    reason = "env_not_open"


class _Naming(Refused):
    """A refusal about things with names; told to the caller under `told_as`, where that is set."""

    told_as: ClassVar[str] = ""

    def __init__(self, names: Sequence[str], detail: str = "", *, reasons: Sequence[Any] = ()) -> None:
        super().__init__(detail, reasons=reasons)
        self.names = tuple(names)

    @property
    def told(self) -> Mapping[str, Any]:
        return {self.told_as: list(self.names)} if self.told_as else {}


class RevokedUnseen(_Naming, NoRuleMatched):
    """A revocation covers a workload that is no rule's own: on the wire it is as if no rule had matched."""

    reason = "revoked"


class ClaimsNotSatisfied(_Naming):
    """A rule of this very project or workload exists, and some other claims did not hold.  Names are told, values never."""

    reason = wire_reason = "claims_not_satisfied"
    public = "a trust rule for this workload exists, but these claims did not satisfy it"
    told_as = "claims"


class AmbiguousAccount(_Naming):
    """Rules of several service accounts grant all that is asked, and the request names none."""

    reason = wire_reason = "ambiguous_account"
    public = "several service accounts fit this request; name one with service_account"
    told_as = "service_accounts"


class TargetUnknown(Refused):
    """A rule holds, but a target names no Api that it opens."""

    reason = wire_reason = "target_unknown"
    public = "a requested target is unknown or not open to this workload"


class TargetsNotCombinable(TargetUnknown):
    """Targets whose scopes differ cannot share one credential (RFC 9068 §2.2.3)."""

    reason = "targets_not_combinable"
    public = "these targets cannot share one credential; make one exchange for each"


class ScopeNotGranted(_Naming):
    """A rule holds for the target, but not with a scope that was asked for.  What is open is told."""

    reason = wire_reason = "scope_not_granted"
    public = "a requested scope is not open to this workload; ask for fewer, or ask the owner of the service account"
    told_as = "scopes"


class ScopeMissing(ScopeNotGranted):
    """The request names no scope, and the service account has no default_scopes."""

    reason = wire_reason = "scope_missing"
    public = "the request names no scope, and this service account has no default; send the scopes that the job needs"


class Revoked(_Naming):
    """A revocation covers this exchange.  Told to the rule's own workload only; `names` are the revocations' ids, not told."""

    reason = wire_reason = "revoked"
    public = "the access of this workload has been revoked; its owner and the security team know why"


class _Later(BrokerError):
    """Nothing is wrong with the request but its moment; `retry_after_s` in whole seconds."""

    def __init__(self, detail: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(_Later):
    """More than this caller's share."""

    reason = wire_reason = "rate_limited"
    public = "too many requests; try again later"


class Unavailable(_Later):
    """No verdict was reached, or none could be recorded."""

    reason = wire_reason = "unavailable"
    public = "the broker cannot serve this request right now; try again with a fresh subject token"


class StoreUnavailable(Unavailable):
    """The store did not answer, refused to write, or its answer could not be trusted."""

    reason = "store_unavailable"


class IssuerUnavailable(Unavailable):
    """The issuer's keys are not at hand and could not be fetched in time."""

    reason = "issuer_unavailable"


class KeysUnavailable(Unavailable):
    """No signing key may be used: none yet, or the ring does not verify."""

    reason = "keys_unavailable"


class PolicyUnavailable(Unavailable):
    """No policy tree has ever been loaded."""

    reason = "policy_unavailable"


class Stopping(Unavailable):
    """The process is on its way out."""

    reason = "stopping"


class OperatorError(BrokerError):
    """For a person at a terminal: one `error:` line, then `hint:` lines.  `exit_code` as docs/cli.md lists them."""

    reason = wire_reason = "operator_error"
    public = "the command could not be carried out"
    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str, *hints: str) -> None:
        super().__init__(detail)
        self.hints = hints


class SettingsInvalid(OperatorError):
    """A flag, a BROKER_* variable or a line of broker.toml is wrong."""

    reason = "settings_invalid"
    exit_code = 2


class PolicyInvalid(OperatorError):
    """The policy tree does not compile; `problems` holds every error, each with file, line and column."""

    reason = "policy_invalid"

    def __init__(self, detail: str, *hints: str, problems: Sequence[Any] = ()) -> None:
        super().__init__(detail, *hints)
        self.problems = tuple(problems)


class CannotStart(OperatorError):
    """Something that the broker needs to run is missing, taken or unsafe."""

    reason = "cannot_start"
    exit_code = 3


class CannotReach(OperatorError):
    """A store or a node that the command needs does not answer."""

    reason = "cannot_reach"
    exit_code = 3


class ActRefused(OperatorError):
    """An administrative act that may not be done, or that could not be shown to have taken effect."""

    reason = "act_refused"
