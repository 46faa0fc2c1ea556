"""Private keys at rest: one file opens them, nothing else does, and nothing of them can be changed or swapped unseen."""

from __future__ import annotations

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config import Settings
from broker.errors import CannotStart, KeysUnavailable
from broker.keys.keyring import Generation, KeyPair, Ring
from broker.keys.sealed import KeyEncryptionKey, check_value, decode_ring, encode_ring, key_encryption_key, key_file

KEY = KeyEncryptionKey(bytes(range(32)))
OTHER = KeyEncryptionKey(bytes(32))
PRIVATE = b'{"kty":"EC","d":"private"}'


def ring_of(key: KeyEncryptionKey, env: str = "prod", version: int = 3) -> Ring:
    pair = KeyPair("kid-1", "ES256", {"kty": "EC", "kid": "kid-1"}, key.seal(env, "kid-1", "ES256", PRIVATE))
    return Ring(version, (Generation(10, 20, (pair,), 30), Generation(15, 30, (pair,))))


# The file


def test_one_is_made_for_a_new_embedded_store_and_found_again(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    made = key_encryption_key(settings)
    file = key_file(settings)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(made.secret) == 32
    assert key_encryption_key(settings, create=False) == made


@pytest.mark.parametrize(
    "change",
    [{"store": "redis://h"}, {"store_url_file": Path("url")}, {"key_file": Path("absent")}],
    ids=["external store", "external store by file", "a file of the operator's"],
)
def test_none_is_ever_made_where_other_nodes_need_the_same(tmp_path: Path, change: dict[str, object]) -> None:
    settings = replace(Settings(data=tmp_path), **{k: tmp_path / v if isinstance(v, Path) else v for k, v in change.items()})
    with pytest.raises(CannotStart) as refused:
        key_encryption_key(settings)
    assert refused.value.hints
    assert not key_file(settings).exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text("00" * 32)
    file.chmod(mode)
    with pytest.raises(CannotStart, match=f"{mode:03o}"):
        key_encryption_key(Settings(key_file=file))


@pytest.mark.parametrize("mode", [0o600, 0o400])
@pytest.mark.parametrize(
    "text",
    [KEY.secret.hex(), KEY.secret.hex().upper(), KEY.secret.hex() + "\n", base64.b64encode(KEY.secret).decode() + "\r\n"],
    ids=["hex", "upper case", "line end", "base64"],
)
def test_forms_that_are_read(tmp_path: Path, text: str, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(mode)
    assert key_encryption_key(Settings(key_file=file)) == KEY


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"00" * 31, b"00" * 33, b"0g" * 32, bytes(32), bytes(range(32)), base64.b64encode(bytes(31)), b"00 " * 32],
    ids=["empty", "line end", "short", "long", "no hex", "raw zeros", "raw bytes", "short base64", "spaced"],
)
def test_a_file_that_holds_no_key_is_refused_and_never_shown(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(raw)
    file.chmod(0o600)
    with pytest.raises(CannotStart) as refused:
        key_encryption_key(Settings(key_file=file))
    shown = "".join((str(refused.value), *refused.value.hints))
    assert not raw.strip() or raw.decode("latin-1").strip() not in shown


def test_it_never_shows_itself() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)


def test_each_purpose_and_env_has_a_key_of_its_own() -> None:
    derived = [KEY.derive(purpose, env) for purpose in ("seal", "ring", "revocation", "check") for env in ("", "prod", "dev")]
    assert len(set(derived)) == len(derived)
    assert KEY.secret not in derived
    assert check_value(KEY) != check_value(OTHER)


# Sealing


@pytest.mark.parametrize(
    "named",
    [("dev", "kid-1", "ES256"), ("prod", "kid-2", "ES256"), ("prod", "kid-1", "RS256"), ("prod", "kid-", "1ES256")],
    ids=["env", "kid", "alg", "shifted"],
)
def test_a_sealed_key_opens_under_its_own_name_only(named: tuple[str, str, str]) -> None:
    sealed = KEY.seal("prod", "kid-1", "ES256", PRIVATE)
    assert KEY.unseal("prod", "kid-1", "ES256", sealed) == PRIVATE
    with pytest.raises(KeysUnavailable):
        KEY.unseal(*named, sealed)
    with pytest.raises(KeysUnavailable):
        OTHER.unseal("prod", "kid-1", "ES256", sealed)


def test_the_same_key_is_never_sealed_twice_alike() -> None:
    assert len({KEY.seal("prod", "kid-1", "ES256", PRIVATE) for _ in range(16)}) == 16


@pytest.mark.parametrize("length", [0, 1, 12, 27])
def test_a_cut_off_sealed_key_does_not_open(length: int) -> None:
    with pytest.raises(KeysUnavailable):
        KEY.unseal("prod", "kid-1", "ES256", KEY.seal("prod", "kid-1", "ES256", PRIVATE)[:length])


def test_a_flipped_bit_anywhere_is_seen() -> None:
    sealed = KEY.seal("prod", "kid-1", "ES256", PRIVATE)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeysUnavailable):
            KEY.unseal("prod", "kid-1", "ES256", bytes(changed))


# The ring as bytes


def test_a_ring_comes_back_as_it_was() -> None:
    ring = ring_of(KEY)
    assert decode_ring(encode_ring(ring, "prod", KEY), "prod", 3, KEY) == ring


def test_another_key_encryption_key_is_named_as_the_reason() -> None:
    with pytest.raises(KeysUnavailable, match="another key-encryption key"):
        decode_ring(encode_ring(ring_of(KEY), "prod", KEY), "prod", 3, OTHER)


@pytest.mark.parametrize(("env", "version"), [("dev", 3), ("prod", 2), ("prod", 4)], ids=["env", "older", "newer"])
def test_a_ring_is_good_in_its_own_place_only(env: str, version: int) -> None:
    with pytest.raises(KeysUnavailable):
        decode_ring(encode_ring(ring_of(KEY), "prod", KEY), env, version, KEY)


def test_nothing_private_is_readable() -> None:
    raw = encode_ring(ring_of(KEY), "prod", KEY)
    assert b"private" not in raw
    assert base64.b64encode(PRIVATE)[:12] not in raw


RAW = encode_ring(ring_of(KEY), "prod", KEY)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(RAW) - 1), bit=st.integers(0, 7))
def test_a_ring_with_a_flipped_bit_is_refused(at: int, bit: int) -> None:
    changed = bytearray(RAW)
    changed[at] ^= 1 << bit
    with pytest.raises(KeysUnavailable):
        decode_ring(bytes(changed), "prod", 3, KEY)


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b"{}", b'{"ring":{},"mac":""}', b'{"ring":[],"mac":null}', b"\xff", b"[" * 100_000, RAW[:-1]],
    ids=["empty", "null", "list", "object", "hollow", "wrong types", "no text", "deep", "cut off"],
)
def test_what_is_no_ring_is_refused(raw: bytes) -> None:
    with pytest.raises(KeysUnavailable):
        decode_ring(raw, "prod", 3, KEY)


def test_a_generation_cannot_be_left_out() -> None:
    outer = json.loads(RAW)
    outer["ring"]["generations"].pop()
    with pytest.raises(KeysUnavailable, match="does not verify"):
        decode_ring(json.dumps(outer).encode(), "prod", 3, KEY)


def test_two_that_make_the_file_at_once_end_with_one_key(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = {key.secret for key in pool.map(lambda _: key_encryption_key(settings), range(8))}
    assert len(made) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["key-encryption-key"]
