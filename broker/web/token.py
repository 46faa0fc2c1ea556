"""POST /{env}/token and /{env}/check: a form becomes an ExchangeRequest, what was issued becomes JSON (RFC 8693 §2).

A raw ASGI route: it is the hot path.  Order of checks: size > method > content type > decoding > grant type >
duplicates and required > client authentication > the exchange itself.
What fails before the form is read is counted; what fails from there on is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from broker.config import Limits
from broker.errors import (
    ClientAuthentication,
    MalformedRequest,
    MalformedScope,
    MalformedTarget,
    TtlInvalid,
    UnsupportedGrantType,
)
from broker.model import Issued, WouldIssue
from broker.protocol import oauth

FORMS_REMEMBERED_MAX = 512
REMEMBERED_BYTES_MAX = 1024
STAND_IN = "x"
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


class Asking(Struct, frozen=True):
    """What a form asks for, whoever's token it carries."""

    grant_type: str
    subject_token_type: str | None
    audience: tuple[str, ...]
    resource: tuple[str, ...]
    scope: tuple[str, ...] | None
    service_account: str | None
    ttl_s: int | None
    client_id: str


class FormReader:
    """Reads the forms of one endpoint.

    But for its token, a workload's form is the same each time: so what stands around the token is read once, and kept by its
    very bytes.  The token itself is never kept.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[bytes, bool], Asking] = {}

    def read(self, body: bytes, *, authorization: bool) -> tuple[Asking, str]:
        """What a form asks for, and its token.  `authorization` says that an Authorization header came with it.

        Raises the `RequestRejected` family.
        """
        rest, token = _apart(body)
        if token is None or len(rest) > REMEMBERED_BYTES_MAX:
            return _read(body, authorization, self._limits)
        asking = self._known.get((rest, authorization))
        if asking is None:
            asking, stand_in = _read(rest, authorization, self._limits)
            if stand_in != STAND_IN:  # the token that counts is another
                return _read(body, authorization, self._limits)
            if len(self._known) >= FORMS_REMEMBERED_MAX:
                self._known.clear()
            self._known[rest, authorization] = asking
        return asking, token


def _apart(body: bytes) -> tuple[bytes, str | None]:
    """A form with a stand-in where its token was, and the token; None where that is not plain to see."""
    carriers = [name for name in (b"subject_token=", b"assertion=") if name in body]
    if len(carriers) != 1:  # of both, what is left would hold a token
        return body, None
    at = body.find(carriers[0])
    if at > 0 and body[at - 1 : at] != b"&":
        return body, None
    start = at + len(carriers[0])
    end = body.find(b"&", start)
    token = body[start:] if end < 0 else body[start:end]
    if not token or not token.isascii() or b"%" in token or b"+" in token or b"\0" in token:
        return body, None
    return b"%b%b%b" % (body[:start], STAND_IN.encode(), b"" if end < 0 else body[end:]), token.decode("ascii")


def client_id_of(body: bytes, limits: Limits) -> str:
    """The client_id of a form that may be wrong in other ways; empty if there is none to be read."""
    try:
        return _one(read_form(body, limits), "client_id") or ""
    except MalformedRequest:
        return ""


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
    """A name or value of a form (WHATWG URL §5.1)."""
    if "%" not in text and "+" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise MalformedRequest("the body holds a percent sign that is no escape")
    return unquote(text.replace("+", " "), encoding="utf-8", errors="strict")


def _read(body: bytes, authorization: bool, limits: Limits) -> tuple[Asking, str]:
    form = read_form(body, limits)
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
    asking = Asking(
        grant_type=grant_type,
        subject_token_type=token_type,
        audience=audience,
        resource=resource,
        scope=_scope(_one(form, "scope"), limits),
        service_account=_either(form, "service_account", "broker_service_account"),
        ttl_s=_ttl(_either(form, "ttl", "broker_ttl")),
        client_id=_one(form, "client_id") or "",
    )
    return asking, token


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
