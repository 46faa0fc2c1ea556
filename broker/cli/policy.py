"""`broker policy check|test|new|explain|schema`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from broker.analysis.advice import counted
from broker.analysis.draft import first_case, inline
from broker.cli.explain import explain_command
from broker.cli.policy_new import new_command
from broker.cli.saying import say
from broker.cli.settings import POLICY, options, settings_from
from broker.cli.tree import tree_of
from broker.compiler.schema import schemas
from broker.config import Limits
from broker.errors import PolicyInvalid
from broker.policy.cases import run_cases
from broker.policy.tree import BROKER_API, Tree


@click.group()
def policy() -> None:
    """Check, test, explain and extend the policy tree."""


@policy.command(epilog="Example: broker policy check --policies policies")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, one a problem.")
@options(*POLICY)
def check(as_json: bool, **given: Any) -> None:
    """Compile the tree and print every problem with its file, line and column.  Warnings do not change the exit code."""
    settings = settings_from(given)
    try:
        tree = tree_of(settings)
    except PolicyInvalid as error:
        if not error.problems:
            raise
        for problem in error.problems:
            click.echo(_problem(problem, as_json))
        sys.exit(1)
    for problem in tree.warnings:
        click.echo(_problem(problem, as_json))
    if not as_json:
        apis = len(tree.apis) - (BROKER_API in tree.apis)
        found = {"env": len(tree.envs), "issuer": len(tree.issuers.by_name), "Api": apis, "service account": len(tree.accounts)}
        counts = ", ".join(counted(count, what) for what, count in found.items())
        click.echo(f"{settings.policies}: {counts}, revision {tree.revision[:7]}")


@policy.command("test", epilog="Example: broker policy test --policies policies")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, one a test.")
@options(*POLICY)
def test_command(as_json: bool, **given: Any) -> None:
    """Run the `tests:` of every service account file.  Exit code 1 if one does not come out as it says."""
    settings = settings_from(given)
    tree = tree_of(settings)
    results = list(run_cases(tree, time.time(), settings.limits))
    failed = [result for result in results if not result.passed]
    if not results:
        say("warning", f"there are no policy tests: {counted(len(tree.accounts), 'service account')}, none with `tests:`")
        say("hint", _first_test(tree, settings.limits))
        return
    for result in results if as_json else failed:
        if as_json:
            body = {"env": result.env, "service_account": result.account, "test": result.case, "place": result.place}
            click.echo(json.dumps(body | {"passed": result.passed, "reason": result.reason, "message": result.message}))
        else:
            click.echo(f"{result.place}: {result.account}: {result.case}: {result.message}")
    if not as_json:
        passed = f"{len(results) - len(failed)} of " if failed else ""
        click.echo(f"{passed}{len(results)} policy {'test passes' if len(results) == 1 else 'tests pass'}")
    sys.exit(1 if failed else 0)


@policy.command(epilog="Examples: broker policy schema account > account.schema.json · broker policy schema")
@click.argument("kind", required=False)
def schema(kind: str | None) -> None:
    """Print the JSON Schema of a file kind, for editors; without KIND, the kinds."""
    found = schemas()
    if kind is None:
        for name in found:
            click.echo(name)
        return
    if kind not in found:
        raise click.UsageError(f"no file kind `{kind}`; kinds: {', '.join(found)}")
    click.echo(json.dumps(found[kind], indent=2))


policy.add_command(new_command)
policy.add_command(explain_command)


def _first_test(tree: Tree, limits: Limits) -> str:
    """How to add a test: one that passes, where the tree has a rule for which one can be made."""
    found = first_case(tree, time.time(), limits)
    if found is None:
        return "`broker policy new` writes a service account with its tests"
    account, case = found
    asked = {"audience": case.audience[0], "scope": " ".join(case.scope or ()), "service_account": case.service_account}
    lines = (
        f"add to {account.file} what must come of a workload; `claims` are those of its token:",
        "tests:",
        f"  - name: {case.name}",
        f"    issuer: {case.issuer}",
        f"    claims: {inline(case.claims)}",
        f"    request: {inline(asked)}",
        "    expect: allow  # and one that expects deny, with another value",
    )
    return "\n  ".join(lines)


def _problem(problem: Any, as_json: bool) -> str:
    if not as_json:
        return f"{problem.severity}: {problem}"
    names = ("file", "line", "column", "message", "hint", "severity")
    return json.dumps({name: getattr(problem, name) for name in names})
