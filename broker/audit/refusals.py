"""The budget of recorded refusals: each one by itself while they are few, in summaries with counts when they are a flood.

A refusal is never answered before it is recorded: beyond the budget it waits for the summary that counts it, which also
slows the flood down.  One tenant's flood leaves the others their own budget (DESIGN §5, Limits).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from broker.audit.record import base, encode
from broker.config import Limits
from broker.telemetry import log, metrics

Append = Callable[[str, bytes, int], Awaitable[None]]
_Key = tuple[str, str, str, str, str]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


@dataclass(slots=True)
class Summary:
    """What one window counted under one key, and who waits for it."""

    count: int = 0
    first_at: float = 0.0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


@dataclass(slots=True)
class RefusalBudget:
    """Decides for each refusal: a record of its own, or a place in the next summary.

    `append(slot, record, now)` writes durably or raises `StoreUnavailable`.
    """

    append: Append
    node: str
    limits: Limits
    _buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)
    _summaries: dict[_Key, Summary] = field(default_factory=dict)
    _flush: asyncio.Task[None] | None = None

    def allows(self, issuer: str, tenant: str, now: float) -> bool:
        """Takes one record from the budget of this issuer and tenant (both empty: not verified); False when it is spent."""
        per_s = self.limits.refusals_per_s if issuer else self.limits.refusals_unverified_per_s
        if len(self._buckets) >= self.limits.refusal_keys_max:
            self._buckets.clear()  # forgetting refills: more records for a moment, never fewer than promised
        bucket = self._buckets.setdefault((issuer, tenant), _Bucket(per_s, now))
        bucket.tokens = min(per_s, bucket.tokens + max(0.0, now - bucket.filled_at) * per_s)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    async def summarise(self, env: str, kind: str, reason: str, issuer: str, tenant: str, now: float) -> None:
        """Counts one refusal in the next summary and waits until that is durable.  Raises `StoreUnavailable`."""
        if len(self._summaries) >= self.limits.refusal_keys_max:
            tenant = ""
        summary = self._summaries.setdefault((env, kind, reason, issuer, tenant), Summary(first_at=now))
        summary.count += 1
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        summary.waiting.append(written)
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._flush_soon(now))
        await written

    async def _flush_soon(self, now: float) -> None:
        await asyncio.sleep(self.limits.refusal_summary_ms / 1000)
        window, self._summaries = self._summaries, {}
        self._flush = None
        for key, summary in window.items():
            await self._write(key, summary, now + self.limits.refusal_summary_ms / 1000)

    async def _write(self, key: _Key, summary: Summary, now: float) -> None:
        env, kind, reason, issuer, tenant = key
        body = base(kind, "refused", env=env, now=now, node=self.node, reason=reason)
        body |= {"act": "summary", "count": summary.count, "window_s": round(now - summary.first_at, 3)}
        body |= {name: value for name, value in (("issuer", issuer), ("tenant", tenant)) if value}
        try:
            await self.append(env, encode(body, self.limits.record_bytes_max), int(now))
        except Exception as error:
            # Every caller that waits hears 503; the log hears why, also where none is left.
            metrics.RECORDS_DROPPED.labels("summary").inc(summary.count)
            log.get("audit").error("a summary of refusals could not be recorded", env=env, count=summary.count, cause=error)
            for written in summary.waiting:
                if not written.done():
                    written.set_exception(error)
            return
        metrics.REFUSALS_SUMMARISED.labels(env).inc(summary.count)
        for written in summary.waiting:
            if not written.done():
                written.set_result(None)
