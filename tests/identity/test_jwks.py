"""A key set is somebody else's text: what is weak, secret or contradictory is left out, and the rest still serves."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import ECKey, OKPKey, RSAKey

from broker.config import Limits
from broker.identity.jwks import ALGORITHMS, KeySet, KeySetRefused, VerifyKey, screen
from broker.model import Issuer
from broker.protocol.compact import base64url
from tests.support.signing import SigningKey, b64, compact_json, signing_key

LIMITS = Limits()
EVERY = tuple(sorted(ALGORITHMS))
ISSUER = Issuer(name="i", url="https://i.example", algorithms=EVERY)
SPIFFE = Issuer(name="s", url="spiffe://s", algorithms=EVERY, key_use="jwt-svid", trust_domain="s")


def screened(*jwks: Any, issuer: Issuer = ISSUER, limits: Limits = LIMITS) -> KeySet:
    return screen(compact_json({"keys": list(jwks)}), issuer, limits)


def reason(*jwks: Any, issuer: Issuer = ISSUER) -> str:
    found = screened(*jwks, issuer=issuer)
    assert not found.keys
    assert not found.alone
    assert len(found.skipped) == 1
    return found.skipped[0].reason


def bare(key: SigningKey, *keep: str) -> dict[str, Any]:
    """The key's JWK with nothing but what makes the key, and `keep`."""
    return {n: v for n, v in key.jwk.items() if n in {"kty", "n", "e", "crv", "x", "y", *keep}}


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"])
def test_a_key_verifies_what_it_signed_and_nothing_else(alg: str) -> None:
    key = signing_key(alg)
    found = screened(key.jwk).find(key.kid, alg)
    assert isinstance(found, VerifyKey)
    signing_input, _, signature = key.sign({"alg": alg}, {"a": 1}).rpartition(".")
    raw = base64url(signature.encode())
    assert found.verifies(signing_input.encode(), raw)
    assert not found.verifies(signing_input.encode() + b"x", raw)
    for wrong in (b"", raw[:-1], raw + b"\x00", bytes(len(raw)), bytes(10_000)):
        assert not found.verifies(signing_input.encode(), wrong)


def test_an_rsa_key_without_alg_serves_what_the_entry_allows_only() -> None:
    key = signing_key("RS256")
    issuer = Issuer(name="i", url="https://i.example", algorithms=("RS256", "PS256", "ES256"))
    found = screened(bare(key, "kid"), issuer=issuer)
    assert {alg for _, alg in found.keys} == {"RS256", "PS256"}


def test_a_key_with_alg_serves_that_one_alone() -> None:
    key = signing_key("RS256")
    assert {alg for _, alg in screened(key.jwk).keys} == {"RS256"}


def test_an_entry_without_algorithms_has_no_keys() -> None:
    empty = Issuer(name="i", url="https://i.example", algorithms=())
    assert reason(signing_key("RS256").jwk, issuer=empty) == "serves no algorithm that the entry allows"


def test_without_kid_a_token_finds_a_key_only_if_exactly_one_fits() -> None:
    one, two = signing_key("RS256", 1), signing_key("RS256", 2)
    alone = screened(one.jwk, signing_key("ES256").jwk)
    assert alone.find(None, "RS256") == alone.find(one.kid, "RS256")
    assert screened(one.jwk, two.jwk).find(None, "RS256") is None
    assert screened(one.jwk, two.jwk).find(two.kid, "RS256") is not None


def test_a_key_without_kid_is_found_by_no_kid() -> None:
    found = screened(bare(signing_key("RS256")))
    assert found.find("rs256-1", "RS256") is None
    assert found.find("", "RS256") is None
    assert found.find(None, "RS256") is not None


def test_one_key_listed_twice_is_one_key() -> None:
    key = signing_key("RS256")
    found = screened(key.jwk, key.jwk)
    assert found.find(key.kid, "RS256") is not None
    assert found.find(None, "RS256") is not None


def test_two_different_keys_of_one_kid_serve_neither() -> None:
    one, two = signing_key("RS256", 1), signing_key("RS256", 2).renamed("rs256-1")
    found = screened(one.jwk, two.jwk, signing_key("RS256", 3).jwk)
    assert found.find("rs256-1", "RS256") is None
    assert found.find("rs256-3", "RS256") is not None
    assert "different keys" in found.skipped[0].reason


