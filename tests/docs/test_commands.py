"""The commands that the documentation shows, run: the command line's examples, and what the start pages have people paste."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import jwt
import pytest
import yaml

from tests.docs.conftest import IdentityTokens, Shown
from tests.docs.pages import DOCS, PAGES, ROOT, Block, blocks
from tests.docs.test_examples import scripts
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer
from tests.support.place import Server
from tools.command_reference import commands

RUN = [block for page in PAGES for block in blocks(page) if "run" in block.words]
BINARIES = str(Path(sys.executable).parent)
URL = "https://broker.acme.example"


def shell(script: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = environment | {
        "PATH": f"{BINARIES}:{os.environ['PATH']}",
        "HOME": str(folder),
        "no_proxy": "*",
        "NO_PROXY": "*",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def session(
    example: tuple[Broker, OidcIssuer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, str], Path]]:
    """What the examples name: a refused exchange, a token in a file, a revocation, a job with an identity, an API."""
    broker, issuer = example
    folder = tmp_path_factory.mktemp("session")

    def token(**claims: str) -> str:
        return issuer.token(now=time.time(), aud=broker.issuer("prod"), jti=secrets.token_hex(16), **claims)

    refused = broker.exchange(token(ref="refs/heads/main"), audience="payments", scope="deploy:write")
    assert refused.json()["reason"] == "claims_not_satisfied"
    (folder / "token.jwt").write_text(token())
    done = broker.run("revoke", "--issuer", "github", "--subject", "nobody", "--reason", "an example", "--yes", "--json")
    known = {"REQUEST_ID": refused.json()["request_id"], "TOKEN_FILE": str(folder / "token.jwt")}
    known |= {"REVOCATION": json.loads(done.stdout.splitlines()[0])["id"]}
    (folder / "deploy.sh").write_text('#!/bin/sh\ntest -s "$BROKER_TOKEN_FILE" && echo deployed\n')
    (folder / "deploy.sh").chmod(0o755)
    job = {
        "BROKER_URL": broker.url,
        "BROKER_ENV": "prod",
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
    }
    api = Server(admit)
    with IdentityTokens(issuer) as runner:
        yield {**broker.environment, **known, **job, "ACTIONS_ID_TOKEN_REQUEST_URL": runner, "API": api.url}, folder
    api.close()


def admit(request: BaseHTTPRequestHandler, _: bytes) -> None:
    """An API that lets in whoever carries a credential."""
    request.send_response(200 if request.headers.get("Authorization", "").startswith("Bearer eyJ") else 401)
    request.send_header("Content-Length", "0")
    request.end_headers()


def test_the_readmes_commands_and_its_three_lines_get_credentials(session: tuple[dict[str, str], Path]) -> None:
    environment, folder = session
    shown = list(blocks(ROOT / "README.md"))
    commands = next(block for block in shown if block.language == "sh" and "broker token" in block.text)
    lines = [line.replace(URL, environment["BROKER_URL"]) for line in commands.text.splitlines() if line.startswith("broker ")]
    token, deployed = (shell(line, environment, folder) for line in lines)
    assert jwt.decode(token.stdout.strip(), options={"verify_signature": False})["scope"] == "deploy:write", token.stderr
    assert deployed.stdout == "deployed\n", deployed.stderr
    (program,) = [block.text for block in shown if block.language == "python"]
    assert len([line for line in program.splitlines() if line]) == 3
    script = program.replace(URL, environment["BROKER_URL"]) + "print(token)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert jwt.decode(done.stdout.strip(), options={"verify_signature": False})["aud"] == "https://payments.acme.example"


@pytest.mark.parametrize("block", RUN, ids=str)
def test_an_example_that_is_marked_run_runs(block: Block, session: tuple[dict[str, str], Path]) -> None:
    environment, folder = session
    done = shell(block.text, environment, folder)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert done.stdout


def test_every_command_that_ends_by_itself_has_an_example_that_runs() -> None:
    shown = {match for block in RUN for match in re.findall(r"(?:^|\| )broker ([a-z]+(?: [a-z]+)?)", block.text, re.MULTILINE)}
    shown |= {text.split(" ")[0] for text in shown}
    assert set(commands()) - shown == {"serve", "demo", "doctor", "audit tail"}


def test_every_command_in_the_documentation_exists() -> None:
    known = set(commands()) | {name.split(" ")[0] for name in commands()}
    for page in PAGES:
        for words in re.findall(r"`broker ([a-z]+)", page.read_text("utf-8")):
            assert words in known, f"{page}: broker {words}"


# What people paste


def github(shown: Shown, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    runner = {
        "ACTIONS_ID_TOKEN_REQUEST_URL": shown.request_url,
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
        "BROKER": shown.broker.issuer("prod"),
        "GITHUB_ENV": str(folder / "github.env"),
    }
    return shell(script, runner, folder)


@pytest.mark.needs("curl", "jq")
def test_the_github_pages_workflow_leaves_a_credential_for_the_next_step(shown: Shown, tmp_path: Path) -> None:
    done = github(shown, next(scripts(DOCS / "start" / "github-actions.md", "curl")), tmp_path)
    assert done.returncode == 0, done.stderr
    token = (tmp_path / "github.env").read_text().strip().removeprefix("TOKEN=")
    assert done.stdout == f"::add-mask::{token}\n"
    check_as_the_http_page_says(shown, token)


def check_as_the_http_page_says(shown: Shown, token: str) -> None:
    """Runs the verifier of docs/http.md on a credential of prod for payments."""
    block = next(block for block in blocks(DOCS / "http.md") if block.language == "python")
    found: dict[str, object] = {"token": token}
    exec(block.text.replace(URL, shown.broker.url), found)
    claims = found["claims"]
    assert isinstance(claims, dict)
    assert claims["sub"] == claims["client_id"] == "svc-payments-deploy"
    described = (DOCS / "http.md").read_text("utf-8")
    assert all(f"`{name}`" in described for name in claims)


@pytest.mark.needs("curl", "jq")
def test_a_refusal_in_the_github_workflow_is_shown_and_stops_the_job(shown: Shown, tmp_path: Path) -> None:
    script = next(scripts(DOCS / "start" / "github-actions.md", "curl")).replace("scope=deploy:write", "scope=releases:delete")
    done = github(shown, script, tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["reason"] == "scope_not_granted"


@pytest.mark.needs("curl", "jq")
def test_the_gitlab_pages_job_gets_a_credential(shown: Shown, tmp_path: Path) -> None:
    block = next(block for block in blocks(DOCS / "start" / "gitlab.md") if "curl" in block.words)
    job = yaml.safe_load(block.text)["publish"]
    token = shown.token(
        "gitlab",
        job["id_tokens"]["BROKER_ID_TOKEN"]["aud"].replace(URL, shown.broker.url),
        project_id="5380",
        job_project_id="5380",
        ref_type="branch",
    )
    done = shell(job["script"][0].replace(URL, shown.broker.url) + '\necho "$TOKEN"', {"BROKER_ID_TOKEN": token}, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert jwt.decode(done.stdout.strip(), options={"verify_signature": False})["scope"] == "packages:write"


def test_the_kubernetes_pages_pod_gets_a_credential(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(shown.token("prod-cluster", shown.broker.issuer("prod")))
    block = next(block for block in blocks(DOCS / "start" / "kubernetes.md") if block.language == "sh")
    pod = {"BROKER_SUBJECT_TOKEN_FILE": str(tmp_path / "token")}
    done = shell(block.text.replace(URL, shown.broker.url), pod, tmp_path)
    assert jwt.decode(done.stdout.strip(), options={"verify_signature": False})["scope"] == "workloads:write", done.stderr


def test_the_fields_of_real_records_are_described(example: tuple[Broker, OidcIssuer], session: object) -> None:
    page = (DOCS / "audit.md").read_text("utf-8")
    records = example[0].records()
    assert {record["kind"] for record in records} >= {"exchange", "administration", "system"}
    for record in records:
        for name in record:
            assert f"`{name}`" in page, name
