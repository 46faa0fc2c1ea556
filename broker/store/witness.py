"""The witness: a small file outside the store's folder that remembers how far each revocation log and key ring has come.

If the store ever shows less than its witness, an older copy was restored: revocations may be missing, and keys that were
condemned may be back.  What is behind serves nothing then.  Written under a lock, only upwards, fsynced after each change.
Used by revocation/ and keys/; a log stands under its slot's name, a ring under `ring_of(slot)`.

Read it before the store is asked: whatever it holds by then, the store has shown to somebody.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Seen:
    """The furthest that was ever seen: of a log its last entry's number and tag, of a ring its version and its hash."""

    n: int
    tag: str


def ring_of(slot: str) -> str:
    """The name under which a slot's key ring stands in the witness; no slot is called so."""
    return f"{slot}/keys"


def ring_seen(version: int, ring: bytes) -> Seen:
    """A key ring as the witness remembers it."""
    return Seen(version, hashlib.sha256(ring).hexdigest())


@dataclass(frozen=True, slots=True)
class Witness:
    """The file at `path`.  Several workers and nodes of one machine may share it."""

    path: Path

    def read(self) -> dict[str, Seen]:
        """What was seen, by name; empty where no file is.  Raises ValueError on a damaged file: it proves nothing then."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return {}
        try:
            body = json.loads(text)
            return {name: Seen(int(seen["n"]), str(seen["tag"])) for name, seen in body.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            hint = "move it away only if you know that the store is the newest copy"
            raise ValueError(f"{self.path} is damaged; {hint}") from None

    def note(self, name: str, seen: Seen) -> None:
        """Remembers `seen` if it is further than what the file holds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.read()
            if name in known and known[name].n >= seen.n:
                return
            known[name] = seen
            self._replace({name: {"n": entry.n, "tag": entry.tag} for name, entry in sorted(known.items())})
        finally:
            os.close(lock)

    def _replace(self, body: dict[str, dict[str, object]]) -> None:
        fresh = self.path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(body).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.rename(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
