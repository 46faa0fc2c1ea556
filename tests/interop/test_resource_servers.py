"""Programs that others wrote verify our credentials, as docs/verifying.md has them, and refuse forged ones."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, nullcontext
from typing import Any

import httpx2
import jwt
import pytest

from tests.docs.pages import blocks
from tests.interop import servers
from tests.interop.conftest import World
from tests.interop.forgeries import FORGERIES, INVALID, SCOPE
from tests.interop.servers import NEEDS, PAGE, PROGRAMS, UNCHANGED, Change, Server, Site
from tests.support.forged import Good
from tests.support.place import Front, Reply
from tests.support.signing import signing_key

REFUSED_WITHIN_S = 2.5  # after `exp`: a clock of whole seconds, one that is admitted still, and the way there
FOLLOWED_WITHIN_S = 20.0  # nodes look at their key rings every 5 s

# What the page's text is for: (program, what is taken away, the kind of forgery that then gets in).
NEEDED: list[tuple[str, Change, str]] = [
    ("PyJWT", ('issuer="https://broker.acme.example/prod", ', ""), "another issuer, signed by us"),
    ("PyJWT", ('"exp", ', ""), "expired, signed by us"),
    ("PyJWT", ('!= "at+jwt"', "is ..."), "no access token, signed by us"),
    ("PyJWT", ('scope not in whole["payload"].get("scope", "").split(" ")', "False"), "no scope for this"),
    ("HAProxy", ("unless good_signature good_typ", "unless good_typ"), "changed by a bit"),
    ("HAProxy", ("good_typ good_iss", "good_iss"), "no access token, signed by us"),
    ("HAProxy", ("good_iss good_aud", "good_aud"), "another issuer, signed by us"),
    ("HAProxy", ("good_aud good_exp", "good_exp"), "another audience, signed by us"),
    ("HAProxy", ("good_aud good_exp", "good_aud"), "expired, signed by us"),
    ("HAProxy", ("unless may_deploy", "if FALSE"), "no scope for this"),
    ("mod_oauth2", ("Require oauth2_claim iss:https://broker.acme.example/prod", ""), "another issuer, signed by us"),
    ("mod_oauth2", ("Require oauth2_claim aud:https://payments.acme.example", ""), "another audience, signed by us"),
    ("mod_oauth2", ("verify.exp=required&", ""), "expired, signed by us"),
    ("mod_oauth2", (".typ.:.at\\+jwt.", "."), "no access token, signed by us"),
    ("mod_oauth2", ("(^| )deploy:write( |$)", "."), "no scope for this"),
    ("aws-jwt-verify", ("scope: 'deploy:write',", ""), "no scope for this"),
    ("aws-jwt-verify", ("header.typ !== 'at+jwt' || ", ""), "no access token, signed by us"),
    ("aws-jwt-verify", (" || !payload.exp", ""), "expired, signed by us"),
]


def needing(*names: str) -> list[object]:
    """These programs as parameters, each with what must be installed for it."""
    return [pytest.param(name, marks=pytest.mark.needs(*NEEDS[name]), id=name) for name in names]


def tail(server: Server) -> str:
    return f"{server.name} refuses or admits what it should not; its log ends:\n{server.log()[-2000:]}"


def poll(ready: Callable[[], bool], until: float, what: str) -> None:
    """Asks until `ready`; fails at `until`, in epoch seconds."""
    while not ready():
        assert time.time() < until, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def good(world: World) -> Good:
    return world.good()


def test_a_good_credential_is_admitted(world: World, server: Server) -> None:
    for scope in ("deploy:write", "releases:read deploy:write"):
        assert server.status(world.credential(scope=scope)) == 200, tail(server)
    assert server.status(None) == 401, tail(server)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_one_is_refused(world: World, server: Server, good: Good, name: str) -> None:
    forgery = FORGERIES[name]
    answered = {label: server.status(token) for label, token in forgery.make(world, good)}
    allowed = {INVALID: {401}, SCOPE: {403}}.get(forgery.kind, {401, server.wrong_claim})
    wrong = {label: status for label, status in answered.items() if status not in allowed}
    assert wrong == dict.fromkeys(server.lenient & answered.keys(), 200), tail(server)
    assert server.status(good.token) == 200, tail(server)


def test_a_genuine_one_is_refused_as_soon_as_it_has_expired(world: World, server: Server) -> None:
    credential = world.credential(ttl="2")
    assert server.status(credential) == 200, tail(server)
    expires = jwt.decode(credential, options={"verify_signature": False})["exp"]
    poll(lambda: server.status(credential) == 401, expires + REFUSED_WITHIN_S, tail(server))
    assert time.time() >= expires


@pytest.mark.parametrize(
    ("program", "change", "name"),
    [pytest.param(*row, marks=pytest.mark.needs(*NEEDS[row[0]]), id=f"{row[0]}: {row[2]}") for row in NEEDED],
)
def test_what_the_page_adds_by_hand_is_needed(world: World, good: Good, program: str, change: Change, name: str) -> None:
    """Without that piece of its text, one of these forgeries gets in: so the table above tries it."""
    with PROGRAMS[program](world.site("needed"), change) as server:
        assert 200 in [server.status(token) for _, token in FORGERIES[name].make(world, good)], tail(server)


@pytest.mark.parametrize("program", needing("HAProxy", "mod_oauth2"))
def test_the_service_behind_learns_who_it_is_and_nothing_from_the_caller(world: World, program: str) -> None:
    with PROGRAMS[program](world.site("behind")) as server:
        headers = {"Authorization": f"Bearer {world.credential()}", "X-Service-Account": "root"}
        assert httpx2.get(server.url, headers=headers, trust_env=False).status_code == 200
    seen = world.upstream.seen[-1]
    assert seen["x-service-account"] == "svc-payments-deploy"
    assert "authorization" not in seen


@pytest.mark.parametrize("program", needing("HAProxy", "mod_oauth2", "aws-jwt-verify"))
def test_a_refusal_says_what_was_wanted(world: World, program: str) -> None:
    """RFC 6750 §3: `WWW-Authenticate`, with the error that tells a bad credential from one that may not do this."""
    with PROGRAMS[program](world.site("says")) as server:
        none = httpx2.get(server.url, trust_env=False)
        headers = {"Authorization": f"Bearer {world.credential(scope='releases:read')}"}
        less = httpx2.get(server.url, headers=headers, trust_env=False)
    assert none.headers["www-authenticate"].startswith("Bearer ")
    assert 'error="insufficient_scope"' in less.headers["www-authenticate"]


# What the page says beyond its configurations


JWKS = "https://broker.acme.example/prod/jwks.json"
AT_ONCE: Change = ("> 300", "> 0")  # the broker is asked for its keys with each request


def verifier(site: Site, keys: str, change: Change = UNCHANGED) -> Callable[[str, str], dict[str, object]]:
    """The page's `verify`, which has the keys from another address than the credential's issuer."""
    names: dict[str, Any] = {}
    exec(compile(site.shown("verify.py", change, {JWKS: f"{keys}/prod/jwks.json"}), "verify.py", "exec"), names)
    return names["verify"]


def test_pyjwt_lives_on_the_last_keys_while_the_broker_is_away(world: World) -> None:
    front, credential = Front(world.broker.url), world.credential()
    verify = verifier(world.site("outage"), front.url, AT_ONCE)
    short = verifier(world.site("outage"), front.url, ("lifespan=86_400", "lifespan=1e-9"))
    for each in (verify, short):
        assert each(credential, "deploy:write")["sub"] == "svc-payments-deploy"
    asked = len(front.requests)
    failures = [Reply(502), Reply(drop=True), *(Reply(200, {}, body) for body in (b"<html>", b"[]", b'{"keys": []}'))]
    front.script += failures
    for _ in failures:
        assert verify(credential, "deploy:write")
    assert (len(front.requests), front.script) == (asked + len(failures), [])
    front.server.close()
    assert verify(credential, "deploy:write")
    with pytest.raises(ConnectionError):
        short(credential, "deploy:write")


def test_pyjwt_says_that_the_broker_is_away_and_not_that_the_caller_is_wrong(world: World, good: Good) -> None:
    credential, unseen = world.credential(), good.under(kid="unseen")
    front = Front(world.broker.url)
    for reply in (Reply(503), Reply(200, {}, b"<html>"), Reply(drop=True)):
        front.script += [reply, reply]  # for the first look, and for this credential
        with pytest.raises(ConnectionError):
            verifier(world.site("start"), front.url)(credential, "deploy:write")
    verify = verifier(world.site("start"), front.url)
    assert verify(credential, "deploy:write")
    with pytest.raises(jwt.PyJWTError):  # the broker has just said which keys there are
        verify(unseen, "deploy:write")
    front.server.close()


def test_pyjwt_forgets_a_key_that_is_withdrawn(world: World) -> None:
    front, credential = Front(world.broker.url), world.credential()
    others = json.dumps({"keys": [signing_key("ES256").jwk]}).encode()
    for change, ends in ((AT_ONCE, True), (UNCHANGED, False)):
        verify = verifier(world.site("withdrawn"), front.url, change)
        assert verify(credential, "deploy:write")
        front.script += [Reply(200, {}, others)]
        with pytest.raises(jwt.PyJWTError) if ends else nullcontext():
            verify(credential, "deploy:write")
        front.script.clear()
    front.server.close()


@pytest.mark.parametrize(
    ("claims", "refusing"),
    [
        pytest.param({"aud": ["https://payments.acme.example"]}, {"HAProxy"}, id="a list of audiences"),
        pytest.param({"nbf": int(time.time()) + 3600}, {"PyJWT", "aws-jwt-verify"}, id="nbf in an hour"),
    ],
)
def test_only_these_refuse(server: Server, good: Good, claims: dict[str, object], refusing: set[str]) -> None:
    assert server.status(good.but(**claims)) == (401 if server.name in refusing else 200), tail(server)


@pytest.mark.needs("apache2")
def test_mod_oauth2_admits_an_expired_one_from_its_cache_without_expiry_0(world: World) -> None:
    with servers.apache(world.site("cache"), ("&expiry=0", "")) as server:
        credential = world.credential(ttl="2")
        expires = jwt.decode(credential, options={"verify_signature": False})["exp"]
        poll(lambda: server.status(credential) != 200 or time.time() > expires + 1.5, expires + 3, tail(server))
        assert server.status(credential) == 200, tail(server)


@pytest.mark.needs("apache2")
def test_mod_oauth2_admits_what_another_location_has_verified_unless_iss_is_asked(world: World) -> None:
    """The cache of results is the server's: dev's keys, named for /dev alone, then let dev's credential in at prod's."""
    prod, dev = world.site("locations"), world.site("locations", "dev")
    asked: Change = ("Require oauth2_claim iss:https://broker.acme.example/prod", "")
    for change, admitted in ((asked, 200), (UNCHANGED, 403)):
        below = servers.location(dev).replace('"/"', '"/dev"', 1).replace("&expiry=0", "")
        with servers.apache(prod, change, more=below) as server:
            credential = world.credential("dev")
            before = server.status(credential)
            headers = {"Authorization": f"Bearer {credential}"}
            assert httpx2.get(f"{server.url}/dev", headers=headers, trust_env=False).status_code == 200, tail(server)
            assert (before, server.status(credential)) == (401, admitted), tail(server)


@pytest.fixture
def everywhere(world: World) -> Generator[dict[str, Server]]:
    """All four programs, protecting payments in dev, whose keys rotate."""

    def next_is_published() -> bool:
        keys = world.broker.client.get("/dev/jwks.json").json()["keys"]
        return len([key for key in keys if key["alg"] == "ES256"]) > 1

    poll(next_is_published, time.time() + FOLLOWED_WITHIN_S, "no next key is published")
    with ExitStack() as stack:
        yield {name: stack.enter_context(program(world.site(name, "dev"))) for name, program in PROGRAMS.items()}


@pytest.mark.needs("haproxy", "curl", "jq", "apache2")
def test_rotation_is_survived(world: World, everywhere: dict[str, Server]) -> None:
    """The next key is known before it signs; one that nobody has seen yet is fetched, by HAProxy's script for HAProxy."""
    haproxy = everywhere["HAProxy"]

    def statuses(credential: str) -> dict[str, int]:
        return {name: server.status(credential) for name, server in everywhere.items()}

    def rotated(old: str) -> str:
        world.broker.run("keys", "rotate", "--env", "dev", "--reason", "a test")
        deadline = time.time() + FOLLOWED_WITHIN_S
        while kid(latest := world.credential("dev")) == kid(old):
            assert time.time() < deadline, "the next key does not sign"
            time.sleep(0.05)
        return latest

    first = world.credential("dev")
    assert set(statuses(first).values()) == {200}
    second = rotated(first)
    assert set(statuses(second).values()) == {200}
    third = rotated(second)
    # PyJWT fetches at most every 30 s; outside of tests a key is published for six minutes before it signs.
    assert {**statuses(third), "PyJWT": 200} == {"PyJWT": 200, "HAProxy": 401, "mod_oauth2": 200, "aws-jwt-verify": 200}
    done = servers.fetch_keys(world.site("HAProxy", "dev"), reload=f"kill -USR2 {haproxy.pid}")
    assert done.returncode == 0, done.stderr
    poll(lambda: haproxy.status(third) == 200, time.time() + FOLLOWED_WITHIN_S, tail(haproxy))
    assert set(statuses(first).values()) == {200}


def kid(credential: str) -> str:
    return jwt.get_unverified_header(credential)["kid"]


@pytest.mark.needs("curl", "jq")
def test_the_key_script_reloads_for_new_keys_only_and_tries_again_what_failed(world: World) -> None:
    site = world.site("script")

    def fetch(reload: str) -> subprocess.CompletedProcess[str]:
        return servers.fetch_keys(site, reload=reload)

    assert fetch("false").returncode != 0
    assert fetch("echo reloaded").stdout == "reloaded\n"
    assert (fetch("echo reloaded").stdout, fetch("false").returncode) == ("", 0)
    assert sorted(path.name for path in (site.folder / "broker").glob("*.pem")) == ["1.pem", "2.pem", "3.pem", "4.pem"]


def test_every_block_of_the_page_is_run() -> None:
    run = {"verify.py", "haproxy.cfg", "haproxy-broker-keys", "payments.conf", "server.mjs"}
    assert {block.value("file") for block in blocks(PAGE)} == run
