"""Why: a decision told rule by rule, claim by claim, with the smallest change that would have allowed it.  Pure.

The verdict is that of policy.decide, not a second opinion.  `explain` looks at a tree; `from_record` at what an audit record
kept.  `render` is the text of `broker policy explain`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from broker.analysis.advice import UNTRUSTED, counted, ended, unknown_names
from broker.analysis.change import Change, smallest_change
from broker.analysis.nearest import Near, lack, nearest_rules, presented, way_in
from broker.config import Limits
from broker.errors import ClaimsNotSatisfied, NoRuleMatched, Refused, TokenAudience
from broker.model import ExchangeRequest, Finding, Grant, Issuer, Workload
from broker.policy.assess import Assessment, assess
from broker.policy.decide import DEFAULTS, candidates_of, decide
from broker.policy.offer import Question, asked_of
from broker.policy.tree import Tree
from broker.protocol.claims import ClaimValue
from broker.protocol.revocations import fact

CONTINUED: Final = "\n" + " " * len("smallest change   ")


@dataclass(frozen=True, slots=True)
class RuleExplanation:
    """One rule that was looked at: what held and what failed.

    `ended` says when and by which `expires` it ended, if it has; `remark` what is odd about it.
    """

    account: str
    owner: str
    rule: str
    place: str
    live: bool
    own: bool
    held: bool
    findings: tuple[Finding, ...]
    ended: str = ""
    remark: str = ""

    @property
    def held_count(self) -> int:
        """How many of its findings held."""
        return sum(finding.held for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole story of one decision.  `accounts_looked_at` of `accounts_total` of the env; 0 of 0 where nobody counted.

    `smallest_change` is one line.  `rule_to_add` is YAML of a second rule that it may speak of, `opens` what it opens of high
    sensitivity, and to whom.  Where no rule of its own grants what is asked, `presented` are the workload's ids and `nearest`
    the rules that come nearest, with the pins that differ.  `notes` are sentences for the owner about what stood in the way
    beside the rules.
    """

    allowed: bool
    env: str
    issuer: str
    subject: str
    reason: str
    detail: str
    account: str
    audience: tuple[str, ...]
    scope: tuple[str, ...]
    ttl_s: int | None
    rules: tuple[RuleExplanation, ...]
    accounts_looked_at: int
    accounts_total: int
    smallest_change: str
    revision: str
    notes: tuple[str, ...] = ()
    rule_to_add: str = ""
    opens: str = ""
    presented: tuple[str, ...] = ()
    nearest: tuple[RuleExplanation, ...] = ()


def explain(
    tree: Tree, workload: Workload, request: ExchangeRequest, now: float, limits: Limits = DEFAULTS
) -> Explanation:
    """What decide() says, and all that it looked at.  `now` is epoch seconds.  Raises nothing."""
    outcome: Grant | Refused
    try:
        outcome = decide(tree, workload, request, now, limits)
    except Refused as refused:
        outcome = refused
    env = tree.envs.get(request.env)
    assessed: tuple[Assessment, ...] = ()
    near: list[Near] = []
    change = Change()
    notes = [] if isinstance(outcome, Grant) else [*unknown_names(tree, workload.issuer, request)]
    if env is not None and workload.issuer in env.issuers:
        question = Question(tree, env, workload.claims, request, asked_of(tree, env, request), now, limits)
        assessed = tuple(assess(question, rule) for rule in candidates_of(question, workload.issuer))
        if isinstance(outcome, Refused):
            change = smallest_change(question, outcome, assessed)
        nobody_fits = not any(each.holds and each.live for each in assessed)
        if isinstance(outcome, NoRuleMatched | ClaimsNotSatisfied) and nobody_fits and not change.text:
            issuer, told = tree.issuers.by_name[workload.issuer], [each.rule for each in assessed]
            near = nearest_rules(question, issuer, told)
            if not notes:  # a name that does not exist is what is wrong then
                change = Change(way_in(question, issuer, near))
                notes += filter(None, [lack(question, issuer, told, near)])
    return Explanation(
        allowed=isinstance(outcome, Grant),
        env=request.env,
        issuer=workload.issuer,
        subject=fact(workload.subject),
        reason="" if isinstance(outcome, Grant) else outcome.reason,
        detail=f"{outcome.trust_rule} ({outcome.place})" if isinstance(outcome, Grant) else outcome.detail,
        account=outcome.service_account if isinstance(outcome, Grant) else request.service_account or "",
        audience=outcome.audience if isinstance(outcome, Grant) else (*request.audience, *request.resource),
        scope=outcome.scope if isinstance(outcome, Grant) else request.scope or (),
        ttl_s=outcome.ttl_s if isinstance(outcome, Grant) else None,
        rules=tuple(_assessed(tree, each, now) for each in assessed),
        accounts_looked_at=len({each.rule.account for each in assessed}),
        accounts_total=sum(account.env == request.env for account in tree.accounts.values()),
        smallest_change=change.text,
        revision=tree.revision,
        notes=tuple(notes),
        rule_to_add=change.rule,
        opens=change.opens,
        presented=presented(workload.ids, workload.claims) if near or isinstance(outcome, NoRuleMatched) else (),
        nearest=tuple(_near(tree, each) for each in near),
    )


