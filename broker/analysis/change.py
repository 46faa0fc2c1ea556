"""The smallest change that would have let a refused workload in, and that takes nothing away from anybody who is let in now.

Pure.  Where a single literal differs, its list grows by the value.  Anything else, a pattern above all, would lose what it
admits: there the value gets a rule of its own, with the other claims as they are, for no more than was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, count

from broker import presets
from broker.analysis.advice import ended
from broker.analysis.draft import clean, scalar
from broker.compiler.pins import literals
from broker.compiler.where import strangers
from broker.errors import ClaimsNotSatisfied, Refused, ScopeNotGranted
from broker.policy.assess import Assessment
from broker.policy.match import Contains, Equals, Exists, Glob, In, Matcher, NotIn
from broker.policy.offer import Offer, Question, offer_of
from broker.policy.tree import Access, Check, Rule
from broker.protocol.claims import ClaimValue
from broker.protocol.revocations import fact


@dataclass(frozen=True, slots=True)
class Change:
    """What to do, in one line; empty where there is nothing small.

    `rule` is the YAML of a second rule, to be pasted below the `trust:` of the account's file; `opens` says which scopes of
    high sensitivity the change opens, and to whom.
    """

    text: str = ""
    rule: str = ""
    opens: str = ""


def smallest_change(question: Question, refused: Refused, assessed: Sequence[Assessment]) -> Change:
    """The least edit of one rule, or of the request, that would have made it an allow."""
    for each in assessed:
        if each.holds and each.grants and (end := ended(question.tree, each.rule, question.now)):
            return Change(f"a later date: {end}")
    if isinstance(refused, ScopeNotGranted) and refused.names:
        return Change(f"ask for {' '.join(refused.names)} only, or let the owner widen the rule's access")
    if not isinstance(refused, ClaimsNotSatisfied):
        return Change()
    able = [each for each in assessed if each.live and each.own and each.grants and each.failed]
    return _nearest(question, min(able, key=lambda each: len(each.failed))) if able else Change()


def _nearest(question: Question, nearest: Assessment) -> Change:
    rule, claims = nearest.rule, question.claims
    where = f'"{rule.name}" ({rule.place})'
    failed = [finding for finding in nearest.findings if not finding.held]
    if strange := _strange(question, rule, {finding.claim for finding in failed}):
        run = ", ".join(f"{claim} {clean(claims.get(claim))}" for claim in strange)
        return Change(f"none is advised: a stranger's code may be at work in such a run ({run}), and {where} holds it back")
    missed = [check for check in rule.checks if not check.matcher.holds(claims.get(check.claim))]
    conditional = any(finding.claim == "condition" for finding in failed)
    admits = [*map(_admits, missed), *(["under its condition"] if conditional else [])]
    text = f"no change is needed if it should run {' and '.join(admits)}"
    values = {check.claim: value for check in missed if (value := claims.get(check.claim)) is not None}
    if absent := [check.claim for check in missed if check.claim not in values]:
        return Change(f"{text}; the token has no {' and no '.join(absent)}")
    if conditional:
        return Change(f"{text}; to let it in as well, a condition that admits it too in {where}")
    declared = question.tree.issuers.by_name[rule.issuer].preset is not None
    offer = offer_of(question.tree, question.tree.accounts[rule.env, rule.account], rule.access, question.asked)
    if not isinstance(offer, Offer) or not all(_stands(value, declared=declared) for value in values.values()):
        return Change(text)
    these = " and ".join(f"{claim} {clean(value)}" for claim, value in values.items())
    if len(missed) == 1 and (widened := _widened(rule, missed[0], values[missed[0].claim])):
        return Change(f"{text}; to let {these} in as well, {widened} in {where}", opens=_opens(question, values, rule.access))
    access = dict.fromkeys(offer.apis, offer.scope)
    text += f"; to let {these} in as well, add the rule below to `trust:` of {rule.file}"
    added = "".join(f"{line}\n" for line in _second(question, rule, values, access))
    return Change(text, added, _opens(question, values, access))


def _strange(question: Question, rule: Rule, failed: set[str]) -> list[str]:
    """The failed claims by which this is a stranger's run: to pin them to what they are is what would let the stranger in."""
    preset = question.tree.issuers.by_name[rule.issuer].preset
    runs = (presets.load(preset).stranger_runs if preset is not None else None) or ()
    met = [run for run in strangers(runs, (), all_low=rule.low_access == rule.access) if run.met(question.claims)]
    return [*dict.fromkeys(claim for run in met for claim in run.claims if claim in failed)]


def _admits(check: Check) -> str:
    expected = clean(check.matcher.expected)
    return f"from {expected}" if _is_ref(check.claim) else f"with {check.claim} {expected}"


