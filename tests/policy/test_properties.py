"""Whatever the claims and the policy: an allow means that a live rule holds literally, and that nothing is beyond its limits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import ClaimsNotSatisfied
from broker.model import Grant
from broker.policy.assess import assess, is_own, live
from broker.policy.offer import Offer, Question, asked_of, offer_of
from tests.policy.trees import LIMITS, NOW, account, build, outcome, request, rule, workload

VALUES = st.sampled_from(
    ["7", "8", "main", "refs/tags/v1", "refs/tags/v1/x", "push", "pull_request", "pull_request_target", "production"]
)
CLAIMS = ("repository_id", "repository_owner_id", "ref", "event_name", "environment")
OPERATORS = st.one_of(
    VALUES.map(lambda value: ("equals", value)),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: ("in", values)),
    st.lists(VALUES, min_size=1, max_size=2).map(lambda values: ("not_in", values)),
    st.sampled_from(["refs/tags/*", "refs/**", "*"]).map(lambda pattern: ("glob", pattern)),
    st.booleans().map(lambda flag: ("exists", flag)),
)
SCOPES = st.sets(st.sampled_from(["deploy:write", "releases:read", "shared"]), min_size=1)
RULES = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["7", "8"]),
        "where": st.dictionaries(st.sampled_from(CLAIMS[2:]), OPERATORS, max_size=3),
        "scopes": SCOPES,
        "max_ttl": st.integers(60, 2000),
        "condition": st.sampled_from(["", 'claims.event_name != "push"', '"shared" in request.scope', "!present('environment')"]),
        "expires": st.sampled_from(["2026-11-01", "2027-01-01"]),
    }
)
ACCOUNTS = st.lists(st.lists(RULES, min_size=1, max_size=3), min_size=1, max_size=3)


def literally(operator: str, operand: Any, value: str | None) -> bool:
    """What an operator says, in the plainest words."""
    match operator:
        case "equals":
            return value == operand
        case "in":
            return value in operand
        case "not_in":
            return value is not None and value not in operand
        case "exists":
            return (value is not None) is operand
        case _:
            if value is None:
                return False
            if operand == "refs/**":
                return value.startswith("refs/")
            rest = value.removeprefix("refs/tags/") if operand == "refs/tags/*" else value
            return "/" not in rest and ":" not in rest and (operand == "*" or value.startswith("refs/tags/"))


def written(entry: dict[str, Any], number: int) -> str:
    def quoted(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(quoted(member) for member in value) + "]"
        return str(value).lower() if isinstance(value, bool) else f'"{value}"'

    where = "".join(f", {claim}: {{{operator}: {quoted(operand)}}}" for claim, (operator, operand) in entry["where"].items())
    scopes = ", ".join(f'"{scope}"' for scope in sorted(entry["scopes"]))
    more = f"access: {{payments: [{scopes}]}}\nmax_ttl: {entry['max_ttl']}s\nexpires: {entry['expires']}"
    condition = f"\ncondition: |\n  {entry['condition']}" if entry["condition"] else ""
    return rule(f'{{repository_id: "{entry["id"]}"{where}}}', name=f"rule {number}", more=more + condition)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    accounts=ACCOUNTS,
    claims=st.dictionaries(st.sampled_from(CLAIMS), VALUES),
    scope=st.one_of(st.none(), SCOPES),
    named=st.sampled_from([None, "svc-0", "svc-9"]),
    ttl_s=st.one_of(st.none(), st.integers(1, 5000)),
)
def test_an_allow_is_backed_by_a_live_rule_that_holds_literally(
    accounts: list[list[dict[str, Any]]], claims: dict[str, str], scope: set[str] | None, named: str | None, ttl_s: int | None
) -> None:
    access = '{payments: ["deploy:write", "releases:read", shared]}'
    with tempfile.TemporaryDirectory() as folder:
        files = {
            f"prod/svc-{n}.yaml": account(f"svc-{n}", *(written(entry, i) for i, entry in enumerate(rules)), access=access)
            for n, rules in enumerate(accounts)
        }
        tree = build(Path(folder), files)
    asked = request(audience="payments", scope=tuple(sorted(scope)) if scope else None, service_account=named, ttl_s=ttl_s)
    who = workload(tree, "github", **claims)
    found = outcome(tree, who, asked)
    env = tree.envs["prod"]
    question = Question(tree, env, who.claims, asked, asked_of(tree, env, asked), NOW, LIMITS)
    if isinstance(found, Grant):
        holder = tree.accounts["prod", found.service_account]
        entry = accounts[int(found.service_account[-1])][int(found.trust_rule[-1])]
        assert claims["repository_id"] == entry["id"]
        assert all(literally(operator, operand, claims.get(claim)) for claim, (operator, operand) in entry["where"].items())
        assert entry["expires"] == "2027-01-01"
        assert named in (None, found.service_account)
        assert set(found.scope) == scope
        assert set(found.scope) <= entry["scopes"]
        assert 1 <= found.ttl_s <= min(entry["max_ttl"], env.max_ttl_s, ttl_s or 900, holder.expires_at - NOW)
        if "event_name" not in {claim for claim, (operator, _) in entry["where"].items() if operator in ("equals", "in")}:
            assert claims.get("event_name") != "pull_request_target"
            assert claims.get("event_name") != "pull_request" or "deploy:write" not in found.scope
    # The fast path and the full assessment are two readings of one rule: they must never disagree.
    candidates = {id(each) for each in tree.index.candidates("prod", "github", who.claims)}
    for each in (each for holder in tree.accounts.values() for each in holder.rules):
        full = assess(question, each)
        grants = isinstance(offer_of(tree, tree.accounts["prod", each.account], each.access, question.asked), Offer)
        counts = full.holds and live(each, NOW) and grants and named in (None, each.account)
        if counts:
            assert not isinstance(found, ClaimsNotSatisfied)
        if is_own(each, who.claims) or full.holds:
            assert id(each) in candidates
    assert isinstance(found, Grant) or found.told is not None
