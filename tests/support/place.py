"""Where a caller's program runs: a broker, an issuer that it trusts, a token service like a GitHub runner's, and a front.

    with Place(folder) as place:
        place.environment                   variables of a job there: BROKER_URL, BROKER_ENV, the runner's two
        place.token(ref="refs/heads/x")     an identity token
        place.front.script = [Reply(503, {"Retry-After": "1"})]     what the front answers before it passes requests on
        place.run("token", "-a", "payments", …)                     a command of the caller's side, as a process
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tree import write_tree


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer.  `hold_s` seconds pass before it; `drop`: the connection is closed in its place; status 0: what
    the broker says.
    """

    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold_s: float = 0
    drop: bool = False


class Server:
    """An HTTP server of threads on a loopback port."""

    def __init__(self, answer: Any, port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self, b"")

            def do_POST(self) -> None:
                answer(self, self.rfile.read(int(self.headers.get("Content-Length", "0"))))

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a caller that left

        self.server = Quiet(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Front:
    """Stands before a broker: answers what its script says, then passes requests on, and remembers them."""

    def __init__(self, upstream: str) -> None:
        self.script: list[Reply] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, list[str]]]] = []
        self._upstream = urlsplit(upstream)
        self.server = Server(self._answer)
        self.url = self.server.url

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.path, headers, parse_qs(body.decode())))
        reply = self.script.pop(0) if self.script else self._passed_on(handler, body)
        hold_s = reply.hold_s
        if not reply.status:
            reply = self._passed_on(handler, body)
        if hold_s:
            time.sleep(hold_s)
        if reply.drop:
            handler.connection.close()
            return
        handler.send_response_only(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(reply.body)

    def _passed_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> Reply:
        connection = HTTPConnection(str(self._upstream.hostname), self._upstream.port, timeout=20)
        try:
            connection.request(handler.command, handler.path, body, dict(handler.headers.items()))
            answer = connection.getresponse()
            kept = ("content-type", "x-request-id", "traceresponse", "retry-after", "cache-control")
            return Reply(answer.status, {n: v for n, v in answer.getheaders() if n.lower() in kept}, answer.read())
        except OSError:
            return Reply(drop=True)
        finally:
            connection.close()

    def exchanges(self) -> list[dict[str, list[str]]]:
        """The forms that came to /token."""
        return [form for path, _, form in self.requests if path.endswith("/token")]


class Place:
    """All of it.  The broker's own URL is the front's, so that audiences and issuers agree."""

    def __init__(self, folder: Path, accounts: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._accounts = accounts
        self._stack = contextlib.ExitStack()
        self.asked: list[str] = []  # audiences that the token service was asked for
        self.claims: dict[str, Any] = {}  # what the token service puts in beside the fixture's

    def __enter__(self) -> Self:
        self.issuer = self._stack.enter_context(in_thread(OidcIssuer("github-actions")))
        with in_thread(OidcIssuer("github-actions", name="away", number=2)) as self.away:
            pass  # it has an address, and nobody listens there
        entries = {issuer.name: {"preset": "github-actions", "url": issuer.url} for issuer in (self.issuer, self.away)}
        policies = write_tree(self._folder / "policies", entries, accounts=self._accounts)
        self.broker = Broker(self._folder / "data", policies)
        self.front = Front(self.broker.url)
        self._stack.callback(self.front.server.close)
        self.broker.environment["BROKER_URL"] = self.front.url
        self._stack.enter_context(self.broker)
        self.runner = Server(self._hand_out)
        self._stack.callback(self.runner.close)
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.__exit__(*details)  # type: ignore[arg-type]

    def begin_anew(self) -> None:
        """Forgets what was scripted and what was asked."""
        self.front.script.clear()
        self.front.requests.clear()
        self.asked.clear()
        self.claims = {}

    def _hand_out(self, handler: BaseHTTPRequestHandler, _: bytes) -> None:
        audience = parse_qs(urlsplit(handler.path).query)["audience"][0]
        self.asked.append(audience)
        body = f'{{"value": "{self.token(**{"aud": audience, **self.claims})}"}}'.encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def token(self, env: str = "prod", shift_s: float = 0, **claims: Any) -> str:
        """An identity token, made `shift_s` seconds from now; a claim that is None is left out."""
        made = {"aud": f"{self.front.url}/{env}", "jti": secrets.token_hex(16), **claims}
        return self.issuer.token(now=time.time() + shift_s, **made)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a job on this runner."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self._folder),
            "GITHUB_ACTIONS": "true",
            "CI": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.runner.url}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
            "BROKER_URL": self.front.url,
            "BROKER_ENV": "prod",
        }

    def run(
        self, *arguments: str, input: str | None = None, without: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`broker …` in a job; `without` takes variables away."""
        environment = {name: value for name, value in {**self.environment, **variables}.items() if name not in without}
        command = [sys.executable, "-m", "broker", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, input=input, timeout=60)
