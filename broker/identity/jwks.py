"""A key set as its issuer published it -> the keys that may verify, each for exact algorithms.  Pure.

Called by issuers.py with what fetch.py brought.  A set is somebody else's text: a key that is weak, private, symmetric, meant
for something else, or that contradicts itself is skipped with a reason, and the others still serve (RFC 7517 §5).
One key serves only the algorithms that the issuer's entry, the key's own `alg`, and its type and curve all allow (RFC 8725 §3.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from broker.config import Limits
from broker.model import Issuer
from broker.protocol.compact import NotStrictJson, base64url, strict_json

# By key type and curve (RFC 7518 §3.1, RFC 8037 §3.1, RFC 9864 §2): what such a key can do at all.
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC: Final = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}
_OKP: Final = {"Ed25519": ("EdDSA", "Ed25519")}
ALGORITHMS: Final = frozenset(_RSA).union(*_EC.values(), *_OKP.values())

_COORDINATE_BYTES: Final = {"P-256": 32, "P-384": 48, "P-521": 66}  # RFC 7518 §6.2.1.2: full size, always
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 §6.2.2, §6.3.2, §6.4
_RSA_BITS_MIN: Final = 2_048  # RFC 7518 §3.3
_RSA_EXPONENT_MIN: Final = 65_537  # FIPS 186-5 §5.1
_RSA_EXPONENT_MAX: Final = 2**32  # a huge public exponent makes each verification slow

# Moduli of one flawed smart-card library are powers of 65537 modulo every small prime (CVE-2017-15361), and can be factored.
# By chance a sound modulus is so for all of these primes once in 2^27.
_ROCA_PRIMES: Final = (
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73,
    79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
)  # fmt: skip
_ROCA_RESIDUES: Final = {p: frozenset(pow(65_537, exponent, p) for exponent in range(p - 1)) for p in _ROCA_PRIMES}


def _models() -> Mapping[str, Any]:
    registry = JWSRegistry(algorithms=sorted(ALGORITHMS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `EdDSA` is deprecated as a name; issuers still say it (RFC 9864 §2)
        return {name: registry.get_alg(name) for name in ALGORITHMS}


_MODELS: Final = _models()


class KeySetRefused(ValueError):
    """The whole document is no key set that can be used; the text is for the log."""


class _Unfit(ValueError):
    """One key is not taken; the text says why."""

    def __init__(self, reason: str, *, alarm: bool = False) -> None:
        super().__init__(reason)
        self.alarm = alarm


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """One public key, bound to one `kid` and one algorithm."""

    kid: str | None
    alg: str
    key: Any = field(repr=False)

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `signing_input` (RFC 7515 §5.2); anything odd is a no."""
        try:
            return bool(_MODELS[self.alg].verify(signing_input, signature, self.key))
        except (ValueError, JoseError):
            return False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A key of the set that is not taken.  `alarm`: its owner has published a secret."""

    kid: str
    reason: str
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of one issuer.  Two different keys of one `kid` and algorithm serve neither."""

    keys: Mapping[tuple[str | None, str], VerifyKey] = field(default_factory=dict)
    alone: Mapping[str, VerifyKey] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def find(self, kid: str | None, alg: str) -> VerifyKey | None:
        """The key for a token's header.  A token without `kid` finds one only where exactly one key fits its `alg`."""
        return self.alone.get(alg) if kid is None else self.keys.get((kid, alg))


def screen(document: bytes, issuer: Issuer, limits: Limits) -> KeySet:
    """The usable keys of a JWK Set (RFC 7517 §5), each for the algorithms that it may serve.  Raises `KeySetRefused`.

    A set without any usable key is an answer, not an error: its issuer has withdrawn what it had.
    """
    try:
        value = strict_json(document, limits.json_depth_max)
    except NotStrictJson as error:
        raise KeySetRefused(f"the key set is {error}") from None
    entries = value.get("keys") if type(value) is dict else None
    if type(entries) is not list:
        raise KeySetRefused("the key set has no list of keys")
    if len(entries) > limits.jwks_keys_max:
        raise KeySetRefused(f"the key set has {len(entries)} keys; at most {limits.jwks_keys_max} are read")
    found: dict[tuple[str | None, str], list[VerifyKey]] = {}
    skipped: list[Skipped] = []
    for entry in entries:
        kid = entry.get("kid") if type(entry) is dict else None
        try:
            for key in _fit(entry, issuer, limits):
                found.setdefault((key.kid, key.alg), []).append(key)
        except _Unfit as error:
            name = kid if type(kid) is str else ""
            skipped.append(Skipped(name[: limits.kid_characters_max], str(error), error.alarm))
    return _settle(found, skipped)


