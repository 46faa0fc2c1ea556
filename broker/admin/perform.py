"""Every administrative act: authorise, do, record.  The second path to read.

The record is written by the very server function that does the act, so neither exists without the other; an act that
fails is recorded as failed.  A new act is a type in acts.py and a row in SCOPES: there is no other way in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from broker.admin import keys, revocations
from broker.admin.acts import Act, Actor, Done, Lift, Revoke, RotateKeys
from broker.audit import record
from broker.config import Limits
from broker.errors import ActRefused, BrokerError, StoreUnavailable
from broker.keys.rotation import KeyRings
from broker.model import Issuers
from broker.revocation.chain import Revocations
from broker.store.commit import Store
from broker.store.names import SYSTEM_SLOT
from broker.telemetry import log

SCOPES: Final[Mapping[type[Any], str]] = {
    Revoke: "revocations:write",
    Lift: "revocations:write",
    RotateKeys: "keys:rotate",
}
NAMES: Final[Mapping[type[Any], str]] = {Revoke: "revoke", Lift: "lift", RotateKeys: "rotate_keys"}
ALL_SCOPES: Final = frozenset(SCOPES.values())


@dataclass(frozen=True, slots=True)
class Admin:
    """The rooms that acts change.  `clock` gives epoch seconds; `issuers` None where no tree loads: cutting off goes on."""

    store: Store
    revocations: Revocations
    rings: KeyRings
    issuers: Callable[[], Issuers | None]
    node: str
    limits: Limits
    clock: Callable[[], float]

    async def perform(self, act: Act, actor: Actor) -> Done:
        """Does one act for an actor.

        Raises `ActRefused`: not allowed or impossible; `CannotReach`: not known to have taken effect wherever it should.
        """
        if SCOPES[type(act)] not in actor.scopes:
            await self._record_failed(act, actor, "not_allowed")
            raise ActRefused(f"{actor.name} may not {NAMES[type(act)]}: that needs {SCOPES[type(act)]}")
        try:
            return Done(act, await self._do(act, actor))
        except BrokerError as error:
            await self._record_failed(act, actor, error.detail or error.reason)
            raise

    async def _do(self, act: Act, actor: Actor) -> Mapping[str, Any]:
        now = self.clock()
        if isinstance(act, Revoke):
            act = replace(act, selectors=revocations.bound(act.selectors, self.issuers()))

        def line(env: str) -> bytes:
            return self._line(act, actor, env, "done", now)

        match act:
            case Revoke():
                return await revocations.revoke(act, actor, self.revocations, int(now), line)
            case Lift():
                return await revocations.lift(act, actor, self.revocations, int(now), line)
            case RotateKeys():
                return await keys.rotate(act, self.rings, line)

    def _line(self, act: Act, actor: Actor, env: str, outcome: str, now: float, detail: str = "") -> bytes:
        body = record.base("administration", outcome, env=env, now=now, node=self.node)
        body |= {"act": NAMES[type(act)], "actor": actor.as_dict(), "target": _target(act)}
        if detail:
            body["detail"] = record.clean(detail)
        return record.encode(body, self.limits.record_bytes_max)

    async def _record_failed(self, act: Act, actor: Actor, why: str) -> None:
        now = self.clock()
        for env in (act.envs or (SYSTEM_SLOT,)) if isinstance(act, Revoke | Lift) else (act.env,):
            try:
                await self.store.append(env, self._line(act, actor, env, "failed", now, why), now=int(now))
            except StoreUnavailable as error:
                log.get("admin").error("a failed act could not be recorded", act=NAMES[type(act)], cause=error)


def _target(act: Act) -> dict[str, Any]:
    match act:
        case Revoke():
            body: dict[str, Any] = {"revocation": act.id, "selectors": dict(act.selectors), "reason": record.clean(act.reason)}
            return body | ({"until": act.until} if act.until is not None else {})
        case Lift():
            return {"revocation": act.lifts, "reason": record.clean(act.reason)}
        case RotateKeys():
            return {"env": act.env, "fresh": act.fresh, "reason": record.clean(act.reason)}
