"""A service's own broker: asks for credentials, keeps them, renews them before they end.

One exchange at a time for each thing that is asked, however many threads and tasks wait for it.  While the broker is
away, what is still valid is served.  A refusal ends that: the broker has decided anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING

from broker.client.errors import ClientError, Refused
from broker.client.exchange import PATIENCE_S, obtain
from broker.client.freshness import renew_at
from broker.client.values import Credential, Server, Step, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.client.ambient import Found
    from broker.client.auth import HttpxAuth, RequestsAuth

MARGIN_S = 10.0  # a credential with less than this left may end on its way;
MARGIN = 1 / 4  # of a life at most, so that a short one is used too, and renewed before
AGAIN_S = 10.0  # after a renewal that failed
REMEMBERED_S = 5.0  # a refusal, so that a loop does not ask at its own speed
KEPT_MAX = 1000  # things that are asked for; beyond, the oldest is forgotten


class Broker:
    """One env of a broker, as a service uses it.  Safe for threads, tasks and forks.

    `url` and `env` default to BROKER_URL and BROKER_ENV.  `identity` names a way to the identity token (`broker whoami`
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
        heard: Callable[[Step], None] = lambda _: None,
    ) -> None:
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

    def _begin(self) -> None:
        self._kept: dict[Wanted, _Kept] = {}
        self._lock = Lock()
        self._pid = os.getpid()  # last: another thread of a forked child may look

    def token(self, audience: str = "", scopes: str | Iterable[str] = ()) -> str:
        """A bearer token for an Api and scopes, good for ten seconds or a quarter of its life.  Raises `ClientError`s."""
        return self.credential(audience, scopes).token

    async def token_async(self, audience: str = "", scopes: str | Iterable[str] = ()) -> str:
        """As `token`, for tasks; it blocks no loop."""
        return (await self.credential_async(audience, scopes)).token

    def credential(self, audience: str = "", scopes: str | Iterable[str] = ()) -> Credential:
        """The whole credential.  Raises `ClientError`s."""
        now = self._now(self._wanted(audience, scopes))
        return now if isinstance(now, Credential) else now.result()

    async def credential_async(self, audience: str = "", scopes: str | Iterable[str] = ()) -> Credential:
        """As `credential`, for tasks."""
        now = self._now(self._wanted(audience, scopes))
        return now if isinstance(now, Credential) else await asyncio.wrap_future(now)

    def forget(self, audience: str = "", scopes: str | Iterable[str] = ()) -> None:
        """Drops what is kept, since a resource server has refused it: the next call asks anew."""
        self._drop(self._wanted(audience, scopes))

    def httpx_auth(self, audience: str = "", scopes: str | Iterable[str] = ()) -> HttpxAuth:
        """`auth=` of an httpx2 client, sync or async."""
        from broker.client.auth import httpx_auth

        wanted = self._wanted(audience, scopes)
        return httpx_auth(self, audience, wanted.scope, partial(self._drop, wanted))

    def requests_auth(self, audience: str = "", scopes: str | Iterable[str] = ()) -> RequestsAuth:
        """`auth=` of a requests session."""
        from broker.client.auth import requests_auth

        wanted = self._wanted(audience, scopes)
        return requests_auth(self, audience, wanted.scope, partial(self._drop, wanted))

    def _wanted(self, audience: str, scopes: str | Iterable[str]) -> Wanted:
        named = scopes.split() if isinstance(scopes, str) else scopes
        return Wanted((audience,) if audience else (), tuple(sorted(set(named))), self._account, self._ttl_s)

    def _held(self) -> Lock:
        """The lock of this process: in a forked child nobody is left to open the parent's, or to land its flights."""
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
                kept = self._kept[wanted] = _Kept()
                if len(self._kept) > KEPT_MAX:
                    del self._kept[next(iter(self._kept))]
            if kept.refusal is not None and time.monotonic() < kept.ask_at:
                raise kept.refusal.with_traceback(None)  # it would grow with each time that it is raised
            serves = kept.serves()
            if serves and time.monotonic() < kept.ask_at:
                return serves
            if kept.flight is None:
                flight: Future[Credential] = Future()
                flight.set_running_or_notify_cancel()  # a task that gives up must not take the others along
                Thread(target=self._fly, args=(wanted, kept, flight, _trace_headers()), daemon=True).start()
                kept.flight = flight  # once it has started: nobody would wait for one that has not
            return serves or kept.flight

    def _fly(self, wanted: Wanted, kept: _Kept, flight: Future[Credential], headers: dict[str, str]) -> None:
        try:
            credential = obtain(
                self.server, wanted, self._source(), patience_s=self._patience_s, heard=self._heard, headers=headers
            )
        except BaseException as error:
            if isinstance(error, ClientError):  # its frames hold the identity token, and error trackers send them on
                error.__traceback__ = error.__context__ = None
            with self._lock:
                beside = kept.serves() is not None
                kept.flight = None
                kept.failed(error)
            flight.set_exception(error)
            if beside:  # nobody waited.  Last, since a handler may ask for a token; others' texts may hold theirs
                told = error if isinstance(error, ClientError) else type(error).__name__
                logging.getLogger("broker.client").warning("no new credential: %s", told)
        else:
            with self._lock:
                kept.flight = None
                kept.took(credential)
            flight.set_result(credential)

    def _source(self) -> Found:
        if self._subject_token is not None:
            from broker.client.ambient import Found

            return Found("own", "the caller", "the caller's own function", self._subject_token)
        from broker.client.ambient import find, here

        return find(here(self.server.identity_audience), self._identity)


