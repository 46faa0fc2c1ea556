"""Audit records: their fields, and the bounds that keep one record on one line of at most 4 KiB.  Pure.

The names are a contract with other people's SIEMs (docs/audit.md); absent means not reached.
No token and no key ever stands here: of the subject token, its SHA-256 and the id of the key that signed it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import msgspec

from broker.model import Client, Draft, ExchangeRequest, Finding, Grant, UnverifiedToken, Workload
from broker.protocol.claims import present
from broker.protocol.ids import new_record_id
from broker.protocol.revocations import fact
from broker.telemetry.log import TOKEN_LIKE

TEXT_CHARACTERS_MAX: Final = 256
REASONS_MAX: Final = 40
REMEMBERED_MAX: Final = 1024
CUT: Final = "…"

_encoder = msgspec.json.Encoder()


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    whole = int(now)
    return f"{_second(whole)}.{int((now - whole) * 1000):03d}Z"


@lru_cache(maxsize=2048)
def _second(whole: int) -> str:
    # A busy second is written thousands of times: as the time of records, and as the expiry of what they record.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def clean(text: str) -> str:
    """Foreign text made safe for a line: controls, bidi marks and line separators as `\\uXXXX`, at most 256 characters.

    A token in the wrong place (a client's name, an audience) is cut out: promise 6 holds for other people's mistakes too.
    """
    return (_cleaned if len(text) <= TEXT_CHARACTERS_MAX else _cleaned.__wrapped__)(text)


@lru_cache(maxsize=REMEMBERED_MAX)
def _cleaned(text: str) -> str:
    text = TOKEN_LIKE.sub("[token]", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + CUT


def base(kind: str, outcome: str, *, env: str, now: float, node: str, reason: str = "") -> dict[str, Any]:
    """The fields that every record has."""
    body: dict[str, Any] = {
        "id": new_record_id(), "time": timestamp(now), "kind": kind, "outcome": outcome, "env": env, "node": node,
    }  # fmt: skip
    if reason:
        body["reason"] = reason
    return body


def add_request(body: dict[str, Any], request: ExchangeRequest) -> None:
    """Adds what was asked, by whom on the wire."""
    audience, resource, scope = request.audience, request.resource, request.scope
    short = sum(map(len, (*audience, *resource, *(scope or ())))) <= TEXT_CHARACTERS_MAX
    told = _requested if short else _requested.__wrapped__
    body["requested"] = told(audience, resource, scope, request.service_account, request.ttl_s)
    add_call(body, request.request_id, request.trace_id, request.client)


@lru_cache(maxsize=REMEMBERED_MAX)
def _requested(
    audience: tuple[str, ...], resource: tuple[str, ...], scope: tuple[str, ...] | None, account: str | None, ttl_s: int | None
) -> msgspec.Raw:
    # A workload asks for the same each time.
    asked: dict[str, Any] = {}
    if audience:
        asked["audience"] = [clean(item) for item in audience]
    if resource:
        asked["resource"] = [clean(item) for item in resource]
    if scope:
        asked["scope"] = [clean(item) for item in scope]
    if account:
        asked["service_account"] = clean(account)
    if ttl_s is not None:
        asked["ttl_s"] = ttl_s
    return msgspec.Raw(_encoder.encode(asked))


def add_call(body: dict[str, Any], request_id: str, trace_id: str, client: Client) -> None:
    """Adds the ids of the call and where it came from."""
    body["request_id"] = request_id
    body["trace_id"] = trace_id
    short = len(client.user_agent) + len(client.client_id) <= TEXT_CHARACTERS_MAX
    body["client"] = (_client if short else _client.__wrapped__)(client)


@lru_cache(maxsize=REMEMBERED_MAX)
def _client(client: Client) -> msgspec.Raw:
    seen = {"address": client.address}
    if client.user_agent:
        seen["user_agent"] = clean(client.user_agent)
    if client.client_id:
        seen["client_id"] = clean(client.client_id)
    return msgspec.Raw(_encoder.encode(seen))


def add_workload(body: dict[str, Any], workload: Workload) -> None:
    """Adds who asked, once the token has verified."""
    body["issuer"] = workload.issuer
    body["subject"] = subject = fact(workload.subject)  # as `revoke --subject` takes it
    body["workload"] = {"issuer": workload.iss, "subject": subject, "ids": workload.ids}
    body["claims"] = present(workload.recorded)  # facts, so fit to be written
    body["subject_token_sha256"] = workload.token_sha256
    body["subject_token_key_id"] = clean(workload.key_id)


def add_token(body: dict[str, Any], token: UnverifiedToken) -> None:
    """Adds the hash of a token that nobody vouched for: what a refusal can be traced back to its sender by."""
    if token:
        body["subject_token_sha256"] = sha256(token.encode()).hexdigest()


def add_account(body: dict[str, Any], grant: Grant) -> None:
    """Adds which rule of which account said yes."""
    body["service_account"] = grant.service_account
    body["owner"] = grant.owner
    body["trust_rule"] = grant.trust_rule


def add_grant(body: dict[str, Any], grant: Grant) -> None:
    """Adds which rule of which account said yes, and to what."""
    add_account(body, grant)
    body["granted"] = {"audience": grant.audience, "scope": grant.scope, "ttl_s": grant.ttl_s}


def add_draft(body: dict[str, Any], draft: Draft) -> None:
    """Adds the credential that may exist from the commit on."""
    body["jti"] = draft.jti
    body["credential"] = {"kind": draft.kind, "key_id": draft.key_id, "expires_at": timestamp(draft.expires_at)}


def add_reasons(body: dict[str, Any], reasons: Sequence[Finding]) -> None:
    """Adds what deciding found, at most REASONS_MAX entries."""
    if reasons:
        body["reasons"] = reasons[:REASONS_MAX]  # what they have seen is facts, so fit to be written


def encode(body: Mapping[str, Any], bytes_max: int) -> bytes:
    """One line of JSON, at most `bytes_max`: what is bulky goes first, and `cut` then names what went."""
    line = _encoder.encode(body)
    if len(line) <= bytes_max:
        return line
    slim = dict(body)
    cut: list[str] = []
    for name in ("reasons", "claims", "requested", "workload", "stages_ms", "client", "detail"):
        if name not in slim:
            continue
        cut.append(name)
        if name == "reasons":
            slim[name] = _failed_first(slim[name])
        else:
            del slim[name]
        slim["cut"] = cut
        line = _encoder.encode(slim)
        if len(line) <= bytes_max:
            return line
        slim.pop(name, None)
    return _encoder.encode({name: value for name, value in slim.items() if not isinstance(value, list | dict)} | {"cut": cut})


def _failed_first(reasons: Sequence[Finding]) -> Sequence[Finding]:
    """What did not hold explains a refusal; what held can be read in the policy."""
    return ([finding for finding in reasons if not finding.held] or reasons)[:8]
