"""One broker for all foreign clients."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tree import write_tree


@dataclass(frozen=True, slots=True)
class World:
    """A broker, and an issuer that it trusts."""

    broker: Broker
    issuer: OidcIssuer

    def token(self) -> str:
        return self.issuer.token(now=time.time(), aud=self.broker.issuer("prod"), jti=secrets.token_hex(16))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("interop")
    with in_thread(OidcIssuer("github-actions")) as issuer:
        policies = write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
        with Broker(folder / "data", policies) as broker:
            yield World(broker, issuer)
