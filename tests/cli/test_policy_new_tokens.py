"""`broker policy new` and what a token says: whose it is, whether a stranger may have made it, what stands in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Terminal
from tests.cli.test_policy_new import ASKED, GITHUB, MORE, check, new, policies, saved, token

__all__ = ["new", "policies"]  # fixtures, found by name


# Whose token


def test_the_entry_is_found_by_trust_domain_too(new: Any, terminal: Terminal, policies: Path, tmp_path: Path) -> None:
    said = new(*ASKED, *MORE, "--from-token", saved(tmp_path, token("spiffe")))
    assert said.code == 0, said.err
    (rule,) = yaml.safe_load((policies / "prod" / "svc-deployer.yaml").read_text())["trust"]
    assert (rule["issuer"], rule["where"]) == ("mesh", {"sub": "spiffe://prod.acme.example/ns/payments/sa/deployer"})
    check(terminal, policies)


@pytest.mark.parametrize(
    ("made", "lines"),
    [
        pytest.param(token("gitlab"), "  gitlab-2:\n    preset: gitlab\n", id="a preset's own issuer, its name taken"),
        pytest.param(
            token(iss="https://ci.acme.example"),
            "  my-ci:\n    url: https://ci.acme.example\n    algorithms: [RS256]\n",
            id="an issuer that nobody knows",
        ),
        pytest.param(
            token("spiffe", sub="spiffe://dev.acme.example/x"),
            "  spiffe:\n    preset: spiffe\n    trust_domain: dev.acme.example\n",
            id="another trust domain",
        ),
        pytest.param(token(iss="http://["), '  my-ci:\n    url: "http://["\n', id="an issuer that is no url"),
        pytest.param(token(iss=None), "no issuer (it has no `iss`)", id="none"),
    ],
)
def test_a_token_of_nobody_known_comes_with_the_entry_to_add(made: str, lines: str, new: Any) -> None:
    said = new(*ASKED, *MORE, "--from-token", "-", typed=made)
    assert said.code == 1
    assert lines in said.err
    assert "and in environments.yaml, at the env: issuers: […, " in said.err


def test_a_token_of_another_issuer_than_is_said_is_refused(new: Any) -> None:
    said = new("--issuer", "gitlab", *ASKED, *MORE, "--from-token", "-", typed=token(), env="dev")
    assert said.code == 1
    assert "of https://token.actions.githubusercontent.com, and gitlab stands for https://gitlab.acme.example" in said.err


def test_a_preset_with_several_entries_names_them(new: Any, policies: Path, tmp_path: Path) -> None:
    issuers = policies / "issuers.yaml"
    issuers.write_text(issuers.read_text() + "  gitlab-com: {preset: gitlab}\n")
    said = new("--issuer", "gitlab", *ASKED, *MORE, *GITHUB, env="dev")
    assert "gitlab-com" not in said.err, "an entry's own name comes first"
    issuers.write_text(issuers.read_text().replace("  github:\n", "  ours: {preset: github-actions, url: https://ghe.acme.example/_services/token}\n  github:\n"))
    said = new("--issuer", "github-actions", *ASKED, *MORE, *GITHUB)
    assert said.code == 2
    assert "say --issuer with one of ours, github" in said.err
    assert new("--issuer", "github-actions", *ASKED, *MORE, "--from-token", saved(tmp_path, token())).code == 0


# Dangers


def test_a_strangers_run_is_told_and_not_let_in(new: Any, terminal: Terminal, policies: Path, tmp_path: Path) -> None:
    file = saved(tmp_path, token(event_name="pull_request_target", environment=None, ref="refs/heads/main"))
    said = new(*ASKED, *MORE, "--from-token", file)
    assert said.code == 0
    assert "warning: a stranger may drive such a run (event_name pull_request_target): the rule does not pin event_name" in said.err
    explained = terminal.types(
        *("policy", "explain", "--policies", str(policies), "-e", "prod", "--token-file", file, "-a", "artifacts"),
        *("--scope", "packages:write", "--service-account", "svc-payments", "--exit-code"),
    )
    assert explained.code == 1, explained.out
    check(terminal, policies)


def test_what_a_strangers_run_leaves_open_is_told_and_can_be_pinned_by_hand(new: Any, policies: Path, tmp_path: Path) -> None:
    """CircleCI's ref is both what a careful rule pins and what tells a fork's pull request."""
    issuers, environments = policies / "issuers.yaml", policies / "environments.yaml"
    url = "https://oidc.circleci.com/org/0a1b2c3d-0000-4000-8000-000000000001"
    issuers.write_text(f"{issuers.read_text()}  circleci:\n    preset: circleci\n    url: {url}\n")
    environments.write_text(environments.read_text().replace("prod-cluster, mesh]", "prod-cluster, mesh, circleci]"))
    ref = "oidc.circleci.com/vcs-ref"
    file = saved(tmp_path, token("circleci", iss=url, **{ref: "refs/heads/pull/7"}))
    given = (*ASKED, *MORE, "--name", "svc-x", "--from-token", file, "--print")
    said = new(*given)
    assert said.code == 0, said.err
    assert f"warning: and every other {ref} is let in; --claim {ref}=VALUE of an ordinary run pins that one" in said.err
    assert ref not in yaml.safe_load(said.out)["trust"][0]["where"]
    said = new(*given, "--claim", f"{ref}=refs/heads/main")
    assert (said.code, "warning" in said.err) == (0, False)
    assert yaml.safe_load(said.out)["trust"][0]["where"][ref] == "refs/heads/main"


def test_a_forks_merge_request_gives_no_rule(new: Any, policies: Path) -> None:
    made = token("gitlab", iss="https://gitlab.acme.example", project_id="61000001", pipeline_source="merge_request_event")
    said = new(*ASKED, *MORE, "--from-token", "-", typed=made, env="dev")
    assert said.code == 1
    assert "a stranger's code may be at work" in said.err
    assert "project_id 61000001, job_project_id 53804090" in said.err
    assert "61000001" not in "".join(file.read_text() for file in policies.rglob("*.yaml"))


def test_a_rule_that_would_break_a_test_of_another_file_is_not_written(new: Any, policies: Path, tmp_path: Path) -> None:
    """The same workload, the same access: its requests would fit two accounts."""
    said = new("--access", "payments=deploy:write", *MORE, "--from-token", saved(tmp_path, token()))
    assert said.code == 1
    assert "prod/svc-payments-deploy.yaml" in said.err
    assert "ambiguous_account" in said.err
    assert not (policies / "prod" / "svc-payments.yaml").exists()


def test_an_account_that_grants_the_same_is_a_warning(new: Any, terminal: Terminal, policies: Path, tmp_path: Path) -> None:
    given = (*ASKED, *MORE, "--from-token", saved(tmp_path, token()))
    assert new(*given).code == 0
    said = new(*given, "--name", "svc-payments-too")
    assert said.code == 0, said.err
    assert "svc-payments grants the workload the same: its requests must name the account" in said.err
    check(terminal, policies)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param(("--expires", "2020-01-01"), "the account has expired", id="a date gone by"),
        pytest.param(("--expires", "2039-01-01"), "days away (environments.yaml has max_lifetime)", id="a date too far"),
        pytest.param(("--name", "payments"), "the naming rule of environments.yaml asks for", id="a name"),
        pytest.param(("--claim", "environment=prod*"), "its signs have no meaning here", id="a value that looks like a pattern"),
        pytest.param(("--access", "broker=keys:rotate", "--owner", " "), "this must not be empty", id="an empty owner"),
    ],
)
def test_what_would_not_load_without_a_word_is_not_written(
    given: tuple[str, ...], problem: str, new: Any, policies: Path, tmp_path: Path
) -> None:
    before = sorted(policies.rglob("*"))
    said = new(*ASKED, *MORE, "--from-token", saved(tmp_path, token()), *given)
    assert said.code == 1
    assert problem in said.err
    assert "hint: line " in said.err
    assert sorted(policies.rglob("*")) == before


def test_a_hostile_token_writes_a_file_that_says_what_it_said(
    new: Any, terminal: Terminal, policies: Path, tmp_path: Path
) -> None:
    environment = "prod\n  evil: {{ x }} # \u202e'\"\\: &a !!map"
    made = token(environment=environment, repository="acme/pay\nments: []\x1b[2J", repository_owner="\u2028")
    said = new(*ASKED, *MORE, "--name", "svc-hostile", "--from-token", saved(tmp_path, made))
    assert said.code == 0, said.err
    assert "\x1b[2J" not in said.err
    assert yaml.safe_load((policies / "prod" / "svc-hostile.yaml").read_text())["trust"][0]["where"]["environment"] == environment
    check(terminal, policies)
