"""What is asked, and whether an access grants all of it: targets, scopes, and what follows from one where the other is not said.

Pure.  Called by decide and assess.  STANDARDS: RFC 8693 §2.1, RFC 8707 §2, RFC 9068 §2.2.3 and §3, RFC 6749 §3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from broker.config import Limits
from broker.model import ExchangeRequest
from broker.policy.tree import Access, Account, Env, Rule, Tree
from broker.protocol.claims import ClaimValue


class Asked(Struct, frozen=True):
    """What a request wants: targets as Apis (None where one of them is unknown here), scopes, the account by name."""

    apis: tuple[str, ...] | None
    scope: tuple[str, ...] | None
    account: str | None


class Question(Struct, frozen=True):
    """One decision's givens, gathered once: what every rule is held against.  `now` is epoch seconds."""

    tree: Tree
    env: Env
    claims: Mapping[str, ClaimValue]
    request: ExchangeRequest
    asked: Asked
    now: float
    limits: Limits


class Offer(Struct, frozen=True):
    """What a rule grants of it: all."""

    apis: tuple[str, ...]
    scope: tuple[str, ...]


class Miss(Struct, frozen=True):
    """Why a rule that holds does not grant all; `scopes` are those that it opens.  The larger rank is the nearer miss."""

    rank: int
    scopes: tuple[str, ...] = ()


TARGET_UNKNOWN: Final = 0
NOT_COMBINABLE: Final = 1
SCOPE_MISSING: Final = 2
SCOPE_NOT_GRANTED: Final = 3


def asked_of(tree: Tree, env: Env, request: ExchangeRequest) -> Asked:
    """The request's targets as Apis: `audience` by short name or URL, `resource` by URL, their union (RFC 8693 §2.1)."""
    if len(request.audience) == 1 and not request.resource:
        asked = request.audience[0]
        name = asked if asked in tree.apis else env.targets.get(asked)
        return Asked(None if name is None else (name,), request.scope, request.service_account)
    apis: dict[str, None] = {}
    known = True
    for audience in request.audience:
        name = audience if audience in tree.apis else env.targets.get(audience)
        known = known and name is not None
        apis.setdefault(name or audience)
    for resource in request.resource:
        name = env.targets.get(resource)
        known = known and name is not None
        apis.setdefault(name or resource)
    return Asked(tuple(apis) if known else None, request.scope, request.service_account)


def effective(offer: Offer | Miss, asked: Asked, request: ExchangeRequest) -> tuple[Sequence[str], Sequence[str]]:
    """What conditions see of the request: the Apis and scopes that would be granted, so that leaving one out hides nothing."""
    if isinstance(offer, Offer):
        return offer.apis, offer.scope
    return asked.apis or (*request.audience, *request.resource), asked.scope or ()


def offer_of(tree: Tree, account: Account, access: Access, asked: Asked) -> Offer | Miss:
    """All that is asked, out of an access; else why not."""
    if asked.apis is None:
        return Miss(TARGET_UNKNOWN)
    apis = asked.apis or _inferred(account, access, asked.scope)
    if isinstance(apis, Miss):
        return apis
    for api in apis:
        if api not in access:
            return Miss(TARGET_UNKNOWN)
    opened = access[apis[0]] if len(apis) == 1 else tuple(s for s in access[apis[0]] if all(s in access[api] for api in apis))
    scope = asked.scope
    if scope is None:
        scope = tuple(dict.fromkeys(s for api in apis for s in account.default_scopes.get(api, ())))
        if not scope:
            return Miss(SCOPE_MISSING, opened)
    if len(apis) > 1 and not all(s in tree.apis[api].scopes for s in scope for api in apis):
        return Miss(NOT_COMBINABLE)  # RFC 9068 §2.2.3: each scope must mean something at each audience
    for name in scope:
        if name not in opened:
            return Miss(SCOPE_NOT_GRANTED, opened)
    return Offer(apis, scope) if scope else Miss(SCOPE_MISSING, opened)


def _inferred(account: Account, access: Access, scope: tuple[str, ...] | None) -> tuple[str, ...] | Miss:
    """The target of a request that names none: by its scopes, by the defaults, or because there is only one (RFC 9068 §3)."""
    if scope is not None:
        homes = tuple(api for api, scopes in access.items() if all(name in scopes for name in scope))
        if len(homes) == 1:
            return homes
        if not homes and len(access) > 1:
            return Miss(SCOPE_NOT_GRANTED, tuple(dict.fromkeys(name for scopes in access.values() for name in scopes)))
    elif len(account.default_scopes) == 1:
        return tuple(account.default_scopes)
    return tuple(access) if len(access) == 1 else Miss(TARGET_UNKNOWN)


def narrowed(rule: Rule, claims: Mapping[str, ClaimValue]) -> Access | None:
    """What a rule opens to this token: all, the part of low sensitivity in a run that is allowed so much, or nothing."""
    access = rule.access
    for stranger in rule.strangers:
        if stranger.met(claims):
            if not stranger.low_allowed or not rule.low_access:
                return None
            access = rule.low_access
    return access
