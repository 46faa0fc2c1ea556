"""The RFC 9068 kind: a signed JWT access token that lives minutes."""

from __future__ import annotations

from typing import Any

from broker.errors import Unavailable
from broker.keys.rotation import KeyRings
from broker.keys.signer import sign
from broker.model import Draft, Grant, Issued, Workload, facts_of
from broker.protocol import access_token, oauth
from broker.protocol.ids import new_jti

NAME = "access_token"


def prepare(grant: Grant, workload: Workload, rings: KeyRings, issuer: str, now: int) -> Draft:
    """All that will be signed: key chosen, times fixed.  Nothing is signed here.  Raises `KeysUnavailable`."""
    key = rings.signing_key(grant.env, grant.algorithm)
    jti = new_jti()
    expires_at = now + grant.ttl_s
    origin: dict[str, Any] = {"issuer": workload.iss, "subject": workload.subject, "ids": dict(workload.ids)}
    return Draft(
        kind=NAME,
        env=grant.env,
        jti=jti,
        key_id=key.kid,
        algorithm=grant.algorithm,
        claims=access_token.claims(
            issuer=issuer,
            service_account=grant.service_account,
            audience=grant.audience,
            scope=grant.scope,
            jti=jti,
            issued_at=now,
            expires_at=expires_at,
            env=grant.env,
            workload=origin,
        ),
        issued_at=now,
        expires_at=expires_at,
        facts=facts_of(workload, grant),
    )


def issue(draft: Draft, rings: KeyRings, now: int) -> Issued:
    """Signs a committed draft with the key that its record names.

    `expires_in` is what remains now.  Raises `Unavailable` if the key left this node meanwhile, or nothing remains.
    """
    key = rings.key(draft.env, draft.key_id)
    remains_s = draft.expires_at - now
    if key is None or remains_s < 1:
        raise Unavailable("the signing key is gone or the credential would be dead at birth")
    return Issued(
        access_token=sign(draft.claims, typ=access_token.TYP, key=key),
        issued_token_type=oauth.TOKEN_TYPE_ACCESS_TOKEN,
        token_type=oauth.BEARER,
        expires_in=remains_s,
        scope=tuple(str(draft.claims["scope"]).split()),
    )
