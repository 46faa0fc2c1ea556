"""Strict reading of a compact JWS and of JSON, before anybody is trusted.

Stands on nothing.  Called by identity/ for subject tokens, key sets and discovery documents, and by everything that reads a
signed token of ours.  Pure, and on the hot path: each check is one pass in C, and nothing is decoded before the cheap ones held.

Parsers differ in what they let through, and an attacker lives in the difference (a member twice, `NaN`, padding that
another reader ignores).  So all of it is refused here: RFC 7515 §2, §4, §7.1; RFC 7519 §4; RFC 8725 §3.3, §3.7, §3.14.
"""

from __future__ import annotations

import json
from binascii import a2b_base64
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

# RFC 7515 §4.1 and RFC 7797: parameters that bring a key along, point to one, or change what the signature covers.
# `x5t` and unknown parameters mean nothing here and are ignored.
REFUSED_PARAMETERS: Final = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty"})

# Beyond 64 bits two readers of one number may disagree (RFC 8259 §6), and no claim needs it.
HEADER_REMEMBERED_BYTES_MAX: Final = 512
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_ALPHABET_AND_DOT: Final = _ALPHABET + b"."
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_PADDING: Final = (b"", b"", b"==", b"=")
# By length modulo 4: the last characters whose unused low bits are zero (RFC 4648 §3.5); one left over encodes nothing.
_LAST: Final = (frozenset(_ALPHABET), frozenset[int](), frozenset(b"AQgw"), frozenset(b"AEIMQUYcgkosw048"))

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_NOTHING: Final = object()
# The form of nearly every token: one object, no text with an escape in it, nothing nested, integers within 64 bits.
_Integer = Annotated[int, msgspec.Meta(ge=INTEGER_MIN, le=2**63 - 1)]
_decode_flat: Final = msgspec.json.Decoder(dict[str, str | _Integer | float | bool | None]).decode


class NotStrictJson(ValueError):
    """These bytes are no JSON text in the strict sense; the reason is short and carries nothing of them."""


class NotCompact(ValueError):
    """This is no compact JWS with strict JSON inside; the reason is short and carries nothing of the token."""


class UnverifiedJws(msgspec.Struct, frozen=True):
    """A well-formed token that nobody has vouched for yet: route by it, verify it, believe nothing in it.

    `kid` and `typ` are None where the header has none.  The signature covers `signing_input` (RFC 7515 §5.2).
    """

    header: dict[str, Any]
    payload: dict[str, Any]
    signing_input: bytes
    signature: bytes
    alg: str
    kid: str | None
    typ: str | None


def read(token: str | bytes, *, bytes_max: int, depth_max: int, kid_characters_max: int) -> UnverifiedJws:
    """The parts of a compact JWS, each strictly read.  Raises `NotCompact`.

    Order: 1 size, 2 exactly two dots, 3 alphabet, 4 canonical base64url, 5 header as strict JSON, 6 its parameters,
    7 payload as strict JSON.  `bytes_max` bounds the whole token, `depth_max` the nesting of header and payload.
    """
    # 1
    if len(token) > bytes_max:
        raise NotCompact("the token is too large")
    if isinstance(token, str):
        if not token.isascii():
            raise NotCompact("the token has a character outside base64url")
        token = token.encode("ascii")
    # 2
    if token.count(b".") != 2:
        raise NotCompact("the token has not exactly three parts")
    # 3
    if token.translate(None, _ALPHABET_AND_DOT):
        raise NotCompact("the token has a character outside base64url")
    # 4
    signing_input, _, signature_part = token.rpartition(b".")
    header_part, _, payload_part = signing_input.partition(b".")
    payload_raw, signature = _octets(payload_part), _octets(signature_part)
    # 5
    short = len(header_part) <= HEADER_REMEMBERED_BYTES_MAX
    header = (_header if short else _header.__wrapped__)(header_part, depth_max)
    # 6
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ")
    if type(alg) is not str:
        raise NotCompact("the header has no alg, or one that is no string")
    if "kid" in header and (type(kid) is not str or len(kid) > kid_characters_max):
        raise NotCompact("the header's kid is no string, or too long")
    if "typ" in header and type(typ) is not str:
        raise NotCompact("the header's typ is no string")
    if not REFUSED_PARAMETERS.isdisjoint(header):
        raise NotCompact("the header has a parameter that is refused: " + min(REFUSED_PARAMETERS & header.keys()))
    # 7
    payload = _object(payload_raw, "payload", depth_max)
    return UnverifiedJws(header, payload, signing_input, signature, alg, kid, typ)


