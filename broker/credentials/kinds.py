"""The kinds of credentials by name: each prepares a Draft before the commit and issues it after.

A kind is two functions, so that nothing can be issued that was not prepared, recorded and committed first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker.credentials import access_token
from broker.keys.rotation import KeyRings
from broker.model import Draft, Grant, Issued, Workload

Prepare = Callable[[Grant, Workload, KeyRings, str, int], Draft]
Issue = Callable[[Draft, KeyRings, int], Issued]


@dataclass(frozen=True, slots=True)
class Kind:
    """`prepare(grant, workload, rings, issuer, now)` signs nothing; `issue(draft, rings, now)` decides nothing."""

    name: str
    prepare: Prepare
    issue: Issue


KINDS: Mapping[str, Kind] = {
    access_token.NAME: Kind(access_token.NAME, access_token.prepare, access_token.issue),
}
