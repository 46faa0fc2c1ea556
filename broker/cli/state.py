"""A command's hold on a node's state: the running broker's store, or the embedded one started for the moment.

Commands that change or read state work on a stopped node too.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from broker.config import Settings
from broker.errors import CannotReach, StoreUnavailable
from broker.keys.sealed import key_encryption_key, key_file
from broker.node import Node, build
from broker.store.commit import Store
from broker.store.embedded import attach
from broker.store.folder import check_ours
from broker.telemetry import log
from broker.web.supervisor import external_store


@dataclass(frozen=True, slots=True)
class State:
    """A node that serves nothing: its rooms, for one command."""

    node: Node
    settings: Settings

    @property
    def store(self) -> Store:
        """The store behind it."""
        return self.node.store


@asynccontextmanager
async def store_url(settings: Settings) -> AsyncGenerator[str]:
    """The URL of the store that the settings mean.

    Raises `CannotReach` where there is nothing to look at, or where that belongs to another user.
    """
    # Results own stdout, and a command says what went wrong itself; its rooms' logs are for those who ask for them.
    log.configure(settings.log_level if "log_level" in settings.sources else "critical")
    if settings.store or settings.store_url_file:
        yield external_store(settings)
        return
    check_ours(settings.data / "store")
    if not settings.data.is_dir():
        raise CannotReach(
            f"{settings.data} does not exist: no broker has run there",
            "give --data DIR of the node, or --store URL of its store",
        )
    async with attach(settings.data, settings.limits) as url:
        yield url


@asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[State]:
    """The state of a node.  The policy is loaded if it can be; the chains and rings of every env in the store are opened.

    Raises `CannotReach`, `StoreUnavailable`, and what the key-encryption key's file raises.
    """
    async with store_url(settings) as url:
        check_ours(key_file(settings))
        node = build(settings, url, key_encryption_key(settings, create=False))
        try:
            yield State(node, settings)
        except StoreUnavailable as error:
            raise CannotReach(error.detail or error.public, "broker doctor") from error
        finally:
            await node.close()


async def load_policy(state: State) -> bool:
    """Loads the policy tree for the command; False where it does not load (the command then says what it cannot check)."""
    outcome = await state.node.policy.reload()
    return not outcome.problems


async def open_envs(state: State, wanted: tuple[str, ...], *, rings: bool = True) -> tuple[str, ...]:
    """Opens rings and chains of the envs asked for, by default of all in the store.  Raises `CannotReach` for an unknown env."""
    known = await state.store.slots()
    missing = [env for env in wanted if env not in known]
    if missing:
        raise CannotReach(
            f"no env `{missing[0]}` in this store", f"envs: {', '.join(known) or 'none yet; start the broker once'}"
        )
    chosen = wanted or known
    for env in chosen:
        await state.node.revocations.open(env, time.time())
        if rings:
            await state.node.rings.open(env)
    return chosen
