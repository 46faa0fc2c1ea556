"""One worker's HTTP servers, on sockets that its parent has bound.

uvicorn with httptools and uvloop under our own protocol class; stop is ours, bounded, and exits 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from broker.config import Settings
from broker.web.limits import BoundedProtocol, bounded

DRAIN_MARGIN_S = 3  # of shutdown_s_max, kept for the trace exporter and the store


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the worker owns those."""

    async def on_tick(self, counter: int) -> bool:
        """Ends requests that take too long, and does what uvicorn does ten times a second."""
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def server(app: Any, settings: Settings) -> uvicorn.Server:
    """A server for one application, not started yet."""
    limits = settings.limits
    config = uvicorn.Config(
        app,
        http=bounded(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=max(1, limits.shutdown_s_max - DRAIN_MARGIN_S),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    return _Server(config)


async def serve(servers: list[tuple[uvicorn.Server, list[socket.socket]]], stop: asyncio.Event) -> None:
    """Runs servers until `stop` is set; exchanges under way are finished first, within the grace period."""
    running = [asyncio.create_task(one.serve(sockets=sockets)) for one, sockets in servers]
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
    for one, _ in servers:
        one.should_exit = True
    await asyncio.gather(*running)
    waiting.cancel()
