"""A service's own broker: asks for credentials, keeps them, renews them before they end.

One exchange at a time for each thing that is asked, however many threads and tasks wait for it.  While the broker is
away, what is still valid is served.  A refusal ends that: the broker has decided anew.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import sys
import time
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING, NoReturn

from broker.client.errors import ClientError, Misused, Refused
from broker.client.exchange import PATIENCE_S, obtain, unheard
from broker.client.forks import IMPORTS
from broker.client.kept import Kept
from broker.client.values import Credential, Server, Step, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.client.ambient import Found
    from broker.client.auth import HttpxAuth, RequestsAuth

    Words = str | Iterable[str]

KEPT_MAX = 1000  # things that are asked for; beyond, the oldest is forgotten
DOUBTED_S = 5.0  # how long to look for another in the place of what is valid and was not accepted
LOG = "broker.client"


class Broker:
    """One env of a broker, as a service uses it.  Safe for threads, tasks and forks.

    `url` and `env` default to BROKER_URL and BROKER_ENV.  `identity` names a way to the identity token (`broker whoami -v`
    lists them); by default the first that answers.  `subject_token(audience)` replaces all of them by the caller's own.
    `patience_s` bounds one exchange with all its attempts, in seconds.  Raises `Misused`.
    """

    def __init__(
        self,
        url: str = "",
        env: str = "",
        *,
        service_account: str = "",
        ttl_s: int = 0,
        identity: str = "",
        identity_audience: str = "",
        subject_token: Callable[[str], str] | None = None,
        patience_s: float = PATIENCE_S,
        heard: Callable[[Step], None] = unheard,
    ) -> None:
        for name, value in (("url", url), ("env", env), ("identity", identity), ("service_account", service_account)):
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # not every caller has a type checker
                raise Misused(f"{name} is text, not {type(value).__name__}")
        said = os.environ
        self.server = Server.of(
            url or said.get("BROKER_URL", "").strip(),
            env or said.get("BROKER_ENV", "").strip(),
            identity_audience or said.get("BROKER_IDENTITY_AUDIENCE", "").strip(),
        )
        self._account = service_account or said.get("BROKER_SERVICE_ACCOUNT", "").strip()
        self._ttl_s = ttl_s
        self._identity = identity or said.get("BROKER_IDENTITY", "").strip()
        self._subject_token = subject_token
        self._patience_s, self._heard = patience_s, heard
        self._begin()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Broker does not travel between processes: make one in each")

    def _begin(self) -> None:
        self._kept: dict[Wanted, Kept] = {}
        self._lock = Lock()
        self._pid = os.getpid()  # last: another thread of a forked child may look

    def token(self, audience: Words = "", scopes: Words = ()) -> str:
        """A bearer token for an Api and scopes, good for ten seconds or a quarter of its life.  Raises `ClientError`s."""
        return self.credential(audience, scopes).token

    async def token_async(self, audience: Words = "", scopes: Words = ()) -> str:
        """As `token`, for tasks; it blocks no loop."""
        return (await self.credential_async(audience, scopes)).token

    def credential(self, audience: Words = "", scopes: Words = ()) -> Credential:
        """The whole credential.  Raises `ClientError`s."""
        now = self._now(self._wanted(audience, scopes))
        if isinstance(now, Future):
            now = now.exception() or now.result()
        return _own(now)

    async def credential_async(self, audience: Words = "", scopes: Words = ()) -> Credential:
        """As `credential`, for tasks."""
        now = self._now(self._wanted(audience, scopes))
        if isinstance(now, Future):
            (now,) = await asyncio.gather(asyncio.wrap_future(now), return_exceptions=True)
        return _own(now)

    def forget(self, audience: Words = "", scopes: Words = ()) -> None:
        """Drops what is kept, since a resource server has refused it: the next call asks anew."""
        self._drop(self._wanted(audience, scopes))

    def httpx_auth(self, audience: Words = "", scopes: Words = ()) -> HttpxAuth:
        """`auth=` of an httpx2 client, sync or async."""
        from broker.client.auth import httpx_auth

        wanted = self._wanted(audience, scopes)
        return httpx_auth(self, wanted.audience, wanted.scope, partial(self._drop, wanted))

    def requests_auth(self, audience: Words = "", scopes: Words = ()) -> RequestsAuth:
        """`auth=` of a requests session."""
        from broker.client.auth import requests_auth

        wanted = self._wanted(audience, scopes)
        return requests_auth(self, wanted.audience, wanted.scope, partial(self._drop, wanted))

    def _wanted(self, audience: Words, scopes: Words) -> Wanted:
        return Wanted(_words("audience", audience), tuple(sorted(set(_words("scopes", scopes)))), self._account, self._ttl_s)

    def _held(self) -> Lock:
        """The lock of this process: in a forked child nobody is left to open the parent's, or to land its flights."""
        if os.getpid() != self._pid:
            with IMPORTS:  # no other thread was holding it at the fork
                if os.getpid() != self._pid:
                    self._begin()
        return self._lock

    def _drop(self, wanted: Wanted, token: str | None = None) -> None:
        """Drops what is kept; with a `token`, only if it is that one still."""
        with self._held():
            if (kept := self._kept.get(wanted)) is not None:
                kept.drop(token)

    def _now(self, wanted: Wanted) -> Credential | Future[Credential]:
        with self._held():
            kept = self._kept.get(wanted)
            if kept is None:
                kept = self._kept[wanted] = Kept()
                if len(self._kept) > KEPT_MAX:
                    del self._kept[next(iter(self._kept))]
            if kept.refusal is not None and time.monotonic() < kept.ask_at:
                _own(kept.refusal)
            serves = kept.serves()
            if serves and time.monotonic() < kept.ask_at:
                return serves
            if kept.flight is None:
                flight: Future[Credential] = Future()
                flight.set_running_or_notify_cancel()  # a task that gives up must not take the others along
                Thread(target=self._fly, args=(wanted, kept, flight, _trace_headers()), daemon=True).start()
                kept.flight = flight  # once it has started: nobody would wait for one that has not
            return serves or kept.flight

    def _fly(self, wanted: Wanted, kept: Kept, flight: Future[Credential], headers: dict[str, str]) -> None:
        patience_s = min(self._patience_s, DOUBTED_S) if kept.doubted else self._patience_s
        try:
            _prepare()
            source = self._source(patience_s)
            credential = obtain(self.server, wanted, source, patience_s=patience_s, heard=self._hear, headers=headers)
        except BaseException as raised:
            error = RuntimeError("the caller's own function raised it") if isinstance(raised, StopIteration) else raised
            _bare(error)  # and no task can be told StopIteration
            with self._lock:
                beside = kept.serves() is not None
                in_its_place = kept.failed(error) if kept.flight is flight else None
            if in_its_place:
                flight.set_result(in_its_place)
            else:
                flight.set_exception(error)
            if beside or in_its_place:  # nobody was told.  Last, since a handler may ask for a token
                _log(wanted, error, kept.serves())
        else:
            with self._lock:
                if kept.flight is flight:  # else it was forgotten on its way
                    kept.took(credential)
            flight.set_result(credential)

    def _hear(self, step: Step) -> None:
        """Who listens and fails costs nobody a credential that has been issued."""
        try:
            self._heard(step)
        except Exception:
            logging.getLogger(LOG).warning("the listener failed", exc_info=True)

    def _source(self, patience_s: float) -> Found:
        if self._subject_token is not None:
            from broker.client.ambient import Found

            # Whoever writes both knows whom the token is for.
            return Found("own", "the caller", "the caller's own function", self._subject_token, fixed=True)
        from broker.client.ambient import find, here

        return find(here(self.server.identity_audience, patience_s), self._identity)


