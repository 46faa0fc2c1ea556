"""The chains of this node: read, verify, follow, extend (STATE.md, "A node").

A slot whose log does not verify, or shows less than its witness, is closed: every exchange of it answers 503, loudly.

What is said for every env stands in the log of the slot `system` too, and each env's log is brought level with that one
whenever a node opens it.  Whoever says it writes there first and counts the envs after: an env that is born meanwhile was
born after the count, so its opening, which reads that log after the birth, finds it.
Stands on store; keys arrive as bytes.  Called by exchange.py (view, catch_up) and admin/ (extend).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from secrets import token_hex

from broker.errors import ActRefused, StoreUnavailable
from broker.protocol.revocations import Entry, in_force, parse_entry, tag
from broker.revocation.view import RevocationView, view_of
from broker.store.commit import Added, ConflictAt, Contradicted, Duplicate, Fork, LogEntry, Position, Stale, Store, Unborn
from broker.store.names import SYSTEM_SLOT
from broker.store.witness import Seen, Witness
from broker.telemetry import log

EXTEND_TRIES_MAX = 100  # each lost race means that somebody else's revocation went in


@dataclass(slots=True)
class Revocations:
    """The views of all slots.  `key` is k_rev.

    `record(slot, act, revocation)` builds the audit record of what this node does by itself: a birth, an entry passed on.
    """

    store: Store
    key: bytes
    witness: Witness
    record: Callable[[str, str, str], bytes]
    _views: dict[str, RevocationView] = field(default_factory=dict)
    _closed: dict[str, str] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _must_hold: dict[str, Seen] = field(default_factory=dict)

    def view(self, slot: str) -> RevocationView:
        """What this node knows of `slot`.  Raises `StoreUnavailable` while the slot is closed or was never read."""
        if slot in self._closed:
            raise StoreUnavailable(f"slot {slot} is closed: {self._closed[slot]}")
        if slot not in self._views:
            raise StoreUnavailable(f"slot {slot} has not been read yet")
        return self._views[slot]

    @property
    def closed(self) -> Mapping[str, str]:
        """Closed slots and why."""
        return dict(self._closed)

    async def open(self, slot: str, now: float) -> None:
        """Reads a slot's whole log; gives birth to it where none is and no witness knows one (STATE.md, start).

        An env's log then receives what was said for every env and it does not have.
        """
        async with self._lock(slot):
            await self._open(slot, now)
        if slot != SYSTEM_SLOT:
            await self._level(slot, now)

    async def catch_up(self, slot: str, news: Stale | None = None) -> None:
        """Follows the log to its present end; `news` may bring the next entries along."""
        async with self._lock(slot):
            if news is not None and news.entries and slot in self._views:
                known = self._views[slot].position
                if news.entries[0].n > known.n:
                    self._extend_view(slot, news.entries)
            await self._follow(slot)

    async def extend(self, slot: str, entry: Entry, record: bytes) -> int:
        """Adds an entry, again until it is in or was in already; its number.

        Raises `StoreUnavailable`: it may have taken effect; `ActRefused`: its id is another entry's.
        """
        if slot not in self._views and slot not in self._closed:
            await self.open(slot, entry.at)
        for _ in range(EXTEND_TRIES_MAX):
            await self.catch_up(slot)
            view = self.view(slot)
            text, n = entry.canonical(), view.position.n + 1
            fresh = tag(self.key, slot, n, view.position.tag, text)
            answer = await self.store.add(
                slot, previous=view.position, n=n, tag=fresh, entry=text, id=entry.id, digest=entry.digest(), record=record
            )
            match answer:
                case Added():
                    await self.catch_up(slot)
                    return n
                case Duplicate(n=known):
                    await self.catch_up(slot)
                    return known
                case ConflictAt():
                    continue
                case Contradicted():
                    raise ActRefused(f"`{entry.id}` is another act in {slot}")
                case _:
                    raise StoreUnavailable(f"the log of {slot} refused an entry: {type(answer).__name__}")
        raise StoreUnavailable(f"the log of {slot} moved faster than this node could follow")

    async def envs(self) -> tuple[str, ...]:
        """The envs whose logs have begun, whoever serves them.  Raises `StoreUnavailable`."""
        return await self.store.slots()

    async def _open(self, slot: str, now: float) -> None:
        self._closed.pop(slot, None)
        self._views.pop(slot, None)
        self._must_hold.pop(slot, None)
        try:
            seen = self.witness.read().get(slot)
        except ValueError as error:
            return self._close(slot, str(error))
        if seen is not None:
            self._must_hold[slot] = seen
        if isinstance(await self.store.read(slot, None), Unborn):
            if seen is not None:
                return self._close(slot, "the store holds no revocation log, but this machine has seen one: an older copy?")
            await self._birth(slot, now)
        await self._follow(slot)
        if slot in self._views and seen is not None and self._views[slot].position.n < seen.n:
            self._close(slot, f"the store's log does not hold entry {seen.n} that was seen before: an older copy was restored")
        return None

    async def _level(self, slot: str, now: float) -> None:
        owed: list[Entry] | None = None
        while slot not in self._closed and owed != []:
            async with self._lock(SYSTEM_SLOT):
                await (self._follow(SYSTEM_SLOT) if SYSTEM_SLOT in self._views else self._open(SYSTEM_SLOT, now))
            if SYSTEM_SLOT in self._closed:
                return self._close(slot, f"what holds in every env cannot be read: {self._closed[SYSTEM_SLOT]}")
            owed = self._owed(slot, now)
            for entry in owed:
                await self.extend(slot, entry, self.record(slot, "revocation_of_every_env", entry.lifts or entry.id))
        return None

    def _owed(self, slot: str, now: float) -> list[Entry]:
        """What was said for every env and this log lacks: rules in force, and lifts of rules that stand in it."""
        own, said = self.view(slot).entries, self.view(SYSTEM_SLOT).entries
        known, standing = {entry.id for entry in own}, {entry.id for entry in in_force(own, now)}
        rules = [entry for entry in in_force(said, now) if entry.id not in known]
        return rules + [entry for entry in said if entry.lifts in standing and entry.id not in known]

    async def _birth(self, slot: str, now: float) -> None:
        entry = Entry(id=token_hex(16), act="birth", by="broker", at=int(now))
        text = entry.canonical()
        await self.store.birth(slot, tag(self.key, slot, 0, "", text), text, self.record(slot, "revocation_log_birth", ""))

    async def _follow(self, slot: str) -> None:
        while True:
            view = self._views.get(slot)
            answer = await self.store.read(slot, view.position if view else None)
            if isinstance(answer, Unborn):
                return self._close(slot, "the revocation log is gone from the store")
            if isinstance(answer, Fork):
                return self._close(slot, "the store shows another history than this node has read")
            if answer.entries:
                self._extend_view(slot, answer.entries)
            if not answer.more or slot in self._closed:
                return None

    def _extend_view(self, slot: str, fresh: tuple[LogEntry, ...]) -> None:
        view = self._views.get(slot)
        entries = list(view.entries) if view else []
        position = view.position if view else None
        for item in fresh:
            previous = position.tag if position else ""
            if tag(self.key, slot, item.n, previous, item.text) != item.tag or (position and item.n <= position.n):
                return self._close(slot, f"entry {item.n} of the revocation log does not verify: wrong key, or tampering")
            must = self._must_hold.get(slot)
            if must is not None and item.n >= must.n > (position.n if position else -1) and item.tag != must.tag:
                return self._close(slot, f"the store shows another entry {must.n} than was seen before: another history")
            try:
                entries.append(parse_entry(item.text))
            except ValueError:
                return self._close(slot, f"entry {item.n} of the revocation log cannot be read")
            position = Position(index=position.index + 1 if position else 0, n=item.n, tag=item.tag)
        if position is not None:
            self._views[slot] = view_of(slot, position, tuple(entries))
            self.witness.note(slot, Seen(position.n, position.tag))
        return None

    def _close(self, slot: str, why: str) -> None:
        self._closed[slot] = why
        log.get("revocation").error("slot closed", slot=slot, why=why)

    def _lock(self, slot: str) -> asyncio.Lock:
        return self._locks.setdefault(slot, asyncio.Lock())
