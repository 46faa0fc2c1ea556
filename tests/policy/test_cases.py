"""The example tree: it compiles without a warning, and every test in it passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.config import Limits
from broker.errors import ClaimsNotSatisfied, ScopeNotGranted
from broker.model import Grant
from broker.policy.cases import run_cases
from broker.policy.tree import Tree
from tests.policy.trees import NOW, account, build, outcome, request, rule, workload

POLICIES = Path(__file__).parents[2] / "policies"
TAG = {"repository_id": "7432112", "repository_owner_id": "98123", "ref": "refs/tags/v1.2.0", "event_name": "push"}


@pytest.fixture(scope="module")
def tree() -> Tree:
    return compile_tree(read_tree(POLICIES, Limits()), limits=Limits(), today=NOW)


def test_the_example_tree_compiles_without_a_warning(tree: Tree) -> None:
    assert tree.warnings == ()
    assert len(tree.accounts) == 9
    assert set(tree.envs) == {"prod", "staging", "dev"}


def test_every_test_of_the_example_tree_passes(tree: Tree) -> None:
    results = list(run_cases(tree, NOW))
    assert [(result.place, result.message) for result in results if not result.passed] == []
    assert len(results) >= 30
    assert {account.name for account in tree.accounts.values()} == {result.account for result in results}


def test_the_story_of_the_demo_holds(tree: Tree) -> None:
    asked = request(audience="payments", scope="deploy:write")
    allowed = outcome(tree, workload(tree, "github", **TAG, environment="production"), asked)
    assert isinstance(allowed, Grant)
    assert (allowed.service_account, allowed.ttl_s, allowed.scope) == ("svc-payments-deploy", 600, ("deploy:write",))
    pull = TAG | {"ref": "refs/pull/7/merge", "event_name": "pull_request"}
    refused = outcome(tree, workload(tree, "github", **pull), asked)
    assert isinstance(refused, ClaimsNotSatisfied)
    assert set(refused.names) == {"ref", "environment", "event_name"}
    staging = outcome(tree, workload(tree, "github", **TAG, environment="staging"), asked)
    assert isinstance(staging, ClaimsNotSatisfied)
    assert staging.names == ("environment",)
    more = request(audience="payments", scope="releases:delete")
    fewer = outcome(tree, workload(tree, "github", **TAG, environment="production"), more)
    assert isinstance(fewer, ScopeNotGranted)
    assert fewer.names == ("deploy:write",)


def test_a_test_that_fails_says_what_came_instead(tmp_path: Path) -> None:
    tests = """\
tests:
  - name: wrong
    issuer: github
    claims: {repository_id: "8"}
    request: {scope: deploy:write}
    expect: allow
  - name: wrong reason
    issuer: github
    claims: {repository_id: "8"}
    request: {scope: deploy:write}
    expect: deny
    reason: scope_not_granted
  - name: after the end
    issuer: github
    claims: {repository_id: "7"}
    request: {scope: deploy:write}
    now: 2027-07-01T00:00:00Z
    expect: deny
  - name: another account's
    issuer: github
    claims: {repository_id: "9"}
    request: {scope: deploy:write}
    expect: allow
"""
    other = {"prod/svc-b.yaml": account("svc-b", rule('{repository_id: "9"}'))}
    tree = build(tmp_path, other | {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'), more=tests)})
    messages = [result.message for result in run_cases(tree, NOW)]
    assert messages == [
        "expected allow, and it was denied (no_rule_matched)",
        "expected deny (scope_not_granted), and it was denied (no_rule_matched)",
        "",
        "expected allow as svc-a, and it was allowed as svc-b",
    ]