def _stands(value: ClaimValue, *, declared: bool) -> bool:
    """Whether a value can stand in a rule: a record keeps long ones as hashes, and without a preset all literals are text."""
    if isinstance(value, str):
        return fact(value) == value and not value.startswith("sha256:")
    return declared and isinstance(value, int)


def _widened(rule: Rule, check: Check, value: ClaimValue) -> str:
    """The literals of a check with one more; empty where it has none, or is not all that the rule asks of the claim."""
    known = literals(check.matcher)
    if not known or sum(other.claim == check.claim for other in rule.checks) > 1:
        return ""
    return f"{scalar(check.claim)}: {{in: [{', '.join(map(scalar, (*known, value)))}]}}"


def _second(question: Question, rule: Rule, values: Mapping[str, ClaimValue], access: Access) -> Iterator[str]:
    """A rule beside `rule` that admits these very values: its pins, condition and limits, and an access that is no wider."""
    account = question.tree.accounts[rule.env, rule.account]
    yield f"  - name: {scalar(_free_name(rule, values, {each.name for each in account.rules}))}"
    yield f"    issuer: {rule.issuer}"
    yield "    where:"
    for claim in dict.fromkeys(check.claim for check in rule.checks):
        checks = [check.matcher for check in rule.checks if check.claim == claim]
        if claim in values:
            operand = scalar(values[claim])
        elif len(checks) == 1 and isinstance(checks[0], Equals):
            operand = scalar(checks[0].value)
        else:
            operand = f"{{{', '.join(map(_operator, checks))}}}"
        yield f"      {scalar(claim)}: {operand}"
    if rule.condition is not None:
        yield f"    condition: {scalar(rule.condition.text)}"
    yield f"    access: {{{', '.join(f'{scalar(api)}: {_list(scopes)}' for api, scopes in access.items())}}}"
    if rule.max_ttl_s is not None:
        yield f"    max_ttl: {rule.max_ttl_s}s"
    if rule.expires_at < account.expires_at:
        yield f"    expires: {datetime.fromtimestamp(rule.expires_at - 1, UTC).date()}"


def _free_name(rule: Rule, values: Mapping[str, ClaimValue], taken: set[str]) -> str:
    name = f"{rule.name}, {' and '.join(f'{claim} {clean(value)}' for claim, value in values.items())}"
    return next(each for each in chain((name,), (f"{name} {number}" for number in count(2))) if each not in taken)


def _operator(matcher: Matcher) -> str:
    match matcher:
        case In(values=values):
            return f"in: {_list(values)}"
        case NotIn(values=values):
            return f"not_in: {_list(values)}"
        case Glob(pattern=pattern):
            return f"glob: {scalar(pattern)}"
        case Exists(wanted=wanted):
            return f"exists: {scalar(wanted)}"
        case Contains(member=member):
            return f"contains: {scalar(member)}"
        case Equals(value=value):
            return f"equals: {scalar(value)}"
        case _:
            raise AssertionError(matcher)


def _list(values: Sequence[object]) -> str:
    return f"[{', '.join(map(scalar, values))}]"


def _opens(question: Question, values: Mapping[str, ClaimValue], access: Access) -> str:
    apis = question.tree.apis
    opened = [apis[api].scopes[scope] for api, scopes in access.items() for scope in scopes if scope in apis[api].scopes]
    high = dict.fromkeys(scope.name for scope in opened if scope.sensitivity == "high")
    if not high:
        return ""
    who = " and ".join(dict.fromkeys(_who(claim, value, question.claims) for claim, value in values.items()))
    return f"this opens {', '.join(f'{scope} (high)' for scope in high)} to {who}"


def _who(claim: str, value: ClaimValue, claims: Mapping[str, ClaimValue]) -> str:
    """Who can bring a claim's value about, as far as its name tells."""
    if "environment" in claim.lower():
        return "whoever can run a job in that environment"
    if not _is_ref(claim):
        return f"every run with {claim} {clean(value)}"
    if str(value).startswith(("refs/heads/", "refs/tags/")):
        return f"whoever can push that {'branch' if str(value).startswith('refs/heads/') else 'tag'}"
    kind = "branch" if "branch" in claim.lower() else claims.get("ref_type")
    return f"whoever can push that {kind if kind in ('branch', 'tag') else 'ref'}"


def _is_ref(claim: str) -> bool:
    """Whether a claim names a branch or tag: `ref`, `scm_ref`, `oidc.circleci.com/vcs-ref`, `branchName`, `build_branch`."""
    name = claim.lower()
    return name.endswith("ref") or "branch" in name
