"""One bounded HTTP request on the standard library: a deadline for all of it, a bound on its bytes, no redirects.

Plain http is for loopback, and for whom the caller says (a platform's metadata server).  Proxies as the environment
says (`HTTPS_PROXY`, `NO_PROXY`), trust as OpenSSL finds it (`SSL_CERT_FILE`).  Raises `Unreachable`, `Misused`.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from broker import __version__
from broker.client.errors import Misused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

ANSWER_BYTES_MAX = 65_536
WITHIN_S = 10.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Answer(NamedTuple):
    """Status, headers with lower-case names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Target(NamedTuple):
    """Where to, and what may not be left to the environment.  `unix`: a socket's path; `proxied`: may go through a proxy."""

    url: str
    unix: str = ""
    proxied: bool = True
    plain: bool = False


def request(
    target: Target,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    *,
    within_s: float = WITHIN_S,
    connect_s: float | None = None,
) -> Answer:
    """Sends one request and reads the whole answer within `within_s` seconds, after which no more is read; `connect_s` bounds
    connecting alone.  The system's resolver takes its own time.
    """
    parts = checked(target.url, plain=target.plain or bool(target.unix))
    proxy = _proxy(parts) if target.proxied and not target.unix else None
    now = time.monotonic()
    connection = _Connection(parts, target.unix, proxy, now + within_s, now + min(within_s, connect_s or within_s))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"User-Agent": f"broker-client/{__version__}", "Accept": "application/json", "Connection": "close", **(headers or {})}
    where = target.unix or f"{parts.scheme}://{parts.netloc}"
    first = f"the proxy {proxy.hostname}" if proxy else where
    try:
        connection.request(method, path, body, sent)
        with connection.getresponse() as response:
            content = _read(response)
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"the certificate of {parts.hostname} is not trusted: {error.verify_message}",
            "SSL_CERT_FILE=ca.pem names the authority that signed it; the URL's host must be in the certificate",
            passing=False,
        ) from None
    except ssl.SSLError as error:
        raise Unreachable(f"no TLS with {where}: {error.reason or error}", "does that port speak https?", passing=False) from None
    except TimeoutError:
        raise Unreachable(f"{where} did not answer in time") from None
    except socket.gaierror as error:
        name = (proxy or parts).hostname
        raise Unreachable(f"the name {name} is not found: {error.strerror}", "is the URL right?", doubtful=True) from None
    except ConnectionRefusedError:
        raise Unreachable(f"nobody listens at {first}", "is the URL right, and does it run?") from None
    except (http.client.HTTPException, ValueError) as error:  # of some nonsense http.client says ValueError
        raise Unreachable(f"{where} did not answer as an HTTP server does: {type(error).__name__}", *_tls(target)) from None
    except OSError as error:
        raise Unreachable(f"the connection to {first} failed: {error.strerror or type(error).__name__}", *_tls(target)) from None
    finally:
        connection.end()


def _tls(target: Target) -> tuple[str, ...]:
    """A server of TLS ends a connection that speaks none, with or without a word."""
    in_the_clear = target.url.lower().startswith("http:") and not target.unix and not target.plain
    return ("does that port speak TLS? then the URL begins with https://",) if in_the_clear else ()


def checked(url: str, *, plain: bool = False) -> SplitResult:
    """A URL's parts.  Raises `Misused` for what is no URL of a server, and for http anywhere but on loopback."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        parts, good = SplitResult("", "", "", "", ""), False
    if not good or any(ord(letter) <= 0x20 or ord(letter) >= 0x7F for letter in url):
        shown = "what has a user or a password in it" if "@" in url else printable(url.partition("?")[0])
        raise Misused(f"{shown} is no URL of a server", "write it like https://broker.acme.example")
    if parts.scheme == "http" and not plain and parts.hostname not in LOOPBACK:
        raise Misused(
            f"http://{parts.netloc} is not https", "a token would travel in the clear there; http is for loopback only"
        )
    return parts


def printable(text: str, most: int = 200) -> str:
    """Text from outside, fit for a line of a log: no control characters, no command to a CI system's runner, bounded.

    GitHub and Azure Pipelines obey `##[command]` and `##vso[command]` anywhere in a line, GitHub `::command::` at its start.
    """
    shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text[:most])
    shown = shown.replace("##", "#\\x23") + ("…" if len(text) > most else "")
    return shown.replace("::", ":\\x3a", 1) if shown.lstrip().startswith("::") else shown


def _read(response: http.client.HTTPResponse) -> bytes:
    content = response.read(ANSWER_BYTES_MAX + 1)
    if len(content) > ANSWER_BYTES_MAX:
        raise _too_large()
    if response.length:
        raise Unreachable("the connection ended before the answer did")
    return content


def _too_large() -> Unreachable:
    return Unreachable(f"the answer is larger than {ANSWER_BYTES_MAX} bytes", "another server may answer there", passing=False)


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for this URL; its parser is loaded only where a variable is set."""
    if parts.scheme != "https" or parts.hostname in LOOPBACK:
        return None
    if not any(name.lower().endswith("_proxy") and os.environ[name] for name in os.environ):
        return None
    from urllib.request import (  # type: ignore[attr-defined]  # documented, not in the stubs
        getproxies_environment,
        proxy_bypass_environment,  # pyright: ignore[reportAttributeAccessIssue]
    )

    chosen = getproxies_environment().get("https")
    if not chosen or proxy_bypass_environment(f"{parts.hostname}:{parts.port or 443}"):
        return None
    try:
        proxy = urlsplit(chosen if "://" in chosen else f"http://{chosen}")
        good = proxy.scheme == "http" and bool(proxy.hostname) and proxy.port != 0
    except ValueError:
        proxy, good = parts, False
    if not good:
        raise Misused("HTTPS_PROXY names no http proxy", "HTTPS_PROXY=http://proxy.acme.example:3128; %-encode a password")
    return proxy


