"""What a good token is made of, and what a forged one must meet: the values that forgery.py is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker import errors
from tests.support.signing import SigningKey, compact_json

MALFORMED = (errors.TokenMalformed,)
UNKNOWN_KEY = (errors.KeyUnknown,)
BAD_SIGNATURE = (errors.SignatureInvalid,)
BAD_ALGORITHM = (errors.AlgorithmNotAllowed,)
BAD_AUDIENCE = (errors.TokenAudience,)


@dataclass(frozen=True, slots=True)
class Bad:
    """One forgery.  `published`: JWKs that stand in the issuer's set beside the good ones, if the attack needs them."""

    name: str
    token: str = field(repr=False)
    errors: tuple[type[errors.BrokerError], ...] = MALFORMED
    published: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Good:
    """What a good token is made of."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    key: SigningKey
    now: float

    @property
    def token(self) -> str:
        return self.key.sign(self.header, self.claims)

    def but(self, **claims: Any) -> str:
        """Truly signed, with other claims.  A name that is no Python word goes in by `**{name: …}`."""
        return self.key.sign(self.header, {**self.claims, **claims})

    def without(self, *names: str) -> str:
        return self.key.sign(self.header, {n: v for n, v in self.claims.items() if n not in names})

    def under(self, *drop: str, **header: Any) -> str:
        """Truly signed, under another header."""
        return self.key.sign({n: v for n, v in {**self.header, **header}.items() if n not in drop}, self.claims)

    def with_payload(self, payload: bytes) -> str:
        return self.key.sign_raw(compact_json(self.header), payload)

    def with_number(self, name: str, text: str) -> str:
        """Truly signed, with a member written as exactly this text."""
        marker = "a-number-stands-here"
        raw = compact_json({**self.claims, name: marker})
        return self.with_payload(raw.replace(f'"{marker}"'.encode(), text.encode()))

    def parts(self) -> tuple[str, str, str]:
        header, payload, signature = self.token.split(".")
        return header, payload, signature
