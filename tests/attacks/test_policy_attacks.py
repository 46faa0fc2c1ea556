"""Attacks on the policy: on what rules mean, on the files that hold them, on the moment they change."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from broker import presets
from broker.compiler.live import LivePolicy, ReloadOutcome
from broker.config import Limits
from broker.errors import NoRuleMatched, Refused
from broker.model import Grant
from broker.policy.condition import ConditionInvalid, Language
from broker.policy.match import Glob
from broker.policy.tree import Tree
from tests.policy.trees import BASE, ENVIRONMENTS, LIMITS, NOW, account, build, outcome, problems, request, rule, workload, write

JOB = {"repository_id": "7", "ref": "refs/heads/main", "event_name": "push"}
GITHUB = Language(presets.load("github-actions"), LIMITS)


def tree_of(folder: Path, where: str, issuer: str = "github", more: str = "") -> Tree:
    return build(folder, {"prod/svc-a.yaml": account("svc-a", rule(where, issuer=issuer, more=more))})


def allowed(tree: Tree, claims: dict[str, Any], issuer: str = "github", scope: str = "deploy:write") -> bool:
    return isinstance(outcome(tree, workload(tree, issuer, **claims), request(scope=scope)), Grant)


@pytest.mark.parametrize(
    "pattern", ["main", "^main", "main$", "^main|evil$", "(?m)^main$", "^(?m:main)$", "^main\\$", "^*main$", "^\\Qmain\\E$"]
)
def test_p01_a_pattern_that_could_match_a_part_does_not_load(pattern: str) -> None:
    with pytest.raises(ConditionInvalid):
        GITHUB.compile(f"claims.ref.matches(r'{pattern}')")


@pytest.mark.parametrize(
    "ref", ["refs/heads/main\n", "refs/heads/main\nx", "x\nrefs/heads/main", "refs/heads/mainx", "xrefs/heads/main"]
)
def test_p01_full_match_means_the_whole_text(tmp_path: Path, ref: str) -> None:
    assert not GITHUB.compile('claims.ref.matches("^refs/heads/main$")').holds({"ref": ref}, (), (), "prod")
    assert not allowed(tree_of(tmp_path, '{repository_id: "7", ref: refs/heads/main}'), JOB | {"ref": ref})


@pytest.mark.parametrize(
    "sub",
    [
        "repo:org/app-evil/x:ref:refs/heads/main",
        "repo:org/app:pull_request",
        "repo:org/app:environment:prod:ref:refs/heads/main",
        "repo:org@999/app@2:ref:refs/heads/main",
        "repo:org@1/app@2:ref:refs/heads/main\n",
        "repo:org@1/app@2:ref:refs/heads/main ",
    ],
)
def test_p02_a_subject_that_looks_alike_is_another(tmp_path: Path, sub: str) -> None:
    tree = tree_of(tmp_path, '{sub: "repo:org@1/app@2:ref:refs/heads/main", event_name: push}')
    assert allowed(tree, {"sub": "repo:org@1/app@2:ref:refs/heads/main", "event_name": "push"})
    assert not allowed(tree, {"sub": sub, "event_name": "push"})


@pytest.mark.parametrize(
    "where", ['{sub: {glob: "repo:org/app*"}}', '{repository: {glob: "org/app*"}}', '{sub: {glob: "repo:org@1/app@2:**"}}']
)
def test_p02_a_glob_never_says_who_a_workload_is(tmp_path: Path, where: str) -> None:
    found = problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where))})
    assert "the rule does not say who the workload is" in found[0].message


def test_p02_a_star_stops_at_a_slash(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, '{repository_id: "7", ref: {glob: "refs/tags/v*"}}')
    assert allowed(tree, JOB | {"ref": "refs/tags/v1"})
    assert not allowed(tree, JOB | {"ref": "refs/tags/v1/x"})


@pytest.mark.parametrize(
    ("where", "more"),
    [
        ('{repository_id: "7", environment: {not_in: [dev]}}', ""),
        ('{repository_id: "7", environment: {glob: "**"}}', ""),
        ('{repository_id: "7", environment: {exists: true}}', ""),
        ('{repository_id: "7"}', 'condition: claims.environment != "dev"'),
        ('{repository_id: "7"}', "condition: \"!(claims.environment in ['dev'])\""),
    ],
)
def test_p03_a_missing_claim_satisfies_no_negation(tmp_path: Path, where: str, more: str) -> None:
    tree = tree_of(tmp_path, where, more=more)
    assert allowed(tree, JOB | {"environment": "production"})
    assert not allowed(tree, JOB)


@pytest.mark.parametrize(
    "where",
    [
        '{aud: {contains: "x"}}',
        '{iss: "https://token.actions.githubusercontent.com"}',
        "{repository_id: {exists: true}}",
        '{repository_id: {not_in: ["8"]}}',
    ],
)
def test_p04_a_rule_about_nobody_does_not_load(tmp_path: Path, where: str) -> None:
    assert any(problem.severity == "error" for problem in problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where))}))


@pytest.mark.parametrize("event", ["pull_request_target", "workflow_run", "issue_comment"])
def test_p05_a_run_that_looks_like_main_is_not_main(tmp_path: Path, event: str) -> None:
    tree = tree_of(tmp_path, '{repository_id: "7", ref: refs/heads/main}')
    assert allowed(tree, JOB)
    assert not allowed(tree, JOB | {"event_name": event})


def test_p05_a_forks_merge_request_is_not_the_project(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, '{project_id: "5", ref_protected: "true"}', issuer="gitlab")
    job = {"project_id": "5", "job_project_id": "5", "ref_protected": "true", "pipeline_source": "push"}
    assert allowed(tree, job, "gitlab")
    assert not allowed(tree, job | {"job_project_id": "6"}, "gitlab", "releases:read")
    assert not allowed(tree, job | {"ref_protected": "false"}, "gitlab")
    assert not allowed(tree, job | {"project_id": "6"}, "gitlab")
    both = tree_of(tmp_path / "both", '{project_id: "6", job_project_id: "5"}', issuer="gitlab")
    assert allowed(both, job | {"project_id": "6"}, "gitlab")


@pytest.mark.parametrize(
    "name", ["Production", "PRODUCTION", "productıon", "production ", "\u212aubernetes"]
)  # dotless i, Kelvin sign
def test_p07_names_compare_byte_for_byte(tmp_path: Path, name: str) -> None:
    tree = tree_of(tmp_path, '{repository_id: "7", environment: {in: [production, kubernetes]}}')
    assert not allowed(tree, JOB | {"environment": name})


@pytest.mark.parametrize(
    "ref",
    [
        "acme/ci/.github/workflows/deploy.yml@refs/heads/main-evil",
        "acme/ci/.github/workflows/deploy.yml@refs/tags/main",
        "acme/ci/.github/workflows/deploy.yml@3f0b2d6c1f5d0c7f7b1f2a9f0f6f1e6a5d1c9b77",
        "evil/ci/.github/workflows/deploy.yml@refs/heads/main",
        None,
    ],
)
def test_p09_a_workflow_is_its_file_at_its_ref(tmp_path: Path, ref: str | None) -> None:
    exact = "acme/ci/.github/workflows/deploy.yml@refs/heads/main"
    tree = tree_of(tmp_path, f'{{repository_owner_id: "9", job_workflow_ref: "{exact}"}}')
    job = {"repository_owner_id": "9", "workflow_ref": exact, "event_name": "push"}
    assert allowed(tree, job | {"job_workflow_ref": exact})
    assert not allowed(tree, job | ({"job_workflow_ref": ref} if ref else {}))


@pytest.mark.parametrize("name", ["Root", "ROOT ", "root", "default", "admin", "broker", "Svc-A", "svc_a", "ѕvc-a", "-a", "1a"])
def test_p12_reserved_and_look_alike_names_are_refused(tmp_path: Path, name: str) -> None:
    text = account(f'"{name}"', rule('{repository_id: "7"}'))
    assert any("name" in problem.message for problem in problems(tmp_path, {f"prod/{name}.yaml": text}))


@pytest.mark.parametrize("env", ["api", "console", "metrics", "well-known", "Prod", "prod_", "a" * 64])
def test_p12_an_env_cannot_take_a_path_of_ours(tmp_path: Path, env: str) -> None:
    text = f"environments:\n  {env}: {{max_ttl: 1m, issuers: [github]}}\n"
    assert problems(tmp_path, {}, BASE | {"environments.yaml": text})


def test_p13_no_pattern_makes_a_long_claim_slow(tmp_path: Path) -> None:
    long = "a" * 16_000
    base = BASE | {"environments.yaml": ENVIRONMENTS + 'naming: {service_account: "(a+)+b|svc-.*"}\n'}
    globs = [Glob("a*" * 50 + "b*c"), Glob("**a" * 50 + "*b"), Glob("*" + "a*" * 100)]
    condition = GITHUB.compile('claims.ref.matches("^(a+)+$") || claims.ref.matches("^(a|aa)+b$")')
    started = time.process_time()
    for pattern in globs:
        pattern.holds(long + "!")
        pattern.holds(long)
    condition.holds({"ref": long + "!"}, (), (), "prod")
    build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))}, base)
    # A backtracking engine would not come back in a lifetime; this is no measure of speed.
    assert time.process_time() - started < 5


BOMBS = {
    "a loop in a loop in a loop": "[{0}].all(a, [{0}].all(b, [{0}].all(c, a + b + c > 0)))".format(", ".join(["1"] * 60)),
    "500 parentheses": "(" * 500 + "true" + ")" * 500,
    "a text that doubles": "[claims.ref]" + ".map(a, a + a)" * 30 + ".size() == 1",
    "900 sums": "+".join(["1"] * 900) + " == 900",
    "deep lists": "[" * 990 + "]" * 990 + " == []",
    "deep choices": "true ? " * 200 + "true" + " : false" * 200,
    "a chain of members": "claims.ref" + ".a" * 900,
    "too long": "true" + " || true" * 5000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_p14_a_condition_that_would_explode_does_not_load(bomb: str) -> None:
    with pytest.raises(ConditionInvalid):
        GITHUB.compile(bomb)


@pytest.mark.parametrize(
    "text", ["!" * 1990 + "true", " || ".join(["false"] * 190 + ["true"]), "claims.ref.size() > 0" + " && true" * 100]
)
def test_p14_long_conditions_that_load_are_evaluated_within_bounds(text: str) -> None:
    assert GITHUB.compile(text).holds({"ref": "x" * 16_000}, (), (), "prod") in (True, False)


@pytest.mark.parametrize(
    "value", ["on", "no", "y", "012", "0x10", "0o7", "1e3", "12:30:00", "2026-11-24", "null", "~", "7", "1_000", ".5", "TRUE"]
)
def test_p16_a_value_that_yaml_could_read_otherwise_must_be_quoted(tmp_path: Path, value: str) -> None:
    (found,) = problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(f'{{repository_id: "7", ref: {value}}}'))})
    assert "quote it" in found.message
    assert (found.line, found.file) == (9, "prod/svc-a.yaml")
    assert problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(f'{{repository_id: "7", ref: "{value}"}}'))}) == []


@pytest.mark.parametrize(
    "text",
    [
        "allow: false\nallow: true\n",
        "a: &a [x, x]\nb: &b [*a, *a]\n",
        "a: !!python/object/apply:os.system [id]\n",
        "base: &b {x: 1}\nc: {<<: *b}\n",
        "[" * 5000,
        "".join(f"k{i}: 1\n" for i in range(20_000)),
    ],
)
def test_p16_yaml_that_bombs_or_tricks_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, {"prod/svc-a.yaml": text})
    assert [problem.file for problem in found] == ["prod/svc-a.yaml"]
    assert found[0].line >= 1


async def test_p17_no_reload_ever_allows_all_or_denies_all(tmp_path: Path) -> None:
    folder = write(tmp_path / "policies", {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))})
    told: list[ReloadOutcome] = []
    policy = LivePolicy(folder, Limits(), on_reload=told.append, today=lambda: NOW)
    await policy.reload()
    stranger = JOB | {"repository_id": "8"}
    place = folder / "prod/svc-a.yaml"
    good = place.read_text()
    for harm in ("", "a: [", good[:40], good.replace('"7"', "7"), good.replace('{repository_id: "7"}', "{}"), "\x00"):
        place.write_text(harm)
        reloading = asyncio.ensure_future(policy.reload())
        while not reloading.done():
            assert allowed(policy.current(), JOB)
            assert not allowed(policy.current(), stranger)
            await asyncio.sleep(0)
        assert (await reloading).outcome == "refused"
    assert [each.outcome for each in told].count("loaded") == 1
    assert all(each.problems for each in told if each.outcome == "refused")


def test_p19_what_one_env_opens_no_other_env_has(tmp_path: Path) -> None:
    files = {
        "prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}')),
        "dev/svc-a.yaml": account("svc-a", rule('{repository_id: "8"}')),
    }
    tree = build(tmp_path, files)
    for env, opened, closed in (("prod", "7", "8"), ("dev", "8", "7")):
        asked = request(env, scope="deploy:write")
        assert isinstance(outcome(tree, workload(tree, "github", **JOB | {"repository_id": opened}), asked), Grant)
        assert isinstance(outcome(tree, workload(tree, "github", **JOB | {"repository_id": closed}), asked), NoRuleMatched)


def test_p19_a_ceiling_cannot_be_widened_below_it(tmp_path: Path) -> None:
    files = {
        "prod/team/folder.yaml": 'scopes: {payments: ["releases:read"]}\n',
        "prod/team/deep/folder.yaml": 'scopes: {payments: ["deploy:write", "releases:read"]}\n',
        "prod/team/deep/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}')),
    }
    assert any("prod/team/folder.yaml does not open" in problem.message for problem in problems(tmp_path, files))


def test_p19_several_operators_of_one_claim_must_all_hold(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, '{repository_id: "7", ref: {glob: "refs/heads/*", not_in: ["refs/heads/evil"]}}')
    assert allowed(tree, JOB)
    assert not allowed(tree, JOB | {"ref": "refs/heads/evil"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("owner: team", "owner: team\nallow_all: true"),
        ("name: first", "name: first\n    effect: allow"),
        ('{repository_id: "7"}', '{repository_id: {regex: ".*"}}'),
        ("issuer: github", "issuer: github\n    version: 2"),
        ("expires: 2027-06-30", "expires: never"),
    ],
)
def test_p20_what_is_unknown_is_an_error_and_never_ignored(tmp_path: Path, old: str, new: str) -> None:
    text = account("svc-a", rule('{repository_id: "7"}')).replace(old, new)
    assert any(problem.severity == "error" for problem in problems(tmp_path, {"prod/svc-a.yaml": text}))


def test_p21_policy_comes_from_its_folder_and_its_owner_alone(tmp_path: Path) -> None:
    text = account("svc-b", rule('{repository_id: "666"}'))
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/svc-b.yaml").write_text(text)
    folder = write(tmp_path / "policies", {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))})
    (folder / "prod/svc-b.yaml").symlink_to(tmp_path / "evil/svc-b.yaml")
    assert "leads out of the policy folder" in problems(folder, {}, {})[0].message
    (folder / "prod/svc-b.yaml").unlink()
    (folder / "prod/svc-b.yaml").write_text(text)
    (folder / "prod/svc-b.yaml").chmod(0o666)
    assert "everybody" in problems(folder, {}, {})[0].message


def test_a_stranger_learns_nothing_from_any_of_this(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, '{repository_id: "7", environment: production}')
    answers = {
        (found.wire_reason, found.public, tuple(found.told.items()))
        for asked in (
            {"scope": "deploy:write"},
            {"scope": "x"},
            {"audience": "x"},
            {"service_account": "svc-a"},
            {"service_account": "svc-z"},
        )
        for claims in (JOB | {"repository_id": "8"}, {}, {"repository_id": "8", "environment": "production"})
        for found in [outcome(tree, workload(tree, "github", **claims), request(**asked))]
        if isinstance(found, Refused)
    }
    assert len(answers) == 1
