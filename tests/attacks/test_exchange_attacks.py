"""Attacks on the exchange over HTTP (X), and every forged token family (J) as a client would send it.

After each: no credential and no echo in the answer, `no-store`, one record with the exact reason and the token's hash, and
the good exchange still passes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.config import Limits
from broker.protocol import oauth
from tests.support.forgery import FAMILIES, Bad, Good, forge, j04, j31
from tests.support.issuer import OidcIssuer
from tests.support.live import PAYMENTS, Live
from tests.support.signing import signing_key
from tests.support.tripwire import Tripwire

# Floods are tests/exchange's matter: here every refusal shall have a record of its own.
PATIENT = Limits(refusals_per_s=100_000, refusals_unverified_per_s=100_000)
BRINGS_KEYS = ("J22", "J25")


@pytest.fixture(scope="module")
async def github() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer("github-actions") as issuer:
        issuer.published.append(signing_key("RS256", 2).jwk)  # a token without kid must not find a key by luck
        yield issuer


@pytest.fixture(scope="module")
async def live(github: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with Live(tmp_path_factory.mktemp("attacks"), {"github": github}, limits=PATIENT) as running:
        yield running


def good(live: Live, issuer: OidcIssuer, **claims: Any) -> Good:
    now = float(int(time.time()))
    return Good(issuer.header(), issuer.claims(now=now, aud=live.issuer(), **claims), issuer.key, now)


def assert_refused(answer: httpx2.Response, token: str) -> dict[str, Any]:
    """What holds for every refusal, whatever was wrong; its body."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert not {"access_token", "token", "issued_token_type"} & set(body)
    assert answer.status_code == 413 or body["request_id"] == answer.headers["x-request-id"]
    for part in (token, *token.split(".")):
        assert len(part) < 24 or part not in answer.text, "the answer repeats what was sent"
    return body


async def meets(live: Live, bad: Bad) -> None:
    """A forgery meets one of its reasons exactly, and is recorded once, by its hash."""
    try:
        answer = await live.exchange(bad.token, **PAYMENTS)
    except httpx2.TransportError:
        assert len(bad.token) > live.limits.body_bytes_max + live.limits.linger_bytes_max, "cut off without an answer"
        return
    body = assert_refused(answer, bad.token)
    if len(bad.token) > live.limits.body_bytes_max:
        assert answer.status_code == 413, bad.name
        return
    assert (answer.status_code, body["error"]) == (400, oauth.INVALID_REQUEST), bad.name
    record = await live.record(answer)
    assert bad.token not in json.dumps(record) or len(bad.token) < 12
    if not bad.token or "\0" in bad.token:
        assert body["reason"] == record["reason"] == "malformed_request", bad.name
        return
    assert (record["reason"], body["reason"]) in {(error.reason, error.wire_reason) for error in bad.errors}, bad.name
    assert record["outcome"] == "refused"
    assert record["subject_token_sha256"] == hashlib.sha256(bad.token.encode()).hexdigest()
    assert not {"jti", "credential", "granted"} & set(record)


async def meet_all(live: Live, bads: Iterable[Bad]) -> None:
    for bad in bads:
        await meets(live, bad)
        assert (await live.deploys()).status_code == 200, f"after {bad.name} the good token no longer passes"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in BRINGS_KEYS])
async def test_a_forged_token_is_refused_recorded_and_never_repeated(family: str, live: Live, github: OidcIssuer) -> None:
    made = good(live, github)
    live.clock.stopped_at = made.now  # a token that is one second too early must not ripen while others are tried
    try:
        for bad in forge(family, made):
            await meets(live, bad)
    finally:
        live.clock.stopped_at = None
    assert (await live.deploys()).status_code == 200


