"""The token endpoint's envelope over real HTTP, statement by statement (TX-01 to TX-15, TX-40 to TX-55, CA-01, CA-08)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import jwt
import pytest

from broker import errors
from broker.config import Limits
from broker.protocol import oauth
from broker.web.errors import PUBLIC_REASONS
from tests.support.issuer import OidcIssuer
from tests.support.live import PAYMENTS, Live

FORM = "application/x-www-form-urlencoded"
TEXT = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]+")
URI = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with OidcIssuer("github-actions") as github:
        limits = Limits(refusals_per_s=10_000, refusals_unverified_per_s=10_000)
        async with Live(tmp_path_factory.mktemp("endpoint"), {"github": github}, limits=limits) as running:
            yield running


def form(live: Live, **changes: Any) -> dict[str, Any]:
    good = {
        "grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": live.token(), "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN,
        **PAYMENTS,
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


async def post(live: Live, body: dict[str, Any] | bytes, path: str = "/prod/token", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else urlencode(body, doseq=True).encode()
    sent = {"content-type": FORM} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await live.client.post(path, content=content, headers={name: value for name, value in sent.items() if value})


async def one_of_each(live: Live) -> dict[str, httpx2.Response]:
    """An answer of every kind that this endpoint gives without a fault of the store."""
    return {
        "issued": await post(live, form(live)),
        "check": await post(live, form(live), "/prod/check"),
        "malformed": await post(live, b"grant_type=%zz"),
        "unsupported grant": await post(live, form(live, grant_type="password")),
        "client authentication": await post(live, form(live, client_secret="x")),
        "bad ttl": await post(live, form(live, ttl="1.5")),
        "bad scope": await post(live, form(live, scope="a  b")),
        "bad target": await post(live, form(live, resource="nowhere")),
        "bad token": await post(live, form(live, subject_token="a.b.c")),
        "stranger": await post(live, form(live, subject_token=live.token(repository_id="1"))),
        "own": await post(live, form(live, subject_token=live.token(environment="x"))),
        "unknown target": await post(live, form(live, audience="nowhere")),
        "scope not granted": await post(live, form(live, scope="everything")),
        "method": await live.client.get("/prod/token"),
        "media type": await post(live, b"{}", content_type="application/json"),
    }


@pytest.mark.parametrize("path", ["/prod/token", "/prod/check"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
async def test_tx_01_only_post(method: str, path: str, live: Live) -> None:
    before = await live.raw.xlen("broker:{prod}:audit")
    body = urlencode(form(live)).encode()
    answer = await live.client.request(method, path, content=body, headers={"content-type": FORM})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "access_token" not in answer.text
    assert answer.text == "" or method != "HEAD"
    assert await live.raw.xlen("broker:{prod}:audit") == before, "a method that is not taken had an effect"


@pytest.mark.parametrize(
    "content_type",
    [
        FORM,
        f"{FORM};charset=utf-8",
        f"{FORM}; charset=UTF-8",
        f'{FORM}; Charset="utf-8"',
        FORM.upper(),
        f"{FORM} ; charset=utf-8",
    ],
)
async def test_tx_03_media_types_that_are_a_form(content_type: str, live: Live) -> None:
    assert (await post(live, form(live), content_type=content_type)).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/json",
        "multipart/form-data; boundary=x",
        f"{FORM}; charset=latin-1",
        f"{FORM}; charset=utf-16",
        f"{FORM}; boundary=x",
        f"{FORM}; charset=utf-8; charset=utf-8",
        f"{FORM}, {FORM}",
        f"{FORM}x",
        "application/x-www-form",
        f"{FORM}; charset=utf-7",
        f"text/{FORM}",
    ],
)
async def test_tx_03_every_other_media_type_is_a_415(content_type: str, live: Live) -> None:
    answer = await post(live, form(live), content_type=content_type)
    assert answer.status_code == 415
    assert answer.headers["accept"] == FORM
    assert answer.json()["error"] == oauth.INVALID_REQUEST


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ("identity", 200),
        ("gzip", 415),
        ("deflate", 415),
        ("br", 415),
        ("gzip, identity", 415),
        ("x", 415),
        ("aws-chunked", 415),
    ],
)
async def test_tx_03_h09_a_packed_body_is_never_unpacked(coding: str, status: int, live: Live) -> None:
    assert (await post(live, form(live), content_encoding=coding)).status_code == status


@pytest.mark.parametrize("body", [b"grant_type=%zz", b"grant_type=%ff", b"grant_type=\xff", b"grant_type=a%00b"])
async def test_tx_04_strict_decoding(body: bytes, live: Live) -> None:
    answer = await post(live, body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "malformed_request")


@pytest.mark.parametrize("query", ["grant_type=x", "subject_token=a.b.c", "x=1", "client_secret=s3cr3t"])
async def test_tx_05_parameters_in_the_query_are_refused(query: str, live: Live) -> None:
    answer = await post(live, form(live), f"/prod/token?{query}")
    assert (answer.status_code, answer.json()["reason"]) == (400, "malformed_request")
    assert "s3cr3t" not in str(await live.record(answer))


async def test_tx_06_an_empty_parameter_counts_as_absent(live: Live) -> None:
    assert (await post(live, form(live, resource="", client_id="", requested_token_type="", actor_token=""))).status_code == 200
    assert (await post(live, form(live, scope=""))).json()["reason"] == "scope_missing"
    assert (await post(live, form(live, subject_token=""))).json()["reason"] == "malformed_request"


async def test_tx_08_unknown_parameters_are_ignored_and_one_that_narrows_is_not(live: Live) -> None:
    assert (await post(live, form(live, something="else"))).status_code == 200
    assert (await post(live, form(live, authorization_details="[]"))).json()["reason"] == "malformed_request"


async def test_tx_09_tx_10_every_answer_is_json_that_nobody_keeps(live: Live) -> None:
    for kind, answer in (await one_of_each(live)).items():
        assert answer.headers["content-type"] == "application/json", kind
        assert isinstance(answer.json(), dict), kind
        assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache"), kind


async def test_tx_11_descriptions_and_uris_keep_to_their_characters(live: Live) -> None:
    for kind, answer in (await one_of_each(live)).items():
        if answer.status_code >= 400:
            body = answer.json()
            assert TEXT.fullmatch(body["error_description"]), kind
            assert URI.fullmatch(body["error_uri"]), kind
            assert re.fullmatch(r"[a-z_]+", body["error"]), kind


def test_tx_11_every_public_sentence_keeps_to_its_characters() -> None:
    def leaves(kind: type[errors.BrokerError]) -> list[type[errors.BrokerError]]:
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]

    for kind in leaves(errors.BrokerError):
        if "public" in vars(kind):
            assert TEXT.fullmatch(kind.public), kind
        if hasattr(kind, "wire_reason") and not issubclass(kind, errors.OperatorError):
            assert kind.wire_reason in PUBLIC_REASONS, kind


async def test_tx_12_statuses_are_those_of_the_standard(live: Live) -> None:
    found = {kind: answer.status_code for kind, answer in (await one_of_each(live)).items()}
    assert (found.pop("issued"), found.pop("check"), found.pop("client authentication")) == (200, 200, 401)
    assert (found.pop("method"), found.pop("media type")) == (405, 415)
    assert set(found.values()) == {400}


async def test_tx_13_every_error_says_reason_page_and_ids(live: Live) -> None:
    for kind, answer in (await one_of_each(live)).items():
        if answer.status_code < 400:
            continue
        body = answer.json()
        assert {"error", "error_description", "error_uri", "reason", "request_id", "trace_id"} <= set(body), kind
        assert body["error_uri"] == f"{live.issuer()}/errors/{body['reason']}", kind
        assert (await live.client.get(body["error_uri"])).status_code == 200, kind


@pytest.mark.parametrize("reason", sorted(PUBLIC_REASONS))
async def test_tx_13_every_public_reason_has_its_page(reason: str, live: Live) -> None:
    page = await live.client.get(f"/prod/errors/{reason}")
    assert page.status_code == 200
    assert f"<h1>{reason}</h1>" in page.text
    assert len(page.text) > 500


async def test_tx_14_a_body_that_is_too_large_is_a_413(live: Live) -> None:
    just = form(live)
    room = live.limits.body_bytes_max - len(urlencode(just)) - len("&pad=")
    assert (await post(live, {**just, "pad": "x" * room})).status_code == 200
    answer = await post(live, form(live, pad="x" * live.limits.body_bytes_max))
    assert (answer.status_code, answer.json()["error"]) == (413, oauth.INVALID_REQUEST)
    assert answer.headers["cache-control"] == "no-store"


async def test_tx_14_a_body_that_grows_too_large_is_a_413(live: Live) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 1_000

    answer = await live.client.post("/prod/token", content=pieces(), headers={"content-type": FORM})
    assert answer.status_code == 413


async def test_tx_14_a_url_or_header_that_is_too_large_is_a_414_or_431(live: Live) -> None:
    assert (await live.client.get("/" + "x" * live.limits.url_bytes_max)).status_code == 414
    assert (await live.client.get("/healthz", headers={"x": "y" * live.limits.headers_bytes_max})).status_code == 431
    many = {f"x-{n}": "y" for n in range(live.limits.headers_max)}
    answer = await live.client.get("/healthz", headers=many)
    assert answer.status_code == 431
    assert (answer.headers["cache-control"], answer.json()["error"]) == ("no-store", oauth.INVALID_REQUEST)


async def test_tx_14_more_connections_than_are_served_hear_503_with_retry_after(tmp_path: Path) -> None:
    limits = Limits(connections_max=2)
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}, limits=limits) as live:
        held = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(2)]
        answer = await live.client.get("/healthz")
        assert (answer.status_code, answer.json()["error"]) == (503, oauth.TEMPORARILY_UNAVAILABLE)
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["cache-control"] == "no-store"
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        assert (await live.client.get("/healthz")).status_code == 200


async def test_tx_15_no_browser_is_invited(live: Live) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    posted = await post(live, form(live), origin="https://evil.example")
    for answer in (posted, await live.client.options("/prod/token", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_tx_40_which_code_for_which_mistake(live: Live) -> None:
    codes = {
        oauth.INVALID_REQUEST: [{"subject_token": None}, {"subject_token_type": "x"}, {"grant_type": None}, {"ttl": "0"}],
        oauth.INVALID_TARGET: [{"resource": "x"}, {"audience": "nowhere"}],
        oauth.INVALID_SCOPE: [{"scope": "a  b"}, {"scope": "nothing"}, {"scope": None}],
        oauth.UNSUPPORTED_GRANT_TYPE: [{"grant_type": name} for name in ("refresh_token", "password", "client_credentials")],
    }
    for code, mistakes in codes.items():
        for mistake in mistakes:
            answer = await post(live, form(live, **mistake))
            assert (answer.status_code, answer.json()["error"]) == (400, code), mistake


async def test_tx_41_a_bad_token_is_invalid_request_and_tx_46_a_bad_assertion_invalid_grant(live: Live) -> None:
    for bad in ("a.b.c", live.token(repository_id="1"), live.token(environment="x"), live.token(aud="https://x.example")):
        assert (await post(live, form(live, subject_token=bad))).json()["error"] == oauth.INVALID_REQUEST
        assertion = {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": bad, **PAYMENTS}
        answer = await post(live, assertion)
        assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_GRANT)
    missing = await post(live, {"grant_type": oauth.GRANT_JWT_BEARER, **PAYMENTS})
    assert missing.json()["error"] == oauth.INVALID_REQUEST


async def test_tx_44_client_authentication_is_a_401_that_names_the_scheme(live: Live) -> None:
    for answer in (
        await post(live, form(live), authorization="Basic eDp5"),
        await post(live, form(live), authorization="Bearer x"),
        await post(live, form(live, client_secret="x", client_id="y")),
    ):
        assert (answer.status_code, answer.json()["error"]) == (401, oauth.INVALID_CLIENT)
        assert answer.headers["www-authenticate"] == f'Basic realm="{live.issuer()}"'


async def test_ca_01_two_methods_of_client_authentication_are_malformed(live: Live) -> None:
    answer = await post(live, form(live, client_secret="x"), authorization="Basic eDp5")
    assert (answer.status_code, answer.json()["error"]) == (400, oauth.INVALID_REQUEST)


async def test_tx_49_earlier_checks_win(live: Live) -> None:
    """size > method > media type > decoding > grant type > required > client authentication > token > target > scope."""
    big = b"x" * (live.limits.body_bytes_max + 1)
    assert (await live.client.put("/prod/token", content=big)).status_code == 413
    assert (await live.client.put("/prod/token", content=b"{}", headers={"content-type": "text/plain"})).status_code == 405
    assert (await post(live, b"%zz", content_type="text/plain")).status_code == 415
    assert (await post(live, form(live, grant_type="x", subject_token=None))).json()["error"] == oauth.UNSUPPORTED_GRANT_TYPE
    assert (await post(live, form(live, subject_token="x", client_secret="x"))).status_code == 401
    answer = await post(live, form(live, subject_token=live.token(repository_id="1"), audience="nowhere", scope="nothing"))
    assert answer.json()["reason"] == "no_rule_matched", "a stranger's error depends on policy"
    assert (await post(live, form(live, audience="nowhere", scope="nothing"))).json()["error"] == oauth.INVALID_TARGET


async def test_tx_50_to_tx_55_what_an_issued_answer_holds(live: Live) -> None:
    answer = await post(live, form(live))
    body = answer.json()
    assert set(body) == {"access_token", "issued_token_type", "token_type", "expires_in", "scope"}, "refresh_token among them?"
    assert body["issued_token_type"] == oauth.TOKEN_TYPE_ACCESS_TOKEN
    assert (body["token_type"], body["scope"]) == ("Bearer", "deploy:write")
    assert type(body["expires_in"]) is int
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert 0 < body["expires_in"] <= claims["exp"] - claims["iat"]
    assert jwt.get_unverified_header(body["access_token"])["typ"] == "at+jwt"
    assert claims["aud"] == "https://payments.acme.example", "always the URL, also when the short name was asked for"


async def test_tx_53_tx_54_expires_in_and_scope_are_always_there(live: Live) -> None:
    by_url = {"audience": None, "resource": "https://payments.acme.example"}
    for changes in ({"ttl": "1"}, {"scope": "releases:read deploy:write"}, by_url):
        body = (await post(live, form(live, **changes))).json()
        assert 0 < body["expires_in"] <= 600
        assert body["scope"] == changes.get("scope", "deploy:write")


@pytest.mark.parametrize("path", ["", "/token"], ids=["issuer", "token endpoint"])
async def test_ca_08_an_assertion_may_name_the_issuer_or_the_token_endpoint(path: str, live: Live) -> None:
    assertion = live.token(aud=live.issuer() + path)
    assert (await post(live, {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": assertion, **PAYMENTS})).status_code == 200


async def test_ids_are_ours_alone(live: Live) -> None:
    foreign = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await post(
        live, form(live), x_request_id="req_theirs", traceparent=f"00-{foreign}-00f067aa0ba902b7-01", x_trace_id="theirs",
        tracestate="x" * 70_00,
    )  # fmt: skip
    assert answer.status_code == 200
    assert re.fullmatch(r"req_[A-Za-z0-9_-]{20}", answer.headers["x-request-id"])
    version, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert (version, len(trace_id), len(span_id), flags) == ("00", 32, 16, "01")
    assert trace_id != foreign
    assert (await live.record(answer))["trace_id"] == trace_id
    refusal = await post(live, form(live, scope="nothing"), x_request_id="req_theirs")
    assert refusal.json()["request_id"] == refusal.headers["x-request-id"] != "req_theirs"
    assert refusal.json()["trace_id"] in refusal.headers["traceresponse"]


async def test_who_called_is_the_peer_unless_a_trusted_proxy_says_otherwise(tmp_path: Path, live: Live) -> None:
    spoofed = await post(live, form(live), x_forwarded_for="203.0.113.9", forwarded="for=203.0.113.9", x_real_ip="203.0.113.9")
    assert (await live.record(spoofed))["client"]["address"] == "127.0.0.1"
    trusting = Live(tmp_path, live.issuers, policies=live.policies, trusted_proxies=("127.0.0.1/32", "10.0.0.0/8"))
    async with trusting as proxied:
        for header, address in {
            "198.51.100.7, 203.0.113.9": "203.0.113.9",
            "198.51.100.7, 203.0.113.9, 10.1.1.1": "203.0.113.9",
            "not an address": "127.0.0.1",
            "203.0.113.9, evil": "127.0.0.1",
        }.items():
            answer = await post(proxied, form(proxied), x_forwarded_for=header)
            assert (await proxied.record(answer))["client"]["address"] == address


async def test_what_a_client_says_of_itself_is_data_in_the_record(live: Live) -> None:
    answer = await post(live, form(live, client_id="ci\u2028\x1b[31m"), user_agent="curl\x7f" + "x" * 4_000)
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        client = (await live.record(answer))["client"]
        assert client["client_id"] == "ci\\u2028\\u001b[31m"
        assert len(client["user_agent"]) <= 256
        assert client["user_agent"].isprintable()


async def test_an_env_that_does_not_exist_and_a_path_that_is_none_are_404(live: Live) -> None:
    for path in ("/staging/token", "/prod/tokens", "/prod/token/", "/PROD/token", "//prod/token", "/token", "/prod/x/token"):
        answer = await post(live, form(live), path)
        assert answer.status_code == 404, path
        assert answer.headers["cache-control"] == "no-store"
        assert "access_token" not in answer.text


@pytest.mark.parametrize("act", ["token", "check"])
@pytest.mark.parametrize("env", ["staging", "PROD", "api"])
async def test_an_env_that_is_not_served_is_said_to_be_the_mistake(env: str, act: str, live: Live) -> None:
    answer = await post(live, form(live), f"/{env}/{act}")
    said = "the environment in the URL is not one of this broker's; check the URL and the env"
    assert (answer.status_code, answer.json()) == (404, {"error": "invalid_request", "error_description": said})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    elsewhere = await post(live, form(live), "/prod/tokens")
    assert elsewhere.json()["error_description"] == "there is nothing at this address"


@pytest.mark.parametrize("path", ["/prod%2ftoken", "/%70rod/token", "/prod/%74oken", "/prod/x/%2e%2e/token", "/prod/token%00"])
async def test_a10_an_escaped_path_is_no_second_way_in(path: str, live: Live) -> None:
    assert (await post(live, form(live), path)).status_code == 404
