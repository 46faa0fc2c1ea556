"""WIRE: the only place that knows which HTTP answer an error becomes.

A class is looked up along its MRO; what is not in the table is a bland 500 and an alarm in the log.
Bodies are RFC 6749 §5.2 with `reason`, `request_id`, `trace_id` beside, and what an error may tell its caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker import errors
from broker.protocol import oauth

# RFC 6749 §5.2, RFC 8693 §2.2.2 (bad or unacceptable tokens are invalid_request), RFC 8707 §2 (targets)
WIRE: Final[Mapping[type[errors.BrokerError], tuple[int, str]]] = {
    errors.MalformedRequest: (400, oauth.INVALID_REQUEST),
    errors.MalformedTarget: (400, oauth.INVALID_TARGET),
    errors.MalformedScope: (400, oauth.INVALID_SCOPE),
    errors.UnsupportedGrantType: (400, oauth.UNSUPPORTED_GRANT_TYPE),
    errors.ClientAuthentication: (401, oauth.INVALID_CLIENT),
    errors.TtlInvalid: (400, oauth.INVALID_REQUEST),
    errors.TokenRejected: (400, oauth.INVALID_REQUEST),
    errors.NoRuleMatched: (400, oauth.INVALID_REQUEST),
    errors.ClaimsNotSatisfied: (400, oauth.INVALID_REQUEST),
    errors.AmbiguousAccount: (400, oauth.INVALID_REQUEST),
    errors.TargetUnknown: (400, oauth.INVALID_TARGET),
    errors.ScopeNotGranted: (400, oauth.INVALID_SCOPE),
    errors.Revoked: (400, oauth.INVALID_REQUEST),
    errors.RateLimited: (429, oauth.TEMPORARILY_UNAVAILABLE),
    errors.Unavailable: (503, oauth.TEMPORARILY_UNAVAILABLE),
}

LABELS: Final = {"scopes": "open here", "service_accounts": "choose from", "expected_audience": "expected"}
_SAFE: Final = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]*")  # RFC 6749 §5.2

# RFC 7521 §4.1.1: in the jwt-bearer grant a bad or unacceptable assertion is invalid_grant.
ASSERTION_ERRORS: Final = (
    errors.TokenRejected,
    errors.NoRuleMatched,
    errors.ClaimsNotSatisfied,
    errors.AmbiguousAccount,
    errors.Revoked,
)

PUBLIC_REASONS: Final = frozenset(
    {
        "malformed_request",
        "unsupported_grant_type",
        "client_authentication",
        "token_malformed",
        "token_untrusted",
        "token_expired",
        "token_not_yet_valid",
        "token_audience",
        "token_replayed",
        "no_rule_matched",
        "claims_not_satisfied",
        "ambiguous_account",
        "target_unknown",
        "scope_not_granted",
        "scope_missing",
        "ttl_invalid",
        "revoked",
        "rate_limited",
        "unavailable",
    }
)


def answer(
    error: BaseException, *, issuer: str, grant_type: str, request_id: str, trace_id: str
) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, JSON body and extra headers for an error at the token endpoint of `issuer` (BASE/{env})."""
    found = next((WIRE[kind] for kind in type(error).__mro__ if kind in WIRE), None)
    if found is None or not isinstance(error, errors.BrokerError):
        body = {"error": oauth.SERVER_ERROR, "error_description": "something went wrong inside the broker"}
        return 500, _json(body | {"request_id": request_id, "trace_id": trace_id}), []
    status, code = found
    if grant_type == oauth.GRANT_JWT_BEARER and isinstance(error, ASSERTION_ERRORS):
        code = oauth.INVALID_GRANT
    description = _description(error)
    body: dict[str, Any] = {
        "error": code,
        "error_description": description,
        "error_uri": f"{issuer}/errors/{error.wire_reason}",
        "reason": error.wire_reason,
        **error.told,
        "request_id": request_id,
        "trace_id": trace_id,
    }
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, errors.Unavailable | errors.RateLimited):
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, errors.ClientAuthentication):
        headers.append((b"www-authenticate", f'Basic realm="{issuer}"'.encode()))  # RFC 6749 §5.2
    return status, _json(body), headers


def envelope(sentence: str, *, issuer: str, request_id: str, trace_id: str) -> bytes:
    """The body for what is wrong with method, media type or size: nothing was read, so it is the same for everybody."""
    reason = errors.MalformedRequest.wire_reason
    body = {"error": oauth.INVALID_REQUEST, "error_description": sentence}
    body |= {"error_uri": f"{issuer}/errors/{reason}", "reason": reason, "request_id": request_id, "trace_id": trace_id}
    return _json(body)


def _description(error: errors.BrokerError) -> str:
    """The constant sentence, and behind it what may be told: clients show their user this one member, and no other."""
    if isinstance(error, errors.RequestRejected):
        more = f": {error.detail}" if error.detail else ""
    else:
        told = next(iter(error.told.items()), None)
        names = ", ".join(told[1]) if told and isinstance(told[1], list) else str(told[1]) if told else ""
        more = f"; {LABELS.get(told[0], told[0])}: {names}" if told and names else ""
    return error.public + more if _SAFE.fullmatch(more) else error.public


def _json(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body)
