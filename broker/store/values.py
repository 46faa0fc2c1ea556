"""What goes into the store and what it answers: frozen values, one type for each answer.

Stands on model.  Used by every room above; `broker.store.commit` hands them on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from broker.model import SingleUse

RegistrationState = Literal["live", "void", "revoked"]


class Position(Struct, frozen=True):
    """Where a node stands in a slot's log: index of the last entry that it holds, that entry's number and tag."""

    index: int
    n: int
    tag: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One element of a slot's log: number, tag, the entry's canonical text.  Unverified: the store computes no tags."""

    n: int
    tag: str
    text: str


class Commit(Struct, frozen=True):
    """One exchange, ready to be recorded.

    `now` and `cred_until` are epoch seconds of the node's clock, `id` the request's, `record` the audit record,
    `registration` the facts that a revocation may look at later, `parents` the `jti` of credentials that this one hangs on.
    """

    slot: str
    position: Position
    now: int
    id: str
    jti: str
    cred_until: int
    record: bytes
    registration: bytes
    claim: SingleUse | None = None
    parents: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Says which commit, and nothing of what it writes."""
        return f"Commit({self.slot} {self.id} {self.jti})"


# What a commit hears


class Committed(Struct, frozen=True):
    """Recorded, durably.  `elapsed_s` counts from before the write to the answer, on the monotonic clock."""

    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Stale:
    """Nothing was written: the log has moved on.  `entries` follow the node's own; None: its history is another, or longer
    than the answer may be; read the log.  There may be more behind the last one."""

    entries: tuple[LogEntry, ...] | None


@dataclass(frozen=True, slots=True)
class Unborn:
    """This slot has no log here: never born, or lost."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The subject token's single use belongs to another exchange."""


@dataclass(frozen=True, slots=True)
class ParentRevoked:
    """The credential itself or one that it hangs on is revoked, void or unknown."""


@dataclass(frozen=True, slots=True)
class Voided:
    """This credential was given up before its commit arrived."""


@dataclass(frozen=True, slots=True)
class Skewed:
    """The node's clock is too far from the server's; `server_now` in epoch seconds."""

    server_now: float


@dataclass(frozen=True, slots=True)
class Contradicted:
    """The call contradicts itself or what is stored (BAD): a bug, or a forged `jti`.  Nothing was written."""


Outcome = Committed | Stale | Unborn | Replayed | ParentRevoked | Voided | Skewed | Contradicted


# What the other functions answer


@dataclass(frozen=True, slots=True)
class Appended:
    """The record is in the stream, durably."""


@dataclass(frozen=True, slots=True)
class Extension:
    """The page of entries behind the position that was asked for; `more` follow."""

    entries: tuple[LogEntry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Fork:
    """The store's history does not contain the position: read it from the start."""


@dataclass(frozen=True, slots=True)
class Added:
    """The entry is the log's new end."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """This very entry is in the log already, under number `n`."""

    n: int


@dataclass(frozen=True, slots=True)
class ConflictAt:
    """The log ends elsewhere: catch up, then add again."""

    n: int
    tag: str


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What the server says of itself.  None: it would not tell (managed services hide CONFIG); empty: not reachable."""

    reachable: bool
    detail: str = ""
    software: str = ""
    version: str = ""
    role: str = ""
    replicas: int = 0
    appendonly: bool | None = None
    appendfsync: str | None = None
    fsync_on_rewrite: bool | None = None
    maxmemory_policy: str | None = None
    aof_writable: bool | None = None

    @property
    def durability(self) -> Literal["disk", "unverified"]:
        """`disk`: every answer follows its fsync.  `unverified`: that is not so, or it cannot be seen."""
        synced = self.appendonly and self.appendfsync == "always" and self.fsync_on_rewrite and self.aof_writable is not False
        return "disk" if self.reachable and synced else "unverified"

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps this server from being used at all, each as a sentence for an operator."""
        found: list[str] = []
        if not self.reachable:
            found.append(self.detail or "the store does not answer")
        elif self.role not in {"master", ""}:
            found.append(f"the store is a {self.role}, not a primary")
        if self.maxmemory_policy not in {None, "noeviction"}:
            found.append(f"maxmemory-policy is {self.maxmemory_policy}: it may drop revocations; it must be noeviction")
        if self.aof_writable is False:
            found.append("the store cannot write its append-only file")
        return tuple(found)
