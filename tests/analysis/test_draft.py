"""Drafts of service accounts: careful by each preset's own words, whatever a token says, and true when they are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import presets
from broker.analysis.draft import Choices, Picked, clean, human_name, pick, release_pattern, scalar, write
from broker.compiler.document import Listing, Node, Scalar, Table, read
from broker.errors import PolicyInvalid, Refused
from broker.model import Grant
from broker.policy.cases import run_cases
from broker.policy.tree import Api, Scope, Tree
from broker.presets import Careful, Preset
from broker.protocol.claims import ClaimValue, Reading, derive_spiffe
from tests.policy.trees import APIS, LIMITS, NOW, build, outcome, request, workload

FILE = "prod/svc-drafted.yaml"
HIGH = {"payments": ("deploy:write", "releases:read")}
LOW = {"payments": ("releases:read",)}


def entry(preset: Preset | None) -> dict[str, Any]:
    """An entry for tests: loopback urls may name any preset."""
    if preset is None:
        return {"url": "http://127.0.0.1:1", "algorithms": ["RS256"], "identity": ["job_id"]}
    if preset.key_use == "jwt-svid":
        return {"preset": preset.name, "trust_domain": "prod.acme.example", "jwks_url": "https://spire.acme.example:8443/"}
    fixed = {} if preset.audience_free else {"audience": {"prod": "an-audience-of-our-own", "dev": "another"}}
    return {"preset": preset.name, "url": "http://127.0.0.1:1"} | fixed


def tree_files(preset: Preset | None) -> dict[str, str]:
    issuers = json.dumps({"issuers": {"ci": entry(preset)}})
    envs = "environments: {prod: {max_ttl: 15m, issuers: [ci]}, dev: {max_ttl: 1h, issuers: [ci]}}\n"
    return {"issuers.yaml": issuers, "apis.yaml": APIS, "environments.yaml": envs}


def claims_of(preset: Preset, payload: Mapping[str, Any]) -> dict[str, ClaimValue]:
    claims = Reading.of(preset.claims, preset.families).read(payload)
    return claims | (derive_spiffe(str(claims["sub"])) if preset.key_use == "jwt-svid" else {})


CHOICES = Choices(
    name="svc-drafted",
    issuer="ci",
    owner="team",
    contact="",
    tags={},
    expires="2027-11-24",
    access=HIGH,
    apis={"payments": Api("payments", {}, {"deploy:write": Scope("deploy:write", "high"), "releases:read": Scope("releases:read")})},
    today="2026-11-24",
    source="a test",
)


def picked(preset: Preset | None, claims: Mapping[str, ClaimValue], *, all_low: bool = False, more: tuple[str, ...] = ()) -> Picked:
    identity = () if preset is not None else ("job_id",)
    return pick(preset, identity, claims, more=more, all_low=all_low, keys_max=LIMITS.pin_keys_max)


def drafted(folder: Path, preset: Preset | None, claims: Mapping[str, ClaimValue], rule: Picked | None = None) -> tuple[Tree, str]:
    """The tree with the drafted file in it, and the file's text.  What a stranger's preset opens at most is what is asked for."""
    access = LOW if preset is not None and preset.sensitivity_max == "low" else HIGH
    found = rule or picked(preset, claims, all_low=access is LOW)
    assert found.loads
    text = write(found, replace(CHOICES, access=access), preset, claims)
    return build(folder / "tree", {FILE: text}, tree_files(preset)), text


def ask(tree: Tree, claims: Mapping[str, ClaimValue], scope: str = "releases:read") -> Grant | Refused:
    return outcome(tree, workload(tree, "ci", **claims), request(audience="payments", scope=scope), NOW)


def where_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["trust"][0]["where"]
    return found


# Each preset


@pytest.mark.parametrize("name", presets.names())
def test_a_fixtures_draft_compiles_without_a_word_admits_it_and_its_tests_pass(name: str, tmp_path: Path) -> None:
    preset = presets.load(name)
    claims = claims_of(preset, preset.fixture.claims)
    tree, text = drafted(tmp_path, preset, claims)
    assert [str(warning) for warning in tree.warnings if warning.file == FILE] == []
    granted = ask(tree, claims)
    assert isinstance(granted, Grant), text
    assert granted.own is bool(preset.own_pins)
    results = list(run_cases(tree, NOW))
    assert [f"{result.case}: {result.message}" for result in results if not result.passed] == []
    assert set(preset.careful.pins) <= set(where_of(text)), "each careful claim of a whole token is pinned"
    assert len([result for result in results if not result.expected_allowed]) >= len(preset.careful.pins)


@pytest.mark.parametrize("name", presets.names())
def test_no_draft_opens_to_a_run_that_a_stranger_may_drive(name: str, tmp_path: Path) -> None:
    """Whichever of a preset's variants the token is of: drafted from it or not, its own run is not let in."""
    preset = presets.load(name)
    access_is_low = preset.sensitivity_max == "low"
    for number, payload in enumerate(preset.fixture.variants.values()):
        claims = claims_of(preset, payload)
        rule = picked(preset, claims, all_low=access_is_low)
        if not rule.loads:
            continue
        tree, text = drafted(tmp_path / str(number), preset, claims, rule)
        assert isinstance(ask(tree, claims, "releases:read" if access_is_low else "deploy:write"), Grant) is not bool(rule.own_run), text
        assert [f"{result.case}: {result.message}" for result in run_cases(tree, NOW) if not result.passed] == []


