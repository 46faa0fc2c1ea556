"""A worker process: one node, its HTTP servers, and the line to its parent.

The pipe to the parent is also the lifeline: when the parent is gone, in whatever way, reading it ends and so does the
worker; no orphan stays on the port.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from broker.config import Settings
from broker.errors import BrokerError, OperatorError, PolicyInvalid
from broker.keys.sealed import key_encryption_key
from broker.node import Node
from broker.telemetry import log
from broker.web.app import Site, admin_app, public_app
from broker.web.endpoint import TokenEndpoint
from broker.web.health import Readiness
from broker.web.server import serve, server

ORPHAN_GRACE_S = 1.0
GRACE_S = 2.0  # beyond shutdown_s_max, before a worker that hangs ends itself


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a parent gives its worker.  `board` is the folder in which workers tell each other how they are."""

    settings: Settings
    number: int
    store_url: str
    board: Path
    public: tuple[socket.socket, ...]
    admin: tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker tells its parent once: ready, or why not."""

    ready: bool
    detail: str = ""
    hints: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    exit_code: int = 1
    facts: Mapping[str, Any] | None = None


def main(assignment: Assignment, line: Connection) -> None:
    """The process's entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes the word on
    log.configure(assignment.settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(assignment, line))


async def _run(assignment: Assignment, line: Connection) -> None:
    settings = assignment.settings
    stop, reload_wanted = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    _listen(line, loop, stop, reload_wanted, settings.limits.shutdown_s_max + GRACE_S)
    try:
        node = await Node.open(settings, assignment.store_url, key_encryption_key(settings), worker=assignment.number)
    except BrokerError as error:
        line.send(_failure(error))
        return
    post = _post(assignment.board, assignment.number)
    node.on_change = post
    post(node)
    site = Site(settings.base_url, node.serves, node.rings, _asker(node, assignment.board))
    endpoint = TokenEndpoint(
        exchange=node.exchange,
        tracer=node.tracer,
        limits=settings.limits,
        incoming=settings.trace_context,  # pyright: ignore[reportArgumentType]
        trusted_proxies=settings.trusted_proxies,
        stopping=node.stopping.is_set,
    )
    servers = [(server(public_app(site, endpoint, with_admin=not assignment.admin), settings), list(assignment.public))]
    if assignment.admin:
        servers.append((server(admin_app(site), settings), list(assignment.admin)))
    reloading = asyncio.create_task(_reload_on_demand(node, reload_wanted))
    health = node.health
    facts = {
        "envs": node.envs,
        "policy_revision": node.policy.current().revision,
        "durability": health.durability if health else "",
        "store": f"{health.software} {health.version}" if health else "",
    }
    line.send(Report(ready=True, facts=facts))
    try:
        await serve(servers, stop)
    finally:
        node.stopping.set()
        reloading.cancel()
        await node.close()


async def _reload_on_demand(node: Node, wanted: asyncio.Event) -> None:
    while True:
        await wanted.wait()
        wanted.clear()
        await node.reload()


def _listen(
    line: Connection, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, reload: asyncio.Event, grace_s: float
) -> None:
    """Follows the parent's words in a thread of its own; the end of the line is the end of the worker."""

    def follow() -> None:
        asked = False
        for word in _words(line):
            asked = word == "stop"
            loop.call_soon_threadsafe(reload.set if word == "reload" else stop.set)
        loop.call_soon_threadsafe(stop.set)
        # Without a parent, somebody may already be waiting for this port and this store.
        threading.Event().wait(grace_s if asked else ORPHAN_GRACE_S)
        os._exit(1)  # the loop is stuck, and nobody is left to notice

    threading.Thread(target=follow, name="lifeline", daemon=True).start()


def _words(line: Connection) -> Iterator[str]:
    while True:
        try:
            word = line.recv()
        except (EOFError, OSError):
            return
        yield word
        if word == "stop":
            return


def _failure(error: BrokerError) -> Report:
    problems = tuple(str(problem) for problem in error.problems) if isinstance(error, PolicyInvalid) else ()
    hints = error.hints if isinstance(error, OperatorError) else ("broker doctor",)
    code = error.exit_code if isinstance(error, OperatorError) else 3
    return Report(ready=False, detail=error.detail or error.public, hints=hints, problems=problems, exit_code=code)


def _post(board: Path, number: int) -> Any:
    """A callable that writes how this worker is, for the readiness answer of its siblings."""

    def post(node: Node) -> None:
        state = {
            "worker": number,
            "pid": os.getpid(),
            "policy_revision": node.policy.current().revision,
            "reload_broken": node.reload_broken,
        }
        fresh = board / f".{number}.new"
        fresh.write_text(json.dumps(state), "utf-8")
        fresh.rename(board / f"{number}.json")

    return post


def _read_board(board: Path) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(file.read_text("utf-8")) for file in sorted(board.glob("*.json")))


def _asker(node: Node, board: Path) -> Any:
    async def ask() -> Readiness:
        workers = await asyncio.to_thread(_read_board, board)
        return Readiness(
            failing=node.failing(),
            degraded=node.degraded(),
            durability=node.health.durability if node.health else "unverified",
            workers=workers,
        )

    return ask
