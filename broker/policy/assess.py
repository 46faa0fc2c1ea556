"""A rule looked at in full: every check, held or failed, expected and seen.  Pure.

decide stops at the first thing that fails; this goes on, for those who must be told why: the own workload, the record,
`policy explain`.  The verdict is decide's; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.model import Finding
from broker.policy.match import seen
from broker.policy.offer import Miss, Offer, Question, effective, narrowed, offer_of
from broker.policy.tree import Rule
from broker.protocol.claims import ClaimValue


@dataclass(frozen=True, slots=True)
class Assessment:
    """A rule looked at in full: each finding, the claims that failed, and whether it would grant all that is asked."""

    rule: Rule
    live: bool
    own: bool
    holds: bool
    grants: bool
    failed: tuple[str, ...]
    findings: tuple[Finding, ...]


def live(rule: Rule, now: float) -> bool:
    """Whether a credential could still live a second by this rule."""
    return rule.expires_at - now >= 1


def is_own(rule: Rule, claims: Mapping[str, ClaimValue]) -> bool:
    """Whether a workload is a live rule's own: all pins of one own alternative hold."""
    checks = rule.checks
    return any(all(checks[i].matcher.holds(claims.get(checks[i].claim)) for i in pins) for pins in rule.own)


def assess(question: Question, rule: Rule) -> Assessment:
    """Everything that deciding would look at in one rule."""
    claims, longest = question.claims, question.limits.finding_characters_max
    name = f"{rule.account}/{rule.name}"
    findings: list[Finding] = []
    failed: dict[str, None] = {}

    def found(claim: str, held: bool, expected: str, shown: str, place: str) -> None:
        findings.append(Finding(name, claim, held, expected[:longest], shown[:longest], place))

    for check in rule.checks:
        value = claims.get(check.claim)
        held = check.matcher.holds(value)
        if not held:
            failed.setdefault(check.claim)
        found(check.claim, held, check.matcher.expected, seen(value, longest), check.place)
    offer, blocked = _offered(question, rule)
    for stranger in rule.strangers if blocked else ():
        if stranger.met(claims):
            for claim in stranger.claims:
                failed.setdefault(claim)
                found(claim, False, stranger.expected, seen(claims.get(claim), longest), rule.place)
    if rule.condition is not None:
        audience, scope = effective(offer, question.asked, question.request)
        held = rule.condition.holds(claims, audience, scope, rule.env)
        if not held:
            failed |= dict.fromkeys(rule.condition.claims or ("condition",))
        shown = ", ".join(f"claims.{claim} = {seen(claims.get(claim), longest)}" for claim in rule.condition.claims)
        found("condition", held, rule.condition.text, shown, rule.condition_place)
    grants = isinstance(offer, Offer)
    own = is_own(rule, claims)
    return Assessment(rule, live(rule, question.now), own, not failed, grants, tuple(failed), tuple(findings))


def _offered(question: Question, rule: Rule) -> tuple[Offer | Miss, bool]:
    """What the rule offers to this token, and whether a stranger's run stands in the way of it."""
    account = question.tree.accounts[rule.env, rule.account]
    full = offer_of(question.tree, account, rule.access, question.asked)
    access = narrowed(rule, question.claims)
    if access is None:
        return full, True
    if access is rule.access:
        return full, False
    narrow = offer_of(question.tree, account, access, question.asked)
    return (full, True) if isinstance(narrow, Miss) and isinstance(full, Offer) else (narrow, False)