class _Kept:
    """One credential, when to ask for the next, and who is asking."""

    def __init__(self) -> None:
        self.flight: Future[Credential] | None = None
        self.refusal: Refused | None = None
        self.ask_at = 0.0
        self._credential: Credential | None = None
        self._doubted: Credential | None = None  # somebody did not accept it: to be replaced, and served only if it cannot be
        self._ends_at = self._margin_s = 0.0

    def serves(self) -> Credential | None:
        """What may still be sent.  By both clocks: one stands still while a machine sleeps, the other can be set."""
        one = self._credential
        margin_s = self._margin_s
        good = one is not None and time.monotonic() < self._ends_at - margin_s and time.time() < one.expires_at - margin_s
        return one if good else None

    def drop(self, token: str | None) -> None:
        if self._credential is not None and token in {None, self._credential.token}:
            self._doubted, self._credential = (self._credential if token else None), None
        if token is None:
            self.refusal = None

    def took(self, credential: Credential) -> None:
        now, life = time.monotonic(), credential.expires_at - time.time()
        self._credential, self._ends_at, self.refusal = credential, now + life, None
        self._doubted = None
        self._margin_s = min(MARGIN_S, life * MARGIN)
        self.ask_at = renew_at(now, now + life, random.random())  # noqa: S311

    def failed(self, error: BaseException) -> None:
        """A renewal that failed is tried again in a while; a decision of the broker ends what was served."""
        spread = 1 + random.random() / 2  # noqa: S311
        decided = isinstance(error, Refused) and not error.reason.startswith("token_")
        if not decided and self._credential is None:
            self._credential = self._doubted
        self._doubted = None
        if isinstance(error, Refused) and (decided or self.serves() is None):
            self._credential, self.refusal = None, error
            self.ask_at = time.monotonic() + REMEMBERED_S * spread
        else:
            self.refusal, self.ask_at = None, time.monotonic() + AGAIN_S * spread


def _trace_headers() -> dict[str, str]:
    """W3C trace context of the caller, where OpenTelemetry is at work in this process."""
    headers: dict[str, str] = {}
    if "opentelemetry" in sys.modules:
        from opentelemetry.propagate import inject

        inject(headers)
    return headers
