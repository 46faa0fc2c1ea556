"""Commands as sessions: what a person types, what comes out, which exit code."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.cli.main import run
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tree import write_tree


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@contextlib.contextmanager
def shell(environment: dict[str, str], typed: str = "") -> Iterator[None]:
    """This process with another environment, and nobody at the keyboard; `typed` comes in by a pipe."""
    before, keyboard = dict(os.environ), sys.stdin
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = io.StringIO(typed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.stdin = keyboard


@dataclass(frozen=True, slots=True)
class Terminal:
    """A shell beside a running broker; its environment is the broker's."""

    broker: Broker
    issuer: OidcIssuer

    def types(self, *arguments: str, typed: str = "", **environment: str) -> Said:
        """Runs `broker ARGUMENTS` in this process, with the broker's environment and no terminal to ask on."""
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with shell(self.broker.environment | environment, typed), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run(list(arguments))
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Said(code, out.getvalue(), err.getvalue())

    def token(self, env: str = "prod", **claims: Any) -> str:
        given = {"aud": self.broker.issuer(env), "jti": secrets.token_hex(16)} | claims
        return self.issuer.token(now=time.time(), **given)

    def exchange(self, env: str = "prod", scope: str = "deploy:write", **claims: Any) -> httpx2.Response:
        return self.broker.exchange(self.token(env, **claims), env, audience="payments", scope=scope)


@pytest.fixture(scope="package")
def issuer() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("github-actions")) as running:
        yield running


@pytest.fixture(scope="package")
def terminal(issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder: Path = tmp_path_factory.mktemp("cli")
    policies = write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
    with Broker(folder / "data", policies, env={"BROKER_REFUSALS_PER_S": "10000", "COLUMNS": "200"}) as broker:
        yield Terminal(broker, issuer)


@pytest.fixture
def copy(terminal: Terminal, tmp_path: Path) -> Path:
    """A copy of the broker's policies, to be changed."""
    shutil.copytree(terminal.broker.policies, tmp_path / "tree")
    return tmp_path / "tree"
