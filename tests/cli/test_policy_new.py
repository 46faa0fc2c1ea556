"""`broker policy new`: what a newcomer types, what is written, and what is said where something is lacking."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker import presets
from tests.cli.conftest import Said, Terminal
from tests.support.signing import b64, compact_json

ROOT = Path(__file__).parents[2]
SECRET = "c2lnbmF0dXJl"  # every token's signature here: it must never be shown
ASKED = ("--access", "artifacts=packages:write")
MORE = ("--owner", "team-docs", "--tag", "system=docs")
GITHUB = ("--claim", "repository_id=7432112", "--claim", "repository_owner_id=98123", "--claim", "ref=refs/heads/main")


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """A copy of the shipped tree, that nobody else may write."""
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    for path in (tmp_path / "policies", *(tmp_path / "policies").rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    return tmp_path / "policies"


@pytest.fixture
def new(terminal: Terminal, policies: Path) -> Any:
    """`broker policy new` on that tree; `typed` comes in by stdin."""

    def run(*arguments: str, env: str | None = "prod", typed: str = "") -> Said:
        said = terminal.types(
            "policy", "new", "--policies", str(policies), *(("--env", env) if env else ()), *arguments, typed=typed
        )
        assert SECRET not in said.out + said.err
        assert "Traceback" not in said.err
        assert "defect" not in said.err
        return said

    return run


def token(preset: str = "github-actions", **claims: Any) -> str:
    """A token of that platform's shape, whose signature says nothing; a claim that is None is left out."""
    fixture = presets.load(preset).fixture
    payload = {name: value for name, value in {**fixture.claims, **claims}.items() if value is not None}
    return f"{b64(compact_json(dict(fixture.header)))}.{b64(compact_json(payload))}.{SECRET}"


def saved(folder: Path, text: str) -> str:
    (folder / "token.jwt").write_text(text)
    return str(folder / "token.jwt")


def check(terminal: Terminal, policies: Path) -> None:
    """The tree as it is: not a word about it, and every test passes."""
    checked = terminal.types("policy", "check", "--policies", str(policies))
    assert (checked.code, len(checked.lines)) == (0, 1), checked.out
    assert terminal.types("policy", "test", "--policies", str(policies)).code == 0


def test_a_token_becomes_a_file_that_loads_and_whose_tests_pass(
    new: Any, terminal: Terminal, policies: Path, tmp_path: Path
) -> None:
    file = saved(tmp_path, token())
    said = new(*ASKED, "--from-token", file, "--tag", "system=payments", "--contact", "payments@acme.example")
    assert (said.code, said.out) == (0, ""), said.err
    written = policies / "prod" / "svc-payments.yaml"
    assert f"{file}: read, not verified" in said.err
    assert f"{written}: written, 7 tests pass" in said.err
    assert f"broker policy check --policies {policies}" in said.err
    assert 'for every release write ref: {glob: "refs/tags/v*"}' in said.err
    assert written.stat().st_mode & 0o777 == 0o644
    account = yaml.safe_load(written.read_text())
    assert account["owner"] == "team-payments", "the owner of the other accounts of this repository in prod"
    assert account["contact"] == "payments@acme.example"
    assert account["tags"] == {"system": "payments"}
    assert account["access"] == {"artifacts": ["packages:write"]}
    assert account["trust"][0]["where"] == {
        "repository_id": "7432112",
        "repository_owner_id": "98123",
        "environment": "production",
        "ref": "refs/tags/v1.2.0",
    }
    assert not {"jti", "iat", "exp", "aud", "actor", "actor_id"} & set(account["tests"][0]["claims"])
    check(terminal, policies)


def test_what_whoami_prints_in_a_job_serves_as_the_token(new: Any, terminal: Terminal, policies: Path, tmp_path: Path) -> None:
    """A GitHub job has no token file to give; `broker whoami --json` shows its claims, and no token."""
    said = terminal.types("whoami", "--json", "--subject-token-file", saved(tmp_path, token()))
    assert said.code == 0, said.err
    assert SECRET not in said.out
    (tmp_path / "whoami.json").write_text(said.out)
    described = new(*ASKED, *MORE, "--from-token", str(tmp_path / "whoami.json"), "--print")
    assert described.code == 0, described.err
    assert f"{tmp_path / 'whoami.json'}: read, not verified" in described.err
    assert described.out == new(*ASKED, *MORE, "--from-token", "-", "--print", typed=token()).out
    assert new(*ASKED, *MORE, "--from-token", "-", typed=said.out).code == 0
    check(terminal, policies)


