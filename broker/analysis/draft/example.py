"""A first test for rules that have none: the workload that a rule is about, as its `where` tells it.  Pure.

What a condition wants can only be guessed, so the policy itself decides each test, and one that it does not allow is not given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from broker import presets
from broker.analysis.draft.cases import fitting
from broker.config import Limits
from broker.model import Issuer
from broker.policy.cases import run_case
from broker.policy.match import Exists
from broker.policy.tree import Account, Case, Rule, Tree
from broker.protocol.claims import ClaimValue, Reading


def first_case(tree: Tree, now: float, limits: Limits) -> tuple[Account, Case] | None:
    """The tree's first account with a rule for which a test can be made that passes, and that test; None where there is none.

    `now` is epoch seconds.
    """
    for account in tree.accounts.values():
        for rule in account.rules:
            for case in _cases(tree.issuers.by_name[rule.issuer], rule):
                if run_case(tree, account, case, now, limits).passed:
                    return account, case
    return None


def _cases(issuer: Issuer, rule: Rule) -> Iterator[Case]:
    """The workload by what `where` wants alone; then with what its platform sends of all that the condition looks at."""
    usual = _usual(issuer)
    wanted = _wanted(issuer, rule, usual)
    more = {claim: usual[claim] for claim in (rule.condition.claims if rule.condition is not None else ()) if claim in usual}
    api, scopes = next(iter(rule.access.items()))
    for claims in (wanted, {**more, **wanted}) if wanted is not None else ():
        yield Case(
            name="the workload gets it",
            issuer=rule.issuer,
            claims=claims,
            audience=(api,),
            resource=(),
            scope=scopes[:1],
            service_account=rule.account,
            ttl_s=None,
            allow=True,
            reason="",
            now=None,
            place=rule.place,
        )


def _usual(issuer: Issuer) -> Mapping[str, ClaimValue]:
    """What the preset's example of a workload has; nothing without a preset."""
    if issuer.preset is None:
        return {}
    preset = presets.load(issuer.preset)
    return Reading.of(preset.claims, preset.families).read(preset.fixture.claims)


def _wanted(issuer: Issuer, rule: Rule, usual: Mapping[str, ClaimValue]) -> Mapping[str, ClaimValue] | None:
    """A value for each claim of `where`: the platform's usual one if it fits; None where none of those at hand does."""
    preset = presets.load(issuer.preset) if issuer.preset is not None else None
    found: dict[str, ClaimValue] = {}
    for claim in dict.fromkeys(check.claim for check in rule.checks):
        matchers = [check.matcher for check in rule.checks if check.claim == claim]
        if any(matcher == Exists(False) for matcher in matchers):
            continue
        candidates = [usual[claim]] if claim in usual else []
        candidates += [fitting(matcher, claim, preset) for matcher in matchers]
        value = next((each for each in candidates if all(matcher.holds(each) for matcher in matchers)), None)
        if value is None:
            return None
        found[claim] = value
    return found