@pytest.mark.parametrize("name", presets.names())
def test_without_any_one_of_its_claims_a_drafted_rule_fails_a_test_or_does_not_load(name: str, tmp_path: Path) -> None:
    preset = presets.load(name)
    _, text = drafted(tmp_path, preset, claims_of(preset, preset.fixture.claims))
    tell_strangers = {claim for run in preset.stranger_runs or () for claim in run.claims}  # unpinned they refuse of themselves
    for number, claim in enumerate(where_of(text).keys() - tell_strangers):
        line = next(line for line in text.splitlines() if line.startswith(f"      {scalar(claim)}: "))
        try:
            weaker = build(tmp_path / str(number), {FILE: text.replace(line + "\n", "", 1)}, tree_files(preset))
        except PolicyInvalid:
            continue
        assert [result for result in run_cases(weaker, NOW) if not result.passed], claim


def test_a_rule_for_an_entry_without_preset_pins_its_identity_and_subject(tmp_path: Path) -> None:
    tree, text = drafted(tmp_path, None, {"job_id": "7", "sub": "job:acme/payments", "branch": "main"})
    assert where_of(text) == {"job_id": "7", "sub": "job:acme/payments"}
    assert isinstance(ask(tree, {"job_id": "7", "sub": "job:acme/payments"}), Grant)
    assert [result.message for result in run_cases(tree, NOW) if not result.passed] == []


# What is pinned

GITHUB = presets.load("github-actions")
TAG = claims_of(GITHUB, GITHUB.fixture.claims)


def test_names_stand_beside_the_ids_and_never_in_their_place(tmp_path: Path) -> None:
    _, text = drafted(tmp_path, GITHUB, TAG)
    assert 'repository_id: "7432112"      # acme/payments\n' in text
    assert 'repository_owner_id: "98123"  # acme\n' in text
    assert "- name: acme/payments, environment production\n" in text
    assert "repository" not in where_of(text)


def test_a_claim_that_the_workload_lacks_is_left_out_and_said(tmp_path: Path) -> None:
    claims = {name: value for name, value in TAG.items() if name != "environment"}
    tree, text = drafted(tmp_path, GITHUB, claims)
    assert picked(GITHUB, claims).missing == ("environment",)
    assert "environment" not in where_of(text)
    assert f"# environment is left out: the workload has none. A careful rule pins it: {GITHUB.careful.find['environment']}\n" in text
    assert isinstance(ask(tree, claims), Grant)


@pytest.mark.parametrize("gone", [("repository_id",), ("repository_id", "repository_owner_id")], ids=str)
def test_without_the_ids_that_make_a_workload_the_rules_own_nothing_loads(gone: tuple[str, ...]) -> None:
    found = picked(GITHUB, {name: value for name, value in TAG.items() if name not in gone})
    assert not found.loads
    assert found.missing == gone


def test_an_empty_value_is_none() -> None:
    assert picked(GITHUB, TAG | {"environment": ""}).missing == ("environment",)


def test_more_claims_are_pinned_by_their_types(tmp_path: Path) -> None:
    gitlab = presets.load("gitlab")
    claims = claims_of(gitlab, gitlab.fixture.claims)
    tree, text = drafted(tmp_path, gitlab, claims, picked(gitlab, claims, more=("runner_id", "pipeline_source")))
    assert where_of(text)["runner_id"] == 12270807
    assert where_of(text)["pipeline_source"] == "push"
    assert isinstance(ask(tree, claims), Grant)
    assert [result.message for result in run_cases(tree, NOW) if not result.passed] == []


