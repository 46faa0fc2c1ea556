"""`broker policy explain`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from broker.analysis import advice
from broker.analysis.explain import Explanation, RuleExplanation, explain, from_record, recorded_claims, refused_audience, render
from broker.audit.log import Query, search
from broker.cli.settings import POLICY, STATE, options, settings_from
from broker.cli.state import store_url
from broker.cli.times import Instant
from broker.cli.tree import tree_of
from broker.cli.workload import read_claims, read_token
from broker.config import Settings
from broker.errors import ActRefused, IssuerUnknown, NoRuleMatched, PolicyInvalid, TokenAudience
from broker.model import ExchangeRequest, Issuer, Issuers, UnverifiedToken, Workload
from broker.policy.cases import workload_from_claims
from broker.policy.tree import Tree
from broker.protocol import oauth
from broker.protocol.claims import derive_spiffe
from broker.protocol.revocations import Entry, parse_entry
from broker.store.commit import Store
from broker.store.values import Extension, Position


@click.command(
    "explain",
    epilog="Examples: broker policy explain --request req_… · broker policy explain -e prod --token-file T -a payments",
)
@click.option("--request", "request_id", metavar="ID", help="A past exchange, by the request_id of its answer.")
@click.option(
    "--token-file",
    type=click.Path(),
    metavar="FILE",
    help="A subject token, or what `broker whoami --json` prints (`-`: stdin). Its signature is not checked.",
)
@click.option("--claims-file", type=click.Path(), metavar="FILE", help="Claims as JSON (`-`: stdin); needs --issuer or `iss`.")
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
    if record.get("reason") == IssuerUnknown.reason and tree is not None:
        urls = [issuer.url for issuer in tree.issuers.by_name.values()]
        known = ", ".join(urls) if len(urls) <= advice.LISTED_MAX else f"{len(urls)} entries"
        return [f"issuers.yaml has {known}; no record keeps the `iss` of such a token, `broker whoami` in the job shows it"]
    if record.get("reason") == TokenAudience.reason and tree is not None and env is not None:
        seen = "the record does not keep the audience that was seen; explain the token itself with --token-file"
        return [*advice.expected_in(tree, env, _base_url(settings)), seen]
    return []


def _tree(settings: Settings) -> Tree | None:
    """The tree as it is now; None where it does not load: a record can be told without it."""
    try:
        return tree_of(settings)
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
    workload = _workload(issuer, recorded_claims(issuer, record))
    return explain(tree, workload, _request(str(record.get("env")), asked), time.time(), settings.limits)


def _merged(kept: Explanation, present: Explanation | None) -> Explanation:
    """What the record kept, with what only the tree knows: owners, the smallest change, the rules that come nearest.

    Where the same tree says yes now, something else had refused: a revocation, a replay.  Only the record knows of that.
    """
    if present is None or kept.allowed or present.allowed:
        return kept
    if kept.revision == present.revision:
        return present
    if kept.reason == present.reason == NoRuleMatched.reason:
        return replace(kept, nearest=present.nearest, smallest_change=present.smallest_change, notes=present.notes)
    return kept


def _present(settings: Settings, token_file: str | None, claims_file: str | None, given: dict[str, Any]) -> Explanation:
    tree, limits = tree_of(settings), settings.limits
    if not given.get("env"):
        raise click.UsageError(f"--env is missing; known: {', '.join(tree.envs)}")
    payload = read_token(token_file, limits) if token_file else read_claims(claims_file or "-", limits)
    issuer = tree.issuers.by_name.get(given["issuer"]) if given.get("issuer") else _routed(tree.issuers, payload)
    if issuer is None:
        raise ActRefused(
            "no issuer entry fits these claims", f"--issuer NAME; issuers: {', '.join(sorted(tree.issuers.by_name))}"
        )
    asked = {
        "audience": list(given["audience"]),
        "scope": given["scope"].split() if given.get("scope") else [],
        "service_account": given.get("service_account"),
    }
    # Claims in a file may stand under short names, as in a policy test; those of a token stand where its issuer puts them.
    short = {name: tuple(value) if isinstance(value, list) else value for name, value in payload.items()}
    workload = _workload(issuer, ({} if token_file else short) | issuer.reading.read(payload))
    explained = explain(tree, workload, _request(given["env"], asked), given.get("now") or time.time(), limits)
    wrong = advice.wrong_audience(issuer, payload.get("aud"), given["env"], _base_url(settings))
    return refused_audience(explained, wrong) if wrong and given["env"] in tree.envs else explained


def _routed(issuers: Issuers, payload: Mapping[str, Any]) -> Issuer | None:
    """The entry of a token's `iss`; of a JWT-SVID, that of its trust domain."""
    domain = derive_spiffe(str(payload.get("sub", ""))).get("trust_domain")
    return issuers.by_url.get(str(payload.get("iss"))) or issuers.by_trust_domain.get(str(domain))


def _workload(issuer: Issuer, claims: dict[str, Any]) -> Workload:
    derived = derive_spiffe(str(claims.get("sub", ""))) if issuer.trust_domain is not None else {}
    return workload_from_claims(issuer, claims | derived)


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
    body = {name: getattr(explained, name) for name in explained.__slots__}
    return body | {"rules": [*map(_rule, explained.rules)], "nearest": [*map(_rule, explained.nearest)]}


def _rule(rule: RuleExplanation) -> dict[str, Any]:
    body = {name: getattr(rule, name) for name in rule.__slots__ if name != "findings"}
    return body | {"findings": [finding.as_dict() for finding in rule.findings]}
