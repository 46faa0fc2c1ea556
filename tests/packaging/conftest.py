"""What the tests of the Action share: a broker, a runner's token service whose issuer it trusts, a job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from broker.demo.stage import copy_policies
from tests.packaging.runner import BEARER, Reply, Request, Runner, Server, Step, TokenService
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread

ROOT = Path(__file__).parents[2]
ISSUED = {"access_token": "opaque-credential", "token_type": "Bearer", "expires_in": 600, "scope": "deploy:write"}


@dataclass(frozen=True, slots=True)
class World:
    """A broker, and the token service of a runner whose issuer it trusts."""

    broker: Broker
    service: TokenService

    def front(self, *first: Reply | None, **where: Any) -> Server:
        """A server before the broker: it gives these replies first, then passes on."""
        front = Server(self._pass_on, **where)
        front.next = list(first)
        return front

    def _pass_on(self, request: Request) -> Reply:
        kept = {"content-type": request.headers["content-type"]}
        answer = self.broker.client.request(request.method, request.path, content=request.body, headers=kept)
        headers = {name: answer.headers[name] for name in ("x-request-id", "traceresponse") if name in answer.headers}
        return Reply(answer.status_code, answer.content, headers)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("action")
    with in_thread(OidcIssuer("github-actions")) as issuer, TokenService(issuer) as service:
        copy_policies(ROOT / "policies", folder / "policies", {"github": issuer.url})
        with Broker(folder / "data", folder / "policies") as broker:
            yield World(broker, service)


@pytest.fixture
def world(servers: World) -> World:
    servers.service.next, servers.service.claims = [], {}
    servers.service.always = servers.service.token
    servers.service.tokens.clear()
    servers.service.requests.clear()
    return servers


@pytest.fixture
def runner(world: World, tmp_path: Path) -> Runner:
    return Runner(tmp_path, world.service.request_url)


def wish(world: World, **changes: str) -> dict[str, str]:
    """The inputs of a release job; `_` in a name stands for `-`."""
    return {"server": world.broker.url, "env": "prod", "audience": "payments", "scope": "deploy:write", **changes}


def nothing_secret(step: Step, world: World) -> None:
    """No token stands where people read; each was masked."""
    used = [*world.service.tokens, *([step.outputs["token"]] if "token" in step.outputs else [])]
    assert step.masks == used
    for secret in used:
        assert secret.split(".")[-1] not in step.shown
    assert BEARER not in step.stdout + step.shown


def table(summary: str) -> dict[str, str]:
    """The rows of a summary, rendered; a cell that is no plain text, or a third column, is an error."""
    rendered = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(summary)
    rows = re.findall(r"<tr>\n<td>([^<]*)</td>\n<td><code>([^<]*)</code></td>\n</tr>", rendered)
    assert len(rows) == rendered.count("<td>") / 2 == rendered.count("<tr>") - 1
    assert rendered.count("<h") == 1
    return {unescape(name): unescape(value) for name, value in rows}