def _words(what: str, given: Words) -> tuple[str, ...]:
    """Text with names between spaces, or several texts.  Raises `Misused`."""
    try:
        words: tuple[object, ...] = tuple(given.split() if isinstance(given, str) else given)
    except TypeError:
        words = (given,)
    texts = tuple(word for word in words if isinstance(word, str))
    if len(texts) < len(words):
        raise Misused(f"{what} is text, or a list of texts")
    return texts


def _own(heard: Credential | BaseException) -> Credential:
    """What one of many waiters gets: of an error a copy, since raising it writes into it whose call it was."""
    if isinstance(heard, Credential):
        return heard
    raise copy.copy(heard) if isinstance(heard, ClientError) else heard


def _bare(error: BaseException) -> None:
    """Takes our frames off: they hold the identity token, and error trackers send locals on.  The caller's own stay."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:  # a chain of causes may be a circle
        seen.add(id(link))
        frames = link.__traceback__
        while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith("broker.client"):
            frames = frames.tb_next
        link.__traceback__ = None if isinstance(link, ClientError) else frames
        if isinstance(link, ClientError):
            link.__context__ = None
        link = link.__cause__ or link.__context__


def _log(wanted: Wanted, error: BaseException, served: Credential | None) -> None:
    """Others' texts may hold their token, so theirs are left out."""
    what, left_s = " ".join((*wanted.audience, *wanted.scope)), served.expires_at - time.time() if served else 0.0
    told = error if isinstance(error, ClientError) else type(error).__name__
    request = error.refusal.request_id if isinstance(error, Refused) else "-"
    log = logging.getLogger(LOG)
    log.warning("no new credential for %s, the one at hand ends in %.0f s: %s, request %s", what, left_s, told, request)


def _prepare() -> None:
    """Imports what an exchange imports on its way, so that no fork can come in between."""
    with IMPORTS:

        from broker.client.ambient import load

        load()


def _trace_headers() -> dict[str, str]:
    """W3C trace context of the caller, where OpenTelemetry is at work in this process."""
    headers: dict[str, str] = {}
    if "opentelemetry" in sys.modules:
        from opentelemetry.propagate import inject

        inject(headers)
    return headers
