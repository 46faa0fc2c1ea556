"""From a URL to a connected socket: one server, or the primary that Sentinels name; plain, TLS, or a unix socket.

    redis://[user:password@]host[:port][/db]                 unix:///path/to/socket[?db=0]
    rediss://…?ca_file=…&cert_file=…&key_file=…              redis+sentinel://[user:password@]host:port,host:port/name[?…]

Sentinel takes also db, tls=true with the three files, sentinel_username and sentinel_password.
A password appears in no text that leaves this module: messages carry `label` only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from broker import errors
from broker.config import Limits

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_FILES: Final = frozenset({"ca_file", "cert_file", "key_file"})
_PARAMETERS: Final = {
    "redis": frozenset[str](),
    "rediss": _FILES,
    "unix": frozenset({"db"}),
    "redis+sentinel": _FILES | {"db", "tls", "sentinel_username", "sentinel_password"},
}
_FORMS: Final = "use redis://, rediss://, unix:///path or redis+sentinel://host:port,host:port/name"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server is checked, and what the broker shows of itself; all are paths of PEM files, empty: not given."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later, certificate and name checked.  Raises OSError and ssl.SSLError."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = True
        context.verify_mode = ssl.CERT_REQUIRED
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store is and how to be let in.  `service` names the primary where `hosts` are Sentinels."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    db: int = 0
    service: str = ""
    tls: Tls | None = None
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)

    @property
    def label(self) -> str:
        """For messages: the address, without user and password."""
        if self.path:
            return f"unix://{self.path}"
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{hosts}" + (f"/{self.service}" if self.service else "")


def parse(url: str) -> StoreAddress:
    """The address that a URL names.  Raises `SettingsInvalid`, whose text never shows the URL."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme
        if scheme not in _PARAMETERS:
            raise ValueError("its scheme is none of those that are known here")
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        # A misspelt ca_file must not quietly mean the system's authorities.
        if unknown := sorted(set(given) - _PARAMETERS[scheme]):
            raise ValueError(f"it has parameters that are unknown here: {', '.join(unknown)}")
        if parts.fragment:
            raise ValueError("it has a fragment (a `#` in a password is written %23)")
        if scheme == "unix":
            return _unix(parts.netloc, unquote(parts.path), given)
        credentials, _, places = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        sentinel = scheme == "redis+sentinel"
        last = unquote(parts.path.strip("/"))
        if sentinel and not last:
            raise ValueError("it lacks the name under which the Sentinels know the primary")
        secured = scheme == "rediss" or _yes(given.get("tls", ""))
        return StoreAddress(
            scheme=scheme,
            hosts=tuple(_host(place, SENTINEL_PORT if sentinel else PORT) for place in places.split(",")),
            db=_db(given.get("db", "") if sentinel else last),
            service=last if sentinel else "",
            tls=Tls(**{name: given.get(name, "") for name in _FILES}) if secured else None,
            username=unquote(username),
            password=unquote(password),
            sentinel_username=given.get("sentinel_username", ""),
            sentinel_password=given.get("sentinel_password", ""),
        )
    except ValueError as error:
        # urlsplit's own texts may quote the URL.
        reason = str(error) if str(error).startswith("it") else "it is not well-formed"
        raise errors.SettingsInvalid(f"the store's URL cannot be used: {reason}", _FORMS) from None


def _unix(netloc: str, path: str, given: dict[str, str]) -> StoreAddress:
    if netloc or not path.startswith("/"):
        raise ValueError("it lacks an absolute path: unix:///path/to/socket")
    return StoreAddress(scheme="unix", path=path, db=_db(given.get("db", "")))


def _host(place: str, port: int) -> tuple[str, int]:
    parts = urlsplit("//" + place)
    if not parts.hostname or parts.username:
        raise ValueError("it lacks a host")
    return parts.hostname, parts.port or port


def _db(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError("its database is no number")
    return int(text or 0)


def _yes(text: str) -> bool:
    if text not in {"", "true", "false"}:
        raise ValueError("its tls is neither true nor false")
    return text == "true"


class Connector:
    """Makes connections to one store: a redis-py client for the cold paths, bare transports for the hot one."""

    def __init__(self, address: StoreAddress, limits: Limits) -> None:
        self.address = address
        self._timeout_s = limits.store_timeout_s
        try:
            self._context = address.tls.context() if address.tls else None
        except OSError as error:
            raise errors.CannotReach(
                f"the TLS files for {address.label} cannot be read: {type(error).__name__}",
                "ca_file, cert_file and key_file are PEM files; a certificate goes with its key",
            ) from error
        self._sentinel = self._sentinels() if address.service else None

    def client(self) -> redis.asyncio.Redis:
        """A redis-py client that never repeats a command by itself."""
        address, options = self.address, self._options()
        if self._sentinel is not None:
            client: redis.asyncio.Redis = self._sentinel.master_for(address.service, **options)
            return client
        if address.path:
            return redis.asyncio.Redis(unix_socket_path=address.path, **options)
        host, port = address.hosts[0]
        return redis.asyncio.Redis(host=host, port=port, **options)

    async def transport(self, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """One new connection to the primary, as it is known now.  Raises OSError and redis-py's errors."""
        loop = asyncio.get_running_loop()
        if self.address.path:
            _, made = await loop.create_unix_connection(protocol, self.address.path)
            return made
        host, port = self.address.hosts[0]
        if self._sentinel is not None:
            host, port = await self._sentinel.discover_master(self.address.service)
        name = host if self._context else None
        _, made = await loop.create_connection(protocol, host, port, ssl=self._context, server_hostname=name)
        return made

    async def close(self) -> None:
        """Closes what discovery holds."""
        for sentinel in self._sentinel.sentinels if self._sentinel else ():
            await sentinel.aclose()

    def _options(self) -> dict[str, Any]:
        address = self.address
        return self._shared() | {
            "db": address.db,
            "username": address.username or None,
            "password": address.password or None,
            "client_name": "broker",
        }

    def _shared(self) -> dict[str, Any]:
        return {
            "protocol": 2,
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            # A write that was repeated behind our back would be two.
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
        } | self._tls_options()

    def _tls_options(self) -> dict[str, Any]:
        tls = self.address.tls
        if tls is None:
            return {}
        return {
            "ssl": True,
            "ssl_ca_certs": tls.ca_file or None,
            "ssl_certfile": tls.cert_file or None,
            "ssl_keyfile": tls.key_file or None,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }

    def _sentinels(self) -> Sentinel:
        address = self.address
        own = {"username": address.sentinel_username or None, "password": address.sentinel_password or None}
        return Sentinel(list(address.hosts), sentinel_kwargs=self._shared() | own)