def test_the_pattern_that_is_advised_for_releases_keeps_the_tests_passing(
    new: Any, terminal: Terminal, policies: Path, tmp_path: Path
) -> None:
    said = new(*ASKED, *MORE, "--from-token", saved(tmp_path, token()))
    assert said.code == 0
    written = policies / "prod" / "svc-payments.yaml"
    (pattern,) = re.findall(r"write ref: (\{glob: .*\})", said.err)
    written.write_text(re.sub(r"      ref: refs/tags/v1\.2\.0 .*", f"      ref: {pattern}", written.read_text()))
    assert yaml.safe_load(written.read_text())["trust"][0]["where"]["ref"] == {"glob": "refs/tags/v*"}
    check(terminal, policies)


def test_claims_by_hand_become_a_file_too_and_a_preset_names_its_entry(new: Any, terminal: Terminal, policies: Path) -> None:
    said = new("--issuer", "github-actions", *ASKED, *MORE, *GITHUB, "--claim", "environment=", "--claim", "repository=acme/docs")
    assert said.code == 0, said.err
    account = yaml.safe_load((policies / "prod" / "svc-docs.yaml").read_text())
    assert account["trust"][0]["issuer"] == "github"
    assert account["trust"][0]["name"] == "acme/docs, ref refs/heads/main"
    assert "environment is left out, the workload has none" in said.err
    assert "repository" not in account["trust"][0]["where"]
    check(terminal, policies)


def test_printing_writes_nothing(new: Any, policies: Path) -> None:
    before = sorted(policies.rglob("*"))
    said = new(*ASKED, *MORE, "--from-token", "-", "--print", typed=token() + "\n")
    assert said.code == 0
    assert "stdin: read, not verified" in said.err
    assert yaml.safe_load(said.out)["service_account"] == "svc-payments"
    assert sorted(policies.rglob("*")) == before


@pytest.mark.parametrize("there", ["by name", "as a file", "as a link"])
def test_nothing_is_ever_replaced(there: str, new: Any, policies: Path, tmp_path: Path) -> None:
    given = (*ASKED, *MORE, "--from-token", saved(tmp_path, token()))
    file = policies / "prod" / "svc-payments.yaml"
    elsewhere = tmp_path / "elsewhere"
    if there == "by name":
        assert new(*given).code == 0
        before = file.read_text()
        said = new(*given)
        assert file.read_text() == before
    elif there == "as a file":
        (policies / "prod" / "svc-payments.yaml").write_text("")
        said = new(*given)
        assert file.read_text() == ""
    else:
        file.symlink_to(elsewhere)
        said = new(*given)
        assert not elsewhere.exists()
    assert said.code == 1
    assert "svc-payments.yaml" in said.err


def test_an_env_without_a_folder_gets_one(new: Any, terminal: Terminal, policies: Path, tmp_path: Path) -> None:
    shutil.rmtree(policies / "dev")
    assert new(*ASKED, *MORE, "--from-token", saved(tmp_path, token()), env="dev").code == 0
    assert [file.name for file in (policies / "dev").iterdir()] == ["svc-payments.yaml"]
    check(terminal, policies)


def test_what_cannot_be_written_whole_is_not_left_behind(policies: Path, tmp_path: Path) -> None:
    given = (*ASKED, *MORE, "--env", "prod", "--policies", str(policies), "--from-token", saved(tmp_path, token()))
    command = [sys.executable, "-B", "-m", "broker", "policy", "new", *given]
    said = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert f"{policies / 'prod' / 'svc-payments.yaml'} cannot be written: File too large" in said.stderr
    assert not (policies / "prod" / "svc-payments.yaml").exists()


# What is lacking


