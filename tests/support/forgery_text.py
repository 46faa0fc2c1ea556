"""Forgeries in the text itself, its JSON and its claims: J07, J12-J18, J26, J28, J31, J35."""

from __future__ import annotations

from collections.abc import Iterator

from broker import errors
from tests.support.forged import BAD_AUDIENCE, MALFORMED, Bad, Good
from tests.support.signing import b64, compact_json


def j07(good: Good) -> Iterator[Bad]:
    payload, header = compact_json(good.claims), compact_json(good.header)
    twins = {"sub": '"s\\u0075b"', "aud": '"\\u0061ud"', "exp": '"ex\\u0070"', "iss": '"\\u0069ss"'}
    for name in [name for name in ("sub", "aud", "exp", "iss", "repository", "ref") if name in good.claims]:
        value = compact_json(good.claims[name])
        evil = b'"evil"' if isinstance(good.claims[name], str) else value
        for label, first, second in (("evil first", evil, value), ("evil last", value, evil)):
            rest = compact_json({n: v for n, v in good.claims.items() if n != name})
            doubled = b'{"%s":%s,%s,"%s":%s}' % (name.encode(), first, rest[1:-1], name.encode(), second)
            yield Bad(f"{name} twice, {label}", good.with_payload(doubled))
        if name in twins:
            yield Bad(f"{name} and its escaped twin", good.with_payload(b"{%s:%s,%s" % (twins[name].encode(), evil, payload[1:])))
            escaped_last = payload[:-1] + b",%s:%s}" % (twins[name].encode(), evil)
            yield Bad(f"{name} and its escaped twin, last", good.with_payload(escaped_last))
    nested = b'{"x":{"a":1,"b":{"c":2,"c":3}},' + payload[1:]
    yield Bad("twice, deep inside", good.with_payload(nested))
    colons = b'{"a:b:c":"d:e","a:b:c":"::::",' + payload[1:]
    yield Bad("twice, among colons", good.with_payload(colons))
    for text in (b'{"alg":"none",' + header[1:], header[:-1] + b',"alg":"none"}', b'{"kid":"other",' + header[1:]):
        yield Bad("a header member twice", good.key.sign_raw(text, payload))
    yield Bad("a header member and its escaped twin", good.key.sign_raw(b'{"\\u0061lg":"none",' + header[1:], payload))


def j12(good: Good) -> Iterator[Bad]:
    token = good.token
    header, payload, signature = good.parts()
    shapes = {
        "nothing": "",
        "no dot": header,
        "one dot": f"{header}.{payload}",
        "three dots": f"{token}.",
        "four dots": f"{token}..",
        "a million dots": "a." * 1_000_000,
        "two dots": "..",
        "empty header": f".{payload}.{signature}",
        "empty payload": f"{header}..{signature}",
        "a space in front": f" {token}",
        "a newline behind": f"{token}\n",
        "a newline inside": f"{header}.\n{payload}.{signature}",
        "padding": f"{token}=",
        "padding in the middle": f"{header}==.{payload}.{signature}",
        "standard alphabet": f"{header}.{payload}+/.{signature}",
        "a byte order mark": f"\ufeff{token}",
        "an umlaut": f"{header}.{payload}ä.{signature}",
        "a digit of another script": f"{header}.{payload}\u0661.{signature}",
        "a NUL": f"{token}\x00",
        "one character over": f"{header}.{payload}.{'A' * 5}",
        "braces": "{" + token + "}",
        "quotes": f'"{token}"',
        "Bearer": f"Bearer {token}",
    }
    for name, text in shapes.items():
        yield Bad(name, text)
    for place, part in enumerate(("header", "payload", "signature")):
        if (twisted := _twisted([header, payload, signature], place)) is not None:
            yield Bad(f"set bits behind the last octet of the {part}", twisted)


def _twisted(parts: list[str], place: int) -> str | None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    part = parts[place]
    if len(part) % 4 in (0, 1):
        return None
    parts[place] = part[:-1] + alphabet[alphabet.index(part[-1]) + 1]
    return ".".join(parts)


def j13(good: Good) -> Iterator[Bad]:
    header, payload, signature = good.parts()
    for size in (16_385, 1_000_000, 20_000_000):
        yield Bad(f"{size} bytes", f"{header}.{payload}{'A' * (size - len(good.token))}.{signature}")
    yield Bad("a header of 1 MB", f"{'A' * 1_000_000}.{payload}.{signature}")
    yield Bad("200,000 claims", f"{header}.{b64(compact_json({f'c{n}': n for n in range(200_000)}))}.{signature}")