@pytest.mark.parametrize("family", BRINGS_KEYS)
async def test_a_token_under_a_key_that_may_not_sign_is_refused(family: str, tmp_path: Path) -> None:
    limits = Limits(refusals_unverified_per_s=100_000, unknown_kid_burst=1_000)
    async with OidcIssuer("github-actions", algorithm="ES256") as issuer:
        keys = list(issuer.published)
        lines = {"algorithms": "[ES256, ES384, EdDSA]"}
        async with Live(tmp_path, {"github": issuer}, limits=limits, lines=lines) as live:
            for bad in forge(family, good(live, issuer)):
                issuer.published = [*keys, *map(dict, bad.published)]
                await meets(live, bad)
                assert (await live.deploys()).status_code == 200, bad.name


async def test_j04_a_url_in_the_header_is_never_called(live: Live, github: OidcIssuer) -> None:
    async with Tripwire() as wire:
        await meet_all(live, list(j04(good(live, github), wire.url))[:4])
        assert wire.connections == 0


async def test_j27_a_key_belongs_to_its_issuer_alone(tmp_path: Path) -> None:
    """The same kid at two issuers, and each one's key under the other's name."""
    async with OidcIssuer("github-actions") as one, OidcIssuer("gitlab", name="gitlab", number=7) as two:
        two.key = two.key.renamed(one.key.kid)
        two.published = [two.key.jwk]
        async with Live(tmp_path, {"github": one, "gitlab": two}, limits=PATIENT) as live:
            answer = await live.exchange(live.token("github", iss=two.url), **PAYMENTS)
            assert answer.json()["reason"] == "token_untrusted"
            answer = await live.exchange(two.token(now=time.time(), aud=live.issuer(), iss=one.url), **PAYMENTS)
            assert answer.json()["reason"] == "token_untrusted"
            assert (await live.deploys()).status_code == 200


async def test_j31_one_of_our_own_credentials_is_no_identity(live: Live, github: OidcIssuer) -> None:
    issued = (await live.deploys()).json()["access_token"]
    for env in ("prod", "dev"):
        for kind in (oauth.TOKEN_TYPE_ID_TOKEN, oauth.TOKEN_TYPE_JWT):
            answer = await live.exchange(issued, env, subject_token_type=kind, **PAYMENTS)
            assert assert_refused(answer, issued)["reason"] == "token_untrusted"
            assert (await live.record(answer, env))["reason"] == "own_credential"
    answer = await live.exchange(issued, subject_token_type=oauth.TOKEN_TYPE_ACCESS_TOKEN, **PAYMENTS)
    assert answer.json()["reason"] == "malformed_request"
    await meet_all(live, j31(good(live, github), live.url))


async def test_j31_a_trust_list_that_names_this_broker_opens_nothing(tmp_path: Path, github: OidcIssuer) -> None:
    async with Live(tmp_path, {"github": github}) as live:
        issuers = live.policies / "issuers.yaml"
        text = issuers.read_text()
        issuers.write_text(text + f"  itself: {{url: {live.issuer()}, algorithms: [ES256, RS256], identity: [sub]}}\n")
        await live.node.reload()
        assert "itself" in live.node.policy.current().issuers.by_name
        issued = (await live.deploys()).json()["access_token"]
        answer = await live.exchange(issued, "dev", **PAYMENTS)
        assert (await live.record(answer, "dev"))["reason"] == "own_credential"


async def test_j32_the_same_jti_twice_is_refused_though_the_token_is_another(live: Live) -> None:
    first, second = live.token(jti="the-one"), live.token(jti="the-one", run_id="2")
    assert first != second
    assert (await live.exchange(first, **PAYMENTS)).status_code == 200
    for again in (first, second):
        answer = await live.exchange(again, **PAYMENTS)
        assert assert_refused(answer, again)["reason"] == "token_replayed"
        record = await live.record(answer)
        assert (record["reason"], record["outcome"]) == ("token_replayed", "refused")
        assert not {"jti", "credential", "granted"} & set(record), "a refusal names a credential that never was"