@pytest.mark.parametrize(
    ("operators", "value", "narrowed", "expected"),
    [
        pytest.param({"glob": "refs/tags/v*"}, "refs/tags/v1.2.0", False, {"glob": "refs/tags/v*"}, id="a glob that fits"),
        pytest.param({"glob": "refs/tags/v*"}, "refs/heads/main", True, "refs/heads/main", id="a glob that does not"),
        pytest.param({"in": ["refs/heads/main", "x"]}, "x", False, {"in": ["refs/heads/main", "x"]}, id="in"),
        pytest.param({"not_in": ["y"], "exists": True}, "x", False, {"not_in": ["y"], "exists": True}, id="two operators"),
        pytest.param({"not_in": ["x"]}, "x", True, "x", id="not_in, and it is"),
    ],
)
def test_a_careful_pattern_is_taken_where_the_workload_fits_it(
    operators: dict[str, Any], value: str, narrowed: bool, expected: Any, tmp_path: Path
) -> None:
    pins = tuple(claim for claim in GITHUB.careful.pins if claim != "ref")
    preset = replace(GITHUB, careful=Careful(pins, {"ref": operators}))
    claims = TAG | {"ref": value}
    rule = picked(preset, claims)
    assert rule.narrowed == (("ref",) if narrowed else ())
    tree, text = drafted(tmp_path, preset, claims, rule)
    assert where_of(text)["ref"] == expected
    assert [result.message for result in run_cases(tree, NOW) if not result.passed] == []


def test_a_claim_that_must_not_be_there_has_its_test(tmp_path: Path) -> None:
    azure = presets.load("azure")
    _, text = drafted(tmp_path, azure, claims_of(azure, azure.fixture.claims))
    assert where_of(text)["scp"] == {"exists": False}
    assert "with scp it is refused" in [case["name"] for case in yaml.safe_load(text)["tests"]]


# Strangers


def test_a_strangers_run_is_never_pinned_not_even_on_request(tmp_path: Path) -> None:
    claims = TAG | {"event_name": "pull_request_target"}
    rule = picked(GITHUB, claims, more=("event_name",))
    tree, text = drafted(tmp_path, GITHUB, claims, rule)
    assert "event_name" not in where_of(text)
    assert "# event_name is left out: the workload was in a run that a stranger may drive, and these stay refused.\n" in text
    assert isinstance(ask(tree, claims, "deploy:write"), Refused)
    assert isinstance(ask(tree, TAG, "deploy:write"), Grant)


def test_what_low_sensitivity_opens_to_pull_requests_has_no_test_that_denies_it(tmp_path: Path) -> None:
    claims = TAG | {"event_name": "pull_request"}
    rule = picked(GITHUB, claims, all_low=True)
    text = write(rule, replace(CHOICES, access=LOW), GITHUB, claims)
    tree = build(tmp_path / "tree", {FILE: text}, tree_files(GITHUB))
    assert rule.own_run == ()
    assert isinstance(ask(tree, claims), Grant)
    assert [case["name"] for case in yaml.safe_load(text)["tests"] if "stranger" in case["name"]] == [
        "a run that a stranger may drive is refused, event_name pull_request_target"
    ]


def test_a_forks_merge_request_names_the_forks_project_and_is_told() -> None:
    gitlab = presets.load("gitlab")
    claims = claims_of(gitlab, gitlab.fixture.variants["fork merge request running in the parent"])
    assert None in [check.match for check in picked(gitlab, claims).own_run]


