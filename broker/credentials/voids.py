"""Credentials that were committed and never left: voided, again and again until the store takes it.

Stands on store.  Called by exchange.py, which never waits for it; node.py runs it.  A record that says `issued` means that
a credential may exist; what follows here says that none does, and frees the subject token for another try.
What a killed process could not say any more stays `issued`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from broker.errors import StoreUnavailable
from broker.model import SingleUse
from broker.store.commit import Store
from broker.telemetry import log, metrics

PAUSE_S = 0.2  # between two tries while the store is away


@dataclass(frozen=True, slots=True)
class Void:
    """One credential to give up.  `id` is its request's, `tomb_until` epoch seconds, `record` the line that says `unissued`."""

    env: str
    jti: str
    id: str
    claim: SingleUse | None
    tomb_until: int
    record: bytes


@dataclass(slots=True)
class Voids:
    """Those that wait.  Beyond `pending_max` the oldest is dropped, and counted."""

    store: Store
    pending_max: int
    _pending: deque[Void] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def give_up(self, void: Void) -> None:
        """Takes one over; it is carried out soon."""
        if len(self._pending) >= self.pending_max:
            lost = self._pending.popleft()
            metrics.RECORDS_DROPPED.labels("unissued").inc()
            log.get("exchange").error("a void was dropped: too many wait for the store", env=lost.env, jti=lost.jti)
        self._pending.append(void)
        self._news.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Carries them out, in order, until `stop` is set."""
        while not stop.is_set():
            await self._news.wait()
            self._news.clear()
            if not await self.settle():
                self._news.set()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), PAUSE_S)

    async def settle(self) -> bool:
        """Carries out all that wait; False where the store did not take one, which then stays first in line."""
        while self._pending:
            first = self._pending[0]
            try:
                await self.store.void(
                    first.env,
                    jti=first.jti,
                    id=first.id,
                    claim=first.claim,
                    tomb_until=first.tomb_until,
                    record=first.record,
                )
            except StoreUnavailable as error:
                log.get("exchange").warning("a void waits for the store", env=first.env, jti=first.jti, cause=error)
                return False
            if self._pending and self._pending[0] is first:
                self._pending.popleft()
        return True
