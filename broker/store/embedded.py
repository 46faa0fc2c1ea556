"""The private Valkey: start, supervise, stop.

Stands on binary.py (which server) and folder.py (locks, socket).  Called by node and by commands that work on a stopped node.
Durable by its settings: nothing is answered before its fsync.  It listens on a socket in a folder of mode 0700, and nowhere else.
Order of a start: 1 the folder is ours alone, 2 no server is on it (an orphan of a killed broker is ended), 3 spawn with both
locks as folder.py says, 4 wait until its whole log is read back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from broker import errors
from broker.config import Limits
from broker.store.binary import ServerBinary, find
from broker.store.folder import Folder
from broker.telemetry import log

_POLL_S: Final = 0.01
_LOG_LINES: Final = 3
_SETTINGS: Final[dict[str, str]] = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "save": "",
    "maxmemory-policy": "noeviction",
}


class EmbeddedStore:
    """One server process on one data folder."""

    def __init__(self, data: Path, limits: Limits | None = None, *, server: Path | None = None) -> None:
        """`server`: the binary to run, else the first that binary.py finds."""
        self._limits = limits or Limits()
        self._folder = _folder(data)
        self._chosen = server
        self._owner_lock: int | None = None
        self._server_lock: int | None = None
        self._socket = Path()
        self._process: asyncio.subprocess.Process | None = None
        self.binary: ServerBinary | None = None

    @property
    def url(self) -> str:
        """What `Store` connects to."""
        return _url(self._socket)

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def start(self) -> str:
        """Starts the server and waits until it serves; gives its URL.  Raises `CannotStart`, which names who holds the folder."""
        try:
            # 1
            self._folder.make()
            self._owner_lock = self._folder.own()
            if self._owner_lock is None:
                pid = self._folder.owner_pid()
                raise errors.CannotStart(
                    f"the data folder {self._folder.root} is in use by process {pid or 'unknown'}",
                    "one broker serves one folder: stop that process, or give --data another folder",
                )
            # 2
            self._server_lock = await self._lock_server()
            self.binary = await asyncio.to_thread(find, self._chosen)
            self._socket = self._folder.place_socket()
            self._folder.log.unlink(missing_ok=True)
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        facts = {"software": self.binary.software, "version": self.binary.version, "source": self.binary.source}
        log.get("store").info("the embedded store is up", pid=self.pid, **facts)
        return self.url

    async def supervise(self, stop: asyncio.Event) -> None:
        """Starts the server again whenever it dies, until `stop` is set.  The server itself stays for `stop()` to end."""
        backoff_s = first_s = self._limits.store_restart_s_max / 16
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                if self._process is not None:
                    died = asyncio.ensure_future(self._process.wait())
                    await asyncio.wait({died, stopped}, return_when=asyncio.FIRST_COMPLETED)
                    died.cancel()
                    if stop.is_set():
                        return
                    log.get("store").error("the embedded store died", code=self._process.returncode)
                    self._process = None
                try:
                    await self._launch()
                    log.get("store").info("the embedded store is up again", pid=self.pid)
                    backoff_s = first_s
                except errors.CannotStart as error:
                    log.get("store").error("the embedded store stays down", cause=error.detail, hints=error.hints)
                    await asyncio.wait({stopped}, timeout=backoff_s)
                    backoff_s = min(2 * backoff_s, self._limits.store_restart_s_max)
        finally:
            stopped.cancel()

    async def stop(self) -> None:
        """Ends the server (SIGTERM, then SIGKILL) and gives the folder free.  Safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            await _end(process, self._limits.store_stop_s_max)
        if self._server_lock is not None:
            self._folder.clear_socket()
        for descriptor in (self._server_lock, self._owner_lock):
            if descriptor is not None:
                os.close(descriptor)
        self._server_lock = self._owner_lock = None

    async def _lock_server(self) -> int:
        """server.lock, after the orphan that may hold it is ended."""
        loop = asyncio.get_running_loop()
        # The last step only waits: the lock goes with the process, and that takes the kernel a moment.
        for sent in (signal.SIGTERM, signal.SIGKILL, None):
            if (descriptor := self._folder.lock_server()) is not None:
                return descriptor
            for pid in self._folder.server_pids() if sent else ():
                log.get("store").warning("a store that no broker owns is ended", pid=pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, sent or signal.SIGTERM)
            deadline = loop.time() + self._limits.store_stop_s_max
            while loop.time() < deadline:
                if (descriptor := self._folder.lock_server()) is not None:
                    return descriptor
                await asyncio.sleep(_POLL_S)
        raise errors.CannotStart(
            f"a server that no broker owns is on {self._folder.root} and does not end",
            *(f"end process {pid} yourself" for pid in self._folder.server_pids()),
        )

    async def _launch(self) -> None:
        # 3
        if self.binary is None or self._server_lock is None:
            raise errors.CannotStart("the embedded store was not started")
        settings = _SETTINGS | {
            "unixsocket": str(self._socket), "dir": str(self._folder.store), "pidfile": str(self._folder.pid_file),
        }  # fmt: skip
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        try:
            with _private_child(), self._folder.log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    self.binary.path,
                    *arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={"LC_ALL": "C"},
                    cwd=self._folder.store,
                    pass_fds=(self._server_lock,),
                    # Ctrl-C at a terminal is for the broker, which ends the server after its last answer.
                    start_new_session=True,
                )
        except OSError as error:
            raise errors.CannotStart(f"the embedded store does not start: {error.strerror}", str(self.binary.path)) from error
        self._process = process
        # 4
        if await _answers(self._socket, self._limits.store_start_s_max, process):
            return
        self._process = None
        if process.returncode is None:
            await _end(process, self._limits.store_stop_s_max)
        said = self._folder.log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
        why = f"the embedded store does not start (exit {process.returncode})"
        raise errors.CannotStart(why, *said, f"see {self._folder.log}")


