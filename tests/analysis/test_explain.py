"""Explain tells the very decision, claim by claim, and the smallest change that would have made it an allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.analysis.explain import explain, from_record, recorded_claims, render
from broker.errors import Refused
from broker.policy.tree import Tree
from broker.protocol.claims import ClaimSpec
from broker.protocol.revocations import fact
from tests.policy.trees import NOW, account, build, outcome, request, rule, workload

WHERE = '{repository_id: "7", environment: production, ref: {glob: "refs/tags/v*"}}'
JOB = {"repository_id": "7", "environment": "production", "ref": "refs/tags/v1", "event_name": "push"}
ASKED = request(audience="payments", scope="deploy:write")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    more = 'condition: claims.event_name != "schedule"'
    others = {f"prod/svc-{n}.yaml": account(f"svc-{n}", rule(f'{{repository_id: "{n}"}}')) for n in range(100, 105)}
    return build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(WHERE, more=more)), **others})


def test_a_refusal_names_what_failed_where_and_the_smallest_change(tree: Tree) -> None:
    found = explain(tree, workload(tree, "github", **JOB | {"ref": "refs/heads/fix"}), ASKED, NOW)
    assert (found.allowed, found.reason) == (False, "claims_not_satisfied")
    assert (found.accounts_looked_at, found.accounts_total) == (1, 6)
    (looked,) = found.rules
    assert [(finding.claim, finding.held) for finding in looked.findings] == [
        ("repository_id", True),
        ("environment", True),
        ("ref", False),
        ("condition", True),
    ]
    assert looked.findings[2].place == "prod/svc-a.yaml:9:70"
    assert found.smallest_change == (
        "no change is needed if it should run from refs/tags/v*; "
        "to let ref refs/heads/fix in as well, add the rule below to `trust:` of prod/svc-a.yaml"
    )
    text = render(found)
    assert "REFUSED  prod  github" in text
    assert "1 of 6 accounts looked at" in text
    assert "- ref" in text
    assert "expected refs/tags/v*   seen refs/heads/fix" in text
    assert ":9:70" in text
    assert text.index("add the rule below") < text.index("this opens deploy:write (high)") < text.index('- name: "first, ref')


def test_a_number_that_reads_like_the_text_that_is_wanted_is_told_apart(tmp_path: Path) -> None:
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7", environment: "8"}'))})
    found = explain(tree, workload(tree, "github", **JOB | {"environment": 8}), ASKED, NOW)
    assert "expected 8   seen 8, of another type: one is text, the other is not" in render(found)


def test_an_allow_is_told_too(tree: Tree) -> None:
    found = explain(tree, workload(tree, "github", **JOB), ASKED, NOW)
    assert (found.allowed, found.account, found.ttl_s, found.smallest_change) == (True, "svc-a", 600, "")
    assert render(found).startswith("ALLOWED  prod  github")


@pytest.mark.parametrize(
    ("change", "asked", "says"),
    [
        ({}, {"scope": "nothing"}, "ask for deploy:write releases:read only"),
        ({"event_name": "schedule"}, {"scope": "deploy:write"}, "a condition that admits it"),
        ({"event_name": "pull_request"}, {"scope": "deploy:write"}, "none is advised: a stranger's code may be at work"),
        ({"environment": None}, {"scope": "deploy:write"}, "environment production; the token has no environment"),
        ({"repository_id": "8"}, {"scope": "deploy:write"}, ""),
    ],
)
def test_the_smallest_change_fits_what_failed(tree: Tree, change: dict[str, str], asked: dict[str, str], says: str) -> None:
    job = {name: value for name, value in (JOB | change).items() if value is not None}
    found = explain(tree, workload(tree, "github", **job), request(**asked), NOW)
    assert says in found.smallest_change
    assert bool(says) is bool(found.smallest_change)


def test_an_env_that_is_not_open_has_nothing_to_look_at(tree: Tree) -> None:
    found = explain(tree, workload(tree, "cluster"), request("dev"), NOW)
    assert (found.reason, found.rules, found.accounts_looked_at) == ("env_not_open", (), 0)
    assert render(found)


def test_a_record_tells_the_same_story_as_the_tree(tree: Tree) -> None:
    who = workload(tree, "github", **JOB | {"ref": "refs/heads/fix"})
    refused = outcome(tree, who, ASKED)
    assert isinstance(refused, Refused)
    record = {
        "outcome": "refused",
        "reason": refused.reason,
        "env": "prod",
        "issuer": "github",
        "subject": "s",
        "requested": {"audience": ["payments"], "scope": ["deploy:write"]},
        "reasons": [finding.as_dict() for finding in refused.reasons],
        "policy_revision": tree.revision,
    }
    told = from_record(record)
    assert told.rules[0].findings == explain(tree, who, ASKED, NOW).rules[0].findings
    assert (told.rules[0].account, told.rules[0].rule) == ("svc-a", "first")
    assert "- ref" in render(told)


@pytest.mark.parametrize("value", [7, True, "7", ("a", "b"), "x" * 300])
def test_what_a_record_made_text_of_is_read_back_as_its_issuer_declares_it(value: Any, tree: Tree) -> None:
    """Otherwise a number in a rule would seem to differ from the same number in a token."""
    kind = {int: "integer", bool: "boolean", str: "string", tuple: "list"}[type(value)]
    issuer = replace(tree.issuers.by_name["github"], claims={"c": ClaimSpec("c", ("c",), (kind,))})
    (sub, claim) = recorded_claims(issuer, {"subject": "s", "claims": {"c": fact(value)}}).values()
    assert (sub, claim) == ("s", value if len(fact(value)) < 60 else fact(value))
    assert type(claim) is type(value)
    hashed = recorded_claims(issuer, {"claims": {"c": "sha256:0"}})
    assert hashed["c"] == "sha256:0"


def test_odd_records_are_told_as_far_as_they_go() -> None:
    for record in (
        {},
        {"reasons": ["x", {"claim": 3}], "requested": {"scope": None}},
        {"outcome": "issued", "granted": {"ttl_s": 5}},
    ):
        assert render(from_record(record))
