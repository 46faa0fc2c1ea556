"""Why: a decision told rule by rule, claim by claim, with the smallest change that would have allowed it.  Pure.

The verdict is that of policy.decide, not a second opinion.  `explain` looks at a tree; `from_record` at what an audit record
kept.  `render` is the text of `broker policy explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from broker.analysis.advice import ended, unknown_names
from broker.config import Limits
from broker.errors import ClaimsNotSatisfied, Refused, ScopeNotGranted, TokenAudience
from broker.model import ExchangeRequest, Finding, Grant, Workload
from broker.policy.assess import Assessment, assess
from broker.policy.decide import DEFAULTS, candidates_of, decide
from broker.policy.match import Equals, In
from broker.policy.offer import Question, asked_of
from broker.policy.tree import Check, Tree


@dataclass(frozen=True, slots=True)
class RuleExplanation:
    """One rule that was looked at: what held and what failed.  `ended` says when and by which `expires` it ended, if it has."""

    account: str
    owner: str
    rule: str
    place: str
    live: bool
    own: bool
    held: bool
    findings: tuple[Finding, ...]
    ended: str = ""

    @property
    def held_count(self) -> int:
        """How many of its findings held."""
        return sum(finding.held for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole story of one decision.  `accounts_looked_at` of `accounts_total` of the env; 0 of 0 where nobody counted.

    `notes` are sentences for the owner about what stood in the way beside the rules.
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
    if env is not None and workload.issuer in env.issuers:
        question = Question(tree, env, workload.claims, request, asked_of(tree, env, request), now, limits)
        assessed = tuple(assess(question, rule) for rule in candidates_of(question, workload.issuer))
    rules = tuple(
        RuleExplanation(
            account=each.rule.account,
            owner=tree.accounts[each.rule.env, each.rule.account].owner,
            rule=each.rule.name,
            place=each.rule.place,
            live=each.live,
            own=each.own,
            held=each.holds,
            findings=each.findings,
            ended=ended(tree, each.rule, now),
        )
        for each in assessed
    )
    allowed = isinstance(outcome, Grant)
    return Explanation(
        allowed=allowed,
        env=request.env,
        issuer=workload.issuer,
        subject=workload.subject,
        reason="" if isinstance(outcome, Grant) else outcome.reason,
        detail=f"{outcome.trust_rule} ({outcome.place})" if isinstance(outcome, Grant) else outcome.detail,
        account=outcome.service_account if isinstance(outcome, Grant) else request.service_account or "",
        audience=outcome.audience if isinstance(outcome, Grant) else (*request.audience, *request.resource),
        scope=outcome.scope if isinstance(outcome, Grant) else request.scope or (),
        ttl_s=outcome.ttl_s if isinstance(outcome, Grant) else None,
        rules=rules,
        accounts_looked_at=len({each.rule.account for each in assessed}),
        accounts_total=sum(account.env == request.env for account in tree.accounts.values()),
        smallest_change="" if isinstance(outcome, Grant) else _smallest_change(outcome, assessed, workload, rules),
        revision=tree.revision,
        notes=() if allowed else tuple(unknown_names(tree, workload.issuer, request)),
    )


def refused_audience(explanation: Explanation, wrong: str) -> Explanation:
    """The same story for a token that is refused before any rule is looked at: `wrong` says which audience was seen."""
    alone = "allow it" if explanation.allowed else f"refuse it: {explanation.reason}"
    notes = (*explanation.notes, f"with the right audience the policy would {alone}")
    change = "request the token for the audience that is expected"
    return replace(
        explanation, allowed=False, reason=TokenAudience.reason, detail=wrong, smallest_change=change, ttl_s=None, notes=notes
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
        smallest_change="",
        revision=str(record.get("policy_revision") or ""),
    )


def render(explanation: Explanation) -> str:
    """The explanation as plain text, one finding a line: `+` held, `-` failed."""
    verdict = "ALLOWED" if explanation.allowed else "REFUSED"
    wanted = " ".join((*explanation.audience, *explanation.scope)) or "(nothing named)"
    who = " ".join(part for part in (explanation.issuer, explanation.subject) if part)
    lines = [f"{verdict}  {explanation.env}  {who} -> {wanted}"]
    if explanation.reason:
        lines.append(f"reason    {explanation.reason}" + (f"  {explanation.detail}" if explanation.detail else ""))
    lines += [f"note      {note}" for note in explanation.notes]
    if explanation.accounts_total:
        lines.append(f"{explanation.accounts_looked_at} of {explanation.accounts_total} accounts looked at (by index)")
    for rule in explanation.rules:
        owner = f"      owner {rule.owner}" if rule.owner else ""
        lines += ["", f"{rule.account}  {rule.place.rpartition(':')[0] or rule.place}{owner}"]
        count = f"{rule.held_count} of {len(rule.findings)} held"
        lines.append(f'└─ "{rule.rule}" :{rule.place.rpartition(":")[2]}  {count}')
        lines += [f"   - {rule.ended}"] if rule.ended else []
        lines += [_line(finding) for finding in rule.findings]
    if explanation.smallest_change:
        lines += ["", f"smallest change   {explanation.smallest_change}"]
    if explanation.revision:
        lines += ["", f"decided under     policy {explanation.revision[:7]}"]
    return "\n".join(lines) + "\n"


def _line(finding: Finding) -> str:
    position = ":" + finding.place.split(":", 1)[1] if ":" in finding.place else ""
    if finding.held:
        return f"   + {finding.claim:<22} {finding.seen or finding.expected}"
    return f"   - {finding.claim:<22} expected {finding.expected}   seen {finding.seen}   {position}".rstrip()


def _smallest_change(
    refused: Refused, assessed: tuple[Assessment, ...], workload: Workload, rules: tuple[RuleExplanation, ...]
) -> str:
    """The least edit of one rule, or of the request, that would have made it an allow; empty where there is no small one."""
    for each, rule in zip(assessed, rules, strict=True):
        if rule.ended and each.holds and each.grants:
            return f"a later date: {rule.ended}"
    if isinstance(refused, ScopeNotGranted) and refused.names:
        return f"ask for {' '.join(refused.names)} only, or let the owner widen the rule's access"
    if not isinstance(refused, ClaimsNotSatisfied):
        return ""
    able = [each for each in assessed if each.live and each.own and each.failed]
    able = [each for each in able if each.grants] or able
    if not able:
        return ""
    nearest = min(able, key=lambda each: len(each.failed))
    edits: list[str] = []
    for check in nearest.rule.checks:
        value = workload.claims.get(check.claim)
        if not check.matcher.holds(value):
            edits.append(_edit(check, value))
    named = {check.claim for check in nearest.rule.checks}
    edits += [f"{claim}: {_quoted(workload.claims.get(claim))}" for claim in nearest.failed if _unpinned(claim, named, nearest)]
    if any(not finding.held and finding.claim == "condition" for finding in nearest.findings):
        edits.append("a condition that admits it")
    return f'{"; ".join(dict.fromkeys(edits))}  in "{nearest.rule.name}" ({nearest.rule.place})'


def _unpinned(claim: str, named: set[str], nearest: Assessment) -> bool:
    """Whether a stranger's run, and not the condition, asks for this claim to be pinned."""
    return claim not in named and any(claim in stranger.claims for stranger in nearest.rule.strangers)


def _edit(check: Check, value: object) -> str:
    if value is None:
        return f"{check.claim}: (the token has no such claim)"
    matcher = check.matcher
    values = [matcher.value] if isinstance(matcher, Equals) else list(matcher.values) if isinstance(matcher, In) else []
    return f"{check.claim}: {{in: [{', '.join(_quoted(each) for each in (*values, value))}]}}"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _finding(reason: Mapping[str, Any]) -> Finding:
    text = {name: str(reason.get(name, "")) for name in ("rule", "claim", "expected", "seen", "place")}
    return Finding(text["rule"], text["claim"], reason.get("held") is True, text["expected"], text["seen"], text["place"])


def _recorded_rule(name: str, findings: tuple[Finding, ...], record: Mapping[str, Any]) -> RuleExplanation:
    account, _, rule = name.partition("/")
    held = all(finding.held for finding in findings)
    owner = str(record.get("owner") or "") if account == record.get("service_account") else ""
    place = ":".join(findings[0].place.split(":")[:2])
    return RuleExplanation(account, owner, rule or name, place, live=True, own=False, held=held, findings=findings)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    return tuple(str(member) for member in value) if isinstance(value, list | tuple) else ()