async def test_j32_fifty_at_once_get_exactly_one_credential(live: Live) -> None:
    token = live.token()
    answers = await asyncio.gather(*(live.exchange(token, **PAYMENTS) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 49
    assert {answer.json().get("reason") for answer in answers} == {None, "token_replayed"}


async def test_j32_a_check_sees_that_a_token_is_used_up_and_uses_none_up(live: Live) -> None:
    token = live.token()
    for _ in range(3):
        assert (await live.exchange(token, act="check", **PAYMENTS)).status_code == 200
    assert (await live.exchange(token, **PAYMENTS)).status_code == 200
    answer = await live.exchange(token, act="check", **PAYMENTS)
    assert (answer.status_code, answer.json()["reason"]) == (400, "token_replayed")
    assert (await live.record(answer))["kind"] == "check"


async def test_j32_a_token_stays_used_up_to_the_last_second_at_which_it_is_accepted(tmp_path: Path, github: OidcIssuer) -> None:
    """At exp + leeway - 1 s it is still good for a first use, and never for a second."""
    async with Live(tmp_path, {"github": github}, limits=Limits(store_clock_skew_s=3_600)) as live:
        now = int(time.time())
        used, fresh = (live.token(iat=now - 600, nbf=now - 600, exp=now + 5) for _ in range(2))
        assert (await live.exchange(used, **PAYMENTS)).status_code == 200
        live.clock.ahead_s = 5 + live.limits.leeway_s - 1.5
        assert (await live.exchange(used, **PAYMENTS)).json()["reason"] == "token_replayed"
        assert (await live.exchange(fresh, **PAYMENTS)).status_code == 200
        live.clock.ahead_s += 2
        assert (await live.exchange(used, **PAYMENTS)).json()["reason"] == "token_expired"
        held_until = [await live.raw.expiretime(key) async for key in live.raw.scan_iter("broker:{prod}:claim:*")]
        assert min(held_until) >= now + 5 + live.limits.leeway_s


async def test_v13_the_same_jti_from_two_issuers_is_two_tokens(tmp_path: Path, github: OidcIssuer) -> None:
    async with OidcIssuer("kubernetes", name="cluster") as pods, Live(tmp_path, {"github": github, "cluster": pods}) as live:
        assert (await live.deploys(jti="shared")).status_code == 200
        answer = await live.exchange(live.token("cluster", jti="shared", aud=[live.issuer()]), **PAYMENTS)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["subject_token", "subject_token_type"])
@pytest.mark.parametrize("value", [None, ""], ids=["missing", "empty"])
async def test_x02_a_token_and_its_type_must_be_there(name: str, value: str | None, live: Live) -> None:
    token = live.token()
    answer = await live.exchange(token, **{name: value}, **PAYMENTS)
    body = assert_refused(answer, token)
    assert (answer.status_code, body["error"], body["reason"]) == (400, oauth.INVALID_REQUEST, "malformed_request")
    assert name in body["error_description"]
    assert (await live.record(answer))["reason"] == "malformed_request"
    assert (await live.exchange(token, **PAYMENTS)).status_code == 200, "the refusal used the token up"


@pytest.mark.parametrize("name", ["subject_token", "scope", "grant_type", "client_id", "subject_token_type"])
@pytest.mark.parametrize("good_first", [True, False], ids=["good first", "bad first"])
async def test_x03_a_parameter_that_comes_twice_is_refused(name: str, good_first: bool, live: Live) -> None:
    token = live.token()
    base = {"subject_token": token, "grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token_type": oauth.TOKEN_TYPE_JWT}
    base |= PAYMENTS
    both = [base.get(name, "ci"), "bad"]
    answer = await live.exchange(token, **{**base, name: both if good_first else both[::-1]})
    assert assert_refused(answer, token)["reason"] == "malformed_request"
    assert (await live.exchange(token, **PAYMENTS)).status_code == 200


async def test_x03_every_repeated_target_must_be_open(live: Live) -> None:
    answer = await live.exchange(live.token(), audience=["payments", "https://payments.acme.example"], scope="deploy:write")
    assert answer.status_code == 200, answer.text
    answer = await live.exchange(live.token(), audience=["payments", "nowhere"], scope="deploy:write")
    assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_TARGET)


