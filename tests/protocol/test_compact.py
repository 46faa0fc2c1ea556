"""A compact JWS is read strictly: what passes here, other careful readers pass too, and read the same."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws

from broker.protocol.compact import NotCompact, UnverifiedJws, base64url, read
from tests.support.signing import Shape, b64, compact_json, signing_key

KEY = signing_key("EdDSA")
HEADER = {"alg": "EdDSA", "kid": KEY.kid, "typ": "JWT"}
CLAIMS = Shape.of("github-actions").claims(now=1_795_500_000)
GOOD = KEY.sign(HEADER, CLAIMS)
BYTES_MAX = 16_384


def reading(token: str | bytes, *, bytes_max: int = BYTES_MAX) -> UnverifiedJws:
    return read(token, bytes_max=bytes_max, depth_max=8, kid_characters_max=256)


def refused(token: str | bytes) -> str:
    with pytest.raises(NotCompact) as caught:
        reading(token)
    return str(caught.value)


def test_a_good_token_is_read() -> None:
    jws = reading(GOOD)
    assert jws.header == HEADER
    assert jws.payload == CLAIMS
    assert (jws.alg, jws.kid, jws.typ) == ("EdDSA", KEY.kid, "JWT")
    assert jws.signing_input.decode() == GOOD.rpartition(".")[0]
    assert len(jws.signature) == 64


def test_text_and_octets_read_alike() -> None:
    assert reading(GOOD) == reading(GOOD.encode())


def test_kid_and_typ_may_be_absent() -> None:
    jws = reading(KEY.sign({"alg": "EdDSA"}, {}))
    assert (jws.kid, jws.typ) == (None, None)


def test_size_is_bounded_to_the_byte() -> None:
    assert reading(GOOD, bytes_max=len(GOOD)).payload == CLAIMS
    with pytest.raises(NotCompact):
        reading(GOOD, bytes_max=len(GOOD) - 1)


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty"])
@pytest.mark.parametrize("value", [None, "", [], {}, "x"])
def test_parameters_that_bring_keys_or_change_the_meaning_are_refused(name: str, value: Any) -> None:
    assert name in refused(KEY.sign({**HEADER, name: value}, CLAIMS))


@pytest.mark.parametrize("name", ["x5t", "x5t#S256", "nonce", "JWK", "unknown"])
def test_other_parameters_are_ignored(name: str) -> None:
    assert reading(KEY.sign({**HEADER, name: "x"}, CLAIMS)).payload == CLAIMS


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"kid": "k"}, id="no alg"),
        pytest.param({"alg": None}, id="alg null"),
        pytest.param({"alg": 1}, id="alg a number"),
        pytest.param({"alg": ["EdDSA"]}, id="alg a list"),
        pytest.param({"alg": "EdDSA", "kid": None}, id="kid null"),
        pytest.param({"alg": "EdDSA", "kid": 1}, id="kid a number"),
        pytest.param({"alg": "EdDSA", "kid": "k" * 257}, id="kid too long"),
        pytest.param({"alg": "EdDSA", "typ": None}, id="typ null"),
        pytest.param({"alg": "EdDSA", "typ": 1}, id="typ a number"),
    ],
)
def test_a_header_of_wrong_types_is_refused(header: dict[str, Any]) -> None:
    refused(KEY.sign(header, CLAIMS))


@pytest.mark.parametrize("payload", [b"[]", b"1", b'"a"', b"null", b"not json", b"", b"{}{}", b"\xff"])
def test_a_payload_that_is_no_json_object_is_refused(payload: bytes) -> None:
    refused(KEY.sign_raw(compact_json(HEADER), payload))


@pytest.mark.parametrize("octets", range(1, 8))
def test_only_one_spelling_of_some_octets_is_read(octets: int) -> None:
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    raw = bytes(range(250, 250 + min(octets, 6))).ljust(octets, b"\xff")
    part = b64(raw).encode()
    assert base64url(part) == raw
    for letter in alphabet:
        other = part[:-1] + bytes([letter])
        if other != part:
            try:
                assert base64url(other) != raw
            except ValueError:
                continue
    for wrong in (part + b"=", part + b"==", b" " + part, part + b"\n", b"+" + part[1:], b"/" + part[1:], part[:1] + b"."):
        with pytest.raises(ValueError):
            base64url(wrong)


def test_no_octets_are_spelt_by_nothing() -> None:
    assert base64url(b"") == b""


def test_the_reason_carries_nothing_of_the_token() -> None:
    canary = "canary"
    for header, payload in (
        ({**HEADER, "kid": canary * 99}, b"{}"),
        ({**HEADER, "typ": [canary]}, b"{}"),
        (HEADER, b'{"canary":1,"canary":2}'),
        (HEADER, b'{"canary":"\xff"}'),
        (HEADER, b'{"canary"'),
    ):
        with pytest.raises(NotCompact) as caught:
            reading(KEY.sign_raw(compact_json(header), payload))
        seen: BaseException | None = caught.value
        while seen is not None:
            assert canary not in str(seen)
            assert canary not in repr(getattr(seen, "object", b""))
            seen = seen.__cause__ or seen.__context__


def oracles(token: str) -> tuple[Any, Any]:
    """What two other libraries read in a token, its signature verified."""
    checks = ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
    options: Any = {f"verify_{name}": False for name in checks} | {"verify_signature": True}
    theirs = jwt.decode(token, KEY.key.public_key, algorithms=["EdDSA"], options=options)
    registry = joserfc_jws.JWSRegistry(algorithms=["EdDSA"], strict_check_header=False)
    registry.max_header_length = BYTES_MAX
    other = joserfc_jws.deserialize_compact(token, KEY.key, registry=registry)
    return theirs, json.loads(other.payload)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["iss", "sub", "aud", "exp", "a", "b:c", "ä"]) | st.text(max_size=4)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)


@st.composite
def raw_objects(draw: st.DrawFn) -> bytes:
    """JSON objects as text, now and then with a member twice, an escape, or a small wound."""
    text = json.dumps(draw(OBJECTS), ensure_ascii=draw(st.booleans()))
    raw = text.encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        extra = json.dumps(draw(OBJECTS)).encode()
        raw = raw[:-1] + (b"," if len(raw) > 2 and len(extra) > 2 else b"") + extra[1:]
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(raw)))
        raw = raw[:place] + draw(st.binary(max_size=2)) + raw[place + draw(st.integers(0, 2)) :]
    return raw


@given(raw_objects(), st.sampled_from([HEADER, {"alg": "EdDSA"}, {**HEADER, "x": 1}]))
def test_what_is_accepted_here_other_libraries_accept_and_read_the_same(payload: bytes, header: dict[str, Any]) -> None:
    token = KEY.sign_raw(compact_json(header), payload)
    try:
        ours = reading(token)
    except NotCompact:
        return
    theirs, others = oracles(token)
    assert ours.payload == theirs == others


@given(st.data())
def test_a_changed_token_never_verifies(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(GOOD) - 1))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete", "swap", "cut"]))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_.=+/ \n") | st.characters())
    changed = {
        "replace": GOOD[:place] + letter + GOOD[place + 1 :],
        "insert": GOOD[:place] + letter + GOOD[place:],
        "delete": GOOD[:place] + GOOD[place + 1 :],
        "swap": GOOD[:place] + GOOD[place : place + 2][::-1] + GOOD[place + 2 :],
        "cut": GOOD[:place],
    }[kind]
    if changed == GOOD:
        return
    try:
        jws = reading(changed)
    except NotCompact:
        return
    algorithm = joserfc_jws.JWSRegistry(algorithms=["Ed25519"]).get_alg("Ed25519")
    assert not algorithm.verify(jws.signing_input, jws.signature, KEY.key)


@given(st.text(max_size=200) | st.binary(max_size=200) | st.text("abAZ09-_.", max_size=200))
def test_noise_is_refused_and_never_anything_else(noise: str | bytes) -> None:
    try:
        reading(noise)
    except NotCompact:
        return
