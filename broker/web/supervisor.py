"""The parent process: owns the embedded store and the sockets, starts workers, keeps them running, ends them in order.

Serves no request itself.  SIGTERM and SIGINT stop, SIGHUP reloads the policy in every worker.
"""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from broker.compiler.compile import load_tree
from broker.compiler.files import check_there
from broker.config import Settings
from broker.errors import CannotStart, PolicyInvalid, SettingsInvalid
from broker.keys.sealed import key_encryption_key
from broker.store.embedded import EmbeddedStore
from broker.telemetry import log
from broker.web import worker
from broker.web.worker import Assignment, Report

PORT_WAITS_S = (0.2, 0.4, 0.8, 1.0)
BACKLOG_COUNT = 2048
BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
STEADY_S = 3.0  # a worker that lived so long after it was ready had nothing wrong with its start
EARLY_DEATHS_MAX = 4
ALIVE_POLL_S = 0.2
KILL_AFTER_S = 3.0  # beyond the workers' own grace

_spawn = multiprocessing.get_context("spawn")


class WorkerFailed(CannotStart):
    """A worker could not start; carries its own exit code."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.detail, *report.hints)
        self.report = report


@dataclass(slots=True)
class _Child:
    process: BaseProcess
    line: Connection
    ready_at: float | None = None  # on the loop's clock


@dataclass(slots=True)
class Supervisor:
    """One `broker serve`.  `on_ready` hears once, with the final settings and a worker's facts."""

    settings: Settings
    on_ready: Callable[[Settings, Report], None]
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _children: dict[int, _Child] = field(default_factory=dict)
    _announced: bool = False
    _stood: bool = False

    async def run(self) -> None:
        """Serves until a signal says stop.  Raises `CannotStart` and its kin where it cannot begin."""
        check_tls(self.settings)
        check_first_policy(self.settings)
        public, admin = await self._listeners()
        self.settings = replace(self.settings, port=public.getsockname()[1])
        key_encryption_key(self.settings)  # the first to write anything: what could fail without a trace is behind us
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._tell_all, "reload")
        if self.settings.store or self.settings.store_url_file:
            await self._serve(external_store(self.settings), public, admin)
            return
        store = EmbeddedStore(self.settings.data, self.settings.limits)
        try:
            url = await store.start()
            keeping = asyncio.create_task(store.supervise(self._stop))
            try:
                await self._serve(url, public, admin)
            finally:
                self._stop.set()
                await keeping
        finally:
            await store.stop()

    async def _listeners(self) -> tuple[socket.socket, tuple[socket.socket, ...]]:
        settings = self.settings
        public = await _listen(settings.host, settings.port)
        return public, (await _listen(*_host_port(settings.admin_bind)),) if settings.admin_bind else ()

    async def _serve(self, store_url: str, public: socket.socket, admin: tuple[socket.socket, ...]) -> None:
        settings = self.settings
        board = _fresh_folder(settings.data / "run" / "workers")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_fresh_folder(settings.data / "run" / "metrics"))
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(settings.workers):
                    assignment = Assignment(settings, number, store_url, board, (public,), admin)
                    group.create_task(self._keep(assignment))
        except* WorkerFailed as failed:
            raise failed.exceptions[0] from None
        finally:
            for listener in (public, *admin):
                listener.close()

    async def _keep(self, assignment: Assignment) -> None:
        """One worker, begun again when it dies; what fails before the broker ever stood ends everything."""
        early_deaths = 0
        try:
            while not self._stop.is_set():
                child = self._children[assignment.number] = _begin(assignment)
                report = await self._report(child)
                if report.ready:
                    child.ready_at = asyncio.get_running_loop().time()
                    self._announce(assignment.settings, report)
                elif not self._announced:
                    self._give_up(report)
                await self._gone(child)
                if self._stop.is_set():
                    return
                log.get("supervisor").error("a worker died", worker=assignment.number, exit=child.process.exitcode)
                if self._is_steady(child):
                    early_deaths = 0
                else:
                    early_deaths += 1
                    child.ready_at = None  # the dead must not grow steady by waiting
                if not self._stands() and early_deaths >= EARLY_DEATHS_MAX:
                    self._give_up(_died_early(assignment.number, early_deaths))
                await self._pause(BACKOFF_S[min(max(0, early_deaths - 1), len(BACKOFF_S) - 1)])
        finally:
            await self._end(self._children.get(assignment.number))

    def _stands(self) -> bool:
        """Whether any worker has ever served for a while: from then on no death is a matter of the start."""
        self._stood = self._stood or any(self._is_steady(child) for child in self._children.values())
        return self._stood

    @staticmethod
    def _is_steady(child: _Child) -> bool:
        return child.ready_at is not None and asyncio.get_running_loop().time() - child.ready_at >= STEADY_S

    def _give_up(self, report: Report) -> NoReturn:
        self._stop.set()
        raise WorkerFailed(report)

    async def _report(self, child: _Child) -> Report:
        """What the worker says of its start.  Its sudden end is an answer too."""
        while not self._stop.is_set():
            if child.line.poll():
                with suppress(EOFError, OSError):
                    return child.line.recv()
                return _ENDED
            if not child.process.is_alive() and not child.line.poll():
                return _ENDED
            await asyncio.sleep(ALIVE_POLL_S / 10)
        return Report(ready=True)

    async def _gone(self, child: _Child) -> None:
        while child.process.is_alive() and not self._stop.is_set():
            await self._pause(ALIVE_POLL_S)

    async def _end(self, child: _Child | None) -> None:
        """Asks a worker to stop, waits for its grace, kills what is left."""
        if child is None:
            return
        _tell(child, "stop")
        await asyncio.to_thread(child.process.join, self.settings.limits.shutdown_s_max + KILL_AFTER_S)
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
        child.line.close()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _announce(self, settings: Settings, report: Report) -> None:
        if not self._announced:
            self._announced = True
            self.on_ready(settings, report)

    def _tell_all(self, word: str) -> None:
        for child in self._children.values():
            _tell(child, word)


