"""Private keys at rest, and the one key that opens them (STATE: "Keys to sign with").

The key-encryption key is 32 bytes in a file of its own.  From it, by HKDF (RFC 5869), one key for each purpose and env:
sealing, the ring's MAC, the tags of the revocation chain, and a check value by which a node with another key is found out.
Private JWKs are sealed with AES-256-GCM; env, kid and alg are associated data, so that no key can pass for another's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.config import Settings
from broker.errors import CannotStart, KeysUnavailable
from broker.keys.keyring import Generation, KeyPair, Ring

KEY_BYTES = 32
NONCE_BYTES = 12
FILE_NAME = "key-encryption-key"
PRIVATE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class KeyEncryptionKey:
    """The key that opens all others; it never shows itself."""

    secret: bytes = field(repr=False)

    def derive(self, purpose: str, env: str = "") -> bytes:
        """The 32-byte key of one purpose and env."""
        info = f"broker/{purpose}/{env}".encode()
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self.secret)

    def seal(self, env: str, kid: str, alg: str, private: bytes) -> bytes:
        """AES-256-GCM under the env's key, bound to env, kid and alg."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self.derive("seal", env)).encrypt(nonce, private, _bound(env, kid, alg))

    def unseal(self, env: str, kid: str, alg: str, sealed: bytes) -> bytes:
        """The reverse.  Raises `KeysUnavailable` if anything was changed or swapped."""
        try:
            return AESGCM(self.derive("seal", env)).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(env, kid, alg))
        except (InvalidTag, ValueError):
            raise KeysUnavailable(f"the sealed key {kid} of {env} does not open: another key, or tampering") from None


def _bound(env: str, kid: str, alg: str) -> bytes:
    return "".join(f"{len(part)}:{part}" for part in (env, kid, alg)).encode()


def key_file(settings: Settings) -> Path:
    """Where the key-encryption key lies: --key-file, else beside the embedded store."""
    return settings.key_file or settings.data / FILE_NAME


def key_encryption_key(settings: Settings, *, create: bool = True) -> KeyEncryptionKey:
    """Reads the key-encryption key; makes one for a new embedded store only.

    Raises `CannotStart`: no file where none may be made, a file that others can read, or one that holds no such key.
    """
    path = key_file(settings)
    may_create = create and settings.key_file is None and not settings.store and settings.store_url_file is None
    try:
        if may_create and not path.exists():
            _create(path)
    except OSError as error:
        raise CannotStart(
            f"the data folder {path.parent} cannot be used: {(error.strerror or 'unknown error').lower()}",
            "give --data DIR: a folder that this user may write to, or one whose parent it may write to",
        ) from error
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotStart(
            f"the key-encryption key {path} cannot be read: {error.strerror}",
            "every node of one store needs the same key, so it is never made automatically for an external store",
            f"make one once: (umask 077; openssl rand -hex 32 > {path}); then --key-file {path} on every node",
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise CannotStart(f"{path} has mode {mode:03o}: others can read the key-encryption key", f"chmod 600 {path}")
        return KeyEncryptionKey(_decode(file.read(4096), path))


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Whole or not at all: a file that a killed process left empty would lock out every later start.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _decode(raw: bytes, path: Path) -> bytes:
    text = raw.decode("ascii", "replace").strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise CannotStart(f"{path} holds no key of 32 bytes", "write it as 64 hex digits or as base64: openssl rand -hex 32")
    return key


# The ring as bytes


def encode_ring(ring: Ring, env: str, key: KeyEncryptionKey) -> bytes:
    """A ring as it lies in the store: sealed keys, check value, MAC over everything."""
    body = {
        "env": env,
        "version": ring.version,
        "check": check_value(key),
        "generations": [
            {
                "published_at": g.published_at,
                "active_from": g.active_from,
                "gone_at": g.gone_at,
                "keys": [
                    {"kid": k.kid, "alg": k.alg, "public": dict(k.public), "sealed": base64.b64encode(k.sealed).decode()}
                    for k in g.keys
                ],
            }
            for g in ring.generations
        ],
    }
    text = _canonical(body)
    return json.dumps({"ring": body, "mac": _mac(key, env, text)}, separators=(",", ":")).encode()


def decode_ring(raw: bytes, env: str, version: int, key: KeyEncryptionKey) -> Ring:
    """A ring from the store.  Raises `KeysUnavailable`: another key-encryption key, tampering, or another env's ring."""
    try:
        outer = json.loads(raw)
        body, mac = outer["ring"], outer["mac"]
        if not hmac.compare_digest(str(body["check"]).encode(), check_value(key).encode()):
            raise KeysUnavailable(f"the keys of {env} were sealed with another key-encryption key than this node has")
        if not hmac.compare_digest(str(mac).encode(), _mac(key, env, _canonical(body)).encode()):
            raise KeysUnavailable(f"the key ring of {env} does not verify: it was changed outside the broker")
        if body["env"] != env or body["version"] != version:
            raise KeysUnavailable(f"the key ring of {env} is another env's or another version's")
        return Ring(version, tuple(_generation(g) for g in body["generations"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise KeysUnavailable(f"the key ring of {env} cannot be read") from error


def _generation(body: Mapping[str, Any]) -> Generation:
    keys = tuple(KeyPair(k["kid"], k["alg"], k["public"], base64.b64decode(k["sealed"])) for k in body["keys"])
    return Generation(body["published_at"], body["active_from"], keys, body["gone_at"])


def check_value(key: KeyEncryptionKey) -> str:
    """Says whether two nodes hold the same key-encryption key, and nothing else about it."""
    return hashlib.sha256(key.derive("check")).hexdigest()[:16]


def _mac(key: KeyEncryptionKey, env: str, text: bytes) -> str:
    return hmac.new(key.derive("ring", env), text, hashlib.sha256).hexdigest()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
