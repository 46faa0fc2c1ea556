"""Revoke and lift: one entry in the chain of every env that the selectors touch.

The id is fixed before the first try, so that a repeated act is the same act: what is in already answers as a duplicate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker.admin.acts import Actor, Lift, Revoke
from broker.errors import ActRefused, StoreUnavailable
from broker.model import Issuers
from broker.protocol.revocations import SELECTORS, Entry
from broker.revocation.chain import Revocations

RecordLine = Callable[[str], bytes]


def check_selectors(selectors: Mapping[str, Any], issuers: Issuers | None) -> None:
    """Refuses what could not be evaluated later: unknown selectors, claims without issuer or outside its recorded set.

    Without `issuers` (no policy tree loads) names are taken as they are: a wrong one then covers more, never less.
    Raises `ActRefused` with what would be right.
    """
    if not selectors:
        raise ActRefused("a revocation must select something", "give --service-account, --issuer, --subject or --where")
    unknown = set(selectors) - SELECTORS
    if unknown:
        raise ActRefused(f"unknown selectors: {', '.join(sorted(unknown))}")
    issuer = selectors.get("issuer")
    if issuers is not None and issuer is not None and issuer not in issuers.by_name:
        raise ActRefused(f"no issuer is called `{issuer}`", f"issuers: {', '.join(sorted(issuers.by_name)) or 'none'}")
    claims = selectors.get("claims")
    if claims is None:
        return
    if issuer is None:
        raise ActRefused("a claim means something only under its issuer", "add --issuer")
    if issuers is None:
        return
    recorded = issuers.by_name[issuer].recorded
    outside = sorted(set(claims) - set(recorded))
    if outside:
        raise ActRefused(
            f"`{outside[0]}` is not in the recorded set of `{issuer}`: credentials cannot be found by it",
            f"recorded: {', '.join(recorded)}",
        )


async def revoke(act: Revoke, actor: Actor, revocations: Revocations, now: int, line: RecordLine) -> dict[str, int]:
    """Adds the rule to every env's chain; the number it got there.  Raises `ActRefused` where it may have taken effect."""
    entry = Entry(
        id=act.id, act="revoke", by=actor.name, at=now, reason=act.reason, selectors=dict(act.selectors), until=act.until
    )
    numbers = await _extend_all(entry, act.envs, revocations, line)
    lifted = [env for env in numbers if any(e.lifts == act.id for e in revocations.view(env).entries)]
    if lifted:
        raise ActRefused(
            f"revocation {act.id} was made before and lifted since in {', '.join(lifted)}: nothing is cut off by it",
            "revoke again without --id",
        )
    return numbers


async def lift(act: Lift, actor: Actor, revocations: Revocations, now: int, line: RecordLine) -> dict[str, int]:
    """Lifts a rule in every env whose chain holds it.  Raises `ActRefused` if none does."""
    holding: list[str] = []
    lifted = False
    for env in act.envs:
        await revocations.catch_up(env)
        entries = revocations.view(env).entries
        if any(entry.lifts == act.lifts for entry in entries):
            lifted = True
        elif any(entry.id == act.lifts and entry.act == "revoke" for entry in entries):
            holding.append(env)
    if not holding and lifted:
        raise ActRefused(f"revocation `{act.lifts}` is lifted already")
    if not holding:
        raise ActRefused(f"no revocation `{act.lifts}` is in force here", "broker revoke list")
    entry = Entry(id=act.id, act="lift", by=actor.name, at=now, reason=act.reason, lifts=act.lifts)
    return await _extend_all(entry, tuple(holding), revocations, line)


async def _extend_all(entry: Entry, envs: tuple[str, ...], revocations: Revocations, line: RecordLine) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for env in envs:
        try:
            numbers[env] = await revocations.extend(env, entry, line(env))
        except StoreUnavailable as error:
            done = f"; done: {', '.join(numbers)}" if numbers else ""
            raise ActRefused(
                f"{env}: {error.detail}; it may have taken effect{done}", f"repeat the command with --id {entry.id}"
            ) from error
    return numbers