_ENDED = Report(
    ready=False, detail="a worker ended before it was ready", hints=("look at its log above",), exit_code=CannotStart.exit_code
)


def _died_early(number: int, deaths: int) -> Report:
    detail = f"worker {number} died {deaths} times in a row within {STEADY_S:.0f} s of its start"
    hints = ("the log above says how", "broker doctor")
    return Report(ready=False, detail=detail, hints=hints, exit_code=CannotStart.exit_code)


def external_store(settings: Settings) -> str:
    """The URL of an external store, from the setting or from the file that keeps its password out of sight."""
    if settings.store_url_file is None:
        return settings.store
    try:
        return settings.store_url_file.read_text("utf-8").strip()
    except OSError as error:
        raise CannotStart(f"{settings.store_url_file} cannot be read: {error.strerror}") from error


def _begin(assignment: Assignment) -> _Child:
    ours, theirs = _spawn.Pipe(duplex=True)
    process = _spawn.Process(target=worker.main, args=(assignment, theirs), name=f"broker-worker-{assignment.number}")
    process.start()
    theirs.close()
    return _Child(process, ours)  # pyright: ignore[reportArgumentType]


def _tell(child: _Child, word: str) -> None:
    with suppress(OSError):
        child.line.send(word)


def check_first_policy(settings: Settings) -> None:
    """That there is a policy tree, and where there is no data folder yet, that it compiles: a first start leaves none in vain.

    Later starts leave that to the workers, which compile in any case.  Raises `PolicyInvalid`.
    """
    check_there(settings.policies)
    with suppress(OSError):  # a place that may not even be looked at is refused when the key is looked for
        if settings.data.exists():
            return
    try:
        load_tree(settings.policies, settings.limits, today=int(time.time()))
    except PolicyInvalid as error:
        raise PolicyInvalid(f"{settings.policies} does not load", "broker policy check", problems=error.problems) from error


def check_tls(settings: Settings) -> None:
    """Reads certificate and key once, before any worker would fail on them.  Raises `SettingsInvalid`."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for flag, file in (("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise SettingsInvalid(f"{flag}: {file} cannot be read: {(error.strerror or 'unknown error').lower()}") from error
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsInvalid(
            f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} are no certificate and its key",
            "both are PEM files: the whole chain, and the private key of its first certificate, without a passphrase",
        ) from error


async def _listen(host: str, port: int) -> socket.socket:
    """A listening socket.  One that is taken is tried again: the workers of a killed parent need a moment to go."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wait_s in (*PORT_WAITS_S, None):
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG_COUNT)
        except OSError as error:
            if wait_s is None or error.errno != errno.EADDRINUSE:
                raise cannot_listen(host, port, error.errno or 0) from error
            await asyncio.sleep(wait_s)
        else:
            listener.setblocking(False)
            return listener
    raise AssertionError("unreachable: the last try returns or raises")


def cannot_listen(host: str, port: int, number: int) -> CannotStart:
    """What is told where an address cannot be listened on, by the system's error number (errno.h)."""
    hints = ["choose another --port, or end what holds it"]
    if number == errno.EACCES:  # capabilities(7): no port below ip_unprivileged_port_start without CAP_NET_BIND_SERVICE
        hints = [
            "a low port needs a right: CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)",
            "or take a --port above 1023, with a proxy in front of it that listens here",
        ]
    return CannotStart(f"cannot listen on {host}:{port}: {os.strerror(number).lower()}", *hints)


def _host_port(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    if not host or not port.isdigit():
        raise CannotStart(f"--admin-bind `{bind}` is no HOST:PORT", "example: --admin-bind 127.0.0.1:8790")
    return host.strip("[]"), int(port)


def _fresh_folder(folder: Path) -> Path:
    """An empty folder that only this user can enter: what an earlier run left there counts no more."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder
