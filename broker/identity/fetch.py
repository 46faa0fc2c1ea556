"""A bounded HTTPS GET of one JSON document from an issuer.

Called by issuers.py only.  What answers is not trusted to be honest, quick, small or even the issuer: one deadline spans name
look-up, connect, TLS and body; bytes are counted before and after decompression; no redirect is followed; no cookie, proxy or
SSLKEYLOGFILE of the environment is used; and the connection goes to the very address that was judged, so that no name can
point elsewhere between the look and the leap.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
import ssl
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import httpx2

from broker.config import Limits, is_loopback
from broker.protocol.compact import NotStrictJson, strict_json

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052 §2.1: an IPv4 address in IPv6 clothes
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: a carrier's own, no public address
_PORTS: Final = {"https": 443, "http": 80}
_VISIBLE: Final = range(0x21, 0x7F)
_GZIP: Final = 16 + zlib.MAX_WBITS


class FetchFailed(Exception):
    """No document came of it; the text is for the log and names no content."""


class UrlRefused(FetchFailed):
    """The URL itself may not be fetched: not https, userinfo, a fragment …"""


class AddressRefused(FetchFailed):
    """The host stands at an address that this fetch may not reach."""


class NotReachable(FetchFailed):
    """No connection, or the connection broke."""


class TlsFailed(NotReachable):
    """The certificate, the name in it or the protocol version is not good."""


class TookTooLong(FetchFailed):
    """The deadline for the whole fetch passed."""


class TooLarge(FetchFailed):
    """More bytes than are read, sent or unpacked."""


class Redirected(FetchFailed):
    """A redirect, which is never followed."""


class BadAnswer(FetchFailed):
    """A status other than 200, an encoding that was not asked for, or no strict JSON."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document and its text.  `private`: it came from a private or loopback address."""

    value: Any
    raw: bytes
    private: bool


def checked_url(url: str) -> SplitResult:
    """The parts of a URL that may be fetched: https, or http at a loopback host; raises `UrlRefused`."""
    if not all(ord(character) in _VISIBLE for character in url) or "\\" in url:
        raise UrlRefused("the URL has a character that a URL cannot have")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UrlRefused("the URL cannot be read") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UrlRefused("the URL is not absolute, or not https")
    if "@" in parts.netloc or "#" in url:
        raise UrlRefused("the URL has userinfo or a fragment")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UrlRefused("the URL is plain http, and its host is not loopback")
    return parts


def judge(address: Address, *, private_allowed: bool, loopback_only: bool = False) -> bool:
    """Whether `address` is private or loopback; raises `AddressRefused` where it may not be connected to.

    Link-local (cloud metadata), unspecified, multicast and reserved addresses never; private ones only if `private_allowed`.
    IPv4 addresses in IPv6 forms are judged as what they mean.
    """
    inner = _unwrapped(address)
    if inner.is_link_local or inner.is_unspecified or inner.is_multicast:
        raise AddressRefused("the host is at a link-local, unspecified or multicast address")
    if inner.is_reserved and not inner.is_loopback:
        raise AddressRefused("the host is at a reserved address")
    private = inner.is_private or (inner.version == 4 and inner in _SHARED)
    if loopback_only and not inner.is_loopback:
        raise AddressRefused("the URL is plain http, and its host is not at a loopback address")
    if private and not private_allowed:
        raise AddressRefused("the host is at a private address, and the issuer's own url is not")
    return private


