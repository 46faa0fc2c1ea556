"""The rule that each preset begins with: it compiles, admits the fixture's workload, and nobody who differs in what it pins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker import presets
from broker.config import Limits
from broker.errors import Refused
from broker.model import Grant
from broker.policy.condition import Language
from broker.policy.tree import Tree
from tests.policy.trees import build, outcome, request, workload
from tests.presets import careful

PRESETS = [presets.load(name) for name in presets.names()]
RUNS = [pytest.param(each.name, run, id=f"{each.name}: {run.name}") for each in PRESETS for run in careful.runs(each)]
PINS = [pytest.param(each.name, claim, id=f"{each.name}: {claim}") for each in PRESETS for claim in each.careful.pins]


def compiled(folder: Path, name: str, rule: dict[str, Any] | None = None) -> Tree:
    preset = presets.load(name)
    entries = {name: careful.entry(preset, "http://127.0.0.1:8701")}
    text = careful.account(preset, careful.where(preset) if rule is None else rule)
    return build(folder, {f"prod/svc-{name}.yaml": text}, careful.tree(entries))


def decided(tree: Tree, name: str, changes: dict[str, Any] | None = None) -> Grant | Refused:
    """What comes of the fixture's payload with these changes, read as a token's is."""
    preset = presets.load(name)
    payload = careful.changed(preset, preset.fixture.claims, changes or {})
    asked = request(audience="payments", scope=careful.scope(preset))
    return outcome(tree, workload(tree, name, **careful.claims(preset, payload)), asked)


@pytest.mark.parametrize("name", presets.names())
def test_the_careful_rule_compiles_and_admits_the_fixture(name: str, tmp_path: Path) -> None:
    tree = compiled(tmp_path, name)
    grant = decided(tree, name)
    assert isinstance(grant, Grant), grant
    assert grant.service_account == f"svc-{name}"
    assert grant.own is bool(presets.load(name).own_pins)


@pytest.mark.parametrize("name", presets.names())
def test_what_the_compiler_warns_of_is_what_nobody_knows_or_the_vendor_shares(name: str, tmp_path: Path) -> None:
    preset = presets.load(name)
    warnings = [warning.message for warning in compiled(tmp_path, name).warnings]
    unknown = [text for text in warnings if "stranger" in text]
    shared = [text for text in warnings if "every customer" in text]
    assert bool(unknown) is (preset.stranger_runs is None)
    assert bool(shared) is bool(preset.audience_fixed)
    assert len(warnings) == len(unknown) + len(shared)


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_the_careful_rule_refuses_a_strangers_run(name: str, run: careful.Run, tmp_path: Path) -> None:
    assert isinstance(decided(compiled(tmp_path, name), name, dict(run.changes)), Refused)


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_a_rule_that_leaves_the_claim_open_refuses_it_too(name: str, run: careful.Run, tmp_path: Path) -> None:
    preset = presets.load(name)
    rest = careful.where(preset, run.run.claims)
    if not any(set(pin.claims) <= set(rest) for pin in preset.identity_pins):
        assert set(run.run.claims) <= set(careful.where(preset))  # what a rule must pin is never open
        return
    tree = compiled(tmp_path, name, rest)
    assert isinstance(decided(tree, name), Grant)
    assert isinstance(decided(tree, name, dict(run.changes)), Refused)


@pytest.mark.parametrize(("name", "claim"), PINS)
def test_a_pinned_claim_that_is_missing_changed_or_of_another_type_is_refused(name: str, claim: str, tmp_path: Path) -> None:
    tree = compiled(tmp_path, name)
    value = careful.claims(presets.load(name))[claim]
    for wrong in (None, careful.other(value), careful.other_type(value)):
        assert isinstance(decided(tree, name, {claim: wrong}), Refused), wrong


@pytest.mark.parametrize("name", presets.names())
def test_somebody_else_at_the_same_issuer_is_refused(name: str, tmp_path: Path) -> None:
    assert isinstance(decided(compiled(tmp_path, name), name, careful.strangers_tenant(presets.load(name))), Refused)


@pytest.mark.parametrize(
    ("name", "variant"),
    [(each.name, title) for each in PRESETS for title in each.fixture.variants if title.endswith("(must be refused)")],
)
def test_a_variant_that_must_be_refused_is(name: str, variant: str, tmp_path: Path) -> None:
    tree = compiled(tmp_path, name)
    preset = presets.load(name)
    who = workload(tree, name, **careful.claims(preset, preset.fixture.variants[variant]))
    assert isinstance(outcome(tree, who, request(audience="payments", scope=careful.scope(preset))), Refused)


def test_a_persons_token_is_no_workload_though_it_names_the_same_object(tmp_path: Path) -> None:
    assert isinstance(decided(compiled(tmp_path, "azure"), "azure", {"scp": "user_impersonation"}), Refused)


@pytest.mark.parametrize("name", presets.names())
def test_each_claim_of_the_fixture_can_be_looked_at_in_a_condition(name: str) -> None:
    preset = presets.load(name)
    language = Language(preset, Limits())
    seen = careful.claims(preset)
    for claim, value in seen.items():
        literal = {str: f"'{value}'", bool: str(value).lower()}.get(type(value), str(value))
        texts = [f'present("{claim}")'] + ([f'claims["{claim}"] == {literal}'] if isinstance(value, str | int) else [])
        for text in texts:
            assert language.compile(text).holds(seen, (), (), "prod"), text
            assert not language.compile(text).holds({}, (), (), "prod"), text


@pytest.mark.parametrize(
    ("name", "claim", "other"),
    [
        pytest.param("aws-sts", "principal_tags.team", "team-ledger", id="below an object"),
        pytest.param("buildkite", "agent_tag:queue", "default", id="with a colon"),
        pytest.param("github-actions", "repo_property_tier", "bronze", id="beside the others"),
    ],
)
def test_a_member_of_a_family_is_a_claim_like_others(name: str, claim: str, other: str, tmp_path: Path) -> None:
    tree = compiled(tmp_path, name, careful.where(presets.load(name)) | {claim: "payments"})
    assert isinstance(decided(tree, name, {claim: "payments"}), Grant)
    for wrong in (None, other, ["payments"]):
        assert isinstance(decided(tree, name, {claim: wrong}), Refused), wrong


def test_a_list_is_compared_by_what_it_contains(tmp_path: Path) -> None:
    context = {"oidc.circleci.com/context-ids": {"contains": "1f6f2b0e-9b7b-4c58-9a52-6b0e4c9f7a11"}}
    tree = compiled(tmp_path, "circleci", careful.where(presets.load("circleci")) | context)
    assert isinstance(decided(tree, "circleci"), Grant)
    assert isinstance(decided(tree, "circleci", {"oidc.circleci.com/context-ids": []}), Refused)


def test_a_number_of_a_machine_is_a_number(tmp_path: Path) -> None:
    project = "google.compute_engine.project_number"
    tree = compiled(tmp_path, "google", careful.where(presets.load("google")) | {project: 739182645012})
    assert isinstance(decided(tree, "google"), Grant)
    assert isinstance(decided(tree, "google", {project: "739182645012"}), Refused)