def test_all_that_is_lacking_is_said_at_once_with_how_to_find_it(new: Any) -> None:
    said = new("--issuer", "github", *ASKED, "--claim", "repository_id=1")
    assert said.code == 2
    for hint in (
        "hint: --claim repository_owner_id=VALUE: gh api repos/OWNER/REPO --jq .owner.id\n",
        "hint: --claim environment=VALUE: the job's `environment:`, one with protection rules; or `--claim environment=`: it has none\n",
        "hint: --claim ref=VALUE: refs/heads/BRANCH or refs/tags/TAG, whole\n",
        "hint: --name NAME: no claim gives one; environments.yaml asks for svc-[a-z0-9-]+\n",
        "hint: --owner TEAM: who answers for it (in use: team-ledger, team-observability, team-payments, team-platform)\n",
        "hint: --tag system=VALUE: environments.yaml requires it (in use: ledger, observability, payments, platform)\n",
    ):
        assert hint in said.err
    assert "repository_id=VALUE" not in said.err


def test_who_says_nothing_yet_hears_all_that_is_missing_in_one_go_and_that_is_enough(new: Any, tmp_path: Path) -> None:
    said = new(env=None)
    assert said.code == 2
    asked = [line.removeprefix("hint: ").partition(" ")[0] for line in said.err.splitlines() if line.startswith("hint:")]
    assert asked == ["--env", "--access", "--from-token", "--owner", "--tag"], said.err
    assert "--access API=SCOPE[,SCOPE]: what it may hold; Apis: payments, ledger" in said.err
    file = saved(tmp_path, token())
    assert new("--from-token", file).err.count("hint:") == 2, "its other accounts in prod tell the owner"
    assert new(*ASKED, "--from-token", file, "--tag", "system=payments", "--print").code == 0


def test_a_strangers_run_is_asked_for_what_is_missing_before_it_is_judged_by_it(new: Any, tmp_path: Path) -> None:
    said = new("--from-token", saved(tmp_path, token(event_name="pull_request")), env=None)
    assert (said.code, "--access API=SCOPE" in said.err) == (2, True), said.err


def test_ids_that_a_platform_sends_on_request_alone_come_with_the_request(new: Any, policies: Path, tmp_path: Path) -> None:
    """Buildkite's tokens carry no ids unless the job asks for them."""
    issuers = policies / "issuers.yaml"
    issuers.write_text(issuers.read_text() + "  buildkite:\n    preset: buildkite\n")
    environments = policies / "environments.yaml"
    environments.write_text(environments.read_text().replace("prod-cluster, mesh]", "prod-cluster, mesh, buildkite]"))
    bare = token("buildkite", organization_id=None, pipeline_id=None)
    said = new(*ASKED, *MORE, "--from-token", saved(tmp_path, bare))
    assert said.code == 2
    find = presets.load("buildkite").careful.find
    assert f"--claim pipeline_id=VALUE: {find['pipeline_id']}" in said.err
    assert new(*ASKED, *MORE, "--from-token", saved(tmp_path, token("buildkite"))).code == 0


