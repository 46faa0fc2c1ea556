"""What a platform runs beside a job, and its faults as switches: an HTTP service on loopback or a unix socket, a program.

    service = Service(answer)               answer(seen) -> Reply; its address is service.url, or the socket that was given
    service.seen                            the requests that came
    service.fault = Fault.HTML              how it answers from now on; service.status = 429 answers with that
    program = Program("devin-oidc", folder, runs)       runs(words) -> Ran; the script lies in program.folder
"""

from __future__ import annotations

import contextlib
import enum
import json
import socketserver
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

DRIP_S = 0.01


class Fault(enum.Enum):
    NONE = enum.auto()
    SILENT = enum.auto()  # accepts, reads, never answers
    DRIP = enum.auto()  # one byte at a time, for ever
    HUGE = enum.auto()  # the token and a megabyte more
    CLOSES = enum.auto()  # without a byte
    HTML = enum.auto()  # a page with status 200
    REDIRECT = enum.auto()  # to `redirect_to`
    NOT_JSON = enum.auto()
    NO_MEMBER = enum.auto()  # JSON, but not with the token
    NO_JWT = enum.auto()  # something else where the token should be
    UNMARKED = enum.auto()  # without the headers that are the vendor's mark


@dataclass(frozen=True, slots=True)
class Seen:
    """One request.  `query` and `form` have the last value of each name."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(self.body.decode()).items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.  `token` is the part of `body` that is one."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    token: str = ""

    @staticmethod
    def json(value: Any, status: int = 200, token: str = "", **headers: str) -> Reply:
        kept = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        return Reply(status, json.dumps(value).encode(), kept, token)

    @staticmethod
    def text(token: str, **headers: str) -> Reply:
        return Reply(200, token.encode(), {name.replace("_", "-"): text for name, text in headers.items()}, token)


class Service:
    """An HTTP service of threads."""

    def __init__(self, answer: Callable[[Seen], Reply], unix: Path | None = None, host: str = "127.0.0.1") -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.fault = Fault.NONE
        self.status = 0
        self.said: Any = {"message": "the service is tired"}  # with `status`
        self.headers: dict[str, str] = {}  # with `status`
        self.redirect_to = "https://elsewhere.example/"
        self._ended = threading.Event()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served._serve(self)

            do_POST = do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(socketserver.ThreadingMixIn, socketserver.UnixStreamServer if unix else socketserver.TCPServer):  # type: ignore[misc]
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # a client that left

        self._server = Quiet(str(unix) if unix else (host, 0), Handler)
        self._host, self.port = host, 0 if unix else self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def host(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        seen = Seen(handler.command, parts.path, query, headers, handler.rfile.read(int(headers.get("content-length", 0))))
        self.seen.append(seen)
        reply = Reply.json(self.said, self.status, **self.headers) if self.status else self._spoilt(self.answer(seen))
        with contextlib.suppress(OSError):
            match self.fault:
                case Fault.CLOSES:
                    return
                case Fault.SILENT:
                    self._ended.wait()
                case Fault.DRIP:
                    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
                    while not self._ended.wait(DRIP_S):
                        handler.wfile.write(b" ")
                case _:
                    _send(handler, reply)

    def _spoilt(self, reply: Reply) -> Reply:
        match self.fault:
            case Fault.HUGE:
                return Reply(200, reply.body + b" " * 1_000_000, reply.headers)
            case Fault.HTML:
                return Reply(200, b"<!doctype html><title>Sign in</title>", {**reply.headers, "Content-Type": "text/html"})
            case Fault.REDIRECT:
                return Reply(302, b"", {"Location": self.redirect_to})
            case Fault.NOT_JSON:
                return Reply(200, b"{" + reply.body, reply.headers)
            case Fault.NO_MEMBER:
                return Reply(200, b'{"another": 1}', reply.headers)
            case Fault.NO_JWT:
                return Reply(200, reply.body.replace(reply.token.encode(), b"opaque"), reply.headers)
            case Fault.UNMARKED:
                return Reply(reply.status, reply.body)
            case _:
                return reply


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status)
    for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(reply.body)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ends.  `lingers`: it leaves a child behind that holds its pipes open."""

    code: int = 0
    out: str = ""
    err: str = ""
    lingers: bool = False


SCRIPT = """#!{python} -SE
import json, os, socket, sys, time
body = json.dumps(sys.argv[1:]).encode()
peer = socket.create_connection(("127.0.0.1", {port}))
peer.sendall(b"POST /run HTTP/1.0\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
heard = b"".join(iter(lambda: peer.recv(65536), b""))
ran = json.loads(heard.partition(b"\\r\\n\\r\\n")[2])
sys.stdout.write(ran["out"])
sys.stderr.write(ran["err"])
sys.stdout.flush()
if ran["lingers"] and os.fork() == 0:
    time.sleep(60)
os._exit(ran["code"])
"""


class Program:
    """A script that does what `runs` says of its words; while its service is silent, it hangs."""

    def __init__(self, name: str, folder: Path, runs: Callable[[list[str]], Ran]) -> None:
        self.runs = runs
        self.words: list[list[str]] = []
        self.folder = folder / "bin"
        self.folder.mkdir(exist_ok=True)
        self.service = Service(self._answer)
        self.path = self.folder / name
        self.path.write_text(SCRIPT.format(python=sys.executable, port=self.service.port))
        self.path.chmod(0o755)

    def _answer(self, seen: Seen) -> Reply:
        self.words.append(seen.json)
        ran = self.runs(seen.json)
        return Reply.json({"code": ran.code, "out": ran.out, "err": ran.err, "lingers": ran.lingers})
