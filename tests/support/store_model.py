"""A store in memory, as small as its promises: oracle of the property tests, and proof that the suite tests no server."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice

from broker.errors import StoreUnavailable
from broker.model import SingleUse
from broker.store import commit as s

SKEW_S, TOLD_MAX, PAGE_MAX = 5, 16, 256


@dataclass
class Slot:
    log: list[s.LogEntry] = field(default_factory=list)
    ids: dict[str, tuple[int, str]] = field(default_factory=dict)
    creds: dict[str, list] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    tombs: set[str] = field(default_factory=set)
    audit: list[tuple[str, bytes]] = field(default_factory=list)
    ring: tuple[int, bytes] | None = None

    def record(self, raw: bytes) -> None:
        self.audit.append((f"{len(self.audit)}-0", raw))

    def holds(self, at: s.Position) -> bool:
        return at.index < len(self.log) and self.log[at.index].tag == at.tag

    def behind(self, at: s.Position, now: float) -> s.Unborn | s.Stale | s.Skewed | None:
        if not self.log:
            return s.Unborn()
        if self.log[-1].tag != at.tag:
            return s.Stale(tuple(islice(self.log, at.index + 1, at.index + 1 + TOLD_MAX)) if self.holds(at) else None)
        return s.Skewed(time.time()) if abs(time.time() - now) > SKEW_S else None


class ModelStore:
    """The API of broker.store.commit.Store.  Nothing awaits, so every method is one atomic step."""

    def __init__(self) -> None:
        self.at: dict[str, Slot] = defaultdict(Slot)
        self.ahead_s = 0.0

    async def commit(self, c: s.Commit) -> s.Outcome:
        at = self.at[c.slot]
        if behind := at.behind(c.position, c.now):
            return behind
        if any(at.creds.get(parent, ["", ""])[1] != "live" for parent in c.parents):
            return s.ParentRevoked()
        if c.jti in at.tombs:
            return s.Voided()
        if known := at.creds.get(c.jti):
            return s.Contradicted() if known[0] != c.id else s.Committed(0.0) if known[1] == "live" else s.ParentRevoked()
        if c.claim and at.claims.get(c.claim.key, c.id) != c.id:
            return s.Replayed()
        if c.cred_until <= c.now or (c.claim and c.claim.until <= time.time()):
            return s.Contradicted()
        at.record(c.record)
        at.creds[c.jti] = [c.id, "live", c.registration]
        at.claims |= {c.claim.key: c.id} if c.claim else {}
        return s.Committed(0.0)

    async def append(self, slot: str, record: bytes, *, position=None, claim: SingleUse | None = None, now: int):
        at = self.at[slot]
        if position and (behind := at.behind(position, now)):
            if isinstance(behind, s.Skewed):
                raise StoreUnavailable
            return behind
        if position and claim and claim.key in at.claims:
            return s.Replayed()
        at.record(record)
        return s.Appended()

    async def void(self, slot: str, *, jti: str, id: str, claim: SingleUse | None, tomb_until: int, record: bytes) -> bool:
        at = self.at[slot]
        known = at.creds.get(jti)
        if jti in at.tombs or (known and known[0] != id):
            return jti in at.tombs
        at.record(record)
        at.tombs.add(jti)
        if claim and at.claims.get(claim.key) == id:
            del at.claims[claim.key]
        if known and known[1] == "live":
            known[1] = "void"
        return True

    async def mark(self, slot: str, jti: str, record: bytes) -> str:
        known = self.at[slot].creds.get(jti)
        if not known or known[1] == "revoked":
            return "duplicate" if known else "absent"
        self.at[slot].record(record)
        known[1] = "revoked"
        return "revoked"

    async def birth(self, slot: str, tag: str, entry: str, record: bytes) -> bool:
        at = self.at[slot]
        if not at.log:
            at.record(record)
            at.log.append(s.LogEntry(0, tag, entry))
            return True
        return False

    async def read(self, slot: str, position: s.Position | None) -> s.Extension | s.Fork | s.Unborn:
        at = self.at[slot]
        if not at.log or (position and not at.holds(position)):
            return s.Fork() if at.log else s.Unborn()
        begin = position.index + 1 if position else 0
        return s.Extension(tuple(at.log[begin : begin + PAGE_MAX]), more=len(at.log) > begin + PAGE_MAX)

    async def add(self, slot: str, *, previous: s.Position, n: int, tag: str, entry: str, id: str, digest: str, record: bytes):
        at = self.at[slot]
        if not at.log:
            return s.Unborn()
        if id in at.ids:
            return s.Duplicate(at.ids[id][0]) if at.ids[id][1] == digest else s.Contradicted()
        if (head := at.log[-1]).tag != previous.tag:
            return s.ConflictAt(head.n, head.tag)
        if n <= head.n:
            return s.Contradicted()
        at.record(record)
        at.log.append(s.LogEntry(n, tag, entry))
        at.ids[id] = (n, digest)
        return s.Added()

    async def keys_get(self, slot: str) -> tuple[int, bytes] | None:
        return self.at[slot].ring

    async def keys_swap(self, slot: str, expected_version: int, ring: bytes, record: bytes) -> bool:
        at = self.at[slot]
        if (at.ring[0] if at.ring else 0) != expected_version:
            return False
        at.record(record)
        at.ring = (expected_version + 1, ring)
        return True

    async def records(self, slot: str, *, newest_first: bool = True, start=None, end=None, count: int = 256):
        low, high = (bound and (int(bound.strip("(").split("-")[0]), bound[0] == "(") for bound in (start, end))
        found = [
            (place, raw)
            for number, (place, raw) in enumerate(self.at[slot].audit)
            if (not low or number >= low[0] + low[1]) and (not high or number <= high[0] - high[1])
        ]
        return (found[::-1] if newest_first else found)[:count]

    async def registration(self, slot: str, jti: str) -> tuple[str, bytes] | None:
        known = self.at[slot].creds.get(jti)
        return (known[1], known[2]) if known else None

    async def slots(self) -> tuple[str, ...]:
        return tuple(sorted(slot for slot, at in self.at.items() if at.log and slot != "system"))

    async def now(self) -> float:
        return time.time() + self.ahead_s

    async def check(self) -> s.StoreHealth:
        return s.StoreHealth(reachable=True, role="master", maxmemory_policy="noeviction")

    async def close(self) -> None:
        self.at.clear()
