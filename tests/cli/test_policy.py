"""`broker policy check|test|explain|schema`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cli.conftest import Terminal


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
