"""Credentials for HTTP libraries, imported only where one is used: httpx2 (sync and async) and requests.

A credential goes over https, or to loopback.  A 401 makes the one that was sent be replaced, so that many requests that
went out with it cost one exchange; httpx2 then tries once more, unless the body is a stream that has gone.  Where no other
can be had the 401 is the answer: a resource server that cannot reach the broker's keys must not end what is valid.
"""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from broker.client.errors import IdentityFailed, Unavailable, Unreachable
from broker.client.http import checked

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    import httpx2
    import requests
    from requests.auth import AuthBase as RequestsAuth

    HttpxAuth = httpx2.Auth


class Tokens(Protocol):
    """Whom a token is had from: `Broker`."""

    def token(self, audience: Sequence[str], scopes: Sequence[str]) -> str:
        """As `Broker.token`."""
        ...

    async def token_async(self, audience: Sequence[str], scopes: Sequence[str]) -> str:
        """As `Broker.token_async`."""
        ...


def httpx_auth(broker: Tokens, audience: Sequence[str], scopes: Sequence[str], drop: Callable[[str], None]) -> HttpxAuth:
    """An `httpx2.Auth`; `drop` is told a token that was not accepted.  Raises ImportError where httpx2 is not installed."""
    import httpx2

    class Bearer(httpx2.Auth):
        def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
            checked(str(request.url))
            token = broker.token(audience, scopes)
            response = yield _signed(request, token)
            if self.again(request, response):
                with suppress(Unavailable, Unreachable, IdentityFailed):
                    if token != (another := broker.token(audience, scopes)):
                        yield _signed(request, another)

        async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
            checked(str(request.url))
            token = await broker.token_async(audience, scopes)
            response = yield _signed(request, token)
            if self.again(request, response):
                with suppress(Unavailable, Unreachable, IdentityFailed):
                    if token != (another := await broker.token_async(audience, scopes)):
                        yield _signed(request, another)

        @staticmethod
        def again(request: httpx2.Request, response: httpx2.Response) -> bool:
            return _not_accepted(response, drop) and isinstance(request.stream, httpx2.ByteStream)

    return Bearer()


def requests_auth(broker: Tokens, audience: Sequence[str], scopes: Sequence[str], drop: Callable[[str], None]) -> RequestsAuth:
    """A `requests.auth.AuthBase`; `drop` as above.  Raises ImportError where requests is not installed."""
    from requests.auth import AuthBase

    class Bearer(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            checked(str(request.url))
            request.register_hook("response", self.heard)
            return _signed(request, broker.token(audience, scopes))

        @staticmethod
        def heard(response: requests.Response, **_: Any) -> None:
            _not_accepted(response, drop)

    return Bearer()


def _signed(request: Any, token: str) -> Any:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _not_accepted(response: Any, drop: Callable[[str], None]) -> bool:
    """Whether it is a 401 to a credential: a redirect to another host has left it out."""
    scheme, _, token = response.request.headers.get("Authorization", "").partition(" ")
    if response.status_code != HTTPStatus.UNAUTHORIZED or scheme != "Bearer":
        return False
    drop(token)
    return True