@lru_cache(maxsize=256)
def _header(part: bytes, depth_max: int) -> dict[str, Any]:
    # All tokens of one key have the same header: it is read once.  Nobody changes it afterwards, and nothing is trusted by it.
    return _object(_octets(part), "header", depth_max)


def base64url(part: bytes) -> bytes:
    """The octets of canonical base64url without padding; empty gives empty.  Raises ValueError.

    Another spelling of the same octets (padding, `+`, set bits behind the last octet) is refused: RFC 7515 §2, RFC 4648 §3.5.
    """
    if part.translate(None, _ALPHABET):
        raise ValueError("a character outside base64url")
    return _octets(part) if part else b""


def strict_json(raw: bytes, depth_max: int) -> Any:
    """The value of one JSON text (RFC 8259), read as every careful reader would.  Raises `NotStrictJson`.

    Refused: other than UTF-8, a byte order mark, `NaN` and `Infinity`, numbers beyond the range of a double, integers beyond
    64 bits, lone surrogates, a member twice in one object (also where one of the two is written with escapes), more than
    `depth_max` levels of objects and arrays.
    """
    if b"\\" not in raw and depth_max > 0 and (flat := _flat(raw)) is not None:
        return flat
    try:
        value = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = _NOTHING
    # Raised out here, for the parser's own error holds the whole text and must not become the context of ours.
    if value is _NOTHING:
        raise NotStrictJson("not JSON in UTF-8")
    _bounded(value, depth_max)
    # A parser drops all but the last of equal members.  Without escapes the colons of the text are those inside its strings and
    # one for each member, so a text and what was kept of it have the same number exactly when no member was dropped.
    if b"\\" not in raw:
        if _encode(value).count(b":") != raw.count(b":"):
            raise NotStrictJson("a member occurs twice in one object")
    else:
        json.loads(raw, object_pairs_hook=_unique)
    return value


def _flat(raw: bytes) -> dict[str, Any] | None:
    """The value of a plain object; None where it is none, or where a closer look is needed."""
    try:
        value = _decode_flat(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # Without escapes each quote bounds a text; members that a parser dropped as equal leave more of them than were kept.
    texts = len(value) + list(map(type, value.values())).count(str)
    return value if raw.count(b'"') == 2 * texts else None


def _octets(part: bytes) -> bytes:
    if not part:
        raise NotCompact("a part of the token is empty")
    rest = len(part) & 3
    if part[-1] not in _LAST[rest]:
        raise NotCompact("a part of the token is not canonical base64url")
    return a2b_base64(part.translate(_TO_STANDARD) + _PADDING[rest])


def _object(raw: bytes, name: str, depth_max: int) -> dict[str, Any]:
    try:
        value = strict_json(raw, depth_max)
    except NotStrictJson as error:
        raise NotCompact(f"the {name}: {error}") from None
    if type(value) is not dict:
        raise NotCompact(f"the {name} is no JSON object")
    return value


def _bounded(value: Any, depth_left: int) -> None:
    if type(value) is dict:
        inner = value.values()
    elif type(value) is list:
        inner = value
    else:
        inner = (value,)
        depth_left += 1
    if depth_left < 1:
        raise NotStrictJson("nested too deeply")
    for item in inner:
        kind = type(item)
        if kind is str:
            continue
        if kind is int:
            if not INTEGER_MIN <= item <= INTEGER_MAX:
                raise NotStrictJson("an integer beyond 64 bits")
        elif kind is dict or kind is list:
            _bounded(item, depth_left - 1)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise NotStrictJson("a member occurs twice in one object")
