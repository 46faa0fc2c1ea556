"""An OIDC issuer on loopback that signs tokens shaped like a platform's: real discovery, real keys, real signatures.

For the demo only: whoever reaches it gets whatever token it asks for.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

LIFE_S = 300


def _parameters() -> Any:
    return {"kid": secrets.token_hex(8), "use": "sig", "alg": "RS256"}


def free_port(wanted: int) -> int:
    """`wanted` if nobody holds it, else one that is free."""
    import socket

    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    return wanted


@dataclass(slots=True)
class Loopback:
    """A Starlette application on a loopback port, for the length of a demo."""

    app: Starlette
    port: int
    _server: uvicorn.Server | None = None
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once it answers."""
        config = uvicorn.Config(self.app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
        self._task = asyncio.create_task(self._server._serve())  # pyright: ignore[reportPrivateUsage]
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Ends it at once."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._task


@dataclass(slots=True)
class DemoIssuer:
    """One issuer: its URL, its key, and tokens on demand; `claims` are those of its own `/token` address."""

    port: int
    claims: Mapping[str, Any]
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, parameters=_parameters()))

    @property
    def url(self) -> str:
        """The issuer string, as discovery and tokens carry it."""
        return f"http://127.0.0.1:{self.port}"

    def token(self, claims: Mapping[str, Any], audience: str) -> str:
        """A fresh signed token with these claims, for this audience."""
        now = int(time.time())
        times = {"iss": self.url, "iat": now, "nbf": now, "exp": now + LIFE_S, "jti": secrets.token_hex(16)}
        body = {**claims, **times, "aud": [audience] if isinstance(claims.get("aud"), list) else audience}
        return jwt.encode({"alg": "RS256", "kid": self.key.kid, "typ": "JWT"}, body, self.key, algorithms=["RS256"])

    def app(self) -> Loopback:
        """Its HTTP side: discovery and keys."""

        async def discovery(_request: Request) -> Response:
            return JSONResponse(
                {
                    "issuer": self.url,
                    "jwks_uri": f"{self.url}/keys",
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )

        async def keys(_request: Request) -> Response:
            return JSONResponse({"keys": [self.key.as_dict(private=False)]})

        async def token(request: Request) -> Response:
            # For whoever tries commands by hand; a real platform asks who wants to know.
            return PlainTextResponse(self.token(self.claims, request.query_params.get("audience", "")))

        routes = [
            Route("/.well-known/openid-configuration", discovery),
            Route("/keys", keys),
            Route("/token", token),
        ]
        return Loopback(Starlette(routes=routes), self.port)
