"""The applications as values: routes and headers, nothing else.

The token endpoint is dispatched before Starlette's router (the hot path); all other routes are Starlette's.
With an admin listener, health and metrics move there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from broker.config import is_loopback
from broker.keys.rotation import KeyRings
from broker.protocol import oauth
from broker.web import error_pages, health, metadata
from broker.web.endpoint import TokenEndpoint

# The same for every name: which envs there are is public, and still nothing to read out here.
NO_SUCH_ENV = "the environment in the URL is not one of this broker's; check the URL and the env"
SENTENCES = {404: "there is nothing at this address", 405: "this address takes another method"}
SECURITY_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@dataclass(frozen=True, slots=True)
class Site:
    """What the public routes need to know.  `serves` says whether an env exists here."""

    base_url: str
    serves: Callable[[str], bool]
    rings: KeyRings
    ready: health.Ask


def public_app(site: Site, endpoint: TokenEndpoint, *, with_admin: bool) -> Any:
    """The application of the public listener; `with_admin` puts health and metrics on it too."""
    path = urlsplit(site.base_url).path
    routes = [*_env_routes(site, path), *(admin_routes(site) if with_admin else ())]
    rest = _application(routes)
    no_such_env = _with_headers(_answer(404, NO_SUCH_ENV))
    prefix = path + "/"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if b"%" in scope["raw_path"]:
                # No address here needs an escape; another spelling of one is only a way round somebody's filter.
                return await rest({**scope, "path": "/%"}, receive, send)
            where: str = scope["path"]
            act = where[-6:]
            if act in {"/token", "/check"} and where.startswith(prefix):
                env = where[len(prefix) : -6]
                if site.serves(env):
                    return await endpoint(scope, receive, send, env, act == "/check")
                if env and "/" not in env:
                    return await no_such_env(scope, receive, send)
        await rest(scope, receive, send)
        return None

    return app


def admin_app(site: Site) -> Starlette:
    """The application of the admin listener."""
    return _application(admin_routes(site))


def admin_routes(site: Site) -> list[BaseRoute]:
    """Health and metrics."""
    return [
        Route("/healthz", health.healthz),
        Route("/readyz", health.readyz(site.ready)),
        Route("/metrics", health.exposition),
    ]


def _env_routes(site: Site, path: str) -> list[BaseRoute]:
    documents: dict[str, bytes] = {}
    loopback = is_loopback(urlsplit(site.base_url).hostname or "")

    def issuer_of(request: Request) -> str:
        env = request.path_params["env"]
        if not site.serves(env):
            raise HTTPException(404, NO_SUCH_ENV)
        return f"{site.base_url}/{env}"

    async def discovery(request: Request) -> Response:
        issuer = issuer_of(request)
        if issuer not in documents:
            documents[issuer] = metadata.checked(issuer, loopback=loopback)
        return metadata.cacheable(request, documents[issuer])

    async def jwks(request: Request) -> Response:
        issuer_of(request)
        body = site.rings.jwks(request.path_params["env"])
        return metadata.cacheable(request, body, cache=f"{metadata.CACHE}, stale-while-revalidate=60")

    async def page(request: Request) -> Response:
        issuer_of(request)
        return error_pages.answer(request.path_params["reason"])

    return [
        Route(f"/.well-known/oauth-authorization-server{path}/{{env}}", discovery),
        Route(f"/.well-known/openid-configuration{path}/{{env}}", discovery),
        Route(f"{path}/{{env}}/.well-known/openid-configuration", discovery),
        Route(f"{path}/{{env}}/jwks.json", jwks),
        Route(f"{path}/{{env}}/errors/{{reason}}", page),
    ]


def _application(routes: Sequence[BaseRoute]) -> Starlette:
    async def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Starlette's own texts are left out: they are not ours to promise.
        said = error.detail if error.detail == NO_SUCH_ENV else SENTENCES.get(error.status_code, "request failed")
        return _answer(error.status_code, said, error.headers)

    async def unavailable(_request: Request, error: Exception) -> Response:
        headers = {"retry-after": "1", "cache-control": "no-store"}
        return JSONResponse({"error": "temporarily_unavailable"}, status_code=503, headers=headers)

    from broker.errors import Unavailable

    app = Starlette(
        routes=list(routes),
        exception_handlers={HTTPException: http_error, Unavailable: unavailable},
    )
    return _with_headers(app)  # pyright: ignore[reportReturnType]


def _answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = {"error": oauth.INVALID_REQUEST, "error_description": sentence}
    return JSONResponse(body, status_code=status, headers={**(headers or {}), "cache-control": "no-store"})


def _with_headers(app: Callable[[Any, Any, Any], Awaitable[None]]) -> Any:
    """Adds the headers that every answer carries."""
    extra = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_with(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await app(scope, receive, send_with)

    return wrapped