def _settle(found: Mapping[tuple[str | None, str], list[VerifyKey]], skipped: list[Skipped]) -> KeySet:
    keys: dict[tuple[str | None, str], VerifyKey] = {}
    by_alg: dict[str, dict[str, VerifyKey]] = {}
    for name, candidates in found.items():
        different = {key.key.thumbprint(): key for key in candidates}
        by_alg.setdefault(name[1], {}).update(different)
        if len(different) == 1:
            keys[name] = candidates[0]
        elif name[0] is not None:
            skipped.append(Skipped(name[0], f"{len(different)} different keys have this kid for {name[1]}"))
    alone = {alg: next(iter(several.values())) for alg, several in by_alg.items() if len(several) == 1}
    return KeySet(keys, alone, tuple(skipped))


def _fit(entry: Any, issuer: Issuer, limits: Limits) -> list[VerifyKey]:
    if type(entry) is not dict:
        raise _Unfit("no JSON object")
    kty, kid, alg = entry.get("kty"), entry.get("kid"), entry.get("alg")
    if kty == "oct" or not _PRIVATE.isdisjoint(entry):
        raise _Unfit("a secret key is published here", alarm=True)
    if kty not in ("RSA", "EC", "OKP"):
        raise _Unfit("an unknown kty")
    if kid is not None and (type(kid) is not str or len(kid) > limits.kid_characters_max):
        raise _Unfit("a kid that is no string, or too long")
    _purpose(entry, issuer)
    key, able = _rsa(entry, limits) if kty == "RSA" else _curve(entry, kty)
    if alg is not None and alg not in able:
        raise _Unfit("an alg that contradicts the key")
    serves = [name for name in able if name in issuer.algorithms and alg in (None, name)]
    if not serves:
        raise _Unfit("serves no algorithm that the entry allows")
    return [VerifyKey(kid, name, key) for name in serves]


def _purpose(entry: Mapping[str, Any], issuer: Issuer) -> None:
    use = entry.get("use")
    # Absent is common for `sig`.  A SPIFFE bundle holds keys of several kinds and must say which is which (SPIFFE JWT-SVID §5).
    if use != issuer.key_use and not (use is None and "use" not in entry and issuer.key_use == "sig"):
        raise _Unfit("meant for another use")
    operations = entry.get("key_ops")
    if "key_ops" in entry and not (type(operations) is list and "verify" in operations):
        raise _Unfit("its key_ops do not allow to verify")


def _octets(entry: Mapping[str, Any], name: str) -> bytes:
    value = entry.get(name)
    if type(value) is not str or not value.isascii():
        raise _Unfit(f"its {name} is missing or no string")
    try:
        return base64url(value.encode("ascii"))
    except ValueError:
        raise _Unfit(f"its {name} is no base64url") from None


def _rsa(entry: Mapping[str, Any], limits: Limits) -> tuple[Any, tuple[str, ...]]:
    modulus = int.from_bytes(_octets(entry, "n"), "big")  # Jenkins puts a zero octet in front; the number is the same
    exponent = int.from_bytes(_octets(entry, "e"), "big")
    if not _RSA_BITS_MIN <= modulus.bit_length() <= limits.rsa_bits_max:
        raise _Unfit(f"an RSA key of {modulus.bit_length()} bits")
    if exponent % 2 == 0 or not _RSA_EXPONENT_MIN <= exponent <= _RSA_EXPONENT_MAX:
        raise _Unfit("an RSA exponent that is even, small or huge")
    if all(modulus % p in residues for p, residues in _ROCA_RESIDUES.items()):
        raise _Unfit("an RSA key of the ROCA family", alarm=True)
    return _imported(RSAKey, entry, ("kty", "n", "e")), _RSA


def _curve(entry: Mapping[str, Any], kty: str) -> tuple[Any, tuple[str, ...]]:
    curve = entry.get("crv")
    able = (_EC if kty == "EC" else _OKP).get(curve) if type(curve) is str else None
    if able is None:
        raise _Unfit("a curve that is not taken")
    if kty == "OKP":
        return _imported(OKPKey, entry, ("kty", "crv", "x")), able
    if any(len(_octets(entry, name)) != _COORDINATE_BYTES[str(curve)] for name in ("x", "y")):
        raise _Unfit("a coordinate of the wrong length")
    return _imported(ECKey, entry, ("kty", "crv", "x", "y")), able


def _imported(kind: Any, entry: Mapping[str, Any], members: tuple[str, ...]) -> Any:
    # Only the members that make the key: the others were judged above, by rules stricter than the library's.
    try:
        return kind.import_key({name: entry[name] for name in members})
    except (ValueError, KeyError, TypeError, JoseError, UnsupportedAlgorithm):
        raise _Unfit("no key of its type (off the curve, a wrong length, a missing member)") from None
