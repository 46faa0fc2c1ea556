"""A subject token -> the Workload that it vouches for, or a typed refusal.

Called by exchange.py.  Stands on protocol.compact, issuers.py (keys), replay.py.  Not a line of the token is believed before
step 6; what is read earlier only routes.  On a warm key cache nothing is awaited.

    1  size and shape: a strict compact JWS with strict JSON inside             TokenMalformed
    2  not one of our own credentials (promise 7)                               OwnCredential
    3  the issuer's entry: exactly this `iss`; for SPIFFE the trust domain      IssuerUnknown
    4  `alg` is on the entry's list                                             AlgorithmNotAllowed
    5  the issuer's key of this `kid` for this `alg`                            KeyUnknown, IssuerUnavailable
    6  the signature                                                            SignatureInvalid
    7  the kind of token: `typ`, the declared type, SPIFFE's header rules       TokenMalformed
    8  the claims that every token needs, with exact JSON types                 TokenMalformed
    9  times: exp, nbf, iat, age, lifetime                                      TokenExpired and kin, TokenNotYetValid
    10 the audience: nobody but us                                              TokenAudience
    11 the typed claims, stable ids, recorded facts
    12 the claim of single use, where the entry asks for it
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from broker.config import Limits
from broker.errors import (
    AlgorithmNotAllowed,
    IssuerUnknown,
    OwnCredential,
    SignatureInvalid,
    TokenAudience,
    TokenExpired,
    TokenLivesTooLong,
    TokenMalformed,
    TokenNotYetValid,
    TokenTooOld,
)
from broker.identity.issuers import IssuerKeys
from broker.identity.replay import single_use
from broker.model import ExchangeRequest, Issuer, Issuers, Workload
from broker.protocol import oauth
from broker.protocol.claims import ClaimValue, derive_spiffe, present
from broker.protocol.compact import NotCompact, UnverifiedJws, read
from broker.protocol.revocations import facts_from

# RFC 8725 §3.11: a kind that says what it is (`at+jwt`, `secevent+jwt` …) is none that identifies a workload.
_TYPES: Final = frozenset({"jwt", "jose"})
_DECLARED: Final = frozenset({None, oauth.TOKEN_TYPE_JWT, oauth.TOKEN_TYPE_ID_TOKEN})
_SPIFFE_HEADER: Final = frozenset({"alg", "kid", "typ"})  # SPIFFE JWT-SVID §2
_SPIFFE_TYPES: Final = frozenset({None, "JWT", "JOSE"})  # SPIFFE JWT-SVID §2.3
_DATE_MAX: Final = 2**53  # beyond it a double no longer counts single seconds
_STRINGS: Final = frozenset({"iss", "sub", "jti"})
_DATES: Final = frozenset({"exp", "nbf", "iat"})


async def authenticate(
    request: ExchangeRequest,
    issuers: Issuers,
    keys: IssuerKeys,
    *,
    base_url: str,
    now: float,
    limits: Limits,
) -> Workload:
    """Who presents this token, after the twelve steps above.

    `base_url` is BASE of our own issuer URLs, `now` epoch seconds.  Raises the `TokenRejected` tree, or `IssuerUnavailable`
    where the issuer's keys cannot be had: that is no verdict about the token.
    """
    # 1
    jws = _read(request, limits)
    # 2
    _refuse_own(jws, base_url)
    # 3
    issuer = _route(jws, issuers)
    # 4
    if jws.alg not in issuer.algorithms:
        raise AlgorithmNotAllowed(f"`{issuer.name}` does not sign with this algorithm")
    # 5
    key = keys.known(issuer, jws.kid, jws.alg) or await keys.find(issuer, jws.kid, jws.alg)
    # 6
    if not key.verifies(jws.signing_input, jws.signature):
        raise SignatureInvalid(f"the signature is not that of the key which `{issuer.name}` publishes under this kid")
    # 7: after the signature, so that an unsigned token learns nothing of which issuers are trusted here
    _check_kind(jws, issuer, request.subject_token_type)
    payload = jws.payload
    # 8
    _check_claims(payload, issuer)
    # 9
    _check_times(payload, issuer, now, limits)
    # 10
    _check_audience(payload["aud"], issuer.accepted_audiences(request.env, base_url))
    # 11
    claims = _claims(payload, issuer)
    _check_ids(payload, issuer, claims)
    # 12
    jti: str | None = payload.get("jti")
    authority = issuer.trust_domain or issuer.url
    use = single_use(authority, jti, jws.signing_input, payload["exp"], limits) if issuer.replay == "reject" else None
    facts = facts_from(claims, issuer.facts)
    return Workload(
        issuer=issuer.name,
        iss=issuer.url,
        subject=payload["sub"],
        claims=claims,
        ids=present({name: facts[name] for name in issuer.stable_ids}),
        recorded=facts if len(facts) == len(issuer.recorded) else {name: facts[name] for name in issuer.recorded},
        token_sha256=hashlib.sha256(request.subject_token.encode("ascii")).hexdigest(),
        key_id=key.kid or "",
        expires_at=int(payload["exp"]),
        single_use=use,
        tenant=_first(facts, issuer.tenant_ids),
    )


def _read(request: ExchangeRequest, limits: Limits) -> UnverifiedJws:
    try:
        return read(
            request.subject_token,
            bytes_max=limits.token_bytes_max,
            depth_max=limits.json_depth_max,
            kid_characters_max=limits.kid_characters_max,
        )
    except NotCompact as error:
        raise TokenMalformed(str(error)) from None


def _refuse_own(jws: UnverifiedJws, base_url: str) -> None:
    # Before the list of trusted issuers: an entry that names this broker opens nothing.
    iss = jws.payload.get("iss")
    if type(iss) is str and (iss == base_url or iss.startswith(base_url + "/")):
        raise OwnCredential("the token was issued by this broker")


def _route(jws: UnverifiedJws, issuers: Issuers) -> Issuer:
    iss, sub = jws.payload.get("iss"), jws.payload.get("sub")
    if iss is not None and type(iss) is not str:
        raise TokenMalformed("iss is no string")
    # RFC 8725 §3.10, RFC 7519 §2: byte for byte; no case, slash, port or dot is smoothed out.
    if iss is not None and (issuer := issuers.by_url.get(iss)) is not None:
        return issuer
    # A JWT-SVID needs no iss, and one that it has means nothing: the trust domain of the subject decides (SPIFFE JWT-SVID §3).
    if type(sub) is str and sub.startswith("spiffe://"):
        trust_domain = derive_spiffe(sub).get("trust_domain")
        if type(trust_domain) is str and (issuer := issuers.by_trust_domain.get(trust_domain)) is not None:
            return issuer
        if trust_domain is None and iss is None:
            raise TokenMalformed("sub is no SPIFFE ID of a workload")
    elif iss is None:
        raise TokenMalformed("iss is missing")
    raise IssuerUnknown("no entry of issuers.yaml has this iss or trust domain")


def _check_kind(jws: UnverifiedJws, issuer: Issuer, declared: str | None) -> None:
    if declared not in _DECLARED:
        raise TokenMalformed("the declared subject_token_type is not that of an identity token")
    if issuer.trust_domain is not None:
        if not _SPIFFE_HEADER.issuperset(jws.header) or jws.typ not in _SPIFFE_TYPES:
            raise TokenMalformed("a JWT-SVID's header holds alg, kid and typ (JWT or JOSE) only")
    elif jws.typ is not None and jws.typ.lower() not in _TYPES:
        raise TokenMalformed("typ names another kind of token")


def _check_claims(payload: Mapping[str, Any], issuer: Issuer) -> None:
    if not payload.keys() >= issuer.needed:
        missing = next(name for name in ("sub", "aud", "exp", *issuer.required) if name not in payload)
        raise TokenMalformed(f"{missing} is missing")
    for name in _STRINGS & payload.keys():
        if type(payload[name]) is not str or not payload[name]:
            raise TokenMalformed(f"{name} is no string, or empty")
    for name in _DATES & payload.keys():
        date = payload[name]
        # RFC 7519 §2: a JSON number.  Exact types: in Python True is an int.
        if (type(date) is not int and type(date) is not float) or not 0 < date < _DATE_MAX:
            raise TokenMalformed(f"{name} is no number of seconds")
    audience = payload["aud"]
    members = audience if type(audience) is list else [audience]
    if not members or not all(members) or set(map(type, members)) != {str}:
        raise TokenMalformed("aud is neither a string nor a list of strings")
    if issuer.trust_domain is not None and derive_spiffe(payload["sub"]).get("trust_domain") != issuer.trust_domain:
        raise TokenMalformed("sub is no SPIFFE ID of a workload in the entry's trust domain")
    if "cnf" in payload:
        # RFC 7800 §3: whoever holds the token alone is not who it was made for.
        raise TokenMalformed("the token is bound to a key (cnf), of which no proof was given")


def _first(facts: Mapping[str, str | None], names: tuple[str, ...]) -> str:
    for name in names:
        if value := facts[name]:
            return value
    return ""


def _check_ids(payload: Mapping[str, Any], issuer: Issuer, claims: Mapping[str, ClaimValue]) -> None:
    """A stable id of another type is no accident: the token is not what its issuer makes."""
    for name in issuer.stable_ids:
        spec = issuer.claims.get(name) if name not in claims else None
        if spec is not None and spec.path and _present(payload, spec.path):
            raise TokenMalformed(f"the stable id {name} has another type than its issuer gives it")


def _present(payload: Any, path: tuple[str, ...]) -> bool:
    value = payload
    for step in path:
        if type(value) is not dict:
            return True
        if value.get(step) is None:
            return False
        value = value[step]
    return True


def _check_times(payload: Mapping[str, Any], issuer: Issuer, now: float, limits: Limits) -> None:
    exp, nbf, iat, leeway_s = payload["exp"], payload.get("nbf"), payload.get("iat"), limits.leeway_s
    if now >= exp + leeway_s:  # RFC 7519 §4.1.4: on or after
        raise TokenExpired(f"exp passed {int(now - exp)} s ago")
    if nbf is not None and nbf > now + leeway_s:
        raise TokenNotYetValid(f"nbf is {int(nbf - now)} s ahead")
    if iat is None:
        # Without iat the rest of its life is all that can be measured.
        if exp - now > issuer.max_lifetime_s + leeway_s:
            raise TokenLivesTooLong(f"exp is {int(exp - now)} s ahead; at most {issuer.max_lifetime_s} s")
        return
    if iat > now + leeway_s:
        raise TokenNotYetValid(f"iat is {int(iat - now)} s ahead")
    if exp <= iat:
        raise TokenMalformed("exp is not after iat")
    if exp - iat > issuer.max_lifetime_s:
        raise TokenLivesTooLong(f"exp - iat is {int(exp - iat)} s; at most {issuer.max_lifetime_s} s")
    if now - iat > issuer.max_age_s + leeway_s:
        raise TokenTooOld(f"iat is {int(now - iat)} s ago; at most {issuer.max_age_s} s")


def _check_audience(audience: str | list[str], accepted: tuple[str, ...]) -> None:
    if not accepted:
        raise TokenAudience((), "the entry accepts no audience in this env")
    # A token that is also meant for somebody else may have been taken from there (RFC 8725 §3.9).
    if not set(audience if isinstance(audience, list) else [audience]) <= set(accepted):
        raise TokenAudience(accepted, "aud has a value that is not accepted here")


def _claims(payload: Mapping[str, Any], issuer: Issuer) -> dict[str, ClaimValue]:
    claims = issuer.reading.read(payload)
    return claims | derive_spiffe(payload["sub"]) if issuer.trust_domain is not None else claims