class Fetcher:
    """Fetches documents; keeps nothing between two but the TLS settings for each CA file."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._contexts: dict[str | None, tuple[tuple[int, int], ssl.SSLContext]] = {}
        # Threads of its own: a name server that hangs must not take those that others wait for.
        self._lookups = ThreadPoolExecutor(limits.lookups_max, thread_name_prefix="name-lookup")

    async def get(self, url: str, *, ca_file: str | None = None, private_allowed: bool = False) -> Fetched:
        """The JSON document at `url` (STANDARDS: RFC 8414 §3.2, OIDC Discovery §4.2).  Raises a `FetchFailed`.

        `ca_file` replaces the system's CAs.  `private_allowed` opens private and loopback addresses.
        """
        parts = checked_url(url)
        try:
            async with asyncio.timeout(self._limits.fetch_s_max):
                return await self._get(parts, ca_file, private_allowed)
        except TimeoutError:
            raise TookTooLong(f"no complete answer within {self._limits.fetch_s_max} s") from None

    async def _get(self, parts: SplitResult, ca_file: str | None, private_allowed: bool) -> Fetched:
        addresses = await self._resolve(parts)
        plain = parts.scheme == "http"
        judged = [(a, judge(a, private_allowed=private_allowed, loopback_only=plain)) for a in addresses]
        # An empty context trusts nobody: should plain http ever turn into TLS, it fails.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else await self._context(ca_file)
        failure = NotReachable("the host name has no address")
        for address, private in judged:
            try:
                raw = await self._read(parts, address, context)
            except TlsFailed:
                raise
            except NotReachable as error:
                failure = error
                continue
            try:
                value = await asyncio.to_thread(strict_json, raw, self._limits.json_depth_max)
            except NotStrictJson as error:
                raise BadAnswer(f"the answer is {error}") from None
            return Fetched(value, raw, private)
        raise failure

    async def _resolve(self, parts: SplitResult) -> list[Address]:
        host = str(parts.hostname)
        with contextlib.suppress(ValueError):
            return [ipaddress.ip_address(host)]
        look_up = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        except (OSError, UnicodeError):
            raise NotReachable("the host name has no address") from None
        texts = dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found)
        # A scope id marks an address of this link, which is refused anyway.
        return [ipaddress.ip_address(text.partition("%")[0]) for text in texts]

    async def _read(self, parts: SplitResult, address: Address, context: ssl.SSLContext) -> bytes:
        host = f"[{address}]" if address.version == 6 else str(address)
        target = parts._replace(netloc=f"{host}:{parts.port or _PORTS[parts.scheme]}").geturl()
        transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, http1=True, http2=False, retries=0)
        client = httpx2.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=self._limits.fetch_s_max, cookies=None
        )
        try:
            async with client:
                request = client.build_request(
                    "GET",
                    target,
                    headers={"Host": parts.netloc, "Accept": "application/json", "Accept-Encoding": "identity"},
                    # The certificate is checked against the name of the URL, not against the address.
                    extensions={"sni_hostname": str(parts.hostname).rstrip(".")},
                )
                response = await client.send(request, stream=True)
                try:
                    return await self._body(response)
                finally:
                    await response.aclose()
        except httpx2.ConnectError as error:
            if isinstance(_root(error), ssl.SSLError):
                raise TlsFailed(f"TLS: {_ssl_reason(_root(error))}") from None
            raise NotReachable("no connection") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError) as error:
            raise NotReachable(f"the connection broke ({type(error).__name__})") from None

    async def _body(self, response: httpx2.Response) -> bytes:
        if 300 <= response.status_code < 400:
            raise Redirected(f"status {response.status_code}; redirects are not followed")
        if response.status_code != 200:
            raise BadAnswer(f"status {response.status_code}")
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip"):
            raise BadAnswer("an encoding that was not asked for")
        bytes_max = self._limits.fetch_bytes_max
        unpack = zlib.decompressobj(wbits=_GZIP) if encoding == "gzip" else None
        sent, body = 0, bytearray()
        async for chunk in response.aiter_raw():
            sent += len(chunk)
            body += _unpacked(unpack, chunk, bytes_max + 1 - len(body)) if unpack else chunk
            if sent > bytes_max or len(body) > bytes_max:
                raise TooLarge(f"more than {bytes_max} bytes")
        if unpack is not None and not unpack.eof:
            raise BadAnswer("a gzip stream that does not end")
        return bytes(body)

    async def _context(self, ca_file: str | None) -> ssl.SSLContext:
        stamp = (0, 0)
        if ca_file is not None:
            try:
                stat = await asyncio.to_thread(Path(ca_file).stat)
            except OSError:
                raise TlsFailed("the ca_file cannot be read") from None
            stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._contexts.get(ca_file)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            context = await asyncio.to_thread(_tls, ca_file)
        except (OSError, ssl.SSLError):
            raise TlsFailed("the ca_file holds no certificates") from None
        self._contexts[ca_file] = (stamp, context)
        return context


def _tls(ca_file: str | None) -> ssl.SSLContext:
    # Not ssl.create_default_context: it writes session keys to wherever SSLKEYLOGFILE points.
    if ca_file is None:
        context = httpx2.create_ssl_context(verify=True, trust_env=False)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=ca_file)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _unwrapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _unpacked(unpack: Any, chunk: bytes, room: int) -> bytes:
    try:
        return bytes(unpack.decompress(chunk, room))
    except zlib.error:
        raise BadAnswer("a broken gzip stream") from None


def _root(error: BaseException) -> BaseException:
    seen: BaseException = error
    while (cause := seen.__cause__ or seen.__context__) is not None:
        seen = cause
    return seen


def _ssl_reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return str(getattr(error, "reason", "") or "handshake failed")
