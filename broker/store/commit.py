"""THE transaction, and the rest of the store as the house sees it.

Stands on model, config.  Called by exchange, admin, revocation, audit, keys, node.  What the server does: functions.lua.
Hot path (`commit`, `append`): one round trip on the hot connection, many calls in one send, nothing sent twice.
Everything else goes through redis-py, which repeats nothing either.  Whatever goes wrong is StoreUnavailable, and
its text carries no user, no password and nothing of what was sent.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, Final, Literal

from redis.exceptions import RedisError, ResponseError

from broker import errors
from broker.config import Limits
from broker.model import SingleUse
from broker.store import names
from broker.store.connect import Connector, parse
from broker.store.functions import Functions, read_library
from broker.store.health import examine
from broker.store.line import Line, code_of, pack
from broker.store.values import (
    Added,
    Appended,
    Commit,
    Committed,
    ConflictAt,
    Contradicted,
    Duplicate,
    Extension,
    Fork,
    LogEntry,
    Outcome,
    ParentRevoked,
    Position,
    RegistrationState,
    Replayed,
    Skewed,
    Stale,
    StoreHealth,
    Unborn,
    Voided,
)
from broker.telemetry import metrics

__all__ = [
    "Added", "Appended", "Commit", "Committed", "ConflictAt", "Contradicted", "Duplicate", "Extension", "Fork", "LogEntry",
    "Outcome", "ParentRevoked", "Position", "RegistrationState", "Replayed", "Skewed", "Stale", "Store", "StoreHealth",
    "Unborn", "Voided",
]  # fmt: skip

_OK: Final = b"OK"


class Store:
    """One store, as a URL names it.  Connects when first used.  Every method raises StoreUnavailable.

    While `held` says why, commits and appends are not even sent; what cuts off still is.
    """

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        """`url` as connect.py lists them.  Raises SettingsInvalid and CannotReach (unreadable TLS files)."""
        self._limits = limits or Limits()
        library = read_library()
        self._connector = Connector(parse(url), self._limits)
        self._client = self._connector.client()
        self._functions = Functions(self._client, library)
        self._line = Line(self._connector, library, self._limits)
        self._commit_name = library.function("commit")
        self._append_name = library.function("append")
        self.held = ""

    @property
    def label(self) -> str:
        """Where the store is, for messages: without user and password."""
        return self._connector.address.label

    # The hot path

    async def commit(self, commit: Commit) -> Outcome:
        """Records one exchange if its node decided under the log's very tag; all or nothing, one round trip.

        Raises StoreUnavailable when it is not known whether it was recorded: then sign nothing, and `void`.
        """
        if self.held:
            raise errors.StoreUnavailable(self.held)
        begun = time.monotonic()
        slot, position, claim, limits = commit.slot, commit.position, commit.claim, self._limits
        prefix = names.prefix(slot)
        keys = [prefix + "head", prefix + "log", prefix + "audit", names.cred(slot, commit.jti), names.tomb(slot, commit.jti)]
        if claim is not None:
            keys.append(names.claim(slot, claim.key))
        for parent in commit.parents:
            keys.append(names.cred(slot, parent))
        answer = await self._line.call(
            pack(
                "FCALL", self._commit_name, len(keys), *keys,
                position.index, position.tag, commit.now, commit.id, commit.record, commit.registration, commit.cred_until,
                limits.store_clock_skew_s, limits.stale_entries_max, "" if claim is None else claim.until,
            )
        )  # fmt: skip
        elapsed_s = time.monotonic() - begun
        metrics.STORE_SECONDS.observe(elapsed_s, "commit")
        code = _code(answer)
        if code == _OK:
            return Committed(elapsed_s)
        return _refusal(code, answer)

    async def append(
        self, slot: str, record: bytes, *, position: Position | None = None, claim: SingleUse | None = None, now: int
    ) -> Appended | Stale | Unborn | Replayed:
        """Puts one record into the slot's stream.

        With `position` it is a dry run's: it hears what a commit would hear of the log, of a used-up `claim` and of the
        clocks (StoreUnavailable), and uses up nothing.  Without, the record is written whatever the slot's state.
        """
        if self.held:
            raise errors.StoreUnavailable(self.held)
        keys = [names.audit(slot)]
        args: list[str | bytes | int] = [record]
        if position is not None:
            keys += [names.head(slot), names.log(slot)]
            args += [position.index, position.tag, now, self._limits.store_clock_skew_s, self._limits.stale_entries_max]
            if claim is not None:
                keys.append(names.claim(slot, claim.key))
        begun = time.monotonic()
        answer = await self._line.call(pack("FCALL", self._append_name, len(keys), *keys, *args))
        metrics.STORE_SECONDS.observe(time.monotonic() - begun, "append")
        code = _code(answer)
        if code == _OK:
            return Appended()
        match _refusal(code, answer):
            case Stale() | Unborn() | Replayed() as refusal:
                return refusal
            case _:
                raise errors.StoreUnavailable("the clocks of node and store are too far apart")

    # Cutting off

    async def void(
        self, slot: str, *, jti: str, id: str, claim: SingleUse | None, tomb_until: int, record: bytes
    ) -> bool:
        """Gives up a credential that nobody received, also before its commit arrives; its claim on the token is dropped.

        True: it is void, from now on or already.  False: `jti` is registered under another `id`; nothing was done.
        `tomb_until` (epoch seconds): as long as a late commit could still arrive.
        """
        keys = (names.audit(slot), names.cred(slot, jti), names.tomb(slot, jti))
        keys += (names.claim(slot, claim.key),) if claim else ()
        answer = await self._call("void", keys, (id, tomb_until, record, self._limits.store_clock_skew_s))
        return _code(answer) in {_OK, b"DUP"}

    async def mark(self, slot: str, jti: str, record: bytes) -> Literal["revoked", "duplicate", "absent"]:
        """Revokes one credential without moving the chain of tags, so that others go on committing."""
        answer = await self._call("mark", (names.audit(slot), names.cred(slot, jti)), (record,))
        words: dict[bytes, Literal["revoked", "duplicate", "absent"]] = {
            _OK: "revoked", b"DUP": "duplicate", b"ABSENT": "absent",
        }  # fmt: skip
        return words[_code(answer)]

    # The log of revocations

    async def birth(self, slot: str, tag: str, entry: str, record: bytes) -> bool:
        """Begins the slot's log with number 0.  False: it has been begun already; read it."""
        answer = await self._call("birth", (names.head(slot), names.log(slot), names.audit(slot)), (tag, entry, record))
        if _code(answer) == b"BAD":
            raise errors.StoreUnavailable("the slot has a log but no head: the store is damaged")
        return _code(answer) == _OK

    async def read(self, slot: str, position: Position | None) -> Extension | Fork | Unborn:
        """The page of entries behind `position`, or from the start; unverified: whoever reads checks each tag."""
        place = ("", "") if position is None else (position.index, position.tag)
        answer = await self._call("read", (names.head(slot), names.log(slot)), (*place, self._limits.log_page_max))
        match _code(answer):
            case b"EXTENSION":
                return Extension(_entries(answer[2]), more=int(answer[1]) > 0)
            case b"FORK":
                return Fork()
            case _:
                return Unborn()

    async def add(
        self, slot: str, *, previous: Position, n: int, tag: str, entry: str, id: str, digest: str, record: bytes
    ) -> Added | Duplicate | ConflictAt | Unborn | Contradicted:
        """Puts an entry behind `previous`, if the log still ends there.  Repeating a call that may have arrived is safe."""
        keys = (names.head(slot), names.log(slot), names.ids(slot), names.audit(slot))
        answer = await self._call("add", keys, (previous.tag, n, tag, entry, id, digest, record))
        match _code(answer):
            case b"OK":
                return Added()
            case b"DUP":
                return Duplicate(int(answer[1]))
            case b"CONFLICT":
                return ConflictAt(int(answer[1]), answer[2].decode())
            case b"UNBORN":
                return Unborn()
            case _:
                return Contradicted()

    # Keys to sign with

    async def keys_get(self, slot: str) -> tuple[int, bytes] | None:
        """Version and bytes of the slot's key ring; None before the first."""
        version, ring = await self._answered(self._client.hmget(names.keys(slot), ["version", "ring"]))
        return None if version is None else (int(version), ring)

    async def keys_swap(self, slot: str, expected_version: int, ring: bytes, record: bytes) -> bool:
        """Replaces the ring if its version still is `expected_version` (0: none yet); the new one is one higher."""
        answer = await self._call("keys_swap", (names.audit(slot), names.keys(slot)), (expected_version, ring, record))
        return _code(answer) == _OK

    # Reading

    async def records(
        self, slot: str, *, newest_first: bool = True, start: str | None = None, end: str | None = None, count: int = 256
    ) -> list[tuple[str, bytes]]:
        """A page of the audit stream: (id, record).  Ids are `MS-N`, milliseconds since the epoch; `start` is the older bound.

        Both bounds are included; `(ID` leaves one out, which is how the next page is asked for.
        """
        low, high = start or "-", end or "+"
        if newest_first:
            found = await self._answered(self._client.xrevrange(names.audit(slot), high, low, count))
        else:
            found = await self._answered(self._client.xrange(names.audit(slot), low, high, count))
        return [(place.decode(), members[names.RECORD_MEMBER]) for place, members in found]

    async def registration(self, slot: str, jti: str) -> tuple[RegistrationState, bytes] | None:
        """State and facts of a credential; None: never registered here, or over."""
        state, facts = await self._answered(self._client.hmget(names.cred(slot, jti), ["state", "facts"]))
        return None if state is None else (state.decode(), facts)

    async def slots(self) -> tuple[str, ...]:
        """The envs that have a log, sorted; by a scan of all keys, so not for a hot path."""
        found: set[str] = set()
        cursor = 0
        while True:
            cursor, keys = await self._answered(self._client.scan(cursor, match=names.HEADS, count=self._limits.scan_keys))
            found.update(names.slot_of(key.decode()) for key in keys)
            if cursor == 0:
                return tuple(sorted(found - {names.SYSTEM_SLOT}))

    async def now(self) -> float:
        """The server's clock, epoch seconds."""
        seconds, microseconds = await self._answered(self._client.time())
        return float(seconds) + float(microseconds) / 1_000_000

    async def check(self) -> StoreHealth:
        """What the server says of itself; never raises."""
        return await examine(self._client, self.label)

    async def close(self) -> None:
        """Ends all connections."""
        await self._line.close()
        await self._client.aclose()
        await self._connector.close()

    async def _call(self, short: str, keys: tuple[str, ...], args: tuple[str | bytes | int, ...]) -> list[Any]:
        begun = time.monotonic()
        try:
            return await self._answered(self._functions.call(short, keys, args))
        finally:
            metrics.STORE_SECONDS.observe(time.monotonic() - begun, short)

    async def _answered(self, pending: Awaitable[Any]) -> Any:
        try:
            return await pending
        except ResponseError as error:
            raise errors.StoreUnavailable(f"the store answers {code_of(error)}") from error
        except (RedisError, OSError, TimeoutError) as error:
            # Not `from error`: a library's text may hold what the URL held.
            raise errors.StoreUnavailable(f"no answer from the store at {self.label}: {type(error).__name__}") from None


def _code(answer: Any) -> bytes:
    if type(answer) is not list or not answer or type(answer[0]) is not bytes:
        raise errors.StoreUnavailable("the store's answer is of no known form")
    return answer[0]


def _refusal(code: bytes, answer: list[Any]) -> Stale | Unborn | Replayed | ParentRevoked | Voided | Skewed | Contradicted:
    match code:
        case b"STALE":
            return Stale(_entries(answer[3]) if len(answer) > 3 else None)
        case b"SKEW":
            return Skewed(float(answer[1]))
        case b"UNBORN":
            return Unborn()
        case b"REPLAY":
            return Replayed()
        case b"REVOKED":
            return ParentRevoked()
        case b"VOID":
            return Voided()
        case _:
            return Contradicted()


def _entries(elements: list[bytes]) -> tuple[LogEntry, ...]:
    parts = (element.decode().split(" ", 2) for element in elements)
    return tuple(LogEntry(int(n), tag, text) for n, tag, text in parts)
