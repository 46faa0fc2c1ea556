"""`broker policy explain`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from broker.analysis import advice
from broker.analysis.explain import Explanation, explain, from_record, refused_audience, render
from broker.audit.log import Query, search
from broker.cli.settings import POLICY, STATE, options, settings_from
from broker.cli.state import store_url
from broker.cli.times import Instant
from broker.compiler.compile import load_tree
from broker.config import Settings
from broker.errors import ActRefused, PolicyInvalid, TokenAudience
from broker.model import ExchangeRequest, UnverifiedToken
from broker.policy.cases import workload_from_claims
from broker.policy.tree import Tree
from broker.protocol import oauth
from broker.protocol.compact import NotCompact, read
from broker.protocol.revocations import Entry, parse_entry
from broker.store.commit import Store
from broker.store.values import Extension, Position


@click.command(
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
@options(*STATE, *POLICY, "url")
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

    A name that does not exist, a token for somebody else, an expiry, a revocation: said with what would be right.
    This is the owner's view: it prints the values of claims.
    """
    if sum(option is not None for option in (request_id, token_file, claims_file)) != 1:
        raise click.UsageError("give one of --request, --token-file, --claims-file")
    settings = settings_from(given | ({"policies": against} if against else {}))
    if request_id is not None:
        record, entries = asyncio.run(_record(settings, request_id))
        tree = _tree(settings)
        present = _again(settings, tree, record) if tree is not None else None
        explained = _merged(from_record(record), present)
        explained = replace(explained, notes=(*explained.notes, *_notes(settings, tree, record, entries)))
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


async def _record(settings: Settings, request_id: str) -> tuple[dict[str, Any], list[Entry]]:
    """The record of a request; of one that was cut off, with the revocation log of its env."""
    async with store_url(settings) as url:
        store = Store(url, settings.limits)
        try:
            envs = await store.slots()
            found = await search(store, Query(envs, fields={"request_id": request_id}, limit=10))
            exchanges = [record for record in found if record.get("kind") in {"exchange", "check"}]
            if not exchanges:
                raise ActRefused(
                    f"no exchange has the request id `{request_id}`", "it stands in the answer and in its X-Request-Id header"
                )
            record = exchanges[-1]
            return record, await _log(store, str(record["env"])) if record.get("revocation") else []
        finally:
            await store.close()


async def _log(store: Store, slot: str) -> list[Entry]:
    """A slot's revocation log as the store has it: to be read by a person, so its tags are not checked."""
    entries: list[Entry] = []
    position: Position | None = None
    while isinstance(page := await store.read(slot, position), Extension) and page.entries:
        for entry in page.entries:
            with suppress(ValueError):
                entries.append(parse_entry(entry.text))
        last = page.entries[-1]
        position = Position((position.index if position else -1) + len(page.entries), last.n, last.tag)
        if not page.more:
            break
    return entries


def _notes(settings: Settings, tree: Tree | None, record: dict[str, Any], entries: list[Entry]) -> list[str]:
    """What a record alone does not say of its refusal."""
    env = tree.envs.get(str(record.get("env"))) if tree is not None else None
    if record.get("revocation"):
        return list(advice.revocations(record["revocation"], entries, str(record["env"]), time.time()))
    if record.get("reason") == TokenAudience.reason and tree is not None and env is not None:
        seen = "the record does not keep the audience that was seen; explain the token itself with --token-file"
        return [*advice.expected_in(tree, env, _base_url(settings)), seen]
    return []


def _tree(settings: Settings) -> Tree | None:
    """The tree as it is now; None where it does not load: a record can be told without it."""
    try:
        return load_tree(settings.policies, settings.limits, today=int(time.time()))
    except PolicyInvalid:
        return None


def _base_url(settings: Settings) -> str:
    """The broker's BASE where somebody has said it, else empty: the default is right on the broker's own machine only."""
    return settings.base_url if {"url", "host", "port"} & set(settings.sources) else ""


def _again(settings: Settings, tree: Tree, record: dict[str, Any]) -> Explanation | None:
    """The same workload and request under the tree as it is now, as far as the record kept its claims."""
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
    tree = load_tree(settings.policies, settings.limits, today=int(time.time()))
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
    explained = explain(tree, workload, _request(given["env"], asked), given.get("now") or time.time(), settings.limits)
    wrong = advice.wrong_audience(issuer, payload.get("aud"), given["env"], _base_url(settings))
    return refused_audience(explained, wrong) if wrong and given["env"] in tree.envs else explained


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


def _body(explained: Explanation) -> dict[str, Any]:
    body = {name: getattr(explained, name) for name in explained.__slots__ if name != "rules"}
    rules = [
        {name: getattr(rule, name) for name in rule.__slots__ if name != "findings"}
        | {"findings": [f.as_dict() for f in rule.findings]}
        for rule in explained.rules
    ]
    return body | {"rules": rules}
