"""Reading the audit log: search and tail over the streams of all slots.

Records live in the store's streams, oldest first; a stream id is the server's time in milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.store.commit import Store

PAGE = 256
TAIL_PAUSE_S = 0.25
FIELDS = ("outcome", "reason", "service_account", "issuer", "jti", "request_id", "kind", "trace_id", "subject")


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for: exact values of fields, and a time window in epoch seconds (None: open)."""

    envs: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    fields: Mapping[str, str] | None = None
    limit: int = 100  # 0 = all

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether a record holds every value asked for."""
        return all(str(record.get(name, "")) == value for name, value in (self.fields or {}).items())


async def search(store: Store, query: Query) -> list[dict[str, Any]]:
    """Matching records, newest first, over the streams of the envs asked for (none named: all).  Raises `StoreUnavailable`."""
    slots = query.envs or await store.slots()
    pages = [await _search_slot(store, slot, query) for slot in slots]
    found = sorted((item for page in pages for item in page), key=lambda item: item["time"], reverse=True)
    return found[: query.limit] if query.limit else found


async def _search_slot(store: Store, slot: str, query: Query) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    start = str(int(query.since * 1000)) if query.since is not None else None
    end = str(int(query.until * 1000)) if query.until is not None else None
    while True:
        page = await store.records(slot, newest_first=True, start=start, end=end, count=PAGE)
        for _, raw in page:
            record = decode(raw)
            if query.matches(record):
                found.append(record)
                if query.limit and len(found) >= query.limit:
                    return found
        if len(page) < PAGE:
            return found
        end = "(" + page[-1][0]


async def tail(store: Store, slots: Sequence[str], query: Query, stop: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
    """Matching records as they come, from now on, until `stop` is set.  Raises `StoreUnavailable`."""
    moment = str(int(await store.now() * 1000))
    cursors = dict.fromkeys(slots, moment)
    while not stop.is_set():
        quiet = True
        for slot in slots:
            page = await store.records(slot, newest_first=False, start="(" + cursors[slot], count=PAGE)
            for stream_id, raw in page:
                cursors[slot] = stream_id
                quiet = False
                record = decode(raw)
                if query.matches(record):
                    yield record
        if quiet:
            try:
                await asyncio.wait_for(stop.wait(), TAIL_PAUSE_S)
            except TimeoutError:
                continue


def decode(raw: bytes) -> dict[str, Any]:
    """A record from its line; one that cannot be read is shown as what it is."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        body = None
    return body if isinstance(body, dict) else {"id": "", "time": "", "kind": "unreadable", "outcome": "unknown"}
