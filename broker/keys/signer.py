"""Claims -> signed token, by joserfc's algorithm models alone; their JWT layer costs three times the signature (DESIGN §8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64encode

ALGORITHMS = {name: JWSRegistry().get_alg(name) for name in ("ES256", "RS256")}

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key that signs with exactly one algorithm; `heads` keeps the encoded header of each `typ`."""

    kid: str
    alg: str
    key: ECKey | RSAKey = field(repr=False)
    heads: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)


def sign(claims: Mapping[str, Any], *, typ: str, key: SigningKey) -> str:
    """A compact JWS (RFC 7515 §7.1) with header alg, kid, typ."""
    head = key.heads.get(typ)
    if head is None:
        header = _encoder.encode({"alg": key.alg, "kid": key.kid, "typ": typ})
        head = key.heads[typ] = urlsafe_b64encode(header) + b"."
    signing_input = head + urlsafe_b64encode(_encoder.encode(claims))
    signature = ALGORITHMS[key.alg].sign(signing_input, key.key)
    return (signing_input + b"." + urlsafe_b64encode(signature)).decode("ascii")
