"""Revoke and lift: one entry in the log of each env that is meant; without any, in those of every env, now and later.

The id is fixed before the first try, so that a repeated act is the same act: what is in already answers as a duplicate.
An env that fails stops no other; the act as a whole has then failed, and says where it holds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

from broker.admin.acts import Actor, Lift, Revoke
from broker.errors import ActRefused, CannotReach, StoreUnavailable
from broker.model import Issuers
from broker.protocol.revocations import SELECTORS, Entry
from broker.revocation.chain import Revocations
from broker.store.names import SYSTEM_SLOT

RecordLine = Callable[[str], bytes]
Outcomes = dict[str, int | ActRefused | StoreUnavailable | None]  # None: nothing was to be done there


def bound(selectors: Mapping[str, Any], issuers: Issuers | None) -> dict[str, Any]:
    """The selectors as they are written down: an issuer's name with the `iss` of its tokens, so that no rename lifts them.

    Refuses what could not be evaluated later: unknown selectors, claims without issuer or outside its recorded set.
    Without `issuers` (no policy tree loads) names are taken as they are: a wrong claim then covers more, never less.
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
    if claims is not None and issuer is None:
        raise ActRefused("a claim means something only under its issuer", "add --issuer")
    if issuers is None or issuer is None:
        return dict(selectors)
    entry = issuers.by_name[issuer]
    outside = sorted(set(claims or ()) - set(entry.recorded))
    if outside:
        raise ActRefused(
            f"`{outside[0]}` is not in the recorded set of `{issuer}`: credentials cannot be found by it",
            f"recorded: {', '.join(entry.recorded)}",
        )
    return {**selectors, "iss": entry.url}


async def revoke(act: Revoke, actor: Actor, revocations: Revocations, now: int, line: RecordLine) -> dict[str, int]:
    """Adds the rule wherever it shall hold; the number that it got in each env.

    Raises `ActRefused` where the id is another act's or the act was lifted since, `CannotReach` where it may have taken effect.
    """
    entry = Entry(
        id=act.id, act="revoke", by=actor.name, at=now, reason=act.reason, selectors=dict(act.selectors), until=act.until
    )
    outcomes = await _everywhere(act.envs, revocations, lambda slot: revocations.extend(slot, entry, line(slot)))
    again = f"repeat the command with --id {act.id}" + (f" --until {moment(act.until)}" if act.until is not None else "")
    made = _as_made(act.id, outcomes, revocations)
    numbers = _held(f"revocation {act.id}", outcomes, f"{again}: the same act twice is one", made)
    lifted = [slot for slot in numbers if any(known.lifts == act.id for known in revocations.view(slot).entries)]
    if lifted:
        raise ActRefused(
            f"revocation {act.id} was made before and lifted since in {_named(lifted)}: it cuts nothing off there",
            "revoke again without --id",
        )
    return numbers


async def lift(act: Lift, actor: Actor, revocations: Revocations, now: int, line: RecordLine) -> dict[str, int]:
    """Lifts a rule wherever it holds; the number that the lift got in each env.

    Raises `ActRefused` if it holds nowhere, `CannotReach` where the lift may have taken effect.
    """
    entry = Entry(id=act.id, act="lift", by=actor.name, at=now, reason=act.reason, lifts=act.lifts)

    def is_lifted(slot: str) -> bool:
        return any(known.lifts == act.lifts for known in revocations.view(slot).entries)

    async def lift_in(slot: str) -> int | None:
        await revocations.catch_up(slot)
        holds = any(known.id == act.lifts and known.act == "revoke" for known in revocations.view(slot).entries)
        return await revocations.extend(slot, entry, line(slot)) if holds and not is_lifted(slot) else None

    outcomes = await _everywhere(act.envs, revocations, lift_in)
    numbers = _held("the lift", outcomes, "repeat the command: what is lifted stays lifted")
    if not numbers and any(is_lifted(slot) for slot in outcomes):
        raise ActRefused(f"revocation `{act.lifts}` is lifted already")
    if not numbers:
        raise ActRefused(f"no revocation `{act.lifts}` is in force here", "broker revoke list")
    return numbers


def words(selectors: Mapping[str, Any]) -> str:
    """Selectors as a person reads them."""
    parts = [f"{name} {value}" for name, value in selectors.items() if name != "claims"]
    return ", ".join(parts + [f"{claim}={value}" for claim, value in selectors.get("claims", {}).items()])


def moment(at: int) -> str:
    """An instant (epoch seconds) as `--until` reads it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


async def _everywhere(envs: tuple[str, ...], revocations: Revocations, do: Callable[[str], Awaitable[int | None]]) -> Outcomes:
    """Does it in each place that the act means, and goes on where one fails."""
    outcomes: Outcomes = {}
    try:
        async for slot in _places(envs, revocations):
            try:
                outcomes[slot] = await do(slot)
            except (ActRefused, StoreUnavailable) as error:
                outcomes[slot] = error
    except StoreUnavailable as error:
        outcomes["every env"] = error
    return outcomes


async def _places(envs: tuple[str, ...], revocations: Revocations) -> AsyncIterator[str]:
    if not envs:
        yield SYSTEM_SLOT
        # Not before: an env that is born after this look finds what has been written there (revocation/chain.py).
        envs = await revocations.envs()
    for env in envs:
        yield env


def _held(what: str, outcomes: Outcomes, again: str, made: str = "") -> dict[str, int]:
    """Each place's number, if none failed.  Raises `CannotReach` or `ActRefused`, which say where it holds and where not."""
    numbers = {slot: outcome for slot, outcome in outcomes.items() if isinstance(outcome, int)}
    failed = {slot: outcome for slot, outcome in outcomes.items() if isinstance(outcome, ActRefused | StoreUnavailable)}
    if not failed:
        return numbers
    holds = f"; it holds in {_named(numbers)}" if numbers else ""
    if all(isinstance(error, ActRefused) for error in failed.values()):
        raise ActRefused(f"{what} was made otherwise in {_named(failed)}{holds}", made)
    why = "; ".join(f"{_named([slot])}: {error.detail}" for slot, error in failed.items())
    raise CannotReach(f"{what} may or may not have taken effect in {_named(failed)}{holds} ({why})", again)


def _as_made(id: str, outcomes: Outcomes, revocations: Revocations) -> str:
    """What an operator should repeat, where the id that was given is another act's."""
    for slot, outcome in outcomes.items():
        for known in revocations.view(slot).entries if isinstance(outcome, ActRefused) else ():
            if known.id == id:
                end = f"--until {moment(known.until)}" if known.until is not None else "no --until"
                return f"it was made for {words(known.selectors)}, with {end} and --reason '{known.reason}'; or leave --id out"
    return "leave --id out for a new act"


def _named(slots: Iterable[str]) -> str:
    """Places as an operator knows them."""
    return ", ".join("envs that are opened later" if slot == SYSTEM_SLOT else slot for slot in slots)
