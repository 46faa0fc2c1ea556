"""What can be said of a workload that no rule for this is about: the ids that it presented, the rules that come nearest.  Pure.

The index finds none of these rules, so all of the env's are looked at: for the owner, never on the path of an exchange.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker import presets
from broker.analysis.draft import clean, human_name, scalar
from broker.compiler.pins import literals
from broker.model import Finding, Issuer
from broker.policy.assess import live
from broker.policy.match import seen
from broker.policy.offer import Offer, Question, offer_of
from broker.policy.tree import Check, Rule
from broker.protocol.claims import ClaimValue

NEAREST_MAX: Final = 5
_ID: Final = re.compile(r"[0-9]+|\{?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Near:
    """A rule that is about somebody else, and the pins by which it is.

    `grants` says whether it would grant all that is asked.  `remark` tells of a name where an id belongs, or the other way
    round; `mend` is the edit where that is all that is wrong with the pins.
    """

    rule: Rule
    grants: bool
    findings: tuple[Finding, ...]
    remark: str = ""
    mend: str = ""


def presented(ids: Mapping[str, str], claims: Mapping[str, ClaimValue]) -> tuple[str, ...]:
    """Each stable id with its value, and with its name where a claim gives one: `repository_id 999 (acme/other)`."""
    named = {claim: f" ({clean(name)})" for claim in ids if (name := human_name(claim, claims)[1])}
    return tuple(f"{claim} {clean(value)}{named.get(claim, '')}" for claim, value in ids.items())


def nearest_rules(question: Question, issuer: Issuer, told: Sequence[Rule]) -> list[Near]:
    """At most `NEAREST_MAX` live rules of the env for this issuer, the nearest first, without those that are `told` already.

    Only those that grant what is asked; where none does, the others.
    """
    rest = [
        rule
        for account in question.tree.accounts.values()
        if account.env == question.env.name and question.asked.account in (None, account.name)
        for rule in account.rules
        if rule.issuer == issuer.name and live(rule, question.now) and not any(rule is other for other in told)
    ]
    granting = [rule for rule in rest if _grants(question, rule)]
    found = heapq.nsmallest(NEAREST_MAX, granting or rest, key=lambda rule: _distance(question, rule))
    return [_near(question, issuer, rule, grants=bool(granting)) for rule in found]


def lack(question: Question, issuer: Issuer, told: Sequence[Rule], near: Sequence[Near]) -> str:
    """That no rule beside those that were told would grant what is asked to anybody; empty where one would."""
    if any(each.grants for each in near):
        return ""
    return f"no {'other ' if told else ''}rule of {question.env.name} for {issuer.name} grants what is asked"


def way_in(question: Question, issuer: Issuer, near: Sequence[Near]) -> str:
    """What would let the workload in: the id in place of its name, else the command for an account of its own."""
    if mend := next((each.mend for each in near if each.mend), ""):
        return mend
    apis, scope = question.tree.apis, question.asked.scope or ()
    access = {api: [name for name in scope if name in apis[api].scopes] for api in question.asked.apis or ()}
    if not access or not all(access.values()):
        return ""
    given = "".join(f" --access {api}={','.join(names)}" for api, names in access.items())
    command = f"broker policy new --env {question.env.name} --issuer {issuer.name}{given}"
    return f"no rule of its own grants this; if it should get it, an account of its own: {command}"


def _grants(question: Question, rule: Rule) -> bool:
    account = question.tree.accounts[rule.env, rule.account]
    return isinstance(offer_of(question.tree, account, rule.access, question.asked), Offer)


def _distance(question: Question, rule: Rule) -> tuple[int, int, str, int]:
    """How far off a rule is: by the pins that differ, one that only has the name for the id being none; then by all checks."""
    differing = [check for check in _pins(rule) if not check.matcher.holds(question.claims.get(check.claim))]
    apart = sum(not _named(check, question.claims) for check in differing)
    failed = sum(not check.matcher.holds(question.claims.get(check.claim)) for check in rule.checks)
    return apart, failed, rule.account, rule.position


def _pins(rule: Rule) -> Iterator[Check]:
    """The checks by which the index finds a rule."""
    claims = {claim for entry in rule.entries for claim in entry.shape.claims}
    return (check for check in rule.checks if check.claim in claims)


def _near(question: Question, issuer: Issuer, rule: Rule, *, grants: bool) -> Near:
    claims, longest = question.claims, question.limits.finding_characters_max
    differing = [check for check in _pins(rule) if not check.matcher.holds(claims.get(check.claim))]
    name = f"{rule.account}/{rule.name}"
    findings = tuple(
        Finding(name, check.claim, False, check.matcher.expected[:longest], seen(claims.get(check.claim), longest), check.place)
        for check in differing
    )
    remark = next((text for check in differing if (text := _remark(check, issuer, claims))), "")
    edits = [
        f"{check.claim}: write {scalar(claims[check.claim])} where {scalar(_named(check, claims))} stands"
        for check in differing
        if _named(check, claims)
    ]
    mend = f'{"; ".join(edits)}, in "{rule.name}" ({rule.place})' if edits and len(edits) == len(differing) else ""
    return Near(rule, grants, findings, remark, mend)


def _named(check: Check, claims: Mapping[str, ClaimValue]) -> str:
    """The workload's own name, where a check has it in place of the id; empty otherwise."""
    name = human_name(check.claim, claims)[1]
    return name if name and name in literals(check.matcher) and _is_id(claims.get(check.claim)) else ""


def _remark(check: Check, issuer: Issuer, claims: Mapping[str, ClaimValue]) -> str:
    value, expected = claims.get(check.claim), literals(check.matcher)
    if not isinstance(value, str | int) or not expected:
        return ""
    owner = presets.load(issuer.preset).title.split()[0] if issuer.preset is not None else issuer.name
    whose = f"{owner}'" if owner.endswith("s") else f"{owner}'s"
    if _is_id(value) and not any(map(_is_id, expected)):
        name = _named(check, claims)
        return f"the rule has a name where {whose} id belongs" + (f": {clean(name)} is {value}" if name else "")
    if not _is_id(value) and all(map(_is_id, expected)):
        return f"the rule has an id where {whose} name belongs"
    return ""


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and _ID.fullmatch(str(value)) is not None
