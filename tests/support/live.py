"""A broker in the test's own loop: real store, real node, real HTTP; only the processes around them are missing.

    async with Live(folder, {"github": issuer}) as live:
        live.url, live.issuer("prod")
        await live.exchange(live.token(), audience="payments", scope="deploy:write")     an httpx2.Response
        await live.records(request_id=…)                                                 audit records, oldest first
        live.clock.ahead_s = 60                                                          the node's clock, not the store's
        async with live.beside() as second: …                                            another node on the same store
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx2
import redis.asyncio

from broker.admin.acts import Lift, Revoke
from broker.config import Limits, Settings
from broker.keys.sealed import key_encryption_key
from broker.node import Node, local_operator
from broker.protocol import oauth
from broker.store.embedded import EmbeddedStore
from broker.telemetry.trace import Incoming
from broker.web.app import Site, public_app
from broker.web.endpoint import TokenEndpoint
from broker.web.health import Readiness
from broker.web.server import serve, server
from tests.support.issuer import OidcIssuer
from tests.support.tree import write_tree

LATEST = 200
PAYMENTS = {"audience": "payments", "scope": "deploy:write"}


class Clock:
    """The true time, moved by `ahead_s`, or standing still at `stopped_at`."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.stopped_at: float | None = None

    def __call__(self) -> float:
        return time.time() + self.ahead_s if self.stopped_at is None else self.stopped_at


class Live:
    """One node behind HTTP.

    Without `policies`, the tree of tests/support/tree.py that trusts `issuers`, each with `lines` more in its entry.
    """

    def __init__(
        self,
        folder: Path,
        issuers: Mapping[str, OidcIssuer],
        *,
        policies: Path | None = None,
        limits: Limits | None = None,
        replay: str = "reject",
        accounts: Mapping[str, str] | None = None,
        lines: Mapping[str, str] | None = None,
        store_url: str = "",
        url: str = "",
        worker: int = 0,
        incoming: Incoming = "link",
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.issuers = issuers
        self.limits = limits or Limits()
        self.clock = Clock()
        self.worker = worker
        self.incoming: Incoming = incoming
        self._given = settings
        self._url = url
        self.policies = policies or write_tree(
            folder / "policies",
            {name: {"preset": issuer.preset.name, "url": issuer.url, **(lines or {})} for name, issuer in issuers.items()},
            replay=replay,
            accounts=accounts,
        )
        self.store_url = store_url
        self._embedded = None if store_url else EmbeddedStore(self.data, self.limits)
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._embedded is not None:
            self.store_url = await self._embedded.start()
        # The protocol is said, so that asyncio turns Nagle's algorithm off, as uvloop does in any case.
        public = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        public.bind(("127.0.0.1", 0))
        public.listen(2048)
        public.setblocking(False)
        self.port = public.getsockname()[1]
        self.settings = Settings(
            policies=self.policies, data=self.data, port=self.port, limits=self.limits, url=self._url, **self._given
        )
        self.node = await Node.open(
            self.settings, self.store_url, key_encryption_key(self.settings), worker=self.worker, clock=self.clock
        )
        self.raw = redis.asyncio.Redis.from_url(self.store_url, decode_responses=True)
        site = Site(self.settings.base_url, self.node.serves, self.node.rings, self._readiness)
        endpoint = TokenEndpoint(
            exchange=self.node.exchange,
            tracer=self.node.tracer,
            limits=self.limits,
            incoming=self.incoming,
            trusted_proxies=self.settings.trusted_proxies,
            stopping=self.node.stopping.is_set,
        )
        served = server(public_app(site, endpoint, with_admin=True), self.settings)
        self._serving = asyncio.create_task(serve([(served, [public])], self._stop))
        self.client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=30)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self._stop.set()
        await self._serving
        await self.raw.aclose()
        await self.node.close()
        if self._embedded is not None:
            await self._embedded.stop()

    async def _readiness(self) -> Readiness:
        node = self.node
        durability = node.health.durability if node.health else ""
        return Readiness(failing=node.failing(), degraded=node.degraded(), durability=durability)

    def beside(self, *, worker: int = 1) -> Live:
        """Another node on the same store, with the same issuer URLs."""
        return Live(
            self.folder, self.issuers, policies=self.policies, limits=self.limits, store_url=self.store_url,
            url=self.settings.base_url, worker=worker,
        )  # fmt: skip

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """A command of the command line against this broker's folders: exit code, stdout, stderr."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "OTEL_", "PROMETHEUS_"))}
        ours = {"BROKER_DATA": str(self.data), "BROKER_POLICIES": str(self.policies), "BROKER_PORT": str(self.port)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broker", *arguments,
            env=kept | ours, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def revoke(self, *, envs: tuple[str, ...] = ("prod",), **selectors: Any) -> str:
        """Revokes at this node; the id of the revocation."""
        act = Revoke(id=secrets.token_hex(8), selectors=selectors, envs=envs, reason="a test")
        await self.node.admin.perform(act, local_operator())
        return act.id

    async def lift(self, revocation: str, *, envs: tuple[str, ...] = ("prod",)) -> None:
        """Lifts a revocation at this node."""
        await self.node.admin.perform(Lift(secrets.token_hex(8), revocation, envs, "a test"), local_operator())

    @property
    def store_pid(self) -> int:
        """The process of the embedded store."""
        assert self._embedded is not None
        assert self._embedded.pid is not None
        return self._embedded.pid

    @property
    def url(self) -> str:
        return self.settings.base_url

    def issuer(self, env: str = "prod") -> str:
        return f"{self.url}/{env}"

    def token(self, issuer: str = "github", env: str = "prod", **claims: Any) -> str:
        """A fresh good token of an issuer for an env."""
        claims = {"aud": self.issuer(env), "jti": secrets.token_hex(16)} | claims
        return self.issuers[issuer].token(now=self.clock(), **claims)

    async def exchange(self, token: str, env: str = "prod", act: str = "token", **form: Any) -> httpx2.Response:
        """One exchange; a form value of None leaves its parameter out, a list repeats it."""
        base = {"grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN}
        data = {name: value for name, value in {**base, **form}.items() if value is not None}
        return await self.client.post(f"/{env}/{act}", data=data)

    async def deploys(self, env: str = "prod", **claims: Any) -> httpx2.Response:
        """The good exchange that stands beside every bad one."""
        return await self.exchange(self.token(env=env, **claims), env, **PAYMENTS)

    async def records(self, env: str = "prod", **fields: Any) -> list[dict[str, Any]]:
        """Audit records with these values, oldest first, straight from the stream."""
        found = [json.loads(members["r"]) for _, members in await self.raw.xrange(f"broker:{{{env}}}:audit")]
        return [record for record in found if all(record.get(name) == value for name, value in fields.items())]

    async def record(self, answer: httpx2.Response, env: str = "prod") -> dict[str, Any]:
        """The one record of an answer that has just come."""
        latest = [json.loads(members["r"]) for _, members in await self.raw.xrevrange(f"broker:{{{env}}}:audit", count=LATEST)]
        found = [record for record in latest if record.get("request_id") == answer.headers["x-request-id"]]
        assert len(found) == 1, f"{len(found)} records of one request"
        return found[0]
