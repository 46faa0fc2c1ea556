"""A `tests:` block -> Case: the claims of a workload, typed as its issuer sends them.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker.compiler.document import Scalar
from broker.compiler.issuers import Entry
from broker.compiler.scalars import WrongType, claim_value
from broker.compiler.schema import CaseEntry
from broker.compiler.where import ALL_TYPES
from broker.policy.tree import Case
from broker.protocol.claims import ClaimType, ClaimValue, derive_spiffe


def compile_case(
    tell: Callable[..., None],
    spot: Callable[[tuple[str | int, ...]], str],
    number: int,
    entry: CaseEntry,
    issuers: Mapping[str, Entry],
) -> Case:
    """The case; problems are told by the path of their node."""
    path = ("tests", number)
    issuer = issuers.get(entry.issuer)
    if issuer is None and issuers:
        tell((*path, "issuer"), f"there is no issuer `{entry.issuer}`", f"one of {', '.join(issuers)}")
    claims: dict[str, ClaimValue] = {}
    for name, node in entry.claims.items():
        types = _types(issuer, name)
        if types is None:
            tell((*path, "claims", name), f"this issuer sends no claim `{name}`", "the preset lists the claims")
            continue
        try:
            claims[name] = _value(node, types, declared=issuer is not None and issuer.preset is not None)
        except WrongType as error:
            tell((*path, "claims", name), str(error))
    if issuer is not None and issuer.issuer.trust_domain is not None and isinstance(sub := claims.get("sub"), str):
        claims |= derive_spiffe(sub)
    if entry.reason is not None and entry.expect == "allow":
        tell((*path, "reason"), "an allowed request has no reason", "remove it, or expect deny")
    return Case(
        name=entry.name,
        issuer=entry.issuer,
        claims=claims,
        audience=entry.request.audience,
        resource=entry.request.resource,
        scope=tuple(entry.request.scope.split(" ")) if entry.request.scope is not None else None,
        service_account=entry.request.service_account,
        ttl_s=entry.request.ttl,
        allow=entry.expect == "allow",
        reason=entry.reason or "",
        now=entry.now,
        place=spot(path).rpartition(":")[0],
    )


def _types(issuer: Entry | None, name: str) -> tuple[ClaimType, ...] | None:
    if name == "aud":
        return ("list",)
    if issuer is None or issuer.preset is None:
        return ALL_TYPES
    spec = issuer.preset.claim(name)
    return spec.types if spec is not None else None


def _value(node: Any, types: tuple[ClaimType, ...], *, declared: bool) -> ClaimValue:
    if isinstance(node, list):
        if "list" not in types:
            raise WrongType("the claim is no list")
        return tuple(_free(member) for member in node)
    if isinstance(node, dict):
        if "object" not in types:
            raise WrongType("the claim is no object")
        return {str(key): _free(member) for key, member in node.items()}
    return claim_value(node, types if declared else ("string", "integer", "boolean"), declared=declared)


def _free(node: Any) -> Any:
    """A member of a list or object, whose type nobody has declared: as it is written."""
    if isinstance(node, list):
        return [_free(member) for member in node]
    if isinstance(node, dict):
        return {str(key): _free(member) for key, member in node.items()}
    assert isinstance(node, Scalar)
    return claim_value(node, ("string", "integer", "boolean"))
