"""The vocabulary of the token endpoint: identifiers, parameters, error codes.

RFC 6749 (framework), RFC 7523 (jwt-bearer), RFC 8693 (token exchange), RFC 8707 (resource).  Names only: no rule lives here.
"""

from __future__ import annotations

from typing import Final

GRANT_TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # RFC 8693 §2.1
GRANT_JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523 §2.1

_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:"  # RFC 8693 §3
TOKEN_TYPE_ACCESS_TOKEN: Final = _TOKEN_TYPE + "access_token"
TOKEN_TYPE_REFRESH_TOKEN: Final = _TOKEN_TYPE + "refresh_token"
TOKEN_TYPE_ID_TOKEN: Final = _TOKEN_TYPE + "id_token"
TOKEN_TYPE_JWT: Final = _TOKEN_TYPE + "jwt"

# RFC 6749 §5.2, RFC 8693 §2.2.2, RFC 8707 §2
INVALID_REQUEST: Final = "invalid_request"
INVALID_CLIENT: Final = "invalid_client"
INVALID_GRANT: Final = "invalid_grant"
INVALID_SCOPE: Final = "invalid_scope"
INVALID_TARGET: Final = "invalid_target"
UNSUPPORTED_GRANT_TYPE: Final = "unsupported_grant_type"
# RFC 6749 §4.1.2.1 registers these for the authorization endpoint only; the token endpoint has no code of its own for them.
TEMPORARILY_UNAVAILABLE: Final = "temporarily_unavailable"
SERVER_ERROR: Final = "server_error"

REPEATABLE: Final = frozenset({"resource", "audience"})  # RFC 8693 §2.1, RFC 8707 §2: all others at most once
CLIENT_AUTHENTICATION: Final = ("client_secret", "client_assertion", "client_assertion_type")  # RFC 6749 §2.3.1, RFC 7521 §4.2

BEARER: Final = "Bearer"
