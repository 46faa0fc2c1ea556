"""Single use of a subject token: the claim that a commit makes on it.  Pure.

Called by subject_token.py where an issuer's entry asks for it; store/commit.py carries it out.  What is claimed must be what no
holder of the token can change: never the signature, for an ECDSA signature (r, s) has a twin (r, n - s).
"""

from __future__ import annotations

import hashlib
import math

from broker.config import Limits
from broker.model import SingleUse


def single_use(authority: str, jti: str | None, signing_input: bytes, exp: float, limits: Limits) -> SingleUse:
    """The claim on one token: SHA-256 over (authority, jti) where there is a `jti`, else over (authority, signing input).

    `authority` is the issuer's url or trust domain: the same `jti` of two issuers is two tokens.  Held until the last moment
    at which any node could still accept the token, by any clock that the store allows; `exp` is epoch seconds.
    """
    kind, name = (b"jti", jti.encode()) if jti is not None else (b"signing input", signing_input)
    digest = hashlib.sha256()
    for part in (authority.encode(), kind, name):
        digest.update(len(part).to_bytes(8, "big") + part)
    return SingleUse(digest.hexdigest(), math.ceil(exp) + limits.leeway_s + 2 * limits.store_clock_skew_s)
