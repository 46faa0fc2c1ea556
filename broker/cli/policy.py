"""`broker policy check|test|explain|schema`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from broker.analysis.explain import Explanation, explain, from_record, render
from broker.audit.log import Query, search
from broker.cli.settings import POLICY, STATE, options, settings_from
from broker.cli.state import store_url
from broker.cli.times import Instant
from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.compiler.schema import schemas
from broker.config import Settings
from broker.errors import ActRefused, PolicyInvalid
from broker.model import ExchangeRequest, UnverifiedToken
from broker.policy.cases import run_cases, workload_from_claims
from broker.policy.tree import Tree
from broker.protocol import oauth
from broker.protocol.compact import NotCompact, read
from broker.store.commit import Store


@click.group()
def policy() -> None:
    """Check, test and explain the policy tree."""


def load_tree(settings: Settings) -> Tree:
    """The tree in --policies, compiled now.  Raises `PolicyInvalid` with every error."""
    source = read_tree(settings.policies, settings.limits)
    return compile_tree(source, limits=settings.limits, today=int(time.time()))


@policy.command(epilog="Example: broker policy check --policies policies")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, one a problem.")
@options(*POLICY)
def check(as_json: bool, **given: Any) -> None:
    """Compile the tree and print every problem with its file, line and column.  Warnings do not change the exit code."""
    settings = settings_from(given)
    try:
        tree = load_tree(settings)
    except PolicyInvalid as error:
        for problem in error.problems:
            click.echo(_problem(problem, as_json))
        sys.exit(1)
    for problem in tree.warnings:
        click.echo(_problem(problem, as_json))
    if not as_json:
        apis = len(tree.apis) - ("broker" in tree.apis)
        click.echo(
            f"{settings.policies}: {len(tree.envs)} envs, {len(tree.issuers.by_name)} issuers, {apis} Apis,"
            f" {len(tree.accounts)} service accounts, revision {tree.revision[:7]}"
        )


@policy.command("test", epilog="Example: broker policy test --policies policies")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, one a test.")
@options(*POLICY)
def test_command(as_json: bool, **given: Any) -> None:
    """Run the `tests:` of every service account file.  Exit code 1 if one does not come out as it says."""
    settings = settings_from(given)
    results = list(run_cases(load_tree(settings), time.time(), settings.limits))
    failed = [result for result in results if not result.passed]
    for result in results if as_json else failed:
        if as_json:
            body = {"env": result.env, "service_account": result.account, "test": result.case, "place": result.place}
            click.echo(json.dumps(body | {"passed": result.passed, "reason": result.reason, "message": result.message}))
        else:
            click.echo(f"{result.place}: {result.account}: {result.case}: {result.message}")
    if not as_json:
        click.echo(
            f"{len(results) - len(failed)} of {len(results)} policy tests pass" if failed else f"{len(results)} policy tests pass"
        )
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


@policy.command(
    "explain",
    epilog="Examples: broker policy explain --request req_… · broker policy explain -e prod --token-file T -a payments",
)
@click.option("--request", "request_id", metavar="ID", help="A past exchange, by the request_id of its answer.")
@click.option(
    "--token-file", type=click.Path(), metavar="FILE", help="A subject token (`-`: stdin). Its signature is not checked."
)
@click.option("--claims-file", type=click.Path(), metavar="FILE", help="Claims as JSON (`-`: stdin); needs --issuer.")
@click.option("--issuer", metavar="NAME", help="The issuer entry that the claims are of.")
@click.option("-e", "--env", "env", metavar="ENV", help="The env that is asked.")
@click.option("-a", "--audience", multiple=True, metavar="API", help="Target; may repeat.")
@click.option("--scope", metavar="SCOPES", help="Scopes, separated by spaces.")
@click.option("--service-account", metavar="NAME", help="Only this service account.")
@click.option("--now", type=Instant(), default=None, help="Decide as of this time.")
@click.option("--against", type=click.Path(exists=True, file_okay=False), metavar="DIR", help="Try another tree.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 on a refusal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@options(*STATE, *POLICY)
def explain_command(
    request_id: str | None,
    token_file: str | None,
    claims_file: str | None,
    against: str | None,
    exit_code: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show why: rule by rule, claim by claim, expected and seen, and the smallest change that would have allowed it.

    This is the owner's view: it prints the values of claims.
    """
    if sum(option is not None for option in (request_id, token_file, claims_file)) != 1:
        raise click.UsageError("give one of --request, --token-file, --claims-file")
    settings = settings_from(given | ({"policies": against} if against else {}))
    if request_id is not None:
        record = asyncio.run(_record(settings, request_id))
        explained, present = from_record(record), _again(settings, record)
        explained = _merged(explained, present)
    else:
        explained, present = _present(settings, token_file, claims_file, given), None
    if as_json:
        click.echo(json.dumps(_body(explained), ensure_ascii=False))
    else:
        click.echo(render(explained), nl=False)
        if present is not None:
            verdict = "still refused" if not present.allowed else "allowed"
            if present.allowed and not explained.allowed and present.revision == explained.revision:
                verdict = "allowed, as far as the policy goes"
            click.echo(f"under {settings.policies} as it is now: {verdict}")
    sys.exit(1 if exit_code and not explained.allowed else 0)