def refused_audience(explanation: Explanation, wrong: str) -> Explanation:
    """The same story for a token that is refused before any rule is looked at: `wrong` says which audience was seen."""
    alone = "allow it" if explanation.allowed else f"refuse it: {explanation.reason}"
    notes = (*explanation.notes, f"with the right audience the policy would {alone}")
    return replace(
        explanation,
        allowed=False,
        reason=TokenAudience.reason,
        detail=wrong,
        smallest_change="request the token for the audience that is expected",
        rule_to_add="",
        opens="",
        ttl_s=None,
        notes=notes,
    )


def from_record(record: Mapping[str, Any]) -> Explanation:
    """The story as an audit record kept it: bounded, without the rules that were left out.  Raises nothing for odd records."""
    findings = [_finding(reason) for reason in record.get("reasons") or () if isinstance(reason, Mapping)]
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    rules = tuple(_recorded_rule(name, tuple(found), record) for name, found in by_rule.items())
    asked, granted = record.get("requested") or {}, record.get("granted") or {}
    return Explanation(
        allowed=record.get("outcome") in ("issued", "would_issue"),
        env=str(record.get("env", "")),
        issuer=str(record.get("issuer", "")),
        subject=str(record.get("subject", "")),
        reason=str(record.get("reason") or ""),
        detail=str(record.get("detail") or ""),
        account=str(record.get("service_account") or asked.get("service_account") or ""),
        audience=_texts(granted.get("audience") or [*_texts(asked.get("audience")), *_texts(asked.get("resource"))]),
        scope=_texts(granted.get("scope") or asked.get("scope")),
        ttl_s=granted.get("ttl_s"),
        rules=rules,
        accounts_looked_at=len({rule.account for rule in rules}),
        accounts_total=0,
        smallest_change=UNTRUSTED.get(str(record.get("reason")), ""),
        revision=str(record.get("policy_revision") or ""),
        presented=_presented(record) if record.get("reason") == NoRuleMatched.reason else (),
    )


def recorded_claims(issuer: Issuer, record: Mapping[str, Any]) -> dict[str, ClaimValue]:
    """The claims that a record kept, the subject among them, as they were before the record made text of all (`fact`)."""
    kept = record.get("claims")
    claims: dict[str, ClaimValue] = {"sub": str(record.get("subject") or "")}
    for name, text in kept.items() if isinstance(kept, Mapping) else ():
        claims[name] = text
        spec = issuer.claims.get(name)
        if spec is not None and "string" not in spec.types:
            with suppress(ValueError, RecursionError):  # what is long was kept as its hash
                value = json.loads(text)
                claims[name] = tuple(value) if isinstance(value, list) else value
    return claims


