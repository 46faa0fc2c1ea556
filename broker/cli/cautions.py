"""What a broker starts with although it is hardly meant.  For the log of `broker serve`, and for `broker doctor`.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from broker.config import Settings, is_loopback

ONCE: Final = "give --url without the env: each env's issuer is URL/ENV"
ENDED: Final = "give --tls-cert and --tls-key, or have a proxy end TLS, name it in --trusted-proxies, and let nobody else in"


def env_twice(settings: Settings, envs: Iterable[str]) -> str:
    """The issuer that names an env twice, because --url ends in the env already; empty where it is not so.

    It works, but callers who are given that url and that env take it for a mistake, and so it is.
    """
    last = urlsplit(settings.base_url).path.rpartition("/")[2]
    return f"{settings.base_url}/{last}" if last in envs else ""


def in_the_clear(settings: Settings) -> bool:
    """Whether others reach the port without TLS although the url is https, and no proxy is named that could end it."""
    open_to_others = settings.tls_cert is None and not is_loopback(settings.host)
    return open_to_others and settings.base_url.startswith("https://") and not settings.trusted_proxies
