"""What goes into an exchange and what comes out, as frozen values; and a token's own claims, for showing.  No IO."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.client.errors import Misused
from broker.client.http import checked, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_BYTES_MAX = 65_536
TEXT_MAX = 500
_OWN_TIME = frozenset({"exp", "iat", "nbf", "jti"})


class Server(NamedTuple):
    """One env of a broker.  `identity_audience`: what the identity token must be made for."""

    url: str
    env: str
    identity_audience: str

    @property
    def issuer(self) -> str:
        """Its issuer URL."""
        return f"{self.url}/{self.env}"

    @staticmethod
    def of(url: str, env: str, identity_audience: str = "") -> Server:
        """Raises `Misused` where either is missing or wrong."""
        if not url:
            raise Misused("no broker is named", "--url https://broker.acme.example, or BROKER_URL")
        base = url.rstrip("/")
        checked(base)
        if "?" in base or "#" in base:
            raise Misused("the broker's URL ends with its path", "write it like https://broker.acme.example")
        if not env:
            raise Misused("no env is named", "--env prod, or BROKER_ENV")
        if not all(letter.isascii() and (letter.isalnum() or letter == "-") for letter in env):
            raise Misused(f"{printable(env)} is no env", "an env is a word, like prod; the broker's URL goes into --url")
        if base.endswith(f"/{env}"):
            raise Misused(f"{base} already ends in the env", f"--url {base.removesuffix('/' + env)} --env {env}")
        return Server(base, env, identity_audience or f"{base}/{env}")


class Wanted(NamedTuple):
    """What to ask for.  `ttl_s` in seconds, 0 for the env's default."""

    audience: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    service_account: str = ""
    ttl_s: int = 0


class Credential:
    """What was issued.  Its repr and str leave the token out, and a JSON encoder does not know it: loggers write neither.

    `expires_at` in epoch seconds, by this machine's clock.
    """

    __slots__ = ("audience", "expires_at", "request_id", "scope", "service_account", "token", "trace_id")

    def __init__(
        self,
        token: str,
        expires_at: float,
        scope: tuple[str, ...] = (),
        audience: tuple[str, ...] = (),
        service_account: str = "",
        request_id: str = "",
        trace_id: str = "",
    ) -> None:
        self.token = token
        self.expires_at = expires_at
        self.scope = scope
        self.audience = audience
        self.service_account = service_account
        self.request_id = request_id
        self.trace_id = trace_id

    def __repr__(self) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.expires_at))
        return f"<Credential of {self.service_account or '?'} for {' '.join(self.scope)}, until {when}>"

    __str__ = __repr__


class Plan(NamedTuple):
    """What a dry run says would be issued; `expires_in` in seconds."""

    service_account: str
    trust_rule: str
    audience: tuple[str, ...]
    scope: tuple[str, ...]
    expires_in: int
    request_id: str
    trace_id: str


class Step(NamedTuple):
    """Something that happened on the way, for whoever wants to follow (`-v`, logs).  Holds no secret."""

    what: str
    detail: str


def text(value: object) -> str:
    """A member that is one string, in a form that a line of a log or of a protocol can hold."""
    return printable(value, TEXT_MAX) if isinstance(value, str) else ""


def texts(value: object) -> tuple[str, ...]:
    """A claim or member that is one string or a list of them, in a form that a line can hold."""
    some: list[Any] = value if isinstance(value, list) else [value]
    return tuple(text(item) for item in some if isinstance(item, str))


def is_for_another(presented: Mapping[str, Any], server: Server) -> bool:
    """Whether a token is made for somebody, by URL, and not for this broker: there it would be good, and here in wrong hands."""
    audiences = texts(presented.get("aud"))
    ours = {server.identity_audience}
    if server.identity_audience == server.issuer:
        ours.add(f"{server.issuer}/token")  # the broker accepts its token endpoint too (RFC 7523 §3)
    return ours.isdisjoint(audiences) and any(each.strip().lower().startswith(("https://", "http://")) for each in audiences)


def claims_of(token: str) -> dict[str, Any]:
    """The payload of one's own compact JWT, unverified: for showing, never for deciding.  Empty for anything else."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > TOKEN_BYTES_MAX:
        return {}
    try:
        payload = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return payload if isinstance(payload, dict) else {}


def telling(presented: Mapping[str, Any]) -> dict[str, Any]:
    """The claims that say who somebody is, without those that only say when."""
    return {name: value for name, value in presented.items() if name not in _OWN_TIME}
