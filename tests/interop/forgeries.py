"""What a resource server must refuse, as a table: name -> the tokens of that kind, and the status that they earn.

Genuine credentials for something else; what only the broker could sign, but never would (its own keys are opened for
it); and what an attacker can make.  Each token has a name, for the message of a test that fails.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.interop.conftest import World
from tests.support.forged import Good
from tests.support.forgery import forge
from tests.support.signing import b64, signing_key

INVALID, WRONG_CLAIM, SCOPE = "invalid token", "wrong claim", "scope"

Tokens = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Forgery:
    """`kind` says how it is answered: INVALID 401, SCOPE 403, WRONG_CLAIM as the server does."""

    make: Callable[[World, Good], Tokens]
    kind: str = INVALID


def _another_env(world: World, good: Good) -> Tokens:
    yield "dev's", world.credential("dev")
    dev = world.keys("dev")[_current(world, "dev")]
    yield "dev's key under prod's kid and claims", dev.renamed(good.key.kid).sign(good.header, good.claims)
    yield "dev's key, prod's claims", dev.sign({**good.header, "kid": dev.kid}, good.claims)


def _current(world: World, env: str) -> str:
    """The kid of what signs there: current keys stand first in the key set."""
    keys = world.broker.client.get(f"/{env}/jwks.json").json()["keys"]
    return next(key["kid"] for key in keys if key["alg"] == "ES256")


def _another_api(world: World, good: Good) -> Tokens:
    yield "the ledger's, by the same env", world.credential(audience="ledger", scope="entries:read")


def _another_iss(world: World, good: Good) -> Tokens:
    for iss in (world.broker.issuer("dev"), world.broker.url, good.claims["iss"] + "/", good.claims["iss"].upper()):
        yield f"iss {iss}", good.but(iss=iss)
    yield "no iss", good.without("iss")


def _another_aud(_: World, good: Good) -> Tokens:
    for aud in ("https://ledger.acme.example", good.claims["aud"] + "/", "payments", [], ["https://ledger.acme.example"]):
        yield f"aud {aud}", good.but(aud=aud)
    yield "no aud", good.without("aud")


def _expired(_: World, good: Good) -> Tokens:
    yield "an hour ago", good.but(exp=int(good.now) - 3600)
    yield "two seconds ago", good.but(exp=int(good.now) - 2)
    yield "never", good.without("exp")
    yield "a word", good.but(exp="never")


def _another_kind(_: World, good: Good) -> Tokens:
    for typ in ("JWT", "secevent+jwt", "statuslist+jwt", ""):
        yield f"typ {typ!r}", good.under(typ=typ)
    yield "no typ", good.under("typ")


def _another_kid(world: World, good: Good) -> Tokens:
    for kid, key in world.keys("prod").items():
        if kid != good.key.kid:
            yield f"the kid of another {key.alg} key of ours", good.under(kid=kid)
    yield "a kid of nobody", good.under(kid="nobody")
    yield "the kid of dev", good.under(kid=_current(world, "dev"))


def _changed(_: World, good: Good) -> Tokens:
    header, payload, signature = good.parts()
    octets = base64.urlsafe_b64decode(signature + "==")
    for place in (0, 31, 32, 63):
        for bit in (0, 7):
            flipped = bytearray(octets)
            flipped[place] ^= 1 << bit
            yield f"bit {bit} of octet {place} of the signature", f"{header}.{payload}.{b64(bytes(flipped))}"
    other = good.but(scope="deploy:write releases:read").split(".")[1]
    yield "the claims of another credential", f"{header}.{other}.{signature}"
    yield "the header of another", f"{good.under(typ='JWT').split('.')[0]}.{payload}.{signature}"


def _another_issuer(world: World, good: Good) -> Tokens:
    thief = signing_key("ES256", 90)
    yield "its key under our kid", thief.sign(good.header, good.claims)
    yield "its key under its own kid", thief.sign({**good.header, "kid": thief.kid}, good.claims)
    yield "its key in the header", thief.sign({**good.header, "jwk": thief.jwk}, good.claims)
    yield "its RSA key under our kid", world.issuer.key.sign({**good.header, "alg": "RS256"}, good.claims)
    yield "the workload's own token", world.token()


def _family(name: str) -> Callable[[World, Good], Tokens]:
    def make(_: World, good: Good) -> Tokens:
        yield from ((bad.name, bad.token) for bad in forge(name, good))

    return make


def _no_scope(world: World, good: Good) -> Tokens:
    yield "another scope", world.credential(scope="releases:read")
    for scope in ("deploy:writer", "redeploy:write", "deploy", "deploy:write2 releases:read", ""):
        yield f"scope {scope!r}", good.but(scope=scope)
    yield "none", good.without("scope")


FORGERIES: Mapping[str, Forgery] = {
    "another env's credential": Forgery(_another_env, WRONG_CLAIM),
    "another Api's credential": Forgery(_another_api, WRONG_CLAIM),
    "another issuer, signed by us": Forgery(_another_iss, WRONG_CLAIM),
    "another audience, signed by us": Forgery(_another_aud, WRONG_CLAIM),
    "expired, signed by us": Forgery(_expired),
    "no access token, signed by us": Forgery(_another_kind),
    "a key of ours under another kid": Forgery(_another_kid),
    "changed by a bit": Forgery(_changed),
    "another issuer's key": Forgery(_another_issuer),
    "alg none": Forgery(_family("J01")),
    "HMAC keyed with the public key": Forgery(_family("J02")),
    "signatures that are none": Forgery(_family("J20")),
    "no scope for this": Forgery(_no_scope, SCOPE),
}