@pytest.mark.parametrize(
    ("arguments", "env", "code", "message"),
    [
        pytest.param((*ASKED,), None, 2, "hint: --env ENV: one of prod, staging, dev\n", id="no env"),
        pytest.param((*ASKED,), "prd", 2, "there is no env `prd` (did you mean `prod`?)", id="no such env"),
        pytest.param((), "prod", 2, "--access API=SCOPE[,SCOPE]: what it may hold; Apis in prod: payments, ledger", id="no access"),
        pytest.param(("--access", "payment=x"), "prod", 2, "(did you mean `payments`?); known: artifacts, clusters, ", id="no such Api"),
        pytest.param(("--access", "ledger=entries:read"), "dev", 2, "ledger: apis.yaml gives it no audience in dev", id="not in dev"),
        pytest.param(("--access", "payments=deploy:rite"), "prod", 2, "(did you mean `deploy:write`?)", id="no such scope"),
        pytest.param(("--access", "payments=releases:read,ledger=x"), "prod", 2, "another Api is another --access", id="two Apis"),
        pytest.param(("--access", "payments"), "prod", 2, "name its scopes, like payments=deploy:write", id="no scope"),
        pytest.param((*ASKED,), "prod", 2, "the workload; entries of issuers.yaml: github, gitlab", id="no workload"),
        pytest.param((*ASKED, "--issuer", "gihub"), "prod", 2, "no issuer `gihub` (did you mean `github`?)", id="no such issuer"),
        pytest.param((*ASKED, "--issuer", "buildkite"), "prod", 1, "    preset: buildkite\n", id="no entry"),
        pytest.param((*ASKED, "--issuer", "gitlab"), "prod", 1, "issuers: [github, prod-cluster, mesh, gitlab]", id="not open"),
        pytest.param((*ASKED, "--issuer", "github", "--claim", "x"), "prod", 2, "--claim x: write NAME=VALUE", id="no value"),
        pytest.param(
            (*ASKED, "--issuer", "github", "--claim", "event=push"), "prod", 2, "did you mean `event_name`?", id="no such claim"
        ),
        pytest.param((*ASKED, "--issuer", "github", "--claim", "jti=1"), "prod", 2, "nothing of who the workload is", id="jti"),
        pytest.param(
            (*ASKED, "--issuer", "github", "--claim", "ref=a", "--claim", "ref=b"), "prod", 2, "is given twice", id="a claim twice"
        ),
        pytest.param(
            (*ASKED, "--issuer", "github", "--claim", "ref=\udcff"), "prod", 2, "the value is no UTF-8", id="a claim of no UTF-8"
        ),
        pytest.param(
            (*ASKED, "--issuer", "gitlab", "--claim", "runner_id=a"), "dev", 2, "runner_id: the claim is a whole number", id="a type"
        ),
        pytest.param((*ASKED, "--issuer", "github", *GITHUB, "--name", "../x"), "prod", 2, "--name ../x: lower-case", id="a path"),
        pytest.param((*ASKED, "--issuer", "github", *GITHUB, "--tag", "x"), "prod", 2, "--tag x: write KEY=VALUE", id="a tag"),
        pytest.param((*ASKED, "--expires", "soon"), "prod", 2, "does not match the format", id="a date"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(
    arguments: tuple[str, ...], env: str | None, code: int, message: str, new: Any, policies: Path
) -> None:
    before = sorted(policies.rglob("*"))
    said = new(*arguments, env=env)
    assert (said.code, said.out) == (code, "")
    assert message in said.err
    assert sorted(policies.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "holds no token: the token has not exactly three parts", id="nothing"),
        pytest.param('{"value": "eyJ"}', "it is JSON without `claims`", id="the runner's JSON"),
        pytest.param('{"claims": {}, "problem": "no job"}', "it is JSON without `claims` (no job)", id="no identity"),
        pytest.param('{"claims": {"a": "', "not JSON in UTF-8", id="half of it"),
        pytest.param('{"claims": {"a": ' + "[" * 50 + "]" * 50 + "}}", "nested too deep", id="too deep"),
        pytest.param('{"claims": {"a": "' + "a" * 70_000 + '"}}', "it is larger than 65536 bytes", id="too much JSON"),
        pytest.param("Bearer a.b.c", "a character outside base64url", id="a header"),
        pytest.param("a.b.c", "is not canonical base64url", id="letters"),
        pytest.param("\ud800", "not exactly three parts", id="no text"),
        pytest.param("a" * 100_000, "the token is too large", id="too large"),
        pytest.param(f"{b64(b'{}')}.{b64(b'{}')}.AAAA", "the header has no alg", id="no alg"),
    ],
)
def test_what_is_no_token_is_refused_and_not_shown(text: str, message: str, new: Any) -> None:
    said = new(*ASKED, "--from-token", "-", typed=text)
    assert (said.code, said.out) == (1, "")
    assert message in said.err or "outside base64url" in said.err
    assert "three parts with dots between them" in said.err
    assert len(said.err) < 1000


def test_a_file_that_cannot_be_read_is_named(new: Any, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        said = new(*ASKED, "--from-token", str(place))
        assert (said.code, f"{place} cannot be read" in said.err) == (1, True)
        assert new("--from-token", str(place), env=None).err == said.err, "it is told before all that is missing"


def test_a_tree_that_does_not_compile_is_not_added_to(new: Any, policies: Path) -> None:
    (policies / "apis.yaml").write_text("apis: []\n")
    said = new(*ASKED)
    assert said.code == 1
    assert "the policy tree does not compile" in said.err
