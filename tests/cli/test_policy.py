"""`broker policy check|test|explain|schema`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Terminal


@pytest.fixture
def copy(terminal: Terminal, tmp_path: Path) -> Path:
    shutil.copytree(terminal.broker.policies, tmp_path / "tree")
    return tmp_path / "tree"


def test_check_counts_what_it_read(terminal: Terminal) -> None:
    said = terminal.types("policy", "check")
    assert said.code == 0, said.out
    assert "2 envs, 1 issuers, 2 Apis, 2 service accounts, revision" in said.lines[-1]


def test_check_names_file_line_and_column_of_every_error(terminal: Terminal, copy: Path) -> None:
    file = copy / "prod" / "svc-payments-deploy.yaml"
    good = file.read_text()
    file.write_text(good.replace('repository_id: "7432112"', "repository_id: 7432112"))
    said = terminal.types("policy", "check", "--policies", str(copy))
    assert said.code == 1
    assert any("prod/svc-payments-deploy.yaml:14:" in line for line in said.lines), said.out
    file.write_text(good.replace("owner:", "ovner:"))
    problems = [json.loads(line) for line in terminal.types("policy", "check", "--policies", str(copy), "--json").lines]
    assert {problem["file"] for problem in problems} == {"prod/svc-payments-deploy.yaml"}
    assert all(problem["line"] >= 1 and problem["column"] >= 1 for problem in problems)
    assert len([problem for problem in problems if problem["severity"] == "error"]) >= 2


def test_policy_tests_pass_and_fail(terminal: Terminal) -> None:
    example = Path(__file__).parents[2] / "policies"
    said = terminal.types("policy", "test", "--policies", str(example))
    assert said.code == 0, said.out
    assert "policy tests pass" in said.lines[-1]
    rows = [json.loads(line) for line in terminal.types("policy", "test", "--policies", str(example), "--json").lines]
    assert all(row["passed"] for row in rows)


def test_a_policy_test_that_fails_is_named_with_its_place(terminal: Terminal, tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "policies", tmp_path / "tree")
    file = tmp_path / "tree" / "prod" / "svc-payments-deploy.yaml"
    file.write_text(file.read_text().replace('ref: {glob: "refs/tags/v*"}', 'ref: {glob: "refs/tags/x*"}'))
    said = terminal.types("policy", "test", "--policies", str(tmp_path / "tree"))
    assert said.code == 1
    assert any("prod/svc-payments-deploy.yaml:" in line and "a tag build in production deploys" in line for line in said.lines)


def test_schema_prints_what_editors_read(terminal: Terminal) -> None:
    kinds = terminal.types("policy", "schema").lines
    assert len(kinds) >= 4
    for kind in kinds:
        assert json.loads(terminal.types("policy", "schema", kind).out)["type"] == "object"
    said = terminal.types("policy", "schema", "nothing")
    assert (said.code, "no file kind `nothing`" in said.err) == (2, True)


def test_explain_a_past_request(terminal: Terminal) -> None:
    refused, issued = terminal.exchange(environment="staging-7"), terminal.exchange()
    said = terminal.types("policy", "explain", "--request", refused.json()["request_id"])
    assert said.code == 0, said.err
    for text in ("REFUSED", "staging-7", "production", "smallest change"):
        assert text in said.out
    assert terminal.types("policy", "explain", "--exit-code", "--request", refused.json()["request_id"]).code == 1
    allowed = terminal.types("policy", "explain", "--exit-code", "--request", issued.headers["x-request-id"])
    assert (allowed.code, allowed.lines[0].split()[0]) == (0, "ALLOWED")
    body = json.loads(terminal.types("policy", "explain", "--json", "--request", refused.json()["request_id"]).out)
    assert body["allowed"] is False
    missing = terminal.types("policy", "explain", "--request", "req_none")
    assert (missing.code, "no exchange has the request id" in missing.err) == (1, True)


def test_explain_under_another_tree(terminal: Terminal, copy: Path) -> None:
    refused = terminal.exchange(environment="staging-7").json()["request_id"]
    file = copy / "prod" / "svc-payments-deploy.yaml"
    file.write_text(file.read_text().replace("environment: production", "environment: {in: [production, staging-7]}"))
    said = terminal.types("policy", "explain", "--request", refused, "--against", str(copy))
    assert "REFUSED" in said.lines[0], "what happened, happened"
    assert said.lines[-1].endswith("as it is now: allowed")
    still = terminal.types("policy", "explain", "--request", refused)
    assert still.lines[-1].endswith("still refused")


def test_explain_a_token_and_claims(terminal: Terminal, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(terminal.token(environment="x"))
    asked = ("--env", "prod", "-a", "payments", "--scope", "deploy:write")
    said = terminal.types("policy", "explain", "--token-file", str(token), *asked, "--exit-code")
    assert (said.code, "REFUSED" in said.lines[0]) == (1, True), said.err
    assert token.read_text() not in said.out
    claims = tmp_path / "claims.json"
    given = {"repository_id": "7432112", "repository_owner_id": "98123", "environment": "production", "ref": "refs/tags/v1"}
    claims.write_text(json.dumps(given | {"event_name": "push", "sub": "x"}))
    said = terminal.types("policy", "explain", "--claims-file", str(claims), "--issuer", "github", *asked)
    assert (said.code, said.lines[0].split()[0]) == (0, "ALLOWED"), said.err
    assert terminal.types("policy", "explain", "--claims-file", str(claims), *asked).code == 1, "whose claims?"
    token.write_text("not a token")
    said = terminal.types("policy", "explain", "--token-file", str(token), *asked)
    assert (said.code, "holds no token" in said.err) == (1, True)


@pytest.mark.parametrize(("content", "says"), [("{", "claims"), ("[]", "claims"), (None, "cannot be read")])
def test_explain_what_cannot_be_read_is_said_in_one_line(
    terminal: Terminal, tmp_path: Path, content: str | None, says: str
) -> None:
    claims = tmp_path / "claims.json"
    if content is not None:
        claims.write_text(content)
    said = terminal.types("policy", "explain", "--claims-file", str(claims), "--issuer", "github", "--env", "prod")
    assert said.code in {1, 2}
    assert says in said.err
    assert "defect" not in said.err


def test_explain_wants_exactly_one_thing_to_explain(terminal: Terminal) -> None:
    for arguments in ((), ("--request", "x", "--token-file", "y")):
        assert terminal.types("policy", "explain", *arguments).code == 2
