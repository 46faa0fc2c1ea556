"""An OIDC issuer on a real loopback socket, whose misbehaviour is a switch.

    async with OidcIssuer("github-actions") as issuer:
        issuer.url                                  its issuer URL, http://127.0.0.1:PORT (https with `tls=`)
        issuer.entry()                              the compiled entry of issuers.yaml for it (model.Issuer)
        issuer.token(now=NOW, aud=AUDIENCE)         a token of its platform's shape, signed by its current key
        issuer.rotate()                             a new key signs from now on; the old one stays published
        issuer.withdraw(kid)                        a key leaves the set
        issuer.published                            the list of JWKs that it answers with: edit it at will
        issuer.fault = Fault.ENDLESS                how it answers; `fault_at` narrows it to "discovery" or "jwks"
        issuer.requests, issuer.connections         what came in: requests by path, connections in all
        await issuer.down(); await issuer.up()      nobody listens; the same port again

    with in_thread(OidcIssuer(…)) as issuer:        the same for tests that are not async, or for other processes
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gzip
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

from broker import presets
from broker.model import Issuer
from tests.support.signing import Shape, SigningKey, compact_json, signing_key

DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/keys"
CHUNK = b"[" * 65_536


class Fault(enum.Enum):
    """How an answer goes wrong."""

    NONE = enum.auto()
    SILENT = enum.auto()  # accepts, reads, never answers
    DRIP_HEADERS = enum.auto()  # one byte at a time, for ever
    DRIP_BODY = enum.auto()
    RESET = enum.auto()  # closes without a byte
    HUGE = enum.auto()  # 200 MB, announced
    ENDLESS = enum.auto()  # chunks without an end
    GZIP_BOMB = enum.auto()  # 64 MB of one letter, packed
    GZIP = enum.auto()  # the honest answer, packed
    REDIRECT = enum.auto()  # `redirect_status` to `redirect_to`
    STATUS_404 = enum.auto()
    STATUS_500 = enum.auto()
    NOT_MODIFIED = enum.auto()  # 304, though nobody asked for a condition
    HTML = enum.auto()  # a login page with status 200
    NOT_JSON = enum.auto()
    DUPLICATE_MEMBERS = enum.auto()
    DEEP_JSON = enum.auto()
    WRONG_ISSUER = enum.auto()  # discovery of somebody else
    NO_JWKS_URI = enum.auto()
    LIST_JWKS_URI = enum.auto()
    HOSTILE_CACHING = enum.auto()  # the honest answer, with absurd headers
    COOKIE = enum.auto()  # the honest answer, with a cookie to carry back


class OidcIssuer:
    """One issuer.  Everything about it may be changed while it runs."""

    def __init__(
        self,
        preset: str = "github-actions",
        *,
        name: str = "github",
        algorithm: str | None = None,
        number: int = 1,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.shape = Shape.of(preset)
        self.name = name
        self.algorithm = algorithm or str(self.shape.header["alg"])
        self.preset = presets.load(preset)
        self.number = number
        self.key = self._made(number)
        self.published: list[dict[str, Any]] = [self.key.jwk]
        self.fault = Fault.NONE
        self.fault_at: str | None = None
        self.jwks_uri: Any = None  # None: its own
        self.redirect_to = ""
        self.redirect_status = 302
        self.drip_s = 0.02
        self.requests: Counter[str] = Counter()
        self.headers_seen: list[dict[str, str]] = []
        self.connections = 0
        self.arrived = asyncio.Event()  # set at each request; clear it before waiting for the next
        self.hold: asyncio.Event | None = None  # answers wait until it is set
        self._tls, self._host, self._port = tls, host, 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    # What it says

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    @property
    def jwks_url(self) -> str:
        return self.url + JWKS

    @property
    def trust_domain(self) -> str | None:
        sub = str(self.shape.fixture["sub"])
        return sub.split("/")[2] if self.preset.key_use == "jwt-svid" else None

    def entry(self, **changes: Any) -> Issuer:
        """The entry of issuers.yaml that trusts this issuer, compiled with its preset; `changes` override fields."""
        preset, spiffe = self.preset, self.trust_domain is not None
        values: dict[str, Any] = {
            "name": self.name,
            "url": f"spiffe://{self.trust_domain}" if spiffe else self.url,
            "preset": preset.name,
            "algorithms": tuple(dict.fromkeys((self.algorithm, *preset.algorithms))),
            "jwks_url": self.jwks_url if spiffe else None,
            "max_age_s": preset.max_age_s,
            "max_lifetime_s": preset.max_lifetime_s,
            "replay": preset.replay_default,
            "trust_domain": self.trust_domain,
            "key_use": preset.key_use,
            "required": preset.required,
            "claims": preset.claims,
            "families": preset.families,
            "stable_ids": preset.stable_ids,
            "recorded": preset.recorded,
            "tenant_ids": preset.ids["tenant"],
        }
        return Issuer(**values | changes)

    def claims(self, *, now: float, **changes: Any) -> dict[str, Any]:
        """Claims of the platform's shape for this issuer; a change to None removes one."""
        if self.trust_domain is None:
            changes.setdefault("iss", self.url)
        return self.shape.claims(now=now, **changes)

    def header(self, **changes: Any) -> dict[str, Any]:
        header = {**self.shape.header, "alg": self.key.alg, "kid": self.key.kid, **changes}
        return {name: value for name, value in header.items() if value is not None}

    def token(self, *, now: float, header: dict[str, Any] | None = None, key: SigningKey | None = None, **claims: Any) -> str:
        """A token signed by the current key, or by `key` under its own kid."""
        signer = key or self.key
        made = self.header(kid=signer.kid, alg=signer.alg) | (header or {})
        made = {name: value for name, value in made.items() if value is not None}
        return signer.sign(made, self.claims(now=now, **claims))

    def rotate(self, *, publish: bool = True) -> SigningKey:
        """A new key signs from now on; published at once unless told otherwise."""
        self.number += 1
        self.key = self._made(self.number)
        if publish:
            self.published.append(self.key.jwk)
        return self.key

    def withdraw(self, kid: str) -> None:
        self.published = [jwk for jwk in self.published if jwk.get("kid") != kid]

    def _made(self, number: int) -> SigningKey:
        return signing_key(self.algorithm, number).used_for(self.preset.key_use)

    # How it runs

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._host, self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split(" ")[1]
                self.requests[path] += 1
                self.headers_seen.append({n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:]) if n})
                self.arrived.set()
                if self.hold is not None:
                    await self.hold.wait()
                await self._answer(path, writer)
        finally:
            self._handlers.discard(task)
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        place = {DISCOVERY: "discovery", JWKS: "jwks"}.get(path)
        fault = self.fault if self.fault_at in (None, place) else Fault.NONE
        if place is None:
            return await _send(writer, 404, b"{}")
        document: dict[str, Any] = {"keys": self.published} if place == "jwks" else self._metadata(fault)
        body = compact_json(document)
        match fault:
            case Fault.SILENT:
                await asyncio.Event().wait()
            case Fault.DRIP_HEADERS:
                await self._drip(writer, b"HTTP/1.1 200 OK\r\nX: ")
            case Fault.DRIP_BODY:
                await self._drip(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n")
            case Fault.RESET:
                writer.transport.abort()
            case Fault.HUGE:
                await _pour(writer, b"Content-Length: 200000000\r\n\r\n", CHUNK)
            case Fault.ENDLESS:
                await _pour(writer, b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
            case Fault.GZIP_BOMB:
                await _send(writer, 200, gzip.compress(b"[" * 64_000_000, 1), "Content-Encoding: gzip")
            case Fault.GZIP:
                await _send(writer, 200, gzip.compress(body), "Content-Encoding: gzip")
            case Fault.REDIRECT:
                await _send(writer, self.redirect_status, b"", f"Location: {self.redirect_to}")
            case Fault.STATUS_404 | Fault.STATUS_500:
                await _send(writer, 404 if fault is Fault.STATUS_404 else 500, body)
            case Fault.NOT_MODIFIED:
                await _send(writer, 304, b"", 'ETag: "1"')
            case Fault.HTML:
                await _send(writer, 200, b"<!doctype html><title>Sign in</title>", "Content-Type: text/html")
            case Fault.NOT_JSON:
                await _send(writer, 200, body + b"garbage")
            case Fault.DUPLICATE_MEMBERS:
                await _send(writer, 200, b'{"keys":[],' + body[1:] if place == "jwks" else b'{"issuer":"x",' + body[1:])
            case Fault.DEEP_JSON:
                await _send(writer, 200, b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
            case Fault.HOSTILE_CACHING:
                hostile = "Cache-Control: max-age=1000000000, immutable\r\nDate: Fri, 01 Jan 2100 00:00:00 GMT\r\nETag: \"x\""
                await _send(writer, 200, body, hostile)
            case Fault.COOKIE:
                await _send(writer, 200, body, "Set-Cookie: tracked=1; Path=/")
            case _:
                await _send(writer, 200, body)

    def _metadata(self, fault: Fault) -> dict[str, Any]:
        uri = self.jwks_url if self.jwks_uri is None else self.jwks_uri
        document: dict[str, Any] = {
            "issuer": "https://somebody.else.example" if fault is Fault.WRONG_ISSUER else self.url,
            "jwks_uri": [uri] if fault is Fault.LIST_JWKS_URI else uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [self.algorithm],
        }
        if fault is Fault.NO_JWKS_URI:
            del document["jwks_uri"]
        return document

    async def _drip(self, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(head)
        while True:
            writer.write(b"[")
            await writer.drain()
            await asyncio.sleep(self.drip_s)


@contextlib.contextmanager
def in_thread(issuer: OidcIssuer) -> Iterator[OidcIssuer]:
    """Runs an issuer on a loop of its own, for tests that are not async and for other processes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test issuer", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(issuer.up(), loop).result()
        yield issuer
    finally:
        asyncio.run_coroutine_threadsafe(issuer.down(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, headers: str = "Content-Type: application/json") -> None:
    head = f"HTTP/1.1 {status} X\r\n{headers}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode("latin-1") + body)
    await writer.drain()


async def _pour(writer: asyncio.StreamWriter, headers: bytes, piece: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + headers)
    while True:
        writer.write(piece)
        await writer.drain()