def j14(good: Good) -> Iterator[Bad]:
    payload, header = compact_json(good.claims), compact_json(good.header)
    for depth in (8, 65, 1_000, 5_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            deep = b'{"x":%s1%s,' % (opening.encode() * depth, closing.encode() * depth)
            if len(deep) * 4 < 3 * 12_000:
                yield Bad(f"{depth} levels of {opening} in the payload", good.with_payload(deep + payload[1:]))
                yield Bad(f"{depth} levels of {opening} in the header", good.key.sign_raw(deep + header[1:], payload))
    yield Bad("brackets that never close", good.with_payload(b'{"x":' + b"[" * 10_000))


def j15(good: Good) -> Iterator[Bad]:
    beyond = ("NaN", "Infinity", "-Infinity", "1e400", "9" * 5_000, "1" + "0" * 30, "1e30")
    texts = (*beyond, "-1", "0", "true", "false", "null", "[1]", "{}", "01")
    for name in ("exp", "nbf", "iat"):
        for text in (*texts, f'"{int(good.now)}"', f"[{int(good.now)}]", "9007199254740993", "1e16"):
            yield Bad(f"{name} {text[:12]}", good.with_number(name, text))


def j16(good: Good) -> Iterator[Bad]:
    now, leeway = int(good.now), 30
    expired, early = (errors.TokenExpired,), (errors.TokenNotYetValid,)
    for late in (leeway, leeway + 1, 3_600, 10**8):
        yield Bad(f"exp {late} s ago", good.but(exp=now - late, iat=now - late - 60, nbf=now - late - 60), expired)
    for ahead in (leeway + 1, 3_600):
        yield Bad(f"nbf {ahead} s ahead", good.but(nbf=now + ahead), early)
        yield Bad(f"iat {ahead} s ahead", good.but(iat=now + ahead, exp=now + ahead + 60), early)
    yield Bad("a life of ten years", good.but(exp=now + 10 * 31_536_000), (errors.TokenLivesTooLong,))
    yield Bad("exp before iat", good.but(iat=now, exp=now - 5))
    yield Bad("exp at iat", good.but(iat=now, exp=now))


def j17(good: Good) -> Iterator[Bad]:
    for name in [name for name in ("exp", "iat", "iss", "aud", "sub") if name in good.claims]:
        yield Bad(f"no {name}", good.without(name))
    yield Bad("no claim at all", good.with_payload(b"{}"))


def j18(good: Good) -> Iterator[Bad]:
    for name in ("sub", "iss", "jti", "repository_id", "repository_owner_id"):
        if name not in good.claims:
            continue
        for value in (1, 1.5, True, False, [good.claims[name]], {"a": good.claims[name]}):
            yield Bad(f"{name} {value!r}", good.but(**{name: value}))
    for name in ("sub", "iss", "jti"):
        yield Bad(f"{name} null", good.but(**{name: None}))
        yield Bad(f"{name} empty", good.but(**{name: ""}), (*MALFORMED, errors.IssuerUnknown))
    for payload in (b"[]", b'"text"', b"1", b"null", b"true"):
        yield Bad(f"the payload {payload.decode()}", good.with_payload(payload))


def j26(good: Good) -> Iterator[Bad]:
    aud = good.claims["aud"] if isinstance(good.claims["aud"], str) else good.claims["aud"][0]
    wrong = {
        "another's": "https://elsewhere.example",
        "substring": aud[:-1],
        "prefix of": aud + "x",
        "case": aud.swapcase(),
        "trailing slash": aud + "/",
        "space": aud + " ",
        "sts.amazonaws.com": "sts.amazonaws.com",
        "sigstore": "sigstore",
        "pypi": "pypi",
        "joined": f"{aud} https://elsewhere.example",
        "comma": f"{aud},https://elsewhere.example",
    }
    for name, value in wrong.items():
        yield Bad(f"aud {name}", good.but(aud=value), BAD_AUDIENCE)
        yield Bad(f"aud {name}, in a list", good.but(aud=[value]), BAD_AUDIENCE)
        yield Bad(f"aud {name}, beside ours", good.but(aud=[aud, value]), BAD_AUDIENCE)
        yield Bad(f"ours beside aud {name}", good.but(aud=[value, aud]), BAD_AUDIENCE)
    for value in ([], [[aud]], {"aud": aud}, {aud: True}, None, 1, True, [aud, 1], [None], "", [""]):
        yield Bad(f"aud {value!r}", good.but(aud=value))


def j28(good: Good) -> Iterator[Bad]:
    url = str(good.claims["iss"])
    scheme, _, rest = url.partition("://")
    host, colon, port = rest.partition(":")
    wrong = {
        "trailing slash": url + "/",
        "scheme in capitals": f"{scheme.upper()}://{rest}",
        "host in capitals": f"{scheme}://LOCALHOST{colon}{port}",
        "port of https": url + ":443",
        "userinfo": f"{scheme}://{rest}@evil.example",
        "our name in front": f"{url}.evil.example",
        "path suffix": f"{url}/attacker-enterprise",
        "trailing dot": f"{scheme}://{host}.{colon}{port}",
        "punycode": f"{scheme}://xn--{rest}",
        "prefix": url[:-1],
        "query": url + "?",
        "fragment": url + "#",
        "space": url + " ",
        "NUL": url + "\x00",
        "dots": f"{url}/a/..",
        "no scheme": rest,
    }
    for name, value in wrong.items():
        yield Bad(f"iss with {name}", good.but(iss=value), (errors.IssuerUnknown,))


def j31(good: Good, base_url: str) -> Iterator[Bad]:
    """Tokens of the broker's own kind, from its own issuer URLs."""
    for iss in (f"{base_url}/prod", f"{base_url}/dev", base_url, f"{base_url}/prod/token"):
        yield Bad(f"iss {iss}", good.but(iss=iss), (errors.OwnCredential,))
        token = good.key.sign({**good.header, "typ": "at+jwt"}, {**good.claims, "iss": iss})
        yield Bad(f"at+jwt of {iss}", token, (errors.OwnCredential,))


def j35(good: Good) -> Iterator[Bad]:
    yield Bad("bound to a DPoP key", good.but(cnf={"jkt": "A" * 43}))
    yield Bad("bound to a certificate", good.but(cnf={"x5t#S256": "A" * 43}))
    yield Bad("a cnf of nothing", good.but(cnf=None))
