"""One running broker: builds every room, starts them in order, reloads, and stops them in order.

The composition root: what a room needs from a neighbour is wired here and nowhere else.  Owns the background tasks.
Order of start: store > keys > policy > revocation chains > issuers' keys; stop is the reverse.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from broker.admin.acts import Actor
from broker.admin.perform import ALL_SCOPES, Admin
from broker.audit import record
from broker.audit.refusals import RefusalBudget
from broker.compiler.live import LivePolicy, ReloadOutcome
from broker.config import Settings
from broker.credentials.voids import Voids
from broker.errors import BrokerError, CannotStart, KeysUnavailable, PolicyInvalid, PolicyUnavailable, StoreUnavailable
from broker.exchange import Exchange
from broker.identity.issuers import IssuerKeys
from broker.keys.rotation import KeyRings
from broker.keys.sealed import KeyEncryptionKey
from broker.model import Issuers
from broker.revocation.chain import Revocations
from broker.store.commit import Store, StoreHealth
from broker.store.names import SYSTEM_SLOT
from broker.store.witness import Witness
from broker.telemetry import log, metrics
from broker.telemetry.trace import Tracer

HEALTH_EVERY_S = 1.0
# Exchanges leave no cycles: looking for some after every 700 objects is in vain.  What refusals leave is some MB at most.
GC_THRESHOLDS = (50_000, 20, 100)
WITNESS = "witness"

Clock = Callable[[], float]


def node_name(worker: int) -> str:
    """This host and worker, as records name them."""
    return f"{socket.gethostname()}/{worker}"


def local_operator() -> Actor:
    """The person at this machine: whoever can read the key-encryption key may do every act."""
    name = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    return Actor("operator", f"{name}@{socket.gethostname()}", ALL_SCOPES)


@dataclass(slots=True)
class Node:
    """One worker's rooms.  `await Node.open(...)` builds it, `run` keeps it, `close` ends it."""

    settings: Settings
    name: str
    store: Store
    policy: LivePolicy
    issuer_keys: IssuerKeys
    rings: KeyRings
    revocations: Revocations
    exchange: Exchange
    admin: Admin
    tracer: Tracer
    clock: Clock
    reloads: asyncio.Queue[ReloadOutcome]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    health: StoreHealth | None = None
    reload_broken: str = ""
    on_change: Callable[[Node], None] = lambda _node: None
    _envs: set[str] = field(default_factory=set)
    _unopened: tuple[str, ...] = ()
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def open(
        cls, settings: Settings, store_url: str, key: KeyEncryptionKey, *, worker: int = 0, clock: Clock = time.time
    ) -> Node:
        """Builds and starts a node on a store that runs already.

        Raises `PolicyInvalid` when the first tree does not load, `CannotStart` or `StoreUnavailable` when the store is
        not fit to serve.
        """
        node = build(settings, store_url, key, worker=worker, clock=clock)
        try:
            await node.start()
        except BaseException:
            await node.close()
            raise
        return node

    def serves(self, env: str) -> bool:
        """Whether this node answers for an env."""
        return env in self._envs

    @property
    def envs(self) -> tuple[str, ...]:
        """The envs that this node answers for, sorted."""
        return tuple(sorted(self._envs))

    @property
    def named_envs(self) -> tuple[str, ...]:
        """The envs of the policy that this node is meant to answer for, sorted.  Raises `PolicyUnavailable`."""
        named = set(self.policy.current().envs)
        return tuple(sorted(named & set(self.settings.envs) if self.settings.envs else named))

    async def start(self) -> None:
        """Loads policy, keys and revocation chains; background tasks begin."""
        await self._check_store()
        outcome = await self.policy.reload()
        if outcome.problems:
            raise PolicyInvalid(f"{self.settings.policies} does not load", "broker policy check", problems=outcome.problems)
        await self._follow_policy()
        await self.issuer_keys.warm(self.policy.current().issuers.by_name.values())
        _settle_memory()
        for work in (
            self.policy.watch,
            self._follow_reloads,
            self.issuer_keys.run,
            self.rings.run,
            self._watch_store,
            self.exchange.voids.run,
        ):
            self._tasks.append(asyncio.create_task(self._keep(work)))

    async def reload(self) -> ReloadOutcome:
        """Reads the policy folder again, now."""
        return await self.policy.reload()

    async def _follow_reloads(self, _stop: asyncio.Event) -> None:
        """Follows reloads one after the other, outside the watch that found them."""
        while True:
            outcome = await self.reloads.get()
            if outcome.outcome != "unchanged":
                await self._after_reload(outcome)

    async def _after_reload(self, outcome: ReloadOutcome) -> None:
        """What follows a reload, good or bad: metric, log, record, new envs opened, new issuers warmed."""
        broken = bool(outcome.problems)
        first = outcome.problems[0] if broken else None
        # A place, not the text: whoever reads /readyz need not be who may read the policy.
        self.reload_broken = f"the tree on disk does not load: {first.file}:{first.line}:{first.column}" if first else ""
        metrics.POLICY_RELOADS.labels("failed" if broken else "done").inc()
        metrics.POLICY_BROKEN.set(1 if broken else 0)
        if broken:
            log.get("policy").error("reload failed, the last good tree stays", problems=[str(p) for p in outcome.problems[:10]])
        else:
            log.get("policy").info("reloaded", old=outcome.old_revision, new=outcome.new_revision)
            await self._follow_policy()
            tree = self.policy.current()
            self.issuer_keys.retain(tree.issuers.by_name.values())
            await self.issuer_keys.warm(tree.issuers.by_name.values())
            _settle_memory()
        await self._record_reload(outcome)
        self.on_change(self)

    async def close(self) -> None:
        """Ends background tasks, sends what is queued, closes the store."""
        self.stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.exchange.voids.settle()
        await self.issuer_keys.close()
        await asyncio.to_thread(self.tracer.stop, 2.0)
        metrics.flush()
        await self.store.close()

    def failing(self) -> dict[str, str]:
        """What makes this node unfit for traffic; empty when it is ready."""
        found: dict[str, str] = {}
        if self.stopping.is_set():
            found["stopping"] = "this process is ending"
        if self.health is None or not self.health.reachable:
            found["store"] = self.health.detail if self.health else "not looked at yet"
        elif self.store.held:
            found["store"] = self.store.held
        for slot, why in self.revocations.closed.items():
            found[f"revocations {slot}"] = why
        for env in self._envs:
            try:
                self.rings.signing_key(env, "ES256")
            except KeysUnavailable as error:
                found[f"keys {env}"] = error.detail or error.public
        if not self._envs:
            found["policy"] = "no tree has been loaded"
        return found

    def degraded(self) -> tuple[str, ...]:
        """What an operator should look at while traffic goes on."""
        found = [f"policy: {self.reload_broken}"] if self.reload_broken else []
        found += [f"env {env}: could not be opened yet" for env in self._unopened]
        for issuer, health in self.issuer_keys.health().items():
            if health.last_error:
                found.append(f"issuer {issuer}: {health.last_error}")
        if self.health is not None:
            found += [f"store: {problem}" for problem in self.health.problems]
        return tuple(found)

    async def _follow_policy(self) -> None:
        wanted = self.named_envs
        self._envs.intersection_update(wanted)
        self._unopened = tuple(env for env in wanted if env not in self._envs)
        for env in self._unopened:
            await self.rings.open(env)
            await self.revocations.open(env, self.clock())
            self._envs.add(env)
        self._unopened = ()

    async def _record_reload(self, outcome: ReloadOutcome) -> None:
        now = self.clock()
        body = record.base("system", "failed" if outcome.problems else "done", env=SYSTEM_SLOT, now=now, node=self.name)
        body |= {"act": "policy_reload", "actor": {"kind": "broker", "name": self.name}}
        body |= {
            "before": {"policy_revision": outcome.old_revision or ""},
            "after": {"policy_revision": outcome.new_revision or ""},
        }
        if outcome.problems:
            body["detail"] = record.clean(str(outcome.problems[0]))
            body["count"] = len(outcome.problems)
        try:
            await self.store.append(SYSTEM_SLOT, record.encode(body, self.settings.limits.record_bytes_max), now=int(now))
        except StoreUnavailable as error:
            metrics.RECORDS_DROPPED.labels("system").inc()
            log.get("policy").error("a reload could not be recorded", cause=error)

    @property
    def _wanted_durability(self) -> str:
        """What the store must promise: the embedded one always syncs to disk."""
        external = self.settings.store or self.settings.store_url_file
        return self.settings.durability or ("" if external else "disk")

    async def _check_store(self) -> None:
        self.health = await self.store.check()
        if not self.health.reachable:
            raise CannotStart(self.health.detail, "broker doctor")
        wanted = self._wanted_durability
        if wanted and self.health.durability != wanted:
            raise CannotStart(
                f"the store promises `{self.health.durability}`, and `{wanted}` is asked for", *self.health.problems
            )

    async def _watch_store(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.health = await self.store.check()
            if self.health.reachable:
                self._hold_unless_durable(self.health)
                await self._reopen_closed()
            metrics.flush()
            for issuer, health in self.issuer_keys.health().items():
                if health.age_s is not None:
                    metrics.JWKS_AGE_SECONDS.labels(issuer).set(health.age_s)
            try:
                await asyncio.wait_for(stop.wait(), HEALTH_EVERY_S)
            except TimeoutError:
                continue

    def _hold_unless_durable(self, health: StoreHealth) -> None:
        """What would be acknowledged without its fsync is not written at all (promise 1)."""
        wanted = self._wanted_durability
        lost = bool(wanted) and health.durability != wanted
        why = f"the store promises `{health.durability}` now, and `{wanted}` is needed" if lost else ""
        if why and why != self.store.held:
            log.get("store").error("the store is held", why=why)
        elif self.store.held and not why:
            log.get("store").info("the store is trusted again")
        self.store.held = why

    async def _reopen_closed(self) -> None:
        """A slot that could not be read is tried again, as is an env that could not be opened when the policy named it.

        A slot that shows another history stays closed until a person acts.
        """
        try:
            for env in self.envs:
                try:
                    self.revocations.view(env)
                except StoreUnavailable:
                    if env not in self.revocations.closed:
                        await self.revocations.open(env, self.clock())
            if self._unopened:
                await self._follow_policy()
        except BrokerError as error:
            log.get("node").warning("an env could not be opened", cause=error.detail)

    async def _keep(self, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Runs a background task for good: one that dies is logged and begun again."""
        while not self.stopping.is_set():
            try:
                await work(self.stopping)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                name = getattr(work, "__qualname__", "")
                log.get("node").error("a background task died and is begun again", task=name, exc_info=error)
                await asyncio.sleep(1)


def build(settings: Settings, store_url: str, key: KeyEncryptionKey, *, worker: int = 0, clock: Clock = time.time) -> Node:
    """All rooms of a node, wired and not yet started."""
    limits, name = settings.limits, node_name(worker)
    store = Store(store_url, limits)

    async def append(slot: str, line: bytes, now: int) -> None:
        await store.append(slot, line, now=now)

    def own_act(slot: str, act: str, revocation: str = "") -> bytes:
        body = record.base("system", "done", env=slot, now=clock(), node=name)
        body |= {"act": act, "actor": {"kind": "broker", "name": name}}
        if revocation:
            body["target"] = {"revocation": revocation}
        return record.encode(body, limits.record_bytes_max)

    reloads: asyncio.Queue[ReloadOutcome] = asyncio.Queue()
    policy = LivePolicy(
        settings.policies, limits, on_reload=reloads.put_nowait, today=lambda: int(clock()), poll_s=settings.policy_poll_s
    )
    issuer_keys = IssuerKeys(limits)
    witness = Witness(Path(settings.data) / WITNESS)
    rings = KeyRings(
        store,
        key,
        witness,
        limits=limits,
        rotate_every_s=settings.key_rotate_every_s,
        publish_before_s=settings.key_publish_before_s,
        record=own_act,
    )
    revocations = Revocations(
        store=store,
        key=key.derive("revocation"),
        witness=witness,
        record=own_act,
    )
    exchange = Exchange(
        tree=policy.current,
        issuer_keys=issuer_keys,
        rings=rings,
        revocations=revocations,
        store=store,
        voids=Voids(store, limits.voids_pending_max),
        refusals=RefusalBudget(append, name, limits),
        base_url=settings.base_url,
        limits=limits,
        node=name,
        clock=clock,
    )
    return Node(
        settings=settings,
        name=name,
        store=store,
        policy=policy,
        issuer_keys=issuer_keys,
        rings=rings,
        revocations=revocations,
        exchange=exchange,
        admin=Admin(store, revocations, rings, lambda: _issuers(policy), name, limits, clock),
        tracer=Tracer(os.environ, queue_max=limits.export_queue_max, node=name),
        clock=clock,
        reloads=reloads,
    )


def _issuers(policy: LivePolicy) -> Issuers | None:
    try:
        return policy.current().issuers
    except PolicyUnavailable:
        return None


def _settle_memory() -> None:
    """Takes what lives as long as the tree out of the collector's sight.

    One full collection at 100,000 accounts stops a worker for half a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
