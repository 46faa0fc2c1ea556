"""The GitHub and GitLab pages: their workflows pass the vendors' schemas and a security linter, and get credentials."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from tests.docs.conftest import Shown
from tests.docs.pages import DOCS, ROOT, Block, blocks, rows
from tests.docs.test_commands import URL, shell
from tests.packaging.runner import BEARER, Runner, Step, TokenService
from tests.packaging.test_gitlab_component import component

GITHUB, GITLAB = DOCS / "start" / "github-actions.md", DOCS / "start" / "gitlab.md"
BINARIES = Path(sys.executable).parent


def block(page: Path, word: str) -> Block:
    return next(each for each in blocks(page) if word in each.words)


def workflows(page: Path) -> list[Block]:
    return [each for each in blocks(page) if "workflow" in each.words]


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def passes(name: str, *arguments: str | Path) -> None:
    done = subprocess.run([BINARIES / name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# GitHub


@pytest.fixture
def service(shown: Shown) -> Iterator[TokenService]:
    with TokenService(shown.issuers["github"]) as service:
        yield service


def step(shown: Shown, service: TokenService, folder: Path, page: Path = GITHUB) -> Step:
    """The step of a page's first workflow, with the Action of this very checkout."""
    workflow = yaml.safe_load(block(page, "action").text)
    (used,) = [each for each in workflow["jobs"]["deploy"]["steps"] if "uses" in each]
    inputs = {name.replace("-", "_"): str(value).replace(URL, shown.broker.url) for name, value in used["with"].items()}
    return Runner(folder, service.request_url).step(**inputs)


@pytest.mark.parametrize("page", [GITHUB, ROOT / "README.md"], ids=lambda page: page.name)
def test_a_pages_step_gets_a_credential(page: Path, shown: Shown, service: TokenService, tmp_path: Path) -> None:
    done = step(shown, service, tmp_path, page)
    assert done.code == 0, done
    assert claims(done.outputs["token"])["scope"] == "deploy:write"


def test_the_next_step_names_an_output_that_exists() -> None:
    used = re.findall(r"steps\.broker\.outputs\.([\w-]+)", block(GITHUB, "action").text)
    assert set(used) == {"token"} <= set(yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["outputs"])


@pytest.mark.parametrize("word", ["action", "curl"])
def test_the_github_pages_workflows_pass_the_vendors_schema_and_the_security_linter(word: str, tmp_path: Path) -> None:
    path = tmp_path / ".github" / "workflows" / "release.yml"
    path.parent.mkdir(parents=True)
    path.write_text(block(GITHUB, word).text)
    passes("check-jsonschema", "--builtin-schema", "vendor.github-workflows", path)
    passes("zizmor", "--offline", "--quiet", "--no-progress", path)


def test_the_github_page_lists_every_input_and_output() -> None:
    described = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    for kind in ("input", "output"):
        assert [cells[0].strip("`") for cells in rows(GITHUB, kind)] == list(described[f"{kind}s"])


def test_the_github_pages_command_gets_a_credential(shown: Shown, service: TokenService, tmp_path: Path) -> None:
    variables = {
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": service.request_url,
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER,
    }
    done = shell(block(GITHUB, "cli").text.replace(URL, shown.broker.url), variables, tmp_path)
    assert done.returncode == 0, done.stderr
    (token,) = re.fullmatch(r"::add-mask::(.+)\n", done.stdout).groups()  # type: ignore[union-attr]
    assert claims(token)["scope"] == "deploy:write"


def test_the_github_page_shows_a_refusal_as_it_is(shown: Shown, service: TokenService, tmp_path: Path) -> None:
    service.claims = {"ref": "refs/heads/fix-typo"}
    data = step(shown, service, tmp_path).error.data
    told = re.sub(r"req_[\w-]+", "req_6Mf8Kd2LqXw0ZtRb5Yhc", data).replace(shown.broker.url, URL)
    assert told.startswith(block(GITHUB, "refusal").text)


def test_the_github_pages_mistakes_are_worded_as_the_action_words_them(
    shown: Shown, service: TokenService, tmp_path: Path
) -> None:
    mistakes = [cells[0].strip("` ").replace("\\", "") for cells in rows(GITHUB, "what it says")]
    asked = {"server": shown.broker.url, "env": "prod", "audience": "payments"}
    event = {"pull_request": {"head": {"repo": {"id": 2}}, "base": {"repo": {"id": 1}}}}
    said = [
        Runner(tmp_path).step(**asked),
        Runner(tmp_path).event("pull_request", event).step(**asked),
        Runner(tmp_path, service.request_url).step(**asked, identity_audience="https://elsewhere.example"),
        Runner(tmp_path, service.request_url).step(**asked | {"server": f"{shown.broker.url}/prod"}),
        Runner(tmp_path, service.request_url).step(**asked | {"env": "production"}),
    ]
    assert [each.error.title.removeprefix("broker: ").replace(shown.broker.url, URL) for each in said] == mistakes


# Both


