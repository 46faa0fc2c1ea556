"""Forgeries in header, keys and signature: J01-J04, J06, J08-J11, J20, J22, J25, J36."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.support.forged import BAD_ALGORITHM, BAD_SIGNATURE, UNKNOWN_KEY, Bad, Good
from tests.support.signing import b64, compact_json, raw_signature, signing_key

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def j01(good: Good) -> Iterator[Bad]:
    _, payload, signature = good.parts()
    for name in ("none", "None", "NONE", "nOnE"):
        header = b64(compact_json({**good.header, "alg": name}))
        yield Bad(f"alg {name}, no signature", f"{header}.{payload}.")
        yield Bad(f"alg {name}, signature kept", f"{header}.{payload}.{signature}", BAD_ALGORITHM)
    yield Bad("signature dropped", good.token.rpartition(".")[0] + ".")


def j02(good: Good) -> Iterator[Bad]:
    public = good.key.key
    pem = public.as_pem(private=False)
    secrets = {
        "PEM": pem,
        "PEM without its last newline": pem.rstrip(b"\n"),
        "DER": public.as_der(private=False),
        "JWK": compact_json(good.key.jwk),
        "nothing": b"",
    }
    for name, secret in secrets.items():
        for alg in ("HS256", "HS384", "HS512"):
            yield Bad(f"{alg} under the public key as {name}", _hmac(good, alg, secret), BAD_ALGORITHM)


def _hmac(good: Good, alg: str, secret: bytes, **header: Any) -> str:
    made = b64(compact_json({**good.header, "alg": alg, **header}))
    signing_input = f"{made}.{b64(compact_json(good.claims))}"
    digest = hmac.new(secret, signing_input.encode(), getattr(hashlib, "sha" + alg[2:])).digest()
    return f"{signing_input}.{b64(digest)}"


def j03(good: Good) -> Iterator[Bad]:
    thief = signing_key(good.key.alg, 90).renamed(good.key.kid)
    yield Bad("the attacker's own jwk in the header", thief.sign({**good.header, "jwk": thief.jwk}, good.claims))
    yield Bad("a good signature, but a jwk in the header", good.under(jwk=good.key.jwk))
    yield Bad("an x5c in the header", good.under(x5c=["MIIB"]))
    yield Bad("the attacker's signature under a trusted kid", thief.sign(good.header, good.claims), BAD_SIGNATURE)


def j04(good: Good, url: str) -> Iterator[Bad]:
    """Headers that point to `url`, which must never hear of it."""
    thief = signing_key(good.key.alg, 90)
    for name in ("jku", "x5u"):
        for place in (url, "http://169.254.169.254/latest/meta-data", "file:///etc/passwd"):
            yield Bad(f"{name} {place}", thief.sign({**good.header, name: place, "kid": thief.kid}, good.claims))
            yield Bad(f"{name} {place}, good signature", good.under(**{name: place}))


def j06(good: Good) -> Iterator[Bad]:
    thief = signing_key(good.key.alg, 90)
    words = ("../../../../dev/null", "/dev/null", "x' UNION SELECT '1';--", "|sleep 10", "*", "a\r\nb: c", "", "\x00", "é" * 9)
    for kid in words:
        yield Bad(f"kid {kid!r}", thief.sign({**good.header, "kid": kid}, good.claims), UNKNOWN_KEY)
        yield Bad(f"kid {kid!r}, HMAC of nothing", _hmac(good, "HS256", b"", kid=kid), BAD_ALGORITHM)
    for kid in (1, ["a"], {"a": 1}, None, True):
        yield Bad(f"kid {kid!r}", good.under(kid=kid))
    yield Bad("kid of 64 KiB", good.under(kid="k" * 65_536))
    yield Bad("kid of 300 characters", good.under(kid="k" * 300))
    yield Bad("no kid, and several keys fit", thief.sign({"alg": thief.alg}, good.claims), UNKNOWN_KEY)


def j08(good: Good) -> Iterator[Bad]:
    for crit in (["x"], ["exp"], ["b64"], [], "b64", ["x", "x"], None, {"x": 1}):
        yield Bad(f"crit {crit!r}", good.under(crit=crit, x=1))


def j09(good: Good) -> Iterator[Bad]:
    header, _, signature = good.parts()
    for value in (False, True):
        yield Bad(f"b64 {value}", good.under(b64=value))
        yield Bad(f"b64 {value} and crit", good.under(b64=value, crit=["b64"]))
    yield Bad("a detached payload", f"{header}..{signature}")
    unencoded = b64(compact_json({**good.header, "b64": False, "crit": ["b64"]}))
    signing_input = f"{unencoded}.{json.dumps(dict(good.claims))}".encode()
    yield Bad("an unencoded payload", f"{signing_input.decode()}.{b64(raw_signature(good.key.alg, good.key.key, signing_input))}")


def j10(good: Good) -> Iterator[Bad]:
    _, payload, signature = good.parts()
    for alg, more in (
        ("dir", {"enc": "A256GCM"}),
        ("RSA1_5", {"enc": "A128CBC-HS256"}),
        ("PBES2-HS256+A128KW", {"enc": "A128GCM", "p2c": 2**31 - 1, "p2s": "AAAA"}),
    ):
        jwe = b64(compact_json({"alg": alg, **more, "zip": "DEF"}))
        yield Bad(f"a JWE of five parts, {alg}", f"{jwe}.AAAA.AAAA.{payload}.AAAA")
        three = b64(compact_json({**good.header, "alg": alg, **more}))
        yield Bad(f"{alg} in three parts", f"{three}.{payload}.{signature}", BAD_ALGORITHM)
    yield Bad("cty JWT", good.under(cty="JWT"))
    yield Bad("zip", good.under(zip="DEF"))
    yield Bad("a token inside a token", good.with_payload(good.token.encode()))


def j11(good: Good) -> Iterator[Bad]:
    header, payload, signature = good.parts()
    one = {"protected": header, "signature": signature}
    yield Bad("flattened JSON", json.dumps({"payload": payload, **one}))
    yield Bad("general JSON, two signatures", json.dumps({"payload": payload, "signatures": [one, one]}))


def j20(good: Good) -> Iterator[Bad]:
    header, payload, signature = good.parts()
    made = f"{header}.{payload}."
    if good.key.alg != "ES256":
        yield Bad("truncated", made + b64(_octets(signature)[:-3]), BAD_SIGNATURE)
        yield Bad("one octet more", made + b64(_octets(signature) + b"\x00"), BAD_SIGNATURE)
        yield Bad("zeros", made + b64(bytes(len(_octets(signature)))), BAD_SIGNATURE)
        return
    r, s = _octets(signature)[:32], _octets(signature)[32:]
    zero, one, n, less = (value.to_bytes(32, "big") for value in (0, 1, P256_ORDER, P256_ORDER - 1))
    pairs = {"0 0": (zero, zero), "0 1": (zero, one), "1 0": (one, zero), "1 1": (one, one), "n s": (n, s), "r n": (r, n)}
    pairs |= {"n-1 n-1": (less, less), "r 0": (r, zero), "0 s": (zero, s), "n n": (n, n), "s r": (s, r)}
    for name, (left, right) in pairs.items():
        yield Bad(f"r s = {name}", made + b64(left + right), BAD_SIGNATURE)
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    more = {"one zero more": r + s + b"\x00", "zero in front": b"\x00" + r + s}
    for name, octets in {"DER": der, "truncated": r + s[:-1], **more}.items():
        yield Bad(name, made + b64(octets), BAD_SIGNATURE)
    yield Bad("r alone", made + b64(r), BAD_SIGNATURE)


def _octets(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def j22(good: Good) -> Iterator[Bad]:
    p384, ed = signing_key("ES384", 91), signing_key("EdDSA", 91)
    crossed = {**p384.jwk, "alg": "ES256", "kid": "crossed"}
    token = p384.sign({**good.header, "alg": "ES256", "kid": "crossed"}, good.claims)
    yield Bad("ES256 on a P-384 key", token, UNKNOWN_KEY, (crossed,))
    off = {**signing_key("ES256", 91).jwk, "kid": "off"}
    off["x"] = off["y"]
    token = signing_key("ES256", 91).sign({"alg": "ES256", "kid": "off"}, good.claims)
    yield Bad("a point off the curve", token, UNKNOWN_KEY, (off,))
    for alg in ("ES256K", "ES521", "Ed448", "EDDSA", "es256", "ESP256"):
        yield Bad(f"alg {alg}", good.key.sign({**good.header, "alg": alg}, good.claims), BAD_ALGORITHM)
    token = ed.sign({"alg": "EdDSA", "kid": good.key.kid}, good.claims)
    yield Bad("EdDSA naming an EC or RSA key", token, (*UNKNOWN_KEY, *BAD_ALGORITHM))
    secp = {"kty": "EC", "crv": "secp256k1", "x": "A" * 43, "y": "A" * 43, "kid": "k1"}
    yield Bad("a key on secp256k1", good.under(kid="k1"), UNKNOWN_KEY, (secp,))


def j25(good: Good) -> Iterator[Bad]:
    other = signing_key(good.key.alg, 92)
    jwk = {n: v for n, v in other.jwk.items() if n != "use"}
    for name, members in {
        "use enc": {"use": "enc"},
        "use null": {"use": None},
        "use of another kind": {"use": "x509-svid"},
        "key_ops without verify": {"key_ops": ["encrypt"]},
        "key_ops empty": {"key_ops": []},
        "key_ops a string": {"key_ops": "verify"},
    }.items():
        token = other.sign({**good.header, "kid": other.kid}, good.claims)
        yield Bad(name, token, UNKNOWN_KEY, ({**jwk, **members},))


def j36(good: Good) -> Iterator[Bad]:
    for typ in (1, ["JWT"], None, {"a": 1}, True):
        yield Bad(f"typ {typ!r}", good.under(typ=typ))
    kinds = ("at+jwt", "AT+JWT", "application/at+jwt", "secevent+jwt", "statuslist+jwt", "oauth-id-jag+jwt", "dpop+jwt")
    for typ in (*kinds, "JWE", ""):
        yield Bad(f"typ {typ!r}", good.under(typ=typ))
    for alg in (None, 1, ["RS256"], {"a": "RS256"}, True):
        yield Bad(f"alg {alg!r}", good.key.sign({**good.header, "alg": alg}, good.claims))
    yield Bad("no alg", good.under("alg"))
