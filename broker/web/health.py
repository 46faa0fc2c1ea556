"""Liveness, readiness, metrics.

Liveness asks only whether this process answers: a store that is away must not make an orchestrator kill the broker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.telemetry import metrics


@dataclass(frozen=True, slots=True)
class Readiness:
    """`failing` names what makes the node unfit (store, keys, policy, stopping); `degraded` what an operator should look at."""

    failing: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    durability: str = "unverified"
    workers: tuple[Mapping[str, Any], ...] = ()

    @property
    def ready(self) -> bool:
        """Whether traffic should come."""
        return not self.failing


Ask = Callable[[], Awaitable[Readiness]]


async def healthz(_request: Request) -> Response:
    """200 as long as the process serves."""
    return JSONResponse({"status": "ok"}, headers={"cache-control": "no-store"})


def readyz(ask: Ask) -> Callable[[Request], Awaitable[Response]]:
    """503 only for store, keys, no tree ever loaded, stopping; else 200, with what is degraded."""

    async def answer(_request: Request) -> Response:
        state = await ask()
        body = {
            "ready": state.ready,
            "failing": dict(state.failing),
            "degraded": list(state.degraded),
            "durability": state.durability,
            "workers": [dict(worker) for worker in state.workers],
        }
        headers = {"cache-control": "no-store"} | ({} if state.ready else {"retry-after": "1"})
        return JSONResponse(body, status_code=200 if state.ready else 503, headers=headers)

    return answer


async def exposition(_request: Request) -> Response:
    """Prometheus text, the sum over workers."""
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4", headers={"cache-control": "no-store"})