@pytest.mark.needs("jq")
@pytest.mark.parametrize("page", [GITHUB, GITLAB], ids=lambda page: page.stem)
def test_a_checkout_of_the_policy_tells_what_the_rule_wants(
    page: Path, shown: Shown, service: TokenService, tmp_path: Path
) -> None:
    """In a folder with the policy, without the broker's state, as a job that the page's rule keeps out."""
    (tmp_path / "policies").symlink_to(shown.broker.policies)
    recipe = block(page, "explain").text
    if page == GITHUB:
        service.claims = {"ref": "refs/heads/fix-typo"}
        job = {"ACTIONS_ID_TOKEN_REQUEST_URL": service.request_url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER}
        done = shell(recipe, {"GITHUB_ACTIONS": "true", **job}, tmp_path)
    else:
        token = gitlab_token(shown, f"{URL}/staging", **UNPROTECTED)
        done = shell(recipe, {"GITLAB_CI": "true", "BROKER_ID_TOKEN": token}, tmp_path)
    wanted = r"ref +expected refs/tags/v\*  " if page == GITHUB else 'ref_protected +expected "?true"?  '
    assert done.stdout.startswith("REFUSED"), done.stderr
    assert "claims_not_satisfied" in done.stdout
    assert re.search(wanted, done.stdout), done.stdout


@pytest.mark.parametrize("page", [GITHUB, GITLAB], ids=lambda page: page.stem)
def test_a_rule_begins_with_what_the_rest_of_the_tree_must_have(page: Path) -> None:
    shown = {name: yaml.safe_load(each.text) for each in blocks(page) if (name := each.value("file"))}
    (place,) = set(shown) - {"issuers.yaml"}
    ((api, (scope,)),) = shown[place]["access"].items()
    env, (issuer,) = place.partition("/")[0], shown["issuers.yaml"]["issuers"]
    first = page.read_text("utf-8").partition("\n## A safe rule\n\n")[2].partition("`issuers`.")[0]
    assert re.findall(r"`([^`]+)`", first) == [api, scope, "apis.yaml", "environments.yaml", env, issuer]


@pytest.mark.parametrize(
    ("page", "copy"), [(GITHUB, "https://github.com/acme/broker"), (GITLAB, "https://gitlab.acme.example/platform/broker")]
)
def test_what_is_installed_is_a_commit_of_ones_own_copy(page: Path, copy: str) -> None:
    ((used, included),) = re.findall(r"uses: acme/broker@(\w+)|/token@(\w+)", page.read_text("utf-8"))
    installed = re.findall(r"pip install (\"[^\"]+\"|[^\s`]+)", page.read_text("utf-8"))
    program = f"git+{copy}@{used or included}"
    assert sorted(installed) == [f'"federation-broker[server] @ {program}"', program]


# GitLab


@pytest.mark.parametrize("each", workflows(GITLAB), ids=str)
def test_the_gitlab_pages_jobs_pass_the_vendors_schema(each: Block, tmp_path: Path) -> None:
    path = tmp_path / ".gitlab-ci.yml"
    path.write_text(each.text)
    passes("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", path)


def test_the_gitlab_pages_include_fills_in_the_component() -> None:
    shown = yaml.safe_load(block(GITLAB, "component").text)
    (included,) = shown["include"]
    jobs = component(**included["inputs"])
    assert shown["publish"]["extends"] in jobs
    (commit,) = re.findall(r"/token@([0-9a-f]{40})$", included["component"])
    assert included["inputs"]["package"].endswith(f"/platform/broker@{commit}")


@pytest.mark.needs("git")
def test_git_shows_the_jobs_token_to_a_gitlab_whose_project_is_not_public(tmp_path: Path) -> None:
    variables = yaml.safe_load(block(GITLAB, "private").text)["variables"]
    filled = {name: value.replace("$CI_JOB_TOKEN", "glcbt-1") for name, value in variables.items()}
    (included,) = yaml.safe_load(block(GITLAB, "component").text)["include"]
    package = included["inputs"]["package"].removeprefix("git+").partition("@")[0]
    done = shell(f"git ls-remote --get-url {package}; git ls-remote --get-url https://elsewhere.example/x", filled, tmp_path)
    there = "https://gitlab-ci-token:glcbt-1@gitlab.acme.example/platform/broker"
    assert done.stdout.split() == [there, "https://elsewhere.example/x"]


def test_the_gitlab_page_lists_every_input() -> None:
    header, _ = yaml.safe_load_all((ROOT / "templates" / "token.yml").read_text("utf-8"))
    assert [cells[0].strip("`") for cells in rows(GITLAB, "input")] == list(header["spec"]["inputs"])


UNPROTECTED = {"ref": "fix-typo", "ref_protected": "false"}


def gitlab_token(shown: Shown, audience: str, **changes: str) -> str:
    return shown.token("gitlab", audience, project_id="5380", job_project_id="5380", ref_type="branch", **changes)


def gitlab(shown: Shown, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """The lines of the page's job that fetch a credential, and then the credential."""
    job = yaml.safe_load(block(GITLAB, "cli").text.replace(URL, shown.broker.url))["publish"]
    token = gitlab_token(shown, job["id_tokens"]["BROKER_ID_TOKEN"]["aud"], **changes)
    lines = [line for line in job["script"] if "broker token" in line]
    return shell("\n".join([*lines, 'echo "$TOKEN"']), {"GITLAB_CI": "true", "BROKER_ID_TOKEN": token}, folder)


def test_the_gitlab_pages_command_gets_a_credential(shown: Shown, tmp_path: Path) -> None:
    done = gitlab(shown, tmp_path)
    assert done.returncode == 0, done.stderr
    assert claims(done.stdout.strip())["scope"] == "packages:write"


def test_the_gitlab_page_shows_a_refusal_as_it_is(shown: Shown, tmp_path: Path) -> None:
    done = gitlab(shown, tmp_path, **UNPROTECTED)
    assert done.returncode == 1
    told = re.sub(r"req_[\w-]+", "req_6Mf8Kd2LqXw0ZtRb5Yhc", done.stderr).replace(shown.broker.url, URL)
    assert told.startswith(block(GITLAB, "refusal").text)
