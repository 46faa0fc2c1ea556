"""The claim on one use of a token: the same for every copy of it, another for every other token."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from broker.config import Limits
from broker.identity.replay import single_use

LIMITS = Limits(leeway_s=30, store_clock_skew_s=5)


def key(authority: str, jti: str | None, signing_input: bytes = b"h.p") -> str:
    return single_use(authority, jti, signing_input, 100, LIMITS).key


def test_the_key_is_a_hash_with_lengths_in_front() -> None:
    parts = [b"https://issuer.example", b"jti", b"one"]
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert key("https://issuer.example", "one") == hashlib.sha256(framed).hexdigest()


def test_v13_one_jti_of_two_issuers_is_two_tokens() -> None:
    assert key("https://one.example", "j") != key("https://two.example", "j")


def test_with_a_jti_the_signing_input_does_not_matter() -> None:
    assert key("i", "j", b"h.p") == key("i", "j", b"h.q")


def test_without_a_jti_the_signing_input_decides() -> None:
    assert key("i", None, b"h.p") != key("i", None, b"h.q")


def test_a_jti_that_looks_like_a_signing_input_is_not_taken_for_one() -> None:
    assert key("i", "h.p") != key("i", None, b"h.p")


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_no_two_pairs_share_a_key(one: tuple[str, str], two: tuple[str, str]) -> None:
    assert (key(*one) == key(*two)) is (one == two)


def test_it_is_held_until_no_node_can_accept_the_token_any_more() -> None:
    assert single_use("i", "j", b"", 1_000, LIMITS).until == 1_000 + 30 + 10
    assert single_use("i", "j", b"", 1_000.2, LIMITS).until == 1_001 + 30 + 10
