"""Keys that sign for tests, and tokens that look like those of real platforms.

    key = signing_key("ES256")                       one key a (algorithm, number) for the whole run: RSA keys are slow to make
    token = key.sign({"alg": "ES256", "kid": key.kid}, {"iss": …})
    shape = Shape.of("github-actions")               header and claims of the preset's fixture
    shape.claims(now=NOW, iss=…, aud=…)              the same claims, with times around `now`
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from broker import presets

CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
TIMES = ("iat", "nbf", "exp")


def b64(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def compact_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def raw_signature(alg: str, key: Any, signing_input: bytes) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return JWSRegistry(algorithms=[alg]).get_alg(alg).sign(signing_input, key)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its `kid` and algorithm.  `jwk` is its public form, ready to publish."""

    kid: str
    alg: str
    key: Any = field(repr=False)
    use: str = "sig"

    @property
    def jwk(self) -> dict[str, Any]:
        return {**self.key.as_dict(private=False), "kid": self.kid, "alg": self.alg, "use": self.use}

    @property
    def private_jwk(self) -> dict[str, Any]:
        return {**self.key.as_dict(private=True), "kid": self.kid, "alg": self.alg, "use": self.use}

    def sign(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
        """A compact JWS of this header and these claims; `header` is taken as it is."""
        return self.sign_raw(compact_json(header), compact_json(claims))

    def sign_raw(self, header: bytes, payload: bytes, *, alg: str | None = None) -> str:
        """A compact JWS over exactly these octets, well-formed or not, with a true signature."""
        signing_input = f"{b64(header)}.{b64(payload)}"
        return f"{signing_input}.{b64(raw_signature(alg or self.alg, self.key, signing_input.encode()))}"

    def renamed(self, kid: str) -> SigningKey:
        return SigningKey(kid, self.alg, self.key, self.use)

    def used_for(self, use: str) -> SigningKey:
        return SigningKey(self.kid, self.alg, self.key, use)


@cache
def _private(family: str, number: int) -> Any:
    if family == "RSA":
        return RSAKey.generate_key(2048)
    return OKPKey.generate_key("Ed25519") if family == "OKP" else ECKey.generate_key(family)


@cache
def signing_key(alg: str = "RS256", number: int = 1) -> SigningKey:
    """The `number`-th key of this algorithm: the same in every test of a run, another for each number."""
    family = CURVES.get(alg) or ("OKP" if alg in ("EdDSA", "Ed25519") else "RSA")
    # Keys of one family but different algorithms are different keys.
    offset = {"PS256": 100, "Ed25519": 100}.get(alg, 0)
    key = _private(family, number + offset)
    return SigningKey(f"{alg.lower()}-{number}", alg, key)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a platform's token looks like: header and claims of its preset's fixture."""

    preset: str
    header: Mapping[str, Any]
    fixture: Mapping[str, Any]

    @classmethod
    def of(cls, preset: str, variant: str | None = None) -> Shape:
        fixture = presets.load(preset).fixture
        return cls(preset, fixture.header, fixture.claims if variant is None else fixture.variants[variant])

    def claims(self, *, now: float, **changes: Any) -> dict[str, Any]:
        """The fixture's claims with `iat` at `now` and the other times as far from it as in the fixture.

        A change to None removes the claim, and a null of the fixture stays one; `aud` keeps the fixture's shape (string or
        list) unless it is given as a list.
        """
        base = self.fixture.get("iat", self.fixture["exp"] - 300)
        claims = {name: int(now + value - base) if name in TIMES else value for name, value in self.fixture.items()}
        aud = changes.get("aud")
        if isinstance(aud, str) and isinstance(claims.get("aud"), list):
            changes["aud"] = [aud]
        kept = {name: value for name, value in claims.items() if name not in changes}
        return kept | {name: value for name, value in changes.items() if value is not None}
