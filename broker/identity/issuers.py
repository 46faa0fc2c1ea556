"""The live keys of every trusted issuer: by (issuer, kid, alg), always at hand, never older than allowed.

Called by subject_token.py (look-ups) and by the node (`warm`, `run`, `retain`, `health`, `close`).
Stands on sources.py and jwks.py.

    known()   the warm path: two dictionary look-ups; no await, no lock, no request
    find()    what known() cannot answer: one fetch for all who ask (single flight), begun only while the issuer's bucket has
              a token, so that invented key ids cannot make the broker flood anybody; failed fetches count too
    run()     refreshes every `jwks_refresh_s`, looks at key files every `jwks_file_poll_s`

A failed fetch never takes known keys away before `jwks_stale_s_max`; a good one replaces them whole, so that a key its issuer
withdrew is gone at once.  What an issuer says about caching is not read: it could only ask for too often or too seldom.
An entry is known by its settings, not by its name: a reloaded policy with another url never meets the old url's keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.config import Limits
from broker.errors import IssuerUnavailable, KeyUnknown
from broker.identity import sources
from broker.identity.fetch import Fetcher
from broker.identity.jwks import KeySet, KeySetRefused, VerifyKey, screen
from broker.identity.sources import Loaded, Unreadable
from broker.model import Issuer
from broker.telemetry import log, metrics

Settings = tuple[object, ...]


class Health(NamedTuple):
    """How an issuer's keys are: seconds since the last good fetch (None: never), and what went wrong in the last one."""

    age_s: float | None
    last_error: str


@dataclass(slots=True, eq=False)
class _Live:
    """One entry's keys and the state of their refreshing.  Instants are of the injected clock."""

    issuer: Issuer
    tokens: float
    counted_at: float
    keys: KeySet | None = None
    good_at: float = 0.0
    due_at: float = 0.0
    last_error: str = ""
    loaded: Loaded | None = None
    flight: asyncio.Task[None] | None = None
    reported: frozenset[tuple[str, str]] = field(default_factory=frozenset)


