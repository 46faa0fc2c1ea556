"""Ids that nobody can guess, for requests, records, revocations and credentials.  Never taken from outside.

One reading of the system's randomness serves many of them: a system call for each costs more than deciding does.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Final

ID_BYTES: Final = 15  # 120 random bits, 20 characters
JTI_BYTES: Final = 16  # 128 random bits, 22 characters: no jti is ever met twice
AT_ONCE: Final = 128


def _drawn(octets: int) -> Callable[[], str]:
    ready: list[str] = []  # taken from its end, which is atomic

    def draw() -> str:
        try:
            return ready.pop()
        except IndexError:
            raw = os.urandom(octets * AT_ONCE)
            fresh = [urlsafe_b64encode(raw[at : at + octets]).rstrip(b"=").decode() for at in range(0, len(raw), octets)]
            ready.extend(fresh[1:])
            return fresh[0]

    os.register_at_fork(after_in_child=ready.clear)  # two processes must not go on with the same ids
    return draw


_id = _drawn(ID_BYTES)
new_jti = _drawn(JTI_BYTES)


def new_request_id() -> str:
    """`req_` and 120 random bits."""
    return "req_" + _id()


def new_act_id() -> str:
    """`rev_` and 120 random bits: what a revocation is lifted by, so nothing that a command line takes for an option."""
    return "rev_" + _id()


def new_record_id() -> str:
    """`aud_` and 120 random bits."""
    return "aud_" + _id()
