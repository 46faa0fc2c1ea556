"""Where a request came from: the peer, or what a trusted proxy says of it.  For the record only, never for a decision."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any


def client_address(scope: Any, headers: dict[bytes, bytes], trusted: tuple[str, ...]) -> str:
    """The address of the client.

    `X-Forwarded-For` counts only when the peer itself is a trusted proxy, and is read from the right: the first address
    that is no trusted proxy is the client.
    """
    peer = scope["client"][0] if scope.get("client") else ""
    if not trusted or not _is_trusted(peer, trusted):
        return peer
    forwarded = [part.strip() for part in headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",") if part.strip()]
    for address in reversed(forwarded):
        if not _is_address(address):
            return peer
        if not _is_trusted(address, trusted):
            return address
    return forwarded[0] if forwarded else peer


@lru_cache(maxsize=4096)
def _is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    return _is_address(address) and any(ip_address(address) in ip_network(network) for network in trusted)


def _is_address(text: str) -> bool:
    try:
        # A scope id (`%eth0`) may be any text, and means nothing to anyone else.
        return "%" not in text and bool(ip_address(text))
    except ValueError:
        return False
