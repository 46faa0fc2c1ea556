"""The hot connection: what is written in one tick of the loop leaves in one send; answers come back in order.

Stands on hiredis (packing and reading RESP) and connect.py (where to).  Used by commit.py alone.
One Line holds one connection at a time.  Nothing is ever sent twice: when the connection goes, every call in flight fails
with StoreUnavailable (its outcome is not known), and a new connection serves new calls only.  So an answer always came on
the very connection that carried the write, which is what a WAIT beside it would need, too: packed behind the
function call, it stays adjacent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.exceptions import RedisError

from broker import errors
from broker.config import Limits
from broker.store.connect import Connector
from broker.store.functions import MISSING, PRESENT, Library
from broker.telemetry import log

_NOTHING: Final = object()
_BACKOFF_STEPS: Final = 32
_CODE_CHARACTERS_MAX: Final = 32
# After these the server is not the one to write to: look for the primary again.
_ELSEWHERE: Final = ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH")


class Link(asyncio.Protocol):
    """One connection from its first byte to its loss."""

    def __init__(self, on_lost: Callable[[Link], None], timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def lost(self) -> bool:
        """Whether nothing can be sent here any more."""
        return self._transport is None

    def send(self, packed: bytes, deadline: float) -> asyncio.Future[Any]:
        """The answer to come, perhaps a `hiredis.ReplyError`.  `deadline` is the loop's time.  Fails with StoreUnavailable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(errors.StoreUnavailable("the connection to the store is lost"))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._waiting.append((future, deadline))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._watch)
        return future

    async def ask(self, *command: str | int) -> Any:
        """One command of the handshake, answered.  Raises StoreUnavailable, also where the server refuses it."""
        answer = await self.send(pack(*command), self._loop.time() + self._timeout_s)
        if isinstance(answer, hiredis.ReplyError):
            raise errors.StoreUnavailable(f"the store refuses {command[0]}: {code_of(answer)}")
        return answer

    def abort(self, reason: str) -> None:
        """Drops the connection; what is in flight fails, its outcome unknown."""
        transport, self._transport = self._transport, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._out.clear()
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(errors.StoreUnavailable(reason))
        if transport is not None:
            transport.abort()
            self._on_lost(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop: hands each answer to the call that has waited longest."""
        if self._transport is None:
            return
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOTHING:
                future, _ = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except (hiredis.ProtocolError, IndexError):
            self.abort("the store's answer could not be read")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.abort("the connection to the store was lost before its answer")

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _watch(self) -> None:
        # One timer for all: calls are answered in order, so the first in line is the first that is late.
        self._timer = None
        if not self._waiting:
            return
        deadline = self._waiting[0][1]
        if deadline <= self._loop.time():
            self.abort("the store did not answer in time")
        else:
            self._timer = self._loop.call_at(deadline, self._watch)


class Line:
    """Keeps one Link to the primary; reconnects with backoff; each call is bounded by `limits.store_timeout_s`."""

    def __init__(self, connector: Connector, library: Library, limits: Limits) -> None:
        self._connector = connector
        self._library = library
        self._timeout_s = limits.store_timeout_s
        self._backoff_s_max = limits.store_reconnect_s_max
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._trouble = "no connection to the store yet"
        self._closed = False

    async def call(self, packed: bytes) -> Any:
        """The answer to one packed function call.  Raises StoreUnavailable: nothing is known, or nothing was written."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        link = self._link or await self._connected(deadline)
        answer = await link.send(packed, deadline)
        if not isinstance(answer, hiredis.ReplyError):
            return answer
        if MISSING in str(answer):
            await self._load(link)
            answer = await link.send(packed, deadline)
            if not isinstance(answer, hiredis.ReplyError):
                return answer
        code = code_of(answer)
        if code in _ELSEWHERE:
            link.abort(f"the store answers {code}")
        raise errors.StoreUnavailable(f"the store answers {code}")

    async def close(self) -> None:
        """Ends the connection; calls in flight and later ones fail."""
        self._closed = True
        self._trouble = "the connection to the store is closed"
        self._up.set()
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        if self._link is not None:
            self._link.abort(self._trouble)

    async def _connected(self, deadline: float) -> Link:
        try:
            async with asyncio.timeout_at(deadline):
                while self._link is None and not self._closed:
                    self._connect_soon()
                    await self._up.wait()
        except TimeoutError:
            raise errors.StoreUnavailable(self._trouble) from None
        if self._link is None:
            raise errors.StoreUnavailable(self._trouble)
        return self._link

    def _connect_soon(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)

    def _connect_ended(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.get("store").error("the store cannot be connected to", error=type(failure).__name__)

    async def _connect(self) -> None:
        backoff_s = self._backoff_s_max / _BACKOFF_STEPS
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._connect_once()
                return
            except (OSError, RedisError, errors.StoreUnavailable) as failure:
                # The type alone: a library's text may hold what the URL held.
                why = failure.detail if isinstance(failure, errors.StoreUnavailable) else type(failure).__name__
                self._trouble = f"no connection to the store at {self._connector.address.label}: {why}"
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, self._backoff_s_max)

    async def _connect_once(self) -> None:
        address = self._connector.address
        link = cast("Link", await self._connector.transport(lambda: Link(self._lost, self._timeout_s)))
        try:
            if address.password:
                await link.ask("AUTH", *((address.username,) if address.username else ()), address.password)
            if address.db:
                await link.ask("SELECT", address.db)
            await link.ask("CLIENT", "SETNAME", "broker-commits")
            if not await link.ask("FUNCTION", "LIST", "LIBRARYNAME", self._library.name):
                await self._load(link)
        except BaseException:
            link.abort("the connection to the store could not be set up")
            raise
        if not link.lost:
            self._link = link
            self._up.set()

    async def _load(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        packed = pack("FUNCTION", "LOAD", self._library.code)
        answer = await link.send(packed, loop.time() + self._timeout_s)
        if isinstance(answer, hiredis.ReplyError) and PRESENT not in str(answer):
            raise errors.StoreUnavailable(f"the store refuses FUNCTION LOAD: {code_of(answer)}")

    def _lost(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            self._up.clear()
            self._connect_soon()


def pack(*words: str | bytes | int) -> bytes:
    """One command as it goes over the wire (RESP)."""
    # The library's stub asks for a tuple of one.
    return hiredis.pack_command(cast("Any", words))


def code_of(error: Exception) -> str:
    """The code of a server's error: its first word, or the type that redis-py made of it.  The rest may repeat what was sent."""
    word = str(error).split(" ", 1)[0]
    return word[:_CODE_CHARACTERS_MAX] if word.isupper() else type(error).__name__
