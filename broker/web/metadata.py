"""What an env publishes of itself: discovery, authorization-server metadata, keys.

RFC 8414 and OpenID Connect Discovery 1.0 in one document, the same at three addresses (STANDARDS: MD-01..09); RFC 7517.
Authlib's metadata class checks the document before it is served for the first time.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from starlette.requests import Request
from starlette.responses import Response

from broker.protocol import oauth

JWKS_MAX_AGE_S: Final = 300  # also what a withdrawn key lives on for in honest caches
CACHE: Final = f"public, max-age={JWKS_MAX_AGE_S}"


def document(issuer: str) -> dict[str, Any]:
    """The metadata of one env.  Members that have no true value here are left out, never invented, but for one.

    `response_types_supported` is required by both standards and has no true value without an authorization endpoint;
    `id_token` is what other issuers without one publish.
    """
    return {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/jwks.json",
        "grant_types_supported": [oauth.GRANT_TOKEN_EXCHANGE, oauth.GRANT_JWT_BEARER],
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        "token_endpoint_auth_methods_supported": ["none"],
    }


def checked(issuer: str, *, loopback: bool) -> bytes:
    """The document as bytes.  Raises ValueError if it breaks RFC 8414 (plain http passes on loopback only)."""
    body = document(issuer)
    as_https = body | {name: "https" + str(body[name]).removeprefix("http") for name in ("issuer", "token_endpoint", "jwks_uri")}
    AuthorizationServerMetadata(as_https if loopback and issuer.startswith("http:") else body).validate()
    return msgspec.json.encode(body)


def cacheable(request: Request, body: bytes, *, cache: str = CACHE) -> Response:
    """A public answer with a strong ETag; 304 where the caller holds it already (RFC 9110 §13)."""
    etag = '"' + hashlib.sha256(body).hexdigest()[:32] + '"'
    headers = {"cache-control": cache, "etag": etag, "access-control-allow-origin": "*"}
    asked = request.headers.get("if-none-match", "")
    if asked == "*" or etag in [candidate.strip().removeprefix("W/") for candidate in asked.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
