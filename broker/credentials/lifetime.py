"""How long a credential lives: the least of all limits.  Pure."""

from __future__ import annotations


def ttl_s(*limits: float | None) -> int:
    """The least of the limits that are given, in whole seconds, rounded down.

    A limit of None does not bind.  Zero or less means that the credential would be dead at birth; with no limit at all
    there is no life either: both give 0, and the caller refuses.
    """
    given = [limit for limit in limits if limit is not None]
    return max(0, int(min(given))) if given else 0