class _Connection(http.client.HTTPConnection):
    """A connection whose every read ends at one deadline, a server or a proxy that sends a byte now and then included."""

    def __init__(self, parts: SplitResult, unix: str, proxy: SplitResult | None, deadline: float, connect_by: float) -> None:
        self._tls = parts.scheme == "https"
        self.default_port = 443 if self._tls else 80  # as http.client has it, for the Host header
        super().__init__(str(parts.hostname), parts.port or self.default_port)
        self._unix, self._proxy, self._deadline, self._connect_by = unix, proxy, deadline, connect_by
        self._raw: socket.socket | None = None

    def connect(self) -> None:
        """TCP or a unix socket, the proxy's tunnel if there is one, TLS."""
        addresses: list[Any] = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", self._unix)] if self._unix else []
        if not self._unix:
            host, port = (str(self._proxy.hostname), self._proxy.port or 80) if self._proxy else (self.host, self.port)
            # A name in bytes is plain ASCII, so no codec for other names is loaded.
            addresses = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
        self._raw = reached(addresses, self._connect_by)
        if self._proxy:
            _through(self._proxy, self.host, self.port, _Timed(self._raw, self._deadline))
        if self._tls:
            _left(self._raw, self._deadline)
            self._raw = ssl.create_default_context().wrap_socket(self._raw, server_hostname=self.host.encode("ascii"))
        self.sock = _Timed(self._raw, self._deadline)  # type: ignore[assignment]  # what http.client uses of a socket

    def end(self) -> None:
        """Closes the socket, which http.client's own close leaves open for whoever still reads."""
        if self._raw is not None:
            self._raw.close()


def reached(addresses: list[Any], by: float) -> socket.socket:
    """A connection to the first address, as getaddrinfo has them, that takes one until `by` (monotonic seconds).

    Each has its share of the time, so that a dead one leaves some to the next.  Raises OSError.
    """
    problem = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        raw = None
        try:
            raw = socket.socket(family, kind, protocol)
            _left(raw, by, len(addresses) - number)
            raw.connect(address)
        except OSError as error:
            problem = error
            if raw is not None:
                raw.close()
        else:
            return raw
    raise problem


def _through(proxy: SplitResult, host: str, port: int, timed: _Timed) -> None:
    """Has the proxy connect us (RFC 9110 §9.3.6), with the user and password of its URL.  Raises `Unreachable`."""
    name = f"[{host}]" if ":" in host else host
    lines = [f"CONNECT {name}:{port} HTTP/1.1", f"Host: {name}:{port}"]
    if proxy.username is not None:
        from base64 import b64encode

        user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {b64encode(user.encode()).decode()}")
    timed.sendall("\r\n".join((*lines, "", "")).encode("ascii"))
    with http.client.HTTPResponse(timed, method="CONNECT") as response:  # type: ignore[arg-type]
        response.begin()
        if not 200 <= response.status < 300:
            raise Unreachable(
                f"the proxy {proxy.hostname} lets nobody through to {name}: {response.status} {printable(response.reason)}",
                "HTTPS_PROXY=http://USER:PASSWORD@… where it asks for them; NO_PROXY names hosts that need no proxy",
                passing=response.status >= 500,
            )


class _Timed:
    """What http.client uses of a socket, until `deadline`; whoever made it closes the socket.

    A request goes out as one piece, when its answer is to be read: a server that has seen enough may close before the rest.
    """

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw, self._deadline, self._out = raw, deadline, b""

    def sendall(self, data: bytes) -> None:
        self._out += data

    def makefile(self, _mode: str) -> io.BufferedReader:
        _left(self._raw, self._deadline)
        self._raw.sendall(self._out)
        return io.BufferedReader(_Reader(self._raw, self._deadline))

    def close(self) -> None:
        pass


class _Reader(io.RawIOBase):
    """Bounds all that is read too: http.client reads without end what a wrong length of a chunk makes it read."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw, self._deadline, self._room = raw, deadline, 4 * ANSWER_BYTES_MAX

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        _left(self._raw, self._deadline)
        count = self._raw.recv_into(buffer)
        self._room -= count
        if self._room < 0:
            raise _too_large()
        return count


def _left(raw: socket.socket, deadline: float, shares: int = 1) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    raw.settimeout(left / shares)
