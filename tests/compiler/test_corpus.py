"""Rules that are known to hurt, and rules that are known to be careful: each meets what it must (corpus.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker import presets
from broker.errors import PolicyInvalid, Refused
from broker.model import Grant
from broker.policy.tree import Tree
from tests.policy.trees import BASE, account, build, outcome, problems, request, rule, workload

CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "corpus.json").read_text())
PRESETS = {"github": "github-actions", "gitlab": "gitlab", "cluster": "kubernetes", "mesh": "spiffe"}


def files(entry: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    more = f"condition: {json.dumps(entry['condition'])}" if "condition" in entry else ""
    scope = "releases:read" if entry["sensitivity"] == "low" else "deploy:write"
    text = account(
        "svc-a", rule(json.dumps(entry["where"]), issuer=entry["issuer"], more=more), access=f'{{payments: ["{scope}"]}}'
    )
    base = dict(BASE)
    if "url" in entry and entry["issuer"] == "github":
        base["issuers.yaml"] = base["issuers.yaml"].replace(
            "{preset: github-actions}", f"{{preset: github-actions, url: {entry['url']}}}"
        )
    return {"prod/svc-a.yaml": text}, base


def of(*verdicts: str) -> list[Any]:
    return [pytest.param(entry, id=entry["id"]) for entry in CORPUS if entry["verdict"] in verdicts]


@pytest.mark.parametrize("entry", of("pins nobody"))
def test_a_rule_that_pins_nobody_does_not_load(tmp_path: Path, entry: dict[str, Any]) -> None:
    found = problems(tmp_path, *files(entry))
    assert any(
        "who the workload is" in problem.message or "must" in problem.message or "operator" in problem.message
        for problem in found
    )
    assert all(problem.severity == "error" for problem in found if "who" in problem.message)
    with pytest.raises(PolicyInvalid):
        build(tmp_path, *files(entry))


@pytest.mark.parametrize("entry", of("wrong type"))
def test_a_value_of_the_wrong_type_does_not_load(tmp_path: Path, entry: dict[str, Any]) -> None:
    found = problems(tmp_path, *files(entry))
    assert found
    assert all("quote it" in problem.message for problem in found)
    assert all(problem.file == "prod/svc-a.yaml" and problem.line == 9 for problem in found)


def strangers_token(tree: Tree, entry: dict[str, Any]) -> dict[str, Any]:
    """The very token that the rule is for, of a run in which a stranger's code is at work."""
    preset = presets.load(PRESETS[entry["issuer"]])
    claims = {name: value for name, value in preset.fixture.claims.items() if preset.claim(name)}
    for name, wanted in entry["where"].items():
        claims[name] = "refs/heads/main" if isinstance(wanted, dict) and name == "ref" else wanted
        if name == "user_email":
            claims[name] = "mona@acme.example"
    if entry["issuer"] == "github":
        return claims | {"event_name": "pull_request_target"}
    return claims | {"pipeline_source": "merge_request_event"}


@pytest.mark.parametrize("entry", of("no stranger"))
def test_a_strangers_run_does_not_match_an_open_rule(tmp_path: Path, entry: dict[str, Any]) -> None:
    tree = build(tmp_path, *files(entry))
    claims = strangers_token(tree, entry)
    ask = request(audience="payments", scope="deploy:write")
    assert isinstance(outcome(tree, workload(tree, entry["issuer"], **claims), ask), Refused)
    own = {"pipeline_source": "push", "job_project_id": claims.get("project_id")}
    friendly = claims | ({"event_name": "push"} if entry["issuer"] == "github" else own)
    if "event_name" not in entry["where"]:
        assert isinstance(outcome(tree, workload(tree, entry["issuer"], **friendly), ask), Grant)


@pytest.mark.parametrize("entry", of("loads"))
def test_a_careful_rule_loads_without_a_word(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert problems(tmp_path, *files(entry)) == []


def test_the_corpus_is_whole() -> None:
    assert len(CORPUS) == 40