@pytest.mark.parametrize("headers", [
    pytest.param([("content-type", "application/json")], id="JSON"),
    pytest.param([("content-type", "multipart/form-data; boundary=x")], id="multipart"),
    pytest.param([("content-type", "text/plain")], id="text"),
    pytest.param([], id="absent"),
    pytest.param([("content-type", "application/x-www-form-urlencoded")] * 2, id="twice"),
    pytest.param([("content-type", "application/x-www-form-urlencoded; charset=utf-16")], id="utf-16"),
])
async def test_x04_a_body_of_another_kind_is_never_parsed(headers: list[tuple[str, str]], live: Live) -> None:
    request = live.client.build_request("POST", "/prod/token", content=b"grant_type=x")
    request.headers = httpx2.Headers([*[(n, v) for n, v in request.headers.multi_items() if n != "content-type"], *headers])
    before = len(await live.records())
    answer = await live.client.send(request)
    assert answer.status_code == 415
    assert answer.headers["accept"] == "application/x-www-form-urlencoded"
    assert_refused(answer, "grant_type=x")
    assert len(await live.records()) == before, "what is not read as a form is counted, not recorded"


@pytest.mark.parametrize("kind", [
    oauth.TOKEN_TYPE_ACCESS_TOKEN, oauth.TOKEN_TYPE_REFRESH_TOKEN, "urn:ietf:params:oauth:token-type:saml1",
    "urn:ietf:params:oauth:token-type:saml2", "urn:ietf:params:oauth:token-type:unsigned_json", "urn:x:unknown",
])
async def test_x06_a_type_that_lies_opens_nothing(kind: str, live: Live) -> None:
    answer = await live.exchange(live.token(), subject_token_type=kind, **PAYMENTS)
    assert (answer.status_code, answer.json()["reason"]) == (400, "malformed_request")


@pytest.mark.parametrize("kind", [oauth.TOKEN_TYPE_REFRESH_TOKEN, oauth.TOKEN_TYPE_ID_TOKEN, "urn:x:unknown"])
async def test_x07_a_token_type_that_is_not_offered_is_refused(kind: str, live: Live) -> None:
    answer = await live.exchange(live.token(), requested_token_type=kind, **PAYMENTS)
    assert (answer.status_code, answer.json()["reason"]) == (400, "malformed_request")


async def test_x09_nobody_acts_for_somebody_else(live: Live, github: OidcIssuer) -> None:
    """Without delegation rules, an actor is refused whoever it is: another workload, the subject itself, a stranger's."""
    token = live.token()
    stranger = signing_key("RS256", 77).sign(github.header(), github.claims(now=time.time(), aud=live.issuer()))
    for actor in (live.token(actor="somebody"), token, stranger):
        answer = await live.exchange(token, actor_token=actor, actor_token_type=oauth.TOKEN_TYPE_ID_TOKEN, **PAYMENTS)
        assert assert_refused(answer, actor)["reason"] == "malformed_request"
    for half in ({"actor_token": token}, {"actor_token_type": oauth.TOKEN_TYPE_JWT}):
        assert (await live.exchange(token, **half, **PAYMENTS)).status_code == 400
    assert (await live.exchange(token, **PAYMENTS)).status_code == 200


SCOPES = {
    "superset": "deploy:write releases:read admin",
    "star": "*",
    "admin": "admin",
    "case": "DEPLOY:WRITE",
    "glob": "deploy:*",
    "tab": "deploy:write\treleases:read",
    "nbsp": "deploy:write\u00a0releases:read",
    "newline": "deploy:write\nreleases:read",
    "twice": "deploy:write deploy:write",
    "ten thousand": " ".join(f"s{n}" for n in range(10_000)),
    "comma": "deploy:write,releases:read",
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_x11_a_scope_that_is_not_granted_is_refused_whole(scope: str, live: Live) -> None:
    answer = await live.exchange(live.token(), audience="payments", scope=scope)
    assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_SCOPE)


