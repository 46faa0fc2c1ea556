"""What the documentation shows is true: its policy compiles, its JSON and TOML parse, its workflows get a credential."""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from broker import presets
from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.config import SETTINGS, Limits
from broker.errors import PolicyInvalid
from broker.model import Grant
from broker.policy.cases import run_cases
from broker.policy.tree import Account, Tree
from tests.docs.pages import DOCS, PAGES, ROOT, Block, blocks
from tests.policy.trees import outcome, request, workload
from tests.presets import careful

TODAY = 1_795_478_400  # 2026-11-24
ENVIRONMENTS = """environments:
  prod: {max_ttl: 15m, issuers: [ISSUERS]}
  staging: {max_ttl: 1h, issuers: [ISSUERS]}
  dev: {max_ttl: 8h, issuers: [ISSUERS]}
"""
RULE = """service_account: svc-example-{number}
owner: team-payments
tags: {{system: payments}}
expires: 2027-06-30
access: {{payments: [deploy:write, releases:read]}}
trust:
  -
{rule}"""
YAML = [block for page in PAGES for block in blocks(page) if block.language in {"yaml", "yml"}]
TREES = sorted({block.page for block in YAML if block.value("file")})


def tree_files(page: Path) -> dict[str, str]:
    """The files that a page shows, and what it leaves out: the example tree's Apis, environments that are open to its issuers."""
    shown = list(blocks(page))
    files = {name: block.text for block in shown if (name := block.value("file"))}
    issuers = ", ".join(yaml.safe_load(files["issuers.yaml"])["issuers"])
    files.setdefault("apis.yaml", (ROOT / "policies" / "apis.yaml").read_text("utf-8"))
    files.setdefault("environments.yaml", ENVIRONMENTS.replace("ISSUERS", issuers))
    for number, block in enumerate(block for block in shown if block.value("rule")):
        rule = "".join(f"    {line}\n" for line in block.text.splitlines())
        files[f"prod/svc-example-{number}.yaml"] = RULE.format(number=number, rule=rule)
    return files


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


def compiled(folder: Path) -> Tree:
    return compile_tree(read_tree(folder, Limits()), limits=Limits(), today=TODAY)


@pytest.mark.parametrize("page", TREES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tree_of_a_page_compiles_with_no_warning_but_those_it_tells_and_its_tests_pass(page: Path, tmp_path: Path) -> None:
    """`warns="…; …"` beside `file=` tells what the compiler says of that file."""
    tree = compiled(write(tmp_path, tree_files(page)))
    told = [
        (block.value("file"), text) for block in blocks(page) for text in (block.value("warns") or "").split("; ") if text
    ]
    untold = [each for each in tree.warnings if not any(each.file == file and text in each.message for file, text in told)]
    assert untold == []
    assert len(tree.warnings) == len(told)
    assert [result.message for result in run_cases(tree, TODAY) if not result.passed] == []


@pytest.mark.parametrize("name", presets.names())
def test_the_rule_on_a_platforms_page_admits_its_workload_or_shows_whom_it_admits(name: str, tmp_path: Path) -> None:
    page = DOCS / "start" / f"{name}.md"
    tree = compiled(write(tmp_path, tree_files(page)))
    issuer = next(entry.name for entry in tree.issuers.by_name.values() if entry.preset == name)
    accounts = [account for account in tree.accounts.values() if any(rule.issuer == issuer for rule in account.rules)]
    assert accounts
    for account in accounts:
        shown = {case.allow for case in account.cases if case.issuer == issuer}
        assert shown == {True, False} or _admits(tree, account, issuer, name)


def _admits(tree: Tree, account: Account, issuer: str, name: str) -> bool:
    """Whether the account is given to the workload of the preset's fixture."""
    who = workload(tree, issuer, **careful.claims(presets.load(name)))
    asked = [(api, scope) for api, scopes in account.access.items() for scope in scopes]
    found = [outcome(tree, who, request(account.env, audience=api, scope=scope), TODAY) for api, scope in asked]
    return all(isinstance(each, Grant) and each.service_account == account.name for each in found)


@pytest.mark.parametrize("name", presets.names())
def test_a_platforms_page_says_what_nobody_could_confirm_where_there_is_such(name: str) -> None:
    text = (DOCS / "start" / f"{name}.md").read_text("utf-8")
    assert ("## Not confirmed" in text) is (f"<!-- unconfirmed: {name} -->" in text) is bool(presets.load(name).unconfirmed)


def test_the_policy_page_shows_tests() -> None:
    assert "expect: deny" in tree_files(DOCS / "policy.md")["prod/svc-payments-deploy.yaml"]


@pytest.mark.parametrize("block", [block for block in YAML if block.value("wrong")], ids=str)
def test_what_is_shown_as_wrong_is_refused_for_that_reason(block: Block, tmp_path: Path) -> None:
    name = yaml.safe_load(block.text)["service_account"]
    folder = write(tmp_path, tree_files(block.page) | {f"prod/{name}.yaml": block.text})
    with pytest.raises(PolicyInvalid) as caught:
        compiled(folder)
    assert [problem.file for problem in caught.value.problems] == [f"prod/{name}.yaml"]
    assert block.value("wrong") in str(caught.value.problems[0])


@pytest.mark.parametrize("block", YAML, ids=str)
def test_every_yaml_block_says_what_it_is(block: Block) -> None:
    assert "workflow" in block.words or block.value("file") or block.value("rule") or block.value("wrong")
    assert yaml.safe_load(block.text)


def test_json_blocks_parse() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "json":
                assert json.loads(block.text), str(block)


def test_toml_blocks_hold_settings_and_limits_that_exist() -> None:
    shown = [tomllib.loads(block.text) for page in PAGES for block in blocks(page) if block.language == "toml"]
    assert shown
    for table in shown:
        assert set(table.pop("limits", {})) <= set(Limits.__slots__)
        assert set(table) <= set(SETTINGS)


def test_python_blocks_parse() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                assert ast.parse(block.text), str(block)


def scripts(page: Path, kind: str = "workflow") -> Iterator[str]:
    """The shell scripts of a page's first workflow of a kind, in order."""
    block = next(block for block in blocks(page) if kind in block.words)
    for job in yaml.safe_load(block.text).get("jobs", {}).values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def test_every_github_workflow_asks_for_the_identity_token() -> None:
    for page in (ROOT / "README.md", DOCS / "start" / "github-actions.md"):
        shown = [yaml.safe_load(block.text) for block in blocks(page) if "workflow" in block.words]
        assert shown
        for workflow in shown:
            for job in workflow["jobs"].values():
                assert job.get("permissions", workflow["permissions"])["id-token"] == "write"
