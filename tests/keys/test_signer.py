"""What is signed here, others verify: PyJWT and joserfc's own JWT layer, from the published set alone."""

from __future__ import annotations

import json

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from broker.keys.signer import SigningKey, sign


def pair(alg: str) -> SigningKey:
    key = ECKey.generate_key("P-256") if alg == "ES256" else RSAKey.generate_key(2048)
    return SigningKey(key.thumbprint(), alg, key)


PAIRS = {alg: pair(alg) for alg in ("ES256", "RS256")}
CLAIMS = {"iss": "https://b/prod", "aud": ["https://a", "https://ü"], "exp": 4_000_000_000, "n": None, "o": {"é": [1, True]}}


def published(key: SigningKey) -> dict[str, object]:
    return {**key.key.as_dict(private=False), "kid": key.kid, "alg": key.alg, "use": "sig"}


@pytest.mark.parametrize("alg", PAIRS)
def test_pyjwt_verifies_from_the_published_set(alg: str) -> None:
    key = PAIRS[alg]
    token = sign(CLAIMS, typ="at+jwt", key=key)
    found = jwt.PyJWKSet.from_dict({"keys": [published(key)]})[key.kid]
    assert jwt.decode(token, found, algorithms=[alg], audience="https://a") == CLAIMS


@pytest.mark.parametrize("alg", PAIRS)
def test_joserfc_verifies_from_the_published_set(alg: str) -> None:
    key = PAIRS[alg]
    token = joserfc_jwt.decode(
        sign(CLAIMS, typ="at+jwt", key=key), KeySet.import_key_set({"keys": [published(key)]}), algorithms=[alg]
    )
    assert token.claims == CLAIMS
    assert token.header == {"alg": alg, "kid": key.kid, "typ": "at+jwt"}


@pytest.mark.parametrize("alg", PAIRS)
def test_another_key_does_not_verify_it(alg: str) -> None:
    stranger = pair(alg)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(sign(CLAIMS, typ="JWT", key=PAIRS[alg]), jwt.PyJWK(published(stranger)), algorithms=[alg], audience="https://a")


def test_the_kid_is_the_keys_thumbprint() -> None:
    key = PAIRS["ES256"]
    assert jwt.get_unverified_header(sign(CLAIMS, typ="JWT", key=key))["kid"] == key.key.thumbprint()


def test_each_typ_has_its_own_header() -> None:
    key = PAIRS["ES256"]
    for typ in ("at+jwt", "JWT", "at+jwt"):
        assert jwt.get_unverified_header(sign({}, typ=typ, key=key))["typ"] == typ


def test_a_private_key_never_shows_itself() -> None:
    for key in PAIRS.values():
        private = key.key.as_dict(private=True)
        shown = repr(key) + str(key)
        assert str(private["d"]) not in shown
        assert set(shown.replace("(", " ").replace("=", " ").split()) >= {"SigningKey", "kid"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(claims=st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_any_claims_come_out_as_they_went_in(claims: dict[str, object]) -> None:
    key = PAIRS["ES256"]
    token = joserfc_jws.deserialize_compact(sign(claims, typ="JWT", key=key), key.key, algorithms=["ES256"])
    assert json.loads(token.payload) == claims