TARGETS: dict[str, dict[str, Any]] = {
    "unlisted": {"audience": "unlisted"},
    "star": {"audience": "*"},
    "case": {"audience": "PAYMENTS"},
    "slash": {"audience": "https://payments.acme.example/"},
    "suffix": {"audience": "https://payments.acme.example.evil.example"},
    "one good one bad": {"audience": ["payments", "unlisted"]},
    "audience and resource": {"audience": "payments", "resource": "https://unlisted.example"},
    "administration": {"audience": "broker"},
    "another env's": {"audience": "https://ledger.dev.acme.example"},
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
async def test_x12_a_target_that_is_not_open_refuses_the_whole_request(target: dict[str, Any], live: Live) -> None:
    answer = await live.exchange(live.token(), **target, scope="deploy:write")
    assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_TARGET)
    assert "access_token" not in answer.text


@pytest.mark.parametrize("uri", [
    "payments", "/relative", "https://payments.acme.example#x", "https://payments.acme.example#", "https://user@payments.acme.example",
    "javascript:alert(1)",
])
async def test_x13_a_resource_is_an_absolute_uri_and_nothing_else(uri: str, live: Live) -> None:
    answer = await live.exchange(live.token(), resource=uri, scope="deploy:write")
    assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_TARGET)


async def test_x13_a_resource_that_is_known_serves_as_target(live: Live) -> None:
    answer = await live.exchange(live.token(), resource="https://payments.acme.example", scope="deploy:write")
    assert answer.status_code == 200


async def test_x14_what_a_token_says_of_actors_and_scopes_widens_nothing(live: Live) -> None:
    nested: dict[str, Any] = {}
    for _ in range(5):
        nested = {"act": {"sub": "x", **nested}}
    answer = await live.deploys(**nested, scope="admin everything", may_act={"sub": "anyone"})
    assert answer.status_code == 200
    assert answer.json()["scope"] == "deploy:write"
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"act": {"sub": "x", **deep}}
    assert (await live.deploys(**deep)).json()["reason"] == "token_malformed"


async def test_x14_no_request_lengthens_a_credential_beyond_the_policy(live: Live) -> None:
    for asked, given in (("999999999", 600), ("60", 60), (None, 600)):
        answer = await live.exchange(live.token(), **PAYMENTS, ttl=asked)
        assert given - 2 <= answer.json()["expires_in"] <= given


@pytest.mark.parametrize(("extra", "authorization"), [
    pytest.param({"client_id": "ci", "client_secret": "wrong"}, None, id="wrong secret"),
    pytest.param({}, "Basic Y2k6d3Jvbmc=", id="Basic"),
    pytest.param({}, "Bearer tb_\u00e9", id="Bearer of raw bytes"),
    pytest.param({"client_assertion": "a.b.c", "client_assertion_type": "urn:x"}, None, id="assertion"),
])
async def test_x16_client_authentication_is_refused_and_never_logged(
    extra: dict[str, str], authorization: str | None, live: Live
) -> None:
    token = live.token()
    headers = {"authorization": authorization.encode("latin-1")} if authorization else {}
    form = {"grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": oauth.TOKEN_TYPE_JWT}
    answer = await live.client.post("/prod/token", data={**form, **PAYMENTS, **extra}, headers=headers)
    assert (answer.status_code, assert_refused(answer, token)["error"]) == (401, oauth.INVALID_CLIENT)
    assert answer.headers["www-authenticate"] == f'Basic realm="{live.issuer()}"'
    record = json.dumps(await live.record(answer))
    assert "wrong" not in record
    assert "Y2k6" not in record


async def test_x16_two_ways_to_authenticate_are_one_too_many(live: Live) -> None:
    form = {"grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": live.token(), "subject_token_type": oauth.TOKEN_TYPE_JWT}
    headers = {"authorization": "Basic Y2k6eA=="}
    answer = await live.client.post("/prod/token", data={**form, **PAYMENTS, "client_secret": "x"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_REQUEST)