async def _record(settings: Settings, request_id: str) -> dict[str, Any]:
    async with store_url(settings) as url:
        store = Store(url, settings.limits)
        try:
            envs = await store.slots()
            found = await search(store, Query(envs, fields={"request_id": request_id}, limit=10))
        finally:
            await store.close()
    exchanges = [record for record in found if record.get("kind") in {"exchange", "check"}]
    if not exchanges:
        raise ActRefused(
            f"no exchange has the request id `{request_id}`", "it stands in the answer and in its X-Request-Id header"
        )
    return exchanges[-1]


def _again(settings: Settings, record: dict[str, Any]) -> Explanation | None:
    """The same workload and request under the tree as it is now, as far as the record kept its claims."""
    try:
        tree = load_tree(settings)
    except PolicyInvalid:
        return None
    issuer = tree.issuers.by_name.get(str(record.get("issuer")))
    if issuer is None:
        return None
    asked = record.get("requested") or {}
    workload = workload_from_claims(issuer, {"sub": str(record.get("subject", "")), **(record.get("claims") or {})})
    return explain(tree, workload, _request(str(record.get("env")), asked), time.time(), settings.limits)


def _merged(kept: Explanation, present: Explanation | None) -> Explanation:
    """What the record kept, with what only the tree knows: owners and the smallest change.

    Where the same tree says yes now, something else had refused: a revocation, a replay.  Only the record knows of that.
    """
    if present is None or kept.revision != present.revision or kept.allowed or present.allowed:
        return kept
    return present


def _present(settings: Settings, token_file: str | None, claims_file: str | None, given: dict[str, Any]) -> Explanation:
    tree = load_tree(settings)
    if not given.get("env"):
        raise click.UsageError("--env is missing")
    payload = _payload(token_file, settings) if token_file else _claims(claims_file or "-")
    issuer = (
        tree.issuers.by_name.get(given["issuer"]) if given.get("issuer") else tree.issuers.by_url.get(str(payload.get("iss")))
    )
    if issuer is None:
        raise ActRefused(
            "no issuer entry fits these claims", f"--issuer NAME; issuers: {', '.join(sorted(tree.issuers.by_name))}"
        )
    asked = {
        "audience": list(given["audience"]),
        "scope": given["scope"].split() if given.get("scope") else [],
        "service_account": given.get("service_account"),
    }
    workload = workload_from_claims(issuer, payload)
    return explain(tree, workload, _request(given["env"], asked), given.get("now") or time.time(), settings.limits)


def _payload(token_file: str, settings: Settings) -> dict[str, Any]:
    limits = settings.limits
    try:
        jws = read(
            _text(token_file).strip(),
            bytes_max=limits.token_bytes_max,
            depth_max=limits.json_depth_max,
            kid_characters_max=limits.kid_characters_max,
        )
    except NotCompact as error:
        raise ActRefused(f"{token_file} holds no token: {error}") from None
    return dict(jws.payload)


def _claims(file: str) -> dict[str, Any]:
    try:
        claims = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise ActRefused(f"{file} holds no claims: {error}", "write one JSON object: claim -> value") from None
    if not isinstance(claims, dict):
        raise ActRefused(f"{file} holds no claims: it is no JSON object", "write one JSON object: claim -> value")
    return claims


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ActRefused(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None


def _request(env: str, asked: dict[str, Any]) -> ExchangeRequest:
    return ExchangeRequest(
        env=env,
        request_id="",
        trace_id="",
        grant_type=oauth.GRANT_TOKEN_EXCHANGE,
        subject_token=UnverifiedToken(""),
        audience=tuple(asked.get("audience") or ()),
        resource=tuple(asked.get("resource") or ()),
        scope=tuple(asked.get("scope") or ()) or None,
        service_account=asked.get("service_account"),
        ttl_s=asked.get("ttl_s"),
    )


def _problem(problem: Any, as_json: bool) -> str:
    if not as_json:
        return f"{problem.severity}: {problem}"
    names = ("file", "line", "column", "message", "hint", "severity")
    return json.dumps({name: getattr(problem, name) for name in names})


def _body(explained: Explanation) -> dict[str, Any]:
    body = {name: getattr(explained, name) for name in explained.__slots__ if name != "rules"}
    rules = [
        {name: getattr(rule, name) for name in rule.__slots__ if name != "findings"}
        | {"findings": [f.as_dict() for f in rule.findings]}
        for rule in explained.rules
    ]
    return body | {"rules": rules}
