"""A first test that is advised is true: it passes when it is pasted, whatever the rule looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import presets
from broker.analysis.draft import first_case, inline
from broker.policy.cases import run_cases
from tests.policy.trees import BASE, LIMITS, NOW, account, build, rule
from tests.presets import careful

HELD = '{repository_id: "7", '


def passes(folder: Path, files: dict[str, str], base: dict[str, str] = BASE) -> bool:
    """Whether a test is advised for a tree, and holds once it stands in its file."""
    found = first_case(build(folder / "bare", files, base), NOW, LIMITS)
    if found is None:
        return False
    to, case = found
    asked = inline({"audience": case.audience[0], "scope": (case.scope or ())[0], "service_account": case.service_account})
    lines = (f"name: {case.name}", f"issuer: {case.issuer}", f"claims: {inline(case.claims)}", f"request: {asked}")
    text = files[to.file] + "tests:\n  - " + "\n    ".join((*lines, "expect: allow")) + "\n"
    tree = build(folder / "tested", {**files, to.file: text}, base)
    (result,) = run_cases(tree, NOW, LIMITS)
    assert result.passed, result.message
    return True


@pytest.mark.parametrize("name", presets.names())
def test_a_careful_rule_of_every_preset_gets_one(name: str, tmp_path: Path) -> None:
    preset = presets.load(name)
    files = {f"prod/svc-{name}.yaml": careful.account(preset, careful.where(preset))}
    assert passes(tmp_path, files, careful.tree({name: careful.entry(preset, "http://127.0.0.1:1")}))


@pytest.mark.parametrize(
    ("where", "more"),
    [
        pytest.param(HELD + 'ref: {glob: "refs/tags/v*"}}', "", id="a pattern that the usual value fits"),
        pytest.param(HELD + 'ref: {glob: "refs/heads/release/**"}}', "", id="a pattern that it does not fit"),
        pytest.param(HELD + "event_name: {in: [workflow_dispatch, schedule]}}", "", id="a list"),
        pytest.param(HELD + "runner_environment: {not_in: [github-hosted]}}", "", id="another value"),
        pytest.param(HELD + "environment: {exists: false}}", "", id="a claim that must not be there"),
        pytest.param(HELD + "environment: {exists: true}}", "", id="a claim that must be there"),
        pytest.param(HELD + 'ref: {glob: "refs/**", not_in: [refs/tags/v1.2.0]}}', "", id="two operators"),
        pytest.param(HELD + "ref: refs/tags/v1}", 'condition: claims.event_name != "pull_request"', id="a condition"),
    ],
)
def test_every_operator_gets_a_value_that_holds(where: str, more: str, tmp_path: Path) -> None:
    assert passes(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where, more=more))})


def test_without_a_preset_values_are_text(tmp_path: Path) -> None:
    held = rule('{job_id: "7", branch: {glob: "release-*"}, kind: {exists: true}, groups: {contains: ops}}', issuer="legacy")
    assert passes(tmp_path, {"prod/svc-a.yaml": account("svc-a", held)})


@pytest.mark.parametrize(
    "never",
    [
        pytest.param(rule(HELD + "ref: {in: [a], not_in: [a]}}"), id="two operators that exclude each other"),
        pytest.param(rule(HELD + "ref: a}", more='condition: claims.event_name == "a riddle"'), id="a condition that nobody guesses"),
        pytest.param(rule(HELD + "ref: a}", more="expires: 2020-01-01"), id="a rule that has ended"),
    ],
)
def test_a_rule_for_which_none_passes_is_passed_over(never: str, tmp_path: Path) -> None:
    files = {"prod/svc-a.yaml": account("svc-a", never)}
    assert not passes(tmp_path / "alone", files)
    assert passes(tmp_path / "beside", {**files, "prod/svc-b.yaml": account("svc-b", rule('{repository_id: "8"}'))})
