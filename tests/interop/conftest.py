"""One broker for all foreign programs, and the programs that verify what it issues."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
import redis
from joserfc.jwk import JWKRegistry

from broker.config import Settings
from broker.keys.sealed import decode_ring, key_encryption_key
from broker.store import names
from tests.interop import servers
from tests.interop.servers import NEEDS, PROGRAMS, Server, Site, Upstream
from tests.support.broker import Broker
from tests.support.forged import Good
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.signing import SigningKey
from tests.support.tree import write_tree


@dataclass(frozen=True, slots=True)
class World:
    """A broker, an issuer that it trusts, and a service that wants its credentials."""

    broker: Broker
    issuer: OidcIssuer
    upstream: Upstream
    folder: Path

    def token(self, env: str = "prod") -> str:
        """A workload's identity token, as its platform gives it."""
        return self.issuer.token(now=time.time(), aud=self.broker.issuer(env), jti=secrets.token_hex(16))

    def credential(self, env: str = "prod", **form: str) -> str:
        """A genuine credential: without `form`, to deploy payments."""
        asked = {"audience": "payments", "scope": "deploy:write"} | form
        answer = self.broker.exchange(self.token(env), env, **asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    def keys(self, env: str) -> dict[str, SigningKey]:
        """The broker's own private keys of an env, opened as the broker opens them: what nobody else could forge with."""
        key = key_encryption_key(Settings(data=self.broker.data), create=False)
        socket = (self.broker.data / "run" / "socket").read_text().strip()
        with redis.Redis(unix_socket_path=socket) as store:
            version, raw = store.hmget(names.keys(env), ["version", "ring"])
        assert isinstance(version, bytes)
        assert isinstance(raw, bytes)
        pairs = [pair for generation in decode_ring(raw, env, int(version), key).generations for pair in generation.keys]
        opened = {pair.kid: json.loads(key.unseal(env, pair.kid, pair.alg, pair.sealed)) for pair in pairs}
        return {pair.kid: SigningKey(pair.kid, pair.alg, JWKRegistry.import_key(opened[pair.kid])) for pair in pairs}

    def good(self) -> Good:
        """What a genuine credential is made of, the broker's own key included."""
        credential = self.credential()
        header = jwt.get_unverified_header(credential)
        claims = jwt.decode(credential, options={"verify_signature": False})
        return Good(header, claims, self.keys("prod")[header["kid"]], time.time())

    def site(self, name: str, env: str = "prod") -> Site:
        """Where a resource server of this world may stand."""
        folder = self.folder / f"{name}-{env}"
        folder.mkdir(exist_ok=True)
        return Site(self.broker.url, self.upstream.port, folder, env)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    folder: Path = tmp_path_factory.mktemp("interop")
    with in_thread(OidcIssuer("github-actions")) as issuer, servers.upstream() as upstream:
        policies = write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
        # Rotation by hand waits until every honest cache has the key; a test has no six minutes.
        with Broker(folder / "data", policies, env={"BROKER_KEY_PUBLISH_S_MIN": "1"}) as broker:
            yield World(broker, issuer, upstream, folder)


@pytest.fixture(scope="session")
def haproxy(world: World) -> Generator[Server]:
    with servers.haproxy(world.site("haproxy")) as server:
        yield server


@pytest.fixture(
    scope="session", params=[pytest.param(name, marks=pytest.mark.needs(*needed), id=name) for name, needed in NEEDS.items()]
)
def server(request: pytest.FixtureRequest, world: World) -> Generator[Server]:
    """Each of the programs that docs/verifying.md shows, protecting payments in prod."""
    with contextlib.ExitStack() as stack:
        if request.param == "HAProxy":
            yield request.getfixturevalue("haproxy")
        else:
            yield stack.enter_context(PROGRAMS[request.param](world.site(request.param)))