def render(explanation: Explanation) -> str:
    """The explanation as plain text, one finding a line: `+` held, `-` failed."""
    verdict = "ALLOWED" if explanation.allowed else "REFUSED"
    wanted = " ".join((*explanation.audience, *explanation.scope)) or "(nothing named)"
    who = " ".join(part for part in (explanation.issuer, explanation.subject) if part) or "(not identified)"
    lines = [f"{verdict}  {explanation.env}  {who} -> {wanted}"]
    if explanation.reason:
        lines.append(f"reason    {explanation.reason}" + (f"  {explanation.detail}" if explanation.detail else ""))
    if explanation.presented:
        lines.append(f"presented {', '.join(explanation.presented)}")
    lines += [f"note      {note}" for note in explanation.notes]
    if explanation.accounts_total:
        total = counted(explanation.accounts_total, "account")
        lines.append(f"{explanation.accounts_looked_at} of {total} looked at (by index)")
    for rule in explanation.rules:
        lines += ["", *_rule(rule, f"{rule.held_count} of {len(rule.findings)} held")]
    if explanation.nearest:
        lines += ["", f"nearest rules of {explanation.env} for {explanation.issuer}"]
    for rule in explanation.nearest:
        lines += ["", *_rule(rule, "not this workload's own")]
    if explanation.smallest_change:
        lines += ["", f"smallest change   {explanation.smallest_change.replace('; ', CONTINUED)}"]
    if explanation.opens:
        lines[-1] += CONTINUED + explanation.opens
    if explanation.rule_to_add:
        lines += ["", *explanation.rule_to_add.splitlines()]
    if explanation.revision:
        lines += ["", f"decided under     policy {explanation.revision[:7]}"]
    return "\n".join(lines) + "\n"


def _rule(rule: RuleExplanation, standing: str) -> Iterator[str]:
    file, _, line = rule.place.rpartition(":")
    yield f"{rule.account}  {file or rule.place}" + (f"      owner {rule.owner}" if rule.owner else "")
    yield f'└─ "{rule.rule}" :{line}  {standing}'
    yield from (f"   - {text}" for text in (rule.ended, rule.remark) if text)
    yield from map(_line, rule.findings)


def _line(finding: Finding) -> str:
    position = ":" + finding.place.split(":", 1)[1] if ":" in finding.place else ""
    if finding.held:
        return f"   + {finding.claim:<22} {finding.seen or finding.expected}"
    kinds = ", of another type: one is text, the other is not" if finding.seen == finding.expected else ""
    return f"   - {finding.claim:<22} expected {finding.expected}   seen {finding.seen}{kinds}   {position}".rstrip()


def _assessed(tree: Tree, each: Assessment, now: float) -> RuleExplanation:
    rule = each.rule
    owner, end = tree.accounts[rule.env, rule.account].owner, ended(tree, rule, now)
    return RuleExplanation(
        rule.account, owner, rule.name, rule.place, each.live, each.own, each.holds, findings=each.findings, ended=end
    )


def _near(tree: Tree, each: Near) -> RuleExplanation:
    rule = each.rule
    owner = tree.accounts[rule.env, rule.account].owner
    return RuleExplanation(
        rule.account, owner, rule.name, rule.place, live=True, own=False, held=False, findings=each.findings, remark=each.remark
    )


def _finding(reason: Mapping[str, Any]) -> Finding:
    text = {name: str(reason.get(name, "")) for name in ("rule", "claim", "expected", "seen", "place")}
    return Finding(text["rule"], text["claim"], reason.get("held") is True, text["expected"], text["seen"], text["place"])


def _recorded_rule(name: str, findings: tuple[Finding, ...], record: Mapping[str, Any]) -> RuleExplanation:
    account, _, rule = name.partition("/")
    held = all(finding.held for finding in findings)
    owner = str(record.get("owner") or "") if account == record.get("service_account") else ""
    place = ":".join(findings[0].place.split(":")[:2])
    return RuleExplanation(account, owner, rule or name, place, live=True, own=False, held=held, findings=findings)


def _presented(record: Mapping[str, Any]) -> tuple[str, ...]:
    workload, claims = record.get("workload"), record.get("claims")
    ids = workload.get("ids") if isinstance(workload, Mapping) else None
    return presented(ids, claims if isinstance(claims, Mapping) else {}) if isinstance(ids, Mapping) else ()


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    return tuple(str(member) for member in value) if isinstance(value, list | tuple) else ()