def test_one_kid_may_name_keys_of_two_types() -> None:
    found = screened(signing_key("RS256").renamed("k").jwk, signing_key("ES256").renamed("k").jwk)
    assert found.find("k", "RS256") is not None
    assert found.find("k", "ES256") is not None


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param({"kty": "oct", "k": "AAAA", "kid": "o"}, id="symmetric"),
        pytest.param(signing_key("RS256").private_jwk, id="private RSA"),
        pytest.param(signing_key("ES256").private_jwk, id="private EC"),
        pytest.param(signing_key("EdDSA").private_jwk, id="private Ed25519"),
        pytest.param({**signing_key("RS256").jwk, "k": "AAAA"}, id="a secret beside a public key"),
    ],
)
def test_k10_a_published_secret_is_left_out_and_raises_the_alarm(jwk: dict[str, Any]) -> None:
    found = screened(jwk, signing_key("ES384").jwk)
    assert [skipped.alarm for skipped in found.skipped] == [True]
    assert {alg for _, alg in found.keys} == {"ES384"}


def rsa_jwk(bits: int, exponent: int = 65_537) -> dict[str, Any]:
    with warnings.catch_warnings(action="ignore"):
        return {**RSAKey.import_key(rsa.generate_private_key(exponent, bits).public_key()).as_dict(), "kid": "r"}


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def test_small_rsa_keys_are_left_out() -> None:
    assert "1024 bits" in reason(rsa_jwk(1_024))
    modulus = (1 << 2_046) + 1  # 2,047 bits
    assert "2047 bits" in reason({"kty": "RSA", "n": number(modulus), "e": "AQAB"})


def test_huge_rsa_keys_are_left_out() -> None:
    assert "bits" in reason({"kty": "RSA", "n": number((1 << 8_192) + 1), "e": "AQAB"})


@pytest.mark.parametrize("exponent", [1, 2, 3, 17, 65_536, 2**32 + 1, 2**64 + 1])
def test_odd_exponents_are_left_out(exponent: int) -> None:
    assert "exponent" in reason({**signing_key("RS256").jwk, "e": number(exponent)})


def test_a_modulus_of_the_roca_family_is_left_out_with_an_alarm() -> None:
    primes = math.prod(p for p in range(2, 168) if all(p % d for d in range(2, p)))
    modulus = (1 << 2_047) // primes * primes + primes + pow(65_537, 12_345, primes)
    assert modulus.bit_length() == 2_048
    found = screened({"kty": "RSA", "n": number(modulus), "e": "AQAB", "kid": "roca"})
    assert [(skipped.reason, skipped.alarm) for skipped in found.skipped] == [("an RSA key of the ROCA family", True)]


def test_a_modulus_with_a_zero_octet_in_front_is_the_same_key() -> None:
    key = signing_key("RS256")
    padded = {**key.jwk, "n": b64(b"\x00" + base64url(key.jwk["n"].encode()))}
    found = screened(padded).find(key.kid, "RS256")
    assert found is not None
    signing_input, _, signature = key.sign({"alg": "RS256"}, {}).rpartition(".")
    assert found.verifies(signing_input.encode(), base64url(signature.encode()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"use": "enc"}, "another use", id="use enc"),
        pytest.param({"use": None}, "another use", id="use null"),
        pytest.param({"use": ["sig"]}, "another use", id="use a list"),
        pytest.param({"use": "jwt-svid"}, "another use", id="use jwt-svid at an ordinary issuer"),
        pytest.param({"key_ops": ["sign"]}, "key_ops", id="key_ops sign"),
        pytest.param({"key_ops": []}, "key_ops", id="key_ops empty"),
        pytest.param({"key_ops": "verify"}, "key_ops", id="key_ops a string"),
        pytest.param({"key_ops": None}, "key_ops", id="key_ops null"),
        pytest.param({"alg": "ES384"}, "contradicts", id="alg of another curve"),
        pytest.param({"alg": "RS256"}, "contradicts", id="alg of another type"),
        pytest.param({"alg": "none"}, "contradicts", id="alg none"),
        pytest.param({"alg": "HS256"}, "contradicts", id="alg HS256"),
        pytest.param({"alg": 1}, "contradicts", id="alg a number"),
        pytest.param({"kty": "XYZ"}, "unknown kty", id="unknown kty"),
        pytest.param({"kty": None}, "unknown kty", id="no kty"),
        pytest.param({"kty": ["EC"]}, "unknown kty", id="kty a list"),
        pytest.param({"kid": 1}, "kid", id="kid a number"),
        pytest.param({"kid": "k" * 257}, "kid", id="kid too long"),
        pytest.param({"crv": "secp256k1"}, "curve", id="another curve"),
        pytest.param({"crv": "P-384"}, "length", id="coordinates of another curve"),
        pytest.param({"crv": None}, "curve", id="no curve"),
        pytest.param({"x": None}, "missing", id="no x"),
        pytest.param({"x": "A" * 43}, "off the curve", id="off the curve"),
        pytest.param({"x": "AAAA"}, "length", id="a short coordinate"),
        pytest.param({"x": "A" * 43 + "="}, "base64url", id="padding"),
        pytest.param({"x": "ä"}, "missing", id="an umlaut"),
    ],
)
def test_a_key_that_contradicts_itself_is_left_out(changes: dict[str, Any], why: str) -> None:
    assert why in reason({**signing_key("ES256").jwk, **changes})


