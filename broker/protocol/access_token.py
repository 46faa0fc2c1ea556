"""An issued access token: its type and its claims (RFC 9068).

Pure.  The signature is not this file's business: keys/signer.py makes it, a JOSE library verifies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

TYP: Final = "at+jwt"  # RFC 9068 §2.1, the short form


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
