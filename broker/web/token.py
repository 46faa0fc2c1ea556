"""POST /{env}/token and /{env}/check: a form becomes an ExchangeRequest, what was issued becomes JSON (RFC 8693 §2).

A raw ASGI route: it is the hot path.  Order of checks: size > method > content type > decoding > grant type >
duplicates and required > client authentication > the exchange itself.
What fails before the form is read is counted; what fails from there on is recorded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from broker.config import Limits
from broker.errors import (
    ClientAuthentication,
    MalformedRequest,
    MalformedScope,
    MalformedTarget,
    TtlInvalid,
    UnsupportedGrantType,
)
from broker.model import Client, ExchangeRequest, Issued, UnverifiedToken, WouldIssue
from broker.protocol import oauth

REQUEST_ID_BYTES = 15
REMEMBERED_CHARACTERS_MAX = 256
SUBJECT_TOKEN_TYPES = frozenset({oauth.TOKEN_TYPE_ID_TOKEN, oauth.TOKEN_TYPE_JWT})
KNOWN = frozenset(
    {
        "grant_type",
        "subject_token",
        "subject_token_type",
        "assertion",
        "actor_token",
        "actor_token_type",
        "audience",
        "resource",
        "scope",
        "requested_token_type",
        "client_id",
        "client_secret",
        "client_assertion",
        "client_assertion_type",
        "authorization_details",
        "service_account",
        "broker_service_account",
        "ttl",
        "broker_ttl",
    }
)

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")  # RFC 6749 §3.3
_VSCHAR = re.compile(r"[\x20-\x7e]{1,256}")  # RFC 6749 App. A
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s#\"\\]+")

Form = Mapping[str, list[str]]


def new_request_id() -> str:
    """`req_` and 120 random bits: ours alone, never taken from outside."""
    return "req_" + secrets.token_urlsafe(REQUEST_ID_BYTES)


def read_form(body: bytes, limits: Limits) -> dict[str, list[str]]:
    """The form's parameters; empty values count as absent (RFC 6749 §3.2).  Raises `MalformedRequest`.

    Stricter than the standard library alone: a bad escape, bytes that are no UTF-8, or NUL refuse the whole form.
    """
    try:
        parts = body.decode("utf-8").split("&")
        pairs = [(_decoded(name), _decoded(value)) for name, _, value in (part.partition("=") for part in parts if part)]
    except UnicodeDecodeError:
        raise MalformedRequest("the body is not UTF-8") from None
    if len(pairs) > limits.form_fields_max:
        raise MalformedRequest("the body holds too many parameters")
    if b"\0" in body or b"%00" in body:
        raise MalformedRequest("the body holds a NUL character")
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    for name, values in form.items():
        if len(values) > 1 and name not in oauth.REPEATABLE:
            raise MalformedRequest(f"{name if name in KNOWN else 'a parameter'} is sent more than once")
    return {name: kept for name, values in form.items() if (kept := [value for value in values if value])}


def _decoded(text: str) -> str:
    """A name or value of a form (WHATWG URL §5.1).  A token holds nothing to decode and comes back as it is."""
    if "%" not in text and "+" not in text:
        return text
    return _unescaped(text) if len(text) <= REMEMBERED_CHARACTERS_MAX else _unescaped.__wrapped__(text)


@lru_cache(maxsize=512)
def _unescaped(text: str) -> str:
    # The same few URNs, scopes and audiences, in nearly every request.
    if _BAD_ESCAPE.search(text):
        raise MalformedRequest("the body holds a percent sign that is no escape")
    return unquote(text.replace("+", " "), encoding="utf-8", errors="strict")


def read_request(
    form: Form, *, env: str, request_id: str, trace_id: str, client: Client, authorization: bool, check: bool, limits: Limits
) -> ExchangeRequest:
    """An ExchangeRequest from a form.  `authorization` says that an Authorization header came with it.

    Raises the `RequestRejected` family.
    """
    grant_type = _one(form, "grant_type")
    if grant_type is None:
        raise MalformedRequest("grant_type is missing")
    if grant_type not in {oauth.GRANT_TOKEN_EXCHANGE, oauth.GRANT_JWT_BEARER}:
        raise UnsupportedGrantType
    _refuse_client_authentication(form, authorization)
    token, token_type = _token(form, grant_type)
    audience, resource = tuple(form.get("audience", ())), tuple(form.get("resource", ()))
    if len(audience) + len(resource) > limits.targets_max:
        raise MalformedRequest("too many targets")
    for uri in resource:
        _absolute_uri(uri)
    return ExchangeRequest(
        env=env,
        request_id=request_id,
        trace_id=trace_id,
        grant_type=grant_type,
        subject_token=UnverifiedToken(token),
        subject_token_type=token_type,
        audience=audience,
        resource=resource,
        scope=_scope(_one(form, "scope"), limits),
        service_account=_either(form, "service_account", "broker_service_account"),
        ttl_s=_ttl(_either(form, "ttl", "broker_ttl")),
        check=check,
        client=client,
    )


def _one(form: Form, name: str) -> str | None:
    values = form.get(name)
    return values[0] if values else None


def _either(form: Form, name: str, prefixed: str) -> str | None:
    if name in form and prefixed in form:
        raise MalformedRequest(f"{name} and {prefixed} are the same parameter; send one")
    value = _one(form, name) or _one(form, prefixed)
    if value is not None and not _VSCHAR.fullmatch(value):
        raise MalformedRequest(f"{name} holds characters that no name has")
    return value


def _token(form: Form, grant_type: str) -> tuple[str, str | None]:
    """The subject token and its declared type, whichever grant carries it (RFC 8693 §2.1, RFC 7523 §2.1)."""
    if ("actor_token" in form) != ("actor_token_type" in form):  # RFC 8693 §2.1: both or neither
        raise MalformedRequest("actor_token and actor_token_type go together")
    if "actor_token" in form:
        raise MalformedRequest("actor_token is not supported here")
    if _one(form, "requested_token_type") not in {None, oauth.TOKEN_TYPE_ACCESS_TOKEN}:
        raise MalformedRequest(f"requested_token_type must be {oauth.TOKEN_TYPE_ACCESS_TOKEN}")
    if "authorization_details" in form:  # ignoring it would grant more than was asked (RFC 9396)
        raise MalformedRequest("authorization_details is not supported here")
    if grant_type == oauth.GRANT_JWT_BEARER:
        assertion = _one(form, "assertion")
        if assertion is None:
            raise MalformedRequest("assertion is missing")
        return assertion, None
    token, token_type = _one(form, "subject_token"), _one(form, "subject_token_type")
    if token is None:
        raise MalformedRequest("subject_token is missing")
    if token_type is None:
        raise MalformedRequest("subject_token_type is missing")
    if token_type not in SUBJECT_TOKEN_TYPES:
        raise MalformedRequest(f"subject_token_type must be {oauth.TOKEN_TYPE_ID_TOKEN} or {oauth.TOKEN_TYPE_JWT}")
    return token, token_type


def _refuse_client_authentication(form: Form, authorization: bool) -> None:
    in_body = any(name in form for name in oauth.CLIENT_AUTHENTICATION)
    if authorization and in_body:
        raise MalformedRequest("two methods of client authentication are in one request")
    if ("client_assertion" in form) != ("client_assertion_type" in form):
        raise MalformedRequest("client_assertion and client_assertion_type go together")
    if authorization or in_body:
        raise ClientAuthentication


def _scope(text: str | None, limits: Limits) -> tuple[str, ...] | None:
    if text is None:
        return None
    if not _SCOPE.fullmatch(text):
        raise MalformedScope
    scopes = tuple(text.split(" "))
    if len(scopes) > limits.scopes_max:
        raise MalformedScope("too many scopes")
    if len(set(scopes)) != len(scopes):
        raise MalformedScope("a scope is named twice")
    return scopes


def _ttl(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise TtlInvalid
    return int(text)


def _absolute_uri(uri: str) -> None:
    """RFC 8707 §2: absolute, without fragment; user information has no business there."""
    try:
        parts = urlsplit(uri)
        good = bool(_ABSOLUTE.fullmatch(uri)) and bool(parts.hostname) and parts.username is None and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise MalformedTarget


def issued_body(issued: Issued) -> bytes:
    """RFC 8693 §2.2.1; the scope is always told."""
    return msgspec.json.encode(
        {
            "access_token": issued.access_token,
            "issued_token_type": issued.issued_token_type,
            "token_type": issued.token_type,
            "expires_in": issued.expires_in,
            "scope": " ".join(issued.scope),
        }
    )


def would_issue_body(would: WouldIssue, request_id: str, trace_id: str) -> bytes:
    """The answer of a dry run that would have been granted."""
    grant = would.grant
    body: dict[str, Any] = {
        "allowed": True,
        "service_account": grant.service_account,
        "trust_rule": grant.trust_rule,
        "audience": list(grant.audience),
        "scope": " ".join(grant.scope),
        "expires_in": would.expires_in,
        "request_id": request_id,
        "trace_id": trace_id,
    }
    return msgspec.json.encode(body)