@pytest.mark.parametrize("jwk", [1, None, "key", [], ["kty"], {}])
def test_what_is_no_key_at_all_is_left_out(jwk: Any) -> None:
    assert reason(jwk)


@pytest.mark.parametrize("crv", ["Ed448", "X25519"])
def test_other_okp_curves_are_left_out(crv: str) -> None:
    jwk = {**OKPKey.generate_key(crv).as_dict(private=False), "kid": "o"}  # pyright: ignore
    assert "curve" in reason(jwk)


def test_use_may_be_absent_at_an_ordinary_issuer_and_must_be_right_for_spiffe() -> None:
    key = signing_key("ES256")
    assert screened(bare(key, "kid", "alg")).find(key.kid, "ES256") is not None
    assert "another use" in reason(bare(key, "kid"), issuer=SPIFFE)
    assert "another use" in reason(key.jwk, issuer=SPIFFE)
    assert "another use" in reason(key.used_for("x509-svid").jwk, issuer=SPIFFE)
    assert screened(key.used_for("jwt-svid").jwk, issuer=SPIFFE).find(key.kid, "ES256") is not None


def test_key_ops_that_hold_verify_are_taken() -> None:
    key = signing_key("ES256")
    assert screened({**key.jwk, "key_ops": ["verify"]}).find(key.kid, "ES256") is not None


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":null}', b'{"keys":[],"keys":[]}', b"<html>", b'{"keys":[' + b"[" * 50],
)
def test_a_document_that_is_no_key_set_is_refused_whole(document: bytes) -> None:
    with pytest.raises(KeySetRefused):
        screen(document, ISSUER, LIMITS)


def test_a_set_is_bounded_in_keys() -> None:
    jwk = signing_key("ES256").jwk
    assert screened(*[jwk] * 100)
    with pytest.raises(KeySetRefused):
        screened(*[jwk] * 101)


def test_an_empty_set_is_an_answer() -> None:
    assert screened() == KeySet()


def test_no_key_shows_itself_in_a_repr() -> None:
    key = signing_key("RS256")
    assert key.jwk["n"][:20] not in repr(screened(key.jwk))


# Known answers: RFC 7638 §3.1, RFC 8037 A, RFC 9449 §4.1; RFC 9864 for the name `Ed25519`.

ED25519 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
RFC7638_N = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
    "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n9"
    "1CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
)


@pytest.mark.parametrize(
    ("kind", "jwk", "thumbprint"),
    [
        (RSAKey, {"kty": "RSA", "n": RFC7638_N, "e": "AQAB"}, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        (OKPKey, ED25519, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
        (
            ECKey,
            {
                "kty": "EC",
                "crv": "P-256",
                "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
                "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
            },
            "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        ),
    ],
)
def test_thumbprints_are_those_of_the_standards(kind: Any, jwk: dict[str, Any], thumbprint: str) -> None:
    assert kind.import_key(jwk).thumbprint() == thumbprint
    assert next(key.key.thumbprint() for key in screened(jwk).keys.values()) == thumbprint


@pytest.mark.parametrize(
    ("alg", "token"),
    [
        (
            "EdDSA",
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
        (
            "Ed25519",
            "eyJhbGciOiJFZDI1NTE5In0.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
            "UxhIYLHGg39NVCLpQAVD_UcfOmnGSCzLFZoXYkLiIbFccmOb_qObsgjzLKsfJw-4NlccUgvYrEHrRbNV0HcZAQ",
        ),
    ],
)
def test_ed25519_signatures_are_those_of_the_standards(alg: str, token: str) -> None:
    found = screened(ED25519).find(None, alg)
    assert found is not None
    header, payload, signature = token.split(".")
    assert json.loads(base64url(header.encode())) == {"alg": alg}
    assert found.verifies(f"{header}.{payload}".encode(), base64url(signature.encode()))
    assert not found.verifies(f"{header}.{payload}A".encode(), base64url(signature.encode()))
