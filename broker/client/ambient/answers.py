"""A platform is asked, and its answer read for one token.

What goes wrong is an `IdentityFailed`: in the platform's own words where it has some, bounded and printable, and with nothing
in them that could be a token or is one of the secrets that were sent.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from broker.client.errors import IdentityFailed, Misused, Unreachable
from broker.client.http import Answer, Target, checked, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker.client.ambient import Around

WORDS_MAX = 300
TOKEN_BYTES_MAX = 65_536
SAID_BYTES_MAX = 8192
PASSING: Final = frozenset({408, 425, 429})
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SECRET: Final = re.compile(r"eyJ[\w.=+/-]+|[\w=+/-]{64,}")
_MEMBERS: Final = ("error_description", "message", "Message", "errorMessage", "detail", "error")


def asked(
    around: Around,
    who: str,
    target: Target,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    *,
    within_s: float | None = None,
    connect_s: float | None = None,
) -> Answer:
    """One request; the answer, whatever its status.  Raises `IdentityFailed` where none came."""
    try:
        return around.ask(target, method, headers, body, within_s=within_s or around.within_s, connect_s=connect_s)
    except Unreachable as error:
        raise failed(who, str(error), *error.hints, passing=error.passing) from None


def install(extra: str) -> str:
    """What to install for a platform that needs more than the standard library.  By its name alone it would be a stranger's."""
    return f'pip install "federation-broker[{extra}] @ git+https://YOUR-COPY@COMMIT"'


def failed(who: str, why: str, *hints: str, passing: bool = False) -> IdentityFailed:
    """An error for a token that did not come."""
    return IdentityFailed(f"{who} gave no identity token: {why}", *hints, passing=passing)


def refused(who: str, answer: Answer, *hints: str, hide: Iterable[str] = (), passing: bool | None = None) -> IdentityFailed:
    """What a status other than 200 means.  `hide`: secrets that were sent; `passing` overrides what the status says."""
    words = said(answer, hide)
    if 300 <= answer.status < 400:
        hints = ("it redirects, and an identity token is asked for at one address alone", *hints)
    wait = answer.headers.get("retry-after", "")
    if wait.isdecimal() and len(wait) <= 6:
        hints = (*hints, f"it asks to wait {wait} s")
    if passing is None:
        passing = answer.status in PASSING or answer.status >= 500
    return failed(who, f"{answer.status} {words}".rstrip(), *hints, passing=passing)


def said(answer: Answer, hide: Iterable[str] = ()) -> str:
    """The platform's own words about what is wrong; nothing where they are a page for people."""
    text = answer.body[:SAID_BYTES_MAX].decode("utf-8", "replace").strip()
    body = _parsed(answer)
    if isinstance(body, dict):
        text = _words(body)
    elif text.startswith("<"):
        text = ""
    return harmless(text, hide)


def harmless(text: str, hide: Iterable[str] = ()) -> str:
    """Words from outside without the secrets of `hide` and without what looks like a token: bounded, on one line."""
    for secret in hide:
        text = text.replace(secret, "(secret)") if secret else text
    return printable(_SECRET.sub("(token)", " ".join(text.split())), WORDS_MAX)


def member(who: str, answer: Answer, name: str) -> str:
    """The token that stands in this member of a JSON answer.  Raises `IdentityFailed`."""
    body = _parsed(answer)
    if not isinstance(body, dict):
        raise failed(who, "its answer is no JSON object", "a proxy or a page may stand in between")
    if not isinstance(body.get(name), str):
        raise failed(who, f"its answer has no member {name}")
    return jwt(who, body[name])


def has_member(answer: Answer, name: str) -> bool:
    """Whether an answer is a JSON object with this member."""
    body = _parsed(answer)
    return isinstance(body, dict) and name in body


def jwt(who: str, text: str) -> str:
    """A text that is one compact JWT, by its looks.  Raises `IdentityFailed`, which leaves the text out."""
    token = text.strip()
    if not _JWT.fullmatch(token):
        raise failed(who, "what came is no JWT")
    return token


def address(around: Around, variable: str, *, metadata: bool = False) -> str:
    """The URL of a variable: https, or http on loopback.  Raises `IdentityFailed` before anything is sent.

    `metadata`: http may also go to an address that no router passes on.
    """
    url = around.env.get(variable, "")
    try:
        host = checked(url, plain=True).hostname or ""
        checked(url, plain=metadata and _link_local(host))
    except Misused:
        raise IdentityFailed(f"{variable} holds no https URL of a service: nothing is sent there") from None
    return url


def secret(around: Around, variable: str) -> str:
    """The value of a variable that goes into a header.  Raises `IdentityFailed` for what would break out of it."""
    value = around.env.get(variable, "").strip()
    if not value or any(not 0x20 <= ord(letter) < 0x7F for letter in value):
        raise IdentityFailed(f"{variable} holds nothing that fits into a header")
    return value


def _link_local(host: str) -> bool:
    """RFC 3927 §2.1, and the address that AWS has for it in IPv6."""
    return host == "fd00:ec2::254" or bool(re.fullmatch(r"169\.254(\.\d{1,3}){2}", host, re.ASCII))


def _parsed(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _words(body: dict[str, Any]) -> str:
    code = body.get("error")
    for name in _MEMBERS:
        value = body.get(name)
        if isinstance(value, dict):
            return _words(value)
        if isinstance(value, str) and value:
            return f"{code}: {value}" if isinstance(code, str) and value != code else value
    return ""


def from_file(path: str) -> str:
    """A token from a file.  Raises `IdentityFailed`."""
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123  # pathlib costs a cold start its modules
            token = file.read(TOKEN_BYTES_MAX + 1).strip()
    except OSError as error:
        raise IdentityFailed(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise IdentityFailed(f"{path} holds no token: a JWT is plain ASCII") from None
    if not token:
        raise IdentityFailed(f"{path} is empty", "whoever writes it may not have started yet", passing=True)
    if len(token) > TOKEN_BYTES_MAX:
        raise IdentityFailed(f"{path} holds no token: it is larger than {TOKEN_BYTES_MAX} bytes")
    return token