class IssuerKeys:
    """Keys of issuers, fetched for as long as this object lives.  Not for use from several threads."""

    def __init__(self, limits: Limits, *, fetcher: Fetcher | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._fetcher = fetcher or Fetcher(limits)
        self._clock = clock
        self._live: dict[Settings, _Live] = {}
        self._log = log.get("identity")

    # Looking up

    def known(self, issuer: Issuer, kid: str | None, alg: str) -> VerifyKey | None:
        """The key if it is at hand and not too old; never waits.  None says nothing yet about the token."""
        live = self._live.get(_settings(issuer))
        if live is None or live.keys is None or self._clock() - live.good_at > self._limits.jwks_stale_s_max:
            return None
        return live.keys.find(kid, alg)

    async def find(self, issuer: Issuer, kid: str | None, alg: str) -> VerifyKey:
        """The key for a token's header, fetched if need be; waits at most `jwks_wait_s_max`.

        Raises `KeyUnknown` if keys that are fresh enough do not hold it, `IssuerUnavailable` if that could not be found out.
        """
        if (key := self.known(issuer, kid, alg)) is not None:
            return key
        live = self._entry(issuer)
        try:
            async with asyncio.timeout(self._limits.jwks_wait_s_max):
                await self._fetched(live, lambda: self.known(issuer, kid, alg) is not None)
        except TimeoutError:
            detail = f"the keys of `{issuer.name}` did not come in time"
            raise IssuerUnavailable(detail, retry_after_s=self._retry_s) from None
        if (key := self.known(issuer, kid, alg)) is not None:
            return key
        if live.keys is None or live.last_error or self._clock() - live.good_at > self._limits.jwks_stale_s_max:
            detail = live.last_error or "they were not fetched yet"
            raise IssuerUnavailable(f"the keys of `{issuer.name}` are not at hand: {detail}", retry_after_s=self._retry_s)
        raise KeyUnknown(f"`{issuer.name}` publishes no usable key of this kid for {alg}")

    # Keeping fresh

    async def warm(self, issuers: Iterable[Issuer]) -> None:
        """Fetches the keys of all entries that have none yet, side by side.  Failures stand in `health`, nothing is raised."""
        entries = [live for live in map(self._entry, issuers) if live.keys is None]
        await _settled([live.flight or self._launch(live) for live in entries])

    async def tick(self) -> None:
        """Refreshes every entry that is due by the clock, and waits for those fetches."""
        await _settled([self._launch(live) for live in self._due()])

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps all entries fresh until `stop`; the node owns the task.  A slow issuer holds up no other."""
        while not stop.is_set():
            for live in self._due():
                self._launch(live)
            try:
                await asyncio.wait_for(stop.wait(), self._limits.jwks_file_poll_s)
            except TimeoutError:
                continue
        await self.close()

    def retain(self, issuers: Iterable[Issuer]) -> None:
        """Forgets all entries but these: what a reloaded tree no longer names, or names with other settings."""
        wanted = {_settings(issuer) for issuer in issuers}
        for settings in [settings for settings in self._live if settings not in wanted]:
            if (flight := self._live.pop(settings).flight) is not None:
                flight.cancel()

    def health(self) -> Mapping[str, Health]:
        """How fresh the keys of each entry are, by its name; of two of one name (around a reload) the worse."""
        now, found = self._clock(), dict[str, Health]()
        for live in self._live.values():
            mine = Health(None if live.keys is None else now - live.good_at, live.last_error)
            other = found.get(live.issuer.name)
            if other is None or (other.age_s is not None and (mine.age_s is None or mine.age_s > other.age_s)):
                found[live.issuer.name] = mine
        return found

    async def close(self) -> None:
        """Ends every fetch under way."""
        flights = [live.flight for live in self._live.values() if live.flight is not None]
        for flight in flights:
            flight.cancel()
        await _settled(flights)

    # Inside

    @property
    def _retry_s(self) -> int:
        return self._limits.unknown_kid_refill_s

    def _entry(self, issuer: Issuer) -> _Live:
        settings = _settings(issuer)
        live = self._live.get(settings)
        if live is None:
            now = self._clock()
            live = self._live[settings] = _Live(issuer, tokens=self._limits.unknown_kid_burst, counted_at=now, due_at=now)
        return live

    def _due(self) -> list[_Live]:
        now = self._clock()
        due = [live for live in self._live.values() if live.flight is None and live.due_at <= now]
        # After a failure the retries of this loop and of callers together stay within the bucket.
        return [live for live in due if not live.last_error or live.issuer.jwks_file is not None or self._take(live)]

    async def _fetched(self, live: _Live, found: Callable[[], bool]) -> None:
        # A fetch that began before this caller came may have read the set just before the key was added: then one more.
        if live.flight is not None:
            await _settled([live.flight])
            if found():
                return
        if live.flight is not None or self._take(live):
            await _settled([live.flight or self._launch(live)])

    def _take(self, live: _Live) -> bool:
        now, limits = self._clock(), self._limits
        earned = (now - live.counted_at) / limits.unknown_kid_refill_s
        live.tokens, live.counted_at = min(float(limits.unknown_kid_burst), live.tokens + earned), now
        if live.tokens < 1:
            return False
        live.tokens -= 1
        return True

    def _launch(self, live: _Live) -> asyncio.Task[None]:
        flight = live.flight = asyncio.create_task(self._refresh(live), name=f"keys of {live.issuer.name}")
        return flight

    async def _refresh(self, live: _Live) -> None:
        outcome = "failed"
        try:
            loaded = await sources.load(live.issuer, self._fetcher, self._limits, live.loaded)
            # Parsing a large set is work for another thread, or every exchange waits for it.
            fresh = live.keys is None or live.loaded is None or loaded.raw != live.loaded.raw
            keys = await asyncio.to_thread(screen, loaded.raw, live.issuer, self._limits) if fresh else live.keys
        except (Unreadable, KeySetRefused) as error:
            if live.last_error != str(error):  # an outage is told once, not at every try
                self._log.warning("issuer_keys_not_fetched", issuer=live.issuer.name, cause=str(error))
            live.last_error = str(error)
            live.due_at = self._clock() + min(self._period_s(live), self._limits.unknown_kid_refill_s)
        except Exception as error:  # a fault of ours must neither end the refreshing of this issuer nor hide
            live.last_error = f"internal error ({type(error).__name__})"
            live.due_at = self._clock() + self._period_s(live)
            self._log.exception("issuer_keys_not_fetched", issuer=live.issuer.name)
        else:
            self._report(live, loaded, keys or KeySet())
            live.keys, live.loaded, live.last_error, live.good_at = keys, loaded, "", self._clock()
            live.due_at = live.good_at + self._period_s(live)
            outcome = "done"
        finally:
            live.flight = None
            metrics.JWKS_FETCHES.labels(live.issuer.name, outcome).inc()

    def _period_s(self, live: _Live) -> int:
        return self._limits.jwks_file_poll_s if live.issuer.jwks_file is not None else self._limits.jwks_refresh_s

    def _report(self, live: _Live, loaded: Loaded, keys: KeySet) -> None:
        name, before = live.issuer.name, live.loaded
        if before is not None and before.place != loaded.place:
            self._log.error("issuer_keys_moved", issuer=name, before=before.place, now=loaded.place)
        skipped = frozenset((each.kid, each.reason) for each in keys.skipped)
        for each in keys.skipped:
            if (each.kid, each.reason) not in live.reported:
                tell = self._log.error if each.alarm else self._log.warning
                tell("issuer_key_skipped", issuer=name, kid=each.kid, cause=each.reason)
        if not keys.keys and not keys.alone:
            self._log.error("issuer_has_no_usable_key", issuer=name)
        live.reported = skipped


def _settings(issuer: Issuer) -> Settings:
    return (
        issuer.name,
        issuer.url,
        issuer.jwks_url,
        issuer.jwks_file,
        issuer.ca_file,
        issuer.key_use,
        issuer.algorithms,
    )


async def _settled(flights: list[asyncio.Task[None]]) -> None:
    # The tasks are everybody's: who stops waiting does not stop them.
    if flights:
        await asyncio.wait(flights)
