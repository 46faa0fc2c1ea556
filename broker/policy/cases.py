"""The `tests:` blocks of service accounts: each a workload, a request, and what must come of it.  Pure.

They run against the very function that exchanges run against.  Called by `broker policy test`, by explain and by demo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from broker.config import Limits
from broker.errors import Refused
from broker.model import ExchangeRequest, Grant, Issuer, UnverifiedToken, Workload
from broker.policy.decide import DEFAULTS, decide
from broker.policy.tree import Account, Case, Tree
from broker.protocol.claims import ClaimValue
from broker.protocol.oauth import GRANT_TOKEN_EXCHANGE
from broker.protocol.revocations import fact


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came of one test.

    `reason` is the exact reason of a refusal, empty where it was allowed; `expected_reason` the one that the test asks for.
    """

    account: str
    env: str
    case: str
    place: str
    passed: bool
    allowed: bool
    expected_allowed: bool
    reason: str
    expected_reason: str
    outcome: Grant | Refused

    @property
    def message(self) -> str:
        """What is wrong with it, in one line; empty if it passed."""
        if self.passed:
            return ""
        if isinstance(self.outcome, Grant) and self.expected_allowed:
            return f"expected allow as {self.account}, and it was allowed as {self.outcome.service_account}"
        expected = "allow" if self.expected_allowed else "deny"
        because = f" ({self.expected_reason})" if self.expected_reason else ""
        got = "allowed" if self.allowed else f"denied ({self.reason})"
        return f"expected {expected}{because}, and it was {got}"


def run_cases(tree: Tree, now: float, limits: Limits = DEFAULTS) -> Iterator[CaseResult]:
    """Every test of the tree, in the order of its files.  `now` is epoch seconds, for tests that say no `now:` themselves."""
    for account in tree.accounts.values():
        for case in account.cases:
            yield run_case(tree, account, case, now, limits)


def run_case(tree: Tree, account: Account, case: Case, now: float, limits: Limits = DEFAULTS) -> CaseResult:
    """One test.  An allow must come out as this very account; a deny for its `reason`, where it says one."""
    workload = workload_from_claims(tree.issuers.by_name[case.issuer], case.claims)
    request = request_of(account.env, case)
    outcome: Grant | Refused
    try:
        outcome = decide(tree, workload, request, now if case.now is None else case.now, limits)
    except Refused as refused:
        outcome = refused
    if isinstance(outcome, Grant):
        passed = case.allow and outcome.service_account == account.name
        reason = ""
    else:
        passed = not case.allow and case.reason in ("", outcome.reason)
        reason = outcome.reason
    return CaseResult(
        account=account.name,
        env=account.env,
        case=case.name,
        place=case.place,
        passed=passed,
        allowed=isinstance(outcome, Grant),
        expected_allowed=case.allow,
        reason=reason,
        expected_reason=case.reason,
        outcome=outcome,
    )


def request_of(env: str, case: Case) -> ExchangeRequest:
    """The request that a test describes."""
    return ExchangeRequest(
        env=env,
        request_id="",
        trace_id="",
        grant_type=GRANT_TOKEN_EXCHANGE,
        subject_token=UnverifiedToken(""),
        audience=case.audience,
        resource=case.resource,
        scope=case.scope,
        service_account=case.service_account,
        ttl_s=case.ttl_s,
        check=True,
    )


def workload_from_claims(issuer: Issuer, given: Mapping[str, ClaimValue | None]) -> Workload:
    """A workload as it would be after verification, from claims under short names; None means that there is no such claim.

    It stands for no token: for policy tests and explanations only, never for an exchange.
    """
    claims = {name: value for name, value in given.items() if value is not None}
    texts = {name: value for name, value in claims.items() if isinstance(value, str)}
    return Workload(
        issuer=issuer.name,
        iss=issuer.url,
        subject=texts.get("sub", ""),
        claims=claims,
        ids={name: fact(claims[name]) for name in issuer.stable_ids if name in claims},
        recorded={name: fact(claims[name]) if name in claims else None for name in issuer.recorded},
        token_sha256="",
        key_id="",
        expires_at=0,
        single_use=None,
        tenant=next((texts[name] for name in issuer.tenant_ids if name in texts), ""),
    )