@contextlib.asynccontextmanager
async def attach(data: Path, limits: Limits | None = None, *, server: Path | None = None) -> AsyncGenerator[str]:
    """The URL of a folder's store for one command: the running broker's, or one that is started and stopped here.

    Raises `CannotReach` where there is no store, or its broker's does not answer; `CannotStart` as `EmbeddedStore.start`.
    """
    limits = limits or Limits()
    folder = _folder(data)
    if not folder.store.is_dir():
        raise errors.CannotReach(f"{data} holds no store", "--data names the folder that `broker serve` was given")
    store = EmbeddedStore(data, limits, server=server)
    try:
        url = await store.start()
    except errors.CannotStart:
        socket = folder.socket()
        if socket is None or not await _answers(socket, limits.store_timeout_s):
            raise
        yield _url(socket)
        return
    try:
        yield url
    finally:
        await store.stop()


async def _answers(socket: Path, within_s: float, process: asyncio.subprocess.Process | None = None) -> bool:
    """Whether the server serves, at the latest after `within_s`; earlier False where its process ends."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while loop.time() < deadline and (process is None or process.returncode is None):
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"PING\r\n")
                async with asyncio.timeout_at(deadline):
                    answer = await reader.readline()
                if answer == b"+PONG\r\n":
                    return True
                # A server of our own that reads its log back gets all the time that it takes.
                if process is not None and answer.startswith(b"-LOADING"):
                    deadline = loop.time() + within_s
            finally:
                writer.close()
        await asyncio.sleep(_POLL_S)
    return False


async def _end(process: asyncio.subprocess.Process, within_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.contextmanager
def _private_child() -> Generator[None]:
    """What is started meanwhile makes files for this user alone, and leaves no core file with records and keys in it."""
    before, hard = resource.getrlimit(resource.RLIMIT_CORE)
    mask = os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (before, hard))
        os.umask(mask)


def _folder(data: Path) -> Folder:
    return Folder(data.expanduser().absolute())


def _url(socket: Path) -> str:
    return "unix://" + quote(str(socket))
