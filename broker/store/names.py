"""Every key of the store, and how long it lives.  Nobody else spells a key.

    broker:{SLOT}:head      hash n, tag: where the slot's revocation log ends                        for ever
    broker:{SLOT}:log       list of "n tag entry", append-only; the first is the birth entry          for ever
    broker:{SLOT}:ids       hash: entry id -> "n digest"                                              for ever
    broker:{SLOT}:claim:H   who holds the single use of a subject token                               until it cannot be accepted
    broker:{SLOT}:cred:JTI  hash id, state (live, void, revoked), facts: a registration               until the credential's end
    broker:{SLOT}:tomb:JTI  this credential was voided, perhaps before its commit arrived             until no commit can arrive
    broker:{SLOT}:audit     stream of audit records, member `r`                                       until drained
    broker:{SLOT}:keys      hash version, ring: what the slot signs with                              for ever

A slot is an env, or `system`.  Its braces are the hash tag: one exchange touches one slot of a cluster.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

SYSTEM_SLOT: Final = "system"
HEADS: Final = "broker:{*}:head"
RECORD_MEMBER: Final = b"r"
_SLOT: Final = re.compile(r"[a-z][a-z0-9-]*(?:\.[0-9a-f]+)?")
_SLOTS_CACHED_MAX: Final = 1_024


@lru_cache(maxsize=_SLOTS_CACHED_MAX)
def prefix(slot: str) -> str:
    """What all keys of a slot begin with.  Raises ValueError for a name that could leave its braces."""
    if _SLOT.fullmatch(slot) is None:
        raise ValueError("a slot is named like an env: a-z, then a-z, 0-9 and -")
    return f"broker:{{{slot}}}:"


def head(slot: str) -> str:
    """Where the slot's log ends."""
    return prefix(slot) + "head"


def log(slot: str) -> str:
    """The slot's revocation log."""
    return prefix(slot) + "log"


def ids(slot: str) -> str:
    """Which entries the log has, by their ids."""
    return prefix(slot) + "ids"


def claim(slot: str, key: str) -> str:
    """The single use of one subject token; `key` is its hash."""
    return prefix(slot) + "claim:" + key


def cred(slot: str, jti: str) -> str:
    """One credential's registration."""
    return prefix(slot) + "cred:" + jti


def tomb(slot: str, jti: str) -> str:
    """One voided credential."""
    return prefix(slot) + "tomb:" + jti


def audit(slot: str) -> str:
    """The slot's stream of audit records."""
    return prefix(slot) + "audit"


def keys(slot: str) -> str:
    """The slot's key ring."""
    return prefix(slot) + "keys"


def slot_of(key: str) -> str:
    """The slot that a key belongs to."""
    return key[key.index("{") + 1 : key.index("}")]