# The text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("refs/tags/v1.2.0", "refs/tags/v1.2.0"),
        ("deploy:write", "deploy:write"),
        ("spiffe://prod.acme.example/ns/a", "spiffe://prod.acme.example/ns/a"),
        ("7432112", '"7432112"'),
        ("2026-11-24", '"2026-11-24"'),
        ("1e3", '"1e3"'),
        ("12:30", '"12:30"'),
        ("NO", '"NO"'),
        ("true", '"true"'),
        ("~", '"~"'),
        ("", '""'),
        (" a", '" a"'),
        ("a: b", '"a: b"'),
        ("a:", '"a:"'),
        ("a #b", '"a #b"'),
        ("{{ x }}", '"{{ x }}"'),
        ("!!python/object:os.system", '"!!python/object:os.system"'),
        ("*all", '"*all"'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("a\nb", '"a\\x0ab"'),
        ("\u2028", '"\\u2028"'),
        ("\x85\x00", '"\\x85\\x00"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("größe", '"größe"'),
        (True, "true"),
        (-7, "-7"),
    ],
)
def test_a_value_is_quoted_wherever_some_reader_might_see_something_else(value: object, expected: str) -> None:
    assert scalar(value) == expected
    assert yaml.safe_load(f"x: [{expected}]") == {"x": [value]}


def test_comments_and_names_show_one_printable_line() -> None:
    assert clean("a\nb\x1b[31m\u202e") == "a?b?[31m?"
    assert len(clean("x" * 10_000)) == 80


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300) | st.sampled_from(
    ["\n- trust: []", "x\ntrust: []", "# x", "'", '"', "{{a}}", "!!map {}", "&a", "<<", "---", "...", "%YAML 1.2", "x" * 10_000, "\ufeff"]
)


def plain(node: Node | None) -> Any:
    """A document without places."""
    match node:
        case Table():
            return {key: plain(value) for key, value in node.entries.items()}
        case Listing():
            return [plain(item) for item in node.items]
        case Scalar():
            return node.text
    raise AssertionError("the strict reader refused it")


@settings(deadline=None)
@given(value=TEXTS, name=TEXTS, owner=TEXTS, tag=TEXTS.filter(lambda text: len(text) < 300))  # YAML's keys are short
def test_whatever_a_token_says_is_read_back_as_it_was(value: str, name: str, owner: str, tag: str) -> None:
    claims = TAG | {"environment": value, "ref": value, "repository": name, "repository_owner": name}
    rule = picked(GITHUB, claims)
    chosen = replace(CHOICES, owner=owner, contact=owner, tags={tag: tag})
    text = write(rule, chosen, GITHUB, claims)
    root, problems = read(text.encode(), FILE, LIMITS)
    assert problems == ()
    found = plain(root)
    assert found == plain_of(text)
    assert found["owner"] == found["contact"] == owner
    assert found["tags"] == {tag: tag}
    assert found["trust"][0]["where"] == {
        "repository_id": "7432112",
        "repository_owner_id": "98123",
        "environment": value,
        "ref": value,
    }
    allow = found["tests"][0]["claims"]
    assert (allow["environment"], allow["ref"]) == (value, value)
    assert list(found) == ["service_account", "owner", "contact", "tags", "expires", "access", "trust", "tests"]
    for case in found["tests"][1:]:
        assert len({key for key in case["claims"] | allow if case["claims"].get(key) != allow.get(key)}) == 1


def plain_of(text: str) -> Any:
    """The same by another reader, everything as text."""
    return yaml.load(text, Loader=yaml.BaseLoader)


@pytest.mark.parametrize(
    ("claim", "named_by"),
    [
        ("repository_id", "repository"),
        ("project_id", "project_path"),
        ("service_account_uid", "service_account"),
        ("workspaceUuid", "workspaceName"),
        ("repository", ""),
        ("ref", ""),
    ],
)
def test_an_id_knows_the_claim_that_names_it(claim: str, named_by: str) -> None:
    claims = dict.fromkeys(("repository", "project_path", "service_account", "workspaceName", "ref"), "x")
    assert human_name(claim, claims) == (named_by, "x" if named_by else "")


@pytest.mark.parametrize(
    ("claims", "pattern"),
    [
        ({"ref": "refs/tags/v1.2.0"}, "refs/tags/v*"),
        ({"ref": "refs/tags/app/release-7"}, "refs/tags/app/release-*"),
        ({"ref": "v1.2.0", "ref_type": "tag"}, "v*"),
        ({"ref": "v1.2.0", "ref_type": "branch"}, ""),
        ({"ref": "refs/tags/1.2.0"}, ""),
        ({"ref": "refs/tags/latest"}, ""),
        ({"ref": "refs/tags/v1*\n"}, ""),
        ({"ref": "refs/heads/v1"}, ""),
    ],
)
def test_a_release_tag_is_widened_to_its_like_at_most(claims: dict[str, ClaimValue], pattern: str) -> None:
    assert release_pattern("ref", claims) == pattern
