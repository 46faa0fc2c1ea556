"""Deciding: may this workload have this, now?

Stands on model and the compiled tree.  Called by exchange, by cases and by analysis/; calls nobody.  Pure.
Order: env > candidates by index > where > stranger's runs > what is asked > condition > one account > limits.
Deny by default (promise 3): every way that does not end in a Grant ends in a Refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.config import Limits
from broker.errors import (
    AmbiguousAccount,
    ClaimsNotSatisfied,
    EnvNotOpen,
    NoRuleMatched,
    Refused,
    ScopeMissing,
    ScopeNotGranted,
    TargetsNotCombinable,
    TargetUnknown,
)
from broker.model import ExchangeRequest, Finding, Grant, Workload
from broker.policy.assess import assess, live
from broker.policy.match import seen
from broker.policy.offer import (
    NOT_COMBINABLE,
    SCOPE_MISSING,
    SCOPE_NOT_GRANTED,
    Asked,
    Miss,
    Offer,
    Question,
    asked_of,
    effective,
    narrowed,
    offer_of,
)
from broker.policy.tree import Account, Env, Rule, Tree

DEFAULTS: Final = Limits()


def decide(tree: Tree, workload: Workload, request: ExchangeRequest, now: float, limits: Limits = DEFAULTS) -> Grant:
    """What the workload gets.  `now` is epoch seconds.

    Raises the `Refused` that the caller may hear, with what was found as its reasons (RFC 8693 §2.2.2 names the wire codes).
    """
    env = tree.envs.get(request.env)
    if env is None or workload.issuer not in env.issuers:
        raise EnvNotOpen(f"{request.env} is not open to {workload.issuer}")
    question = Question(tree, env, workload.claims, request, asked_of(tree, env, request), now, limits)
    candidates = candidates_of(question, workload.issuer)
    misses: list[tuple[Rule, Miss]] = []
    offers: list[tuple[Rule, Offer]] = []
    for rule in candidates:
        outcome = _outcome(question, rule)
        if isinstance(outcome, Offer):
            offers.append((rule, outcome))
        elif outcome is not None:
            misses.append((rule, outcome))
    if offers:
        return _grant(question, offers)
    if misses:
        raise _missed(question, misses)
    raise _unmatched(question, candidates)


def candidates_of(question: Question, issuer: str) -> tuple[Rule, ...]:
    """The rules that are looked at: by index, and of the named account only where one is named."""
    found = question.tree.index.candidates(question.env.name, issuer, question.claims)
    name = question.asked.account
    return found if name is None else tuple(rule for rule in found if rule.account == name)


def _outcome(question: Question, rule: Rule) -> Offer | Miss | None:
    """An offer or a miss where the rule holds wholly; None where it does not hold."""
    claims = question.claims
    if not live(rule, question.now):
        return None
    for check in rule.checks:
        if not check.matcher.holds(claims.get(check.claim)):
            return None
    access = narrowed(rule, claims)
    if access is None:
        return None
    tree, asked = question.tree, question.asked
    account = tree.accounts[rule.env, rule.account]
    offer = offer_of(tree, account, access, asked)
    if isinstance(offer, Miss) and access is not rule.access and isinstance(offer_of(tree, account, rule.access, asked), Offer):
        return None  # what is asked is there, but not for a run in which a stranger may be at work
    if rule.condition is not None:
        audience, scope = effective(offer, asked, question.request)
        if not rule.condition.holds(claims, audience, scope, rule.env):
            return None
    return offer


def _grant(question: Question, offers: Sequence[tuple[Rule, Offer]]) -> Grant:
    tree, env = question.tree, question.env
    rule, offer = offers[0]
    if len(offers) > 1:
        accounts = sorted({each.account for each, _ in offers})
        if len(accounts) > 1 and not any(each.own for each, _ in offers):
            raise NoRuleMatched(f"several accounts fit, none by an own rule: {', '.join(accounts)}")
        if len(accounts) > 1:
            reasons = [Finding(f"{each.account}/{each.name}", "", True, place=each.place) for each, _ in offers]
            detail = f"several accounts fit: {', '.join(accounts)}"
            raise AmbiguousAccount(accounts, detail, reasons=reasons[: question.limits.findings_max])
        rule, offer = min(offers, key=lambda pair: pair[0].position)
    account = tree.accounts[rule.env, rule.account]
    apis = [tree.apis[name] for name in offer.apis]
    algorithms = [api.algorithm for api in apis]
    return Grant(
        env=env.name,
        service_account=account.name,
        owner=account.owner,
        trust_rule=rule.name,
        place=rule.place,
        apis=offer.apis,
        audience=tuple([api.url(env.name) or "" for api in apis]),
        scope=offer.scope,
        ttl_s=_ttl_s(env, account, rule, question.request.ttl_s, question.now),
        algorithm="RS256" if "RS256" in algorithms else "ES256",
        own=bool(rule.own),  # all its checks hold, and its pins are among them
        policy_revision=tree.revision,
        reasons=_held(question, rule),
    )


def _ttl_s(env: Env, account: Account, rule: Rule, asked_s: int | None, now: float) -> int:
    """Whole seconds, at least 1: the least of what is asked (else the env's default), of all limits, and of what is left."""
    ttl_s = min(asked_s if asked_s is not None else env.default_ttl_s, env.max_ttl_s, int(rule.expires_at - now))
    if account.max_ttl_s is not None:
        ttl_s = min(ttl_s, account.max_ttl_s)
    return max(1, ttl_s if rule.max_ttl_s is None else min(ttl_s, rule.max_ttl_s))


def _held(question: Question, rule: Rule) -> tuple[Finding, ...]:
    limits, claims = question.limits, question.claims
    longest = limits.finding_characters_max
    name = f"{rule.account}/{rule.name}"
    found = [
        check.held
        or Finding(name, check.claim, True, check.matcher.expected[:longest], seen(claims.get(check.claim), longest), check.place)
        for check in rule.checks[: limits.findings_max]
    ]
    if rule.condition is not None:
        found.append(Finding(name, "condition", True, rule.condition.text[:longest], "true", rule.condition_place))
    return tuple(found[: limits.findings_max])


def _missed(question: Question, misses: Sequence[tuple[Rule, Miss]]) -> Refused:
    """A rule holds, but not with what is asked: said plainly, for it is the workload's own business."""
    nearest = max(miss.rank for _, miss in misses)
    near = [(rule, miss) for rule, miss in misses if miss.rank == nearest]
    scopes = tuple(dict.fromkeys(scope for _, miss in near for scope in miss.scopes))
    rule = near[0][0]
    reasons = _held(question, rule)
    where = f"{rule.account}/{rule.name} ({rule.place})"
    if nearest == SCOPE_NOT_GRANTED:
        return ScopeNotGranted(scopes, f"{where} holds, and opens {' '.join(scopes)}", reasons=reasons)
    if nearest == SCOPE_MISSING:
        return ScopeMissing(scopes, f"{where} holds, and {rule.account} has no default_scopes for this", reasons=reasons)
    if nearest == NOT_COMBINABLE:
        return TargetsNotCombinable(f"{where} holds; not every scope has a meaning at every target", reasons=reasons)
    return TargetUnknown(f"{where} holds, but does not open a target that is asked for, or none was named", reasons=reasons)


def _unmatched(question: Question, candidates: Sequence[Rule]) -> Refused:
    assessed = sorted((assess(question, rule) for rule in candidates), key=lambda each: (not each.own, len(each.failed)))
    reasons = tuple(finding for each in assessed for finding in each.findings)[: question.limits.findings_max]
    own = [each for each in assessed if each.live and each.own and _opens(each.rule, question.asked)]
    if not own:
        return NoRuleMatched(f"{len(candidates)} candidate rules, none of them this workload's own", reasons=reasons)
    # A rule that would grant what is asked teaches more than one that is nearer and would not.
    own = [each for each in own if each.grants] or own
    fewest = len(own[0].failed)
    near = [each for each in own if len(each.failed) == fewest]
    claims = tuple(dict.fromkeys(claim for each in near for claim in each.failed))
    detail = "; ".join(f"{each.rule.account}/{each.rule.name} ({each.rule.place})" for each in near[:3])
    return ClaimsNotSatisfied(claims, detail, reasons=reasons)


def _opens(rule: Rule, asked: Asked) -> bool:
    """Whether a rule is for the asked target at all."""
    return asked.apis is not None and all(api in rule.access for api in asked.apis)
