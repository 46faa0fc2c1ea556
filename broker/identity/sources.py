"""Where an issuer's key set stands, and reading it once: a file, a given URL, or what its discovery document names.

Called by issuers.py.  Stands on fetch.py.  The URL of discovery is built from the entry, never from a token (OIDC Discovery §4).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from broker.config import Limits
from broker.identity.fetch import Fetcher, FetchFailed, UrlRefused, checked_url
from broker.model import Issuer

_DISCOVERY = "/.well-known/openid-configuration"


class Unreadable(Exception):
    """The key set could not be read; the text says where and why, for the log."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The text of a key set, and the place that it came from.  `stamp` tells two states of a file apart."""

    raw: bytes
    place: str
    stamp: tuple[int, int, int] = (0, 0, 0)


async def load(issuer: Issuer, fetcher: Fetcher, limits: Limits, before: Loaded | None = None) -> Loaded:
    """The key set of an entry: its `jwks_file`, else its `jwks_url`, else by discovery.  Raises `Unreadable`.

    A file whose stat has not changed since `before` is not read again.
    """
    if issuer.jwks_file is not None:
        return await asyncio.to_thread(_read_file, Path(issuer.jwks_file), limits.fetch_bytes_max, before)
    if issuer.jwks_url is not None:
        return await _fetch("key set", issuer.jwks_url, issuer, fetcher, private_allowed=True)
    if issuer.trust_domain is not None:
        raise Unreadable("a SPIFFE entry needs jwks_url or jwks_file: its keys are never found by the token's own words")
    return await _discover(issuer, fetcher)


async def _discover(issuer: Issuer, fetcher: Fetcher) -> Loaded:
    url = issuer.url.rstrip("/") + _DISCOVERY
    try:
        # The operator wrote this URL, so it may be a private one; what the document points to may be so only if this is.
        document = await fetcher.get(url, ca_file=issuer.ca_file, private_allowed=True)
    except FetchFailed as error:
        raise Unreadable(f"discovery at {url}: {error}") from None
    value = document.value
    if type(value) is not dict:
        raise Unreadable(f"discovery at {url}: no JSON object")
    # Byte for byte, or a document of one issuer speaks for another (OIDC Discovery §4.3).
    if value.get("issuer") != issuer.url:
        raise Unreadable(f"discovery at {url}: its issuer is not the url of the entry")
    place = value.get("jwks_uri")
    if type(place) is not str:
        raise Unreadable(f"discovery at {url}: no jwks_uri")
    if place.startswith("http://") and not issuer.url.startswith("http://"):
        raise Unreadable(f"discovery at {url}: its jwks_uri is plain http")
    return await _fetch("key set", place, issuer, fetcher, private_allowed=document.private)


async def _fetch(what: str, url: str, issuer: Issuer, fetcher: Fetcher, *, private_allowed: bool) -> Loaded:
    try:
        checked_url(url)
    except UrlRefused as error:
        raise Unreadable(f"{what}: {error}") from None
    try:
        fetched = await fetcher.get(url, ca_file=issuer.ca_file, private_allowed=private_allowed)
    except FetchFailed as error:
        raise Unreadable(f"{what} at {url}: {error}") from None
    return Loaded(fetched.raw, url)


def _read_file(path: Path, bytes_max: int, before: Loaded | None) -> Loaded:
    try:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if before is not None and before.stamp == stamp and before.place == str(path):
            return before
        with path.open("rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise Unreadable(f"key file {path}: {error.strerror or type(error).__name__}") from None
    if len(raw) > bytes_max:
        raise Unreadable(f"key file {path}: more than {bytes_max} bytes")
    return Loaded(raw, str(path), stamp)
