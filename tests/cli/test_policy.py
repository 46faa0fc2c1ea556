"""`broker policy check|test|explain|schema`."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest

from tests.cli.conftest import Terminal


def test_check_counts_what_it_read(terminal: Terminal) -> None:
    said = terminal.types("policy", "check")
    assert said.code == 0, said.out
    assert "2 envs, 1 issuer, 2 Apis, 2 service accounts, revision" in said.lines[-1]


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


@pytest.mark.parametrize("command", [("check",), ("test",), ("new",), ("explain", "--claims-file", "-", "-e", "prod")])
def test_where_there_is_no_tree_that_is_all_that_is_said_and_where_to_begin(
    command: tuple[str, ...], terminal: Terminal, tmp_path: Path
) -> None:
    names = "issuers.yaml, apis.yaml, environments.yaml"
    hints = [
        f"hint: --policies DIR names the folder of a policy tree, which has {names}",
        "hint: docs/start/first-exchange.md shows a first one to write",
    ]
    for folder, error in (
        (tmp_path / "nowhere", f"error: there is no policy folder at {tmp_path / 'nowhere'}"),
        (tmp_path, f"error: there is no policy tree in {tmp_path}: it has none of {names}"),
    ):
        said = terminal.types("policy", *command, "--policies", str(folder), typed="{}")
        assert (said.code, said.out, said.err.splitlines()) == (1, "", [error, *hints])


def test_inside_a_tree_the_folder_itself_is_advised(copy: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.chdir(copy)
    said = terminal.types("policy", "check", "--policies", "policies")
    assert "hint: this folder has them: --policies ." in said.err
    assert terminal.types("policy", "check", "--policies", ".").code == 0


def test_a_tree_with_errors_is_a_tree(copy: Path, terminal: Terminal) -> None:
    (copy / "apis.yaml").unlink()
    said = terminal.types("policy", "check", "--policies", str(copy))
    assert (said.code, said.err) == (1, "")
    assert "apis.yaml:1:1: there is no apis.yaml" in said.lines[0]


def test_a_tree_without_tests_is_no_success_and_says_how_to_add_one(copy: Path, terminal: Terminal) -> None:
    said = terminal.types("policy", "test", "--policies", str(copy))
    assert (said.code, said.out) == (0, "")
    assert "warning: there are no policy tests: 2 service accounts, none with `tests:`" in said.err
    file, block = re.findall(r"hint: add to (\S+) .*\n((?:  .*\n)+)", said.err)[0]
    (copy / file).write_text((copy / file).read_text() + textwrap.dedent(block))
    said = terminal.types("policy", "test", "--policies", str(copy))
    assert (said.code, said.lines) == (0, ["1 policy test passes"]), "its glob and its condition hold"


def test_a_test_that_the_policy_would_not_pass_is_not_advised(copy: Path, terminal: Terminal) -> None:
    for env in ("prod", "dev"):
        file = copy / env / "svc-payments-deploy.yaml"
        file.write_text(file.read_text().replace('claims.event_name != "pull_request"', 'claims.event_name == "a riddle"'))
    said = terminal.types("policy", "test", "--policies", str(copy))
    assert "expect: allow" not in said.err
    assert "`broker policy new` writes a service account with its tests" in said.err


def test_a_tree_without_accounts_has_no_tests_either(copy: Path, terminal: Terminal) -> None:
    for env in ("prod", "dev"):
        shutil.rmtree(copy / env)
    said = terminal.types("policy", "test", "--policies", str(copy), "--json")
    assert (said.code, said.out) == (0, "")
    assert "`broker policy new` writes a service account with its tests" in said.err


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
