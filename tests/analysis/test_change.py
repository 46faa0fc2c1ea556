"""The smallest change, carried out: what is suggested loads, lets the workload in, and takes nothing from who was in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.analysis.explain import Explanation, explain
from broker.model import Grant
from broker.policy.tree import Tree
from tests.policy.trees import NOW, account, build, outcome, request, rule, workload

JOB = {"repository_id": "7", "environment": "production", "ref": "refs/tags/v1", "event_name": "push"}
ASKED = request(audience="payments", scope="deploy:write")
OWN_TTL = "max_ttl: 90s\nexpires: 2027-01-31"


def told(tree: Tree, asked: Any = ASKED, issuer: str = "github", **claims: Any) -> Explanation:
    return explain(tree, workload(tree, issuer, **JOB | claims if issuer == "github" else claims), asked, NOW)


def is_in(tree: Tree, **claims: Any) -> bool:
    return isinstance(outcome(tree, workload(tree, "github", **JOB | claims), ASKED), Grant)


@pytest.mark.parametrize(
    ("where", "was_in", "refused"),
    [
        pytest.param('ref: {glob: "refs/tags/v*"}', {}, {"ref": "refs/heads/fix-typo"}, id="a glob"),
        pytest.param("ref: refs/tags/v1", {}, {"ref": "refs/heads/fix-typo"}, id="a value"),
        pytest.param("ref: {in: [refs/tags/v1, refs/tags/v2]}", {"ref": "refs/tags/v2"}, {"ref": "refs/tags/v3"}, id="a list"),
        pytest.param("ref: {not_in: [refs/heads/x]}", {}, {"ref": "refs/heads/x"}, id="all but"),
        pytest.param("environment: {exists: false}", {"environment": None}, {}, id="none at all"),
        pytest.param(
            'ref: {glob: "refs/tags/*", not_in: [refs/tags/x]}', {}, {"ref": "refs/tags/x"}, id="two operators on one claim"
        ),
        pytest.param(
            "environment: staging, ref: main", {"environment": "staging", "ref": "main"}, {"ref": "refs/tags/v1"}, id="two claims"
        ),
        pytest.param('ref: {glob: "refs/tags/v*"}', {}, {"ref": "refs/heads/a: \"b\" # {c}"}, id="a value of signs"),
    ],
)
def test_what_is_suggested_lets_the_workload_in_and_takes_nothing_away(
    where: str, was_in: dict[str, Any], refused: dict[str, Any], tmp_path: Path
) -> None:
    was_in, refused = JOB | was_in, JOB | refused
    more = f'condition: claims.repository_id != "9"\n{OWN_TTL}'
    text = account("svc-a", rule(f'{{repository_id: "7", {where}}}', more=more))
    tree = build(tmp_path, {"prod/svc-a.yaml": text})
    assert (is_in(tree, **was_in), is_in(tree, **refused)) == (True, False)
    found = told(tree, **refused)
    if found.rule_to_add:
        text += found.rule_to_add
        assert "`trust:` of prod/svc-a.yaml" in found.smallest_change
    else:
        (edit,) = re.findall(r'as well, (.*) in "first"', found.smallest_change)
        text = text.replace(where, edit)
    changed = build(tmp_path, {"prod/svc-a.yaml": text})
    assert changed.warnings == ()
    assert (is_in(changed, **was_in), is_in(changed, **refused)) == (True, True)
    for other in ({"repository_id": "8"}, {"ref": "refs/heads/y", "environment": "dev"}, {"event_name": "workflow_run"}):
        assert is_in(changed, **refused | other) <= is_in(tree, **refused | other), "the others stay out"


def test_a_second_rule_opens_no_more_than_was_asked_and_lives_no_longer(tmp_path: Path) -> None:
    text = account("svc-a", rule('{repository_id: "7", ref: {glob: "refs/tags/v*"}}', more=OWN_TTL))
    found = told(build(tmp_path, {"prod/svc-a.yaml": text}), ref="refs/heads/fix")
    (added,) = yaml.safe_load(found.rule_to_add)
    assert added == {
        "name": "first, ref refs/heads/fix",
        "issuer": "github",
        "where": {"repository_id": "7", "ref": "refs/heads/fix"},
        "access": {"payments": ["deploy:write"]},
        "max_ttl": "90s",
        "expires": added["expires"],
    }
    assert added["expires"].isoformat() == "2027-01-31"


def test_a_second_rule_has_a_name_of_its_own(tmp_path: Path) -> None:
    rules = (rule('{repository_id: "7", ref: {glob: "refs/tags/v*"}}'), rule('{repository_id: "8"}', name='"first, ref x"'))
    found = told(build(tmp_path, {"prod/svc-a.yaml": account("svc-a", *rules)}), ref="x")
    assert yaml.safe_load(found.rule_to_add)[0]["name"] == "first, ref x 2"


@pytest.mark.parametrize(
    ("where", "refused", "who"),
    [
        pytest.param('ref: {glob: "refs/tags/v*"}', {"ref": "refs/heads/fix"}, "whoever can push that branch", id="a branch"),
        pytest.param("ref: refs/heads/main", {"ref": "refs/tags/v1"}, "whoever can push that tag", id="a tag"),
        pytest.param("ref: main", {"ref": "refs/pull/7/merge"}, "whoever can push that ref", id="another ref"),
        pytest.param("ref: main", {"ref": "fix", "ref_type": "branch"}, "whoever can push that branch", id="by its type"),
        pytest.param("environment: prod", {}, "whoever can run a job in that environment", id="an environment"),
        pytest.param("event_name: schedule", {}, "every run with event_name push", id="another claim"),
        pytest.param(
            "environment: prod, ref: main",
            {"ref": "refs/heads/a"},
            "whoever can run a job in that environment and whoever can push that branch",
            id="two",
        ),
    ],
)
def test_a_change_says_to_whom_it_opens_what_is_of_high_sensitivity(
    where: str, refused: dict[str, str], who: str, tmp_path: Path
) -> None:
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(f'{{repository_id: "7", {where}}}'))})
    assert told(tree, **refused).opens == f"this opens deploy:write (high) to {who}"


def test_a_rule_of_its_own_for_what_is_low_opens_nothing_high_and_a_wider_list_does(tmp_path: Path) -> None:
    low = request(audience="payments", scope="releases:read")
    for where, opens in (('{glob: "refs/tags/v*"}', ""), ("refs/tags/v2", "this opens deploy:write (high) to whoever")):
        tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(f'{{repository_id: "7", ref: {where}}}'))})
        found = told(tree, low, ref="refs/heads/fix")
        assert "as well" in found.smallest_change
        assert found.opens.startswith(opens)
        assert bool(found.opens) is bool(opens)


@pytest.mark.parametrize(
    ("where", "more", "claims", "says"),
    [
        pytest.param("{ref: main}", 'condition: claims.ref != "x"', {"ref": "x"}, "a condition that admits it", id="condition"),
        pytest.param("{ref: main}", "", {"ref": "sha256:" + "0" * 64}, "from main", id="a value that is only its hash"),
        pytest.param("{ref: main}", "", {"ref": "a\x1b[2J"}, "from main", id="a value that does not print"),
        pytest.param("{ref: main}", "", {"event_name": "fork", "ref": "x"}, "none is advised", id="a stranger's run"),
        pytest.param("{event_name: push}", "", {"event_name": "fork"}, "none is advised", id="its event pinned to another"),
        pytest.param(
            '{event_name: {glob: "pu*"}}', "", {"event_name": "fork"}, "none is advised", id="its event pinned by a pattern"
        ),
    ],
)
def test_nothing_is_offered_to_paste_where_it_would_not_do(
    where: str, more: str, claims: dict[str, str], says: str, tmp_path: Path
) -> None:
    where = where.replace("{", '{repository_id: "7", ', 1)
    found = told(build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where, more=more))}), **claims)
    assert says in found.smallest_change
    assert (found.rule_to_add, found.opens, "in: [" in found.smallest_change) == ("", "", False)
    assert found.smallest_change.isprintable()


def test_a_strangers_run_that_a_rule_lets_in_already_may_be_let_in_from_elsewhere(tmp_path: Path) -> None:
    text = account("svc-a", rule('{repository_id: "7", event_name: pull_request, ref: refs/heads/main}'))
    found = told(build(tmp_path, {"prod/svc-a.yaml": text}), event_name="pull_request", ref="refs/pull/7/merge")
    assert "ref: {in: [refs/heads/main, refs/pull/7/merge]}" in found.smallest_change


def test_without_a_preset_only_text_can_be_written(tmp_path: Path) -> None:
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule('{job_id: "7", queue: a}', issuer="legacy"))})
    assert "queue: {in: [a, b]}" in told(tree, issuer="legacy", job_id="7", queue="b").smallest_change
    assert told(tree, issuer="legacy", job_id="7", queue=3).smallest_change.endswith("with queue a")


def test_numbers_and_booleans_stay_what_they_are(tmp_path: Path) -> None:
    where = '{project_id: "7", namespace_id: "1", runner_id: 3, ref: {glob: "v*"}}'
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where, issuer="gitlab"))})
    job = {"project_id": "7", "job_project_id": "7", "namespace_id": "1", "runner_id": 3, "ref": "v1"}
    assert "runner_id: {in: [3, 4]}" in told(tree, issuer="gitlab", **job | {"runner_id": 4}).smallest_change
    (added,) = yaml.safe_load(told(tree, issuer="gitlab", **job | {"ref": "main"}).rule_to_add)
    assert added["where"] == {"project_id": "7", "namespace_id": "1", "runner_id": 3, "ref": "main"}
