"""An issued access token: its claims, built and checked (RFC 9068).

Pure.  The signature is not this file's business: keys/signer.py makes it, a JOSE library verifies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

TYP: Final = "at+jwt"  # RFC 9068 §2.1, the short form
REQUIRED: Final = ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")  # RFC 9068 §2.2


class NotOurs(ValueError):
    """A token that is no access token for this resource server; the text says which check failed (RFC 9068 §4)."""


def claims(
    *,
    issuer: str,
    service_account: str,
    audience: tuple[str, ...],
    scope: tuple[str, ...],
    jti: str,
    issued_at: int,
    expires_at: int,
    env: str,
    workload: Mapping[str, Any],
) -> dict[str, Any]:
    """The claims of a credential.  Instants in epoch seconds.

    `sub` and `client_id` are the service account, never a claim of the subject token (RFC 9068 §5); one audience is a
    string, several are a list.
    """
    return {
        "iss": issuer,
        "sub": service_account,
        "aud": audience[0] if len(audience) == 1 else list(audience),
        "exp": expires_at,
        "iat": issued_at,
        "nbf": issued_at,
        "jti": jti,
        "client_id": service_account,
        "scope": " ".join(scope),
        "env": env,
        "workload": workload,
    }


def check(
    header: Mapping[str, Any], payload: Mapping[str, Any], *, issuer: str, audience: str, now: float, leeway_s: int
) -> None:
    """What a resource server checks once the signature holds (RFC 9068 §4): typ, iss, aud, required claims, time.

    Raises `NotOurs`.
    """
    if str(header.get("typ", "")).lower() not in {TYP, f"application/{TYP}"}:
        raise NotOurs("typ is not at+jwt")
    missing = [name for name in REQUIRED if name not in payload]
    if missing:
        raise NotOurs(f"claims are missing: {', '.join(missing)}")
    if payload["iss"] != issuer:
        raise NotOurs("iss is another issuer")
    audiences = payload["aud"] if isinstance(payload["aud"], list) else [payload["aud"]]
    if audience not in audiences:
        raise NotOurs("aud does not name this resource server")
    if not isinstance(payload["exp"], int) or now >= payload["exp"] + leeway_s:
        raise NotOurs("expired")
    if not isinstance(payload.get("nbf", 0), int) or payload.get("nbf", 0) > now + leeway_s:
        raise NotOurs("not valid yet")
