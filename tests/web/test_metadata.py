"""What an env publishes of itself, statement by statement (MD-01 to MD-33, KS-01 to KS-07), and the error pages."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import jwt
import pytest
from joserfc.jwk import ECKey, KeySet, RSAKey

from broker.protocol import oauth
from broker.web.errors import PUBLIC_REASONS
from tests.support.issuer import OidcIssuer
from tests.support.live import Live

PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
APPENDED = "{env}/.well-known/openid-configuration"
INSERTED = ".well-known/openid-configuration/{env}"
OAUTH = ".well-known/oauth-authorization-server/{env}"


@pytest.fixture(scope="module")
async def github() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer("github-actions") as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def live(github: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with Live(tmp_path_factory.mktemp("metadata"), {"github": github}) as running:
        yield running


@pytest.mark.parametrize("env", ["prod", "dev"])
async def test_md_01_to_md_08_one_document_at_three_addresses(env: str, live: Live) -> None:
    answers = [await live.client.get("/" + place.format(env=env)) for place in (APPENDED, INSERTED, OAUTH)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
    assert len({answer.content for answer in answers}) == 1
    document = answers[0].json()
    assert document["issuer"] == live.issuer(env), "byte-identical to the issuer that built the address (MD-06)"
    assert not [name for name, value in document.items() if value == []], "an empty array is left out (MD-07)"


async def test_md_04_a_path_in_base_puts_the_documents_at_the_host_root(tmp_path: Path, github: OidcIssuer) -> None:
    async with Live(tmp_path, {"github": github}, url="https://broker.acme.example/b") as live:
        issuer = "https://broker.acme.example/b/prod"
        for place in ("/.well-known/oauth-authorization-server/b/prod", "/.well-known/openid-configuration/b/prod",
                      "/b/prod/.well-known/openid-configuration"):  # fmt: skip
            document = (await live.client.get(place)).json()
            assert document["issuer"] == issuer, place
            assert document["token_endpoint"] == f"{issuer}/token"
        for place in ("/prod/token", "/prod/jwks.json", "/.well-known/oauth-authorization-server/prod",
                      "/b/.well-known/openid-configuration/prod"):  # fmt: skip
            assert (await live.client.get(place)).status_code == 404, place
        token = live.token(aud=issuer)
        answer = await live.client.post("/b/prod/token", data={
            "grant_type": oauth.GRANT_JWT_BEARER, "assertion": token, "audience": "payments", "scope": "deploy:write",
        })  # fmt: skip
        claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
        assert claims["iss"] == issuer
        refusal = await live.client.post("/b/prod/token", data={"grant_type": "x"})
        assert refusal.json()["error_uri"] == f"{issuer}/errors/unsupported_grant_type"
        assert (await live.client.get("/b/prod/errors/unsupported_grant_type")).status_code == 200


@pytest.mark.parametrize("place", [APPENDED, INSERTED, OAUTH, "{env}/jwks.json", "{env}/errors/revoked"])
async def test_md_05_an_unknown_env_is_a_404(place: str, live: Live) -> None:
    for env in ("staging", "PROD", "prod ", "api", "healthz", "..", "system"):
        answer = await live.client.get("/" + place.format(env=env))
        assert answer.status_code == 404, env
        assert "prod" not in answer.text, "a 404 lists nothing"
        if env == "staging":
            assert "the environment in the URL is not one of this broker's" in answer.text


@pytest.mark.parametrize("place", [APPENDED, INSERTED, OAUTH, "{env}/jwks.json"])
async def test_md_09_ks_04_public_documents_are_cached_and_revalidated(place: str, live: Live) -> None:
    path = "/" + place.format(env="prod")
    first = await live.client.get(path)
    cache = "public, max-age=300" + (", stale-while-revalidate=60" if place.endswith("jwks.json") else "")
    assert (first.headers["cache-control"], first.headers["access-control-allow-origin"]) == (cache, "*")
    etag = first.headers["etag"]
    assert re.fullmatch(r'"[^"]+"', etag), "a strong validator"
    for matching in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = await live.client.get(path, headers={"if-none-match": matching})
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["etag"], again.headers["cache-control"]) == (etag, cache)
    for other in ('"x"', "x", etag[:-2] + '"'):
        assert (await live.client.get(path, headers={"if-none-match": other})).status_code == 200
    head = await live.client.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)
    posted = await live.client.post(path)
    assert (posted.status_code, set(posted.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


async def test_md_20_to_md_33_members_are_true_and_whole(live: Live) -> None:
    issuer = live.issuer()
    assert (await live.client.get("/" + APPENDED.format(env="prod"))).json() == {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/jwks.json",
        "grant_types_supported": [oauth.GRANT_TOKEN_EXCHANGE, oauth.GRANT_JWT_BEARER],
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        "token_endpoint_auth_methods_supported": ["none"],
    }


async def test_ks_01_ks_02_ks_06_keys_are_whole_named_by_thumbprint_and_current_first(live: Live) -> None:
    answer = await live.client.get("/prod/jwks.json")
    assert answer.headers["content-type"] == "application/json"
    keys = answer.json()["keys"]
    assert {key["alg"] for key in keys} == {"ES256", "RS256"}
    for key in keys:
        made = (ECKey if key["kty"] == "EC" else RSAKey).import_key(key)
        assert key["kid"] == made.thumbprint()
        assert key["use"] == "sig"
        assert key.get("crv", "P-256") == "P-256"
        if key["kty"] == "RSA":
            assert made.raw_value.key_size >= 2048
    current = {row["kid"] for row in live.node.rings.listing("prod") if row["state"] == "current"}
    assert {key["kid"] for key in keys[: len(current)]} == current
    assert len({key["kid"] for key in keys}) == len(keys)


async def test_ks_07_no_private_member_is_published(live: Live) -> None:
    for env in live.node.envs:
        for key in (await live.client.get(f"/{env}/jwks.json")).json()["keys"]:
            assert not PRIVATE_MEMBERS & set(key)
            assert set(key) <= {"kty", "kid", "use", "alg", "crv", "x", "y", "n", "e"}


async def test_envs_share_no_key_and_a_credential_of_one_is_refused_by_the_other(live: Live) -> None:
    """Promise 4, as a resource server would see it."""
    sets = {env: (await live.client.get(f"/{env}/jwks.json")).json() for env in ("prod", "dev")}
    kids = {env: {key["kid"] for key in keys["keys"]} for env, keys in sets.items()}
    assert not kids["prod"] & kids["dev"]
    issued = (await live.deploys("prod")).json()["access_token"]
    assert jwt.get_unverified_header(issued)["kid"] in kids["prod"] - kids["dev"]
    assert KeySet.import_key_set(sets["dev"]).keys
    audience, issuer = "https://payments.acme.example", live.issuer("prod")
    for key in jwt.PyJWKSet.from_dict(sets["dev"]).keys:
        with pytest.raises(jwt.PyJWTError):
            jwt.decode(issued, key, algorithms=["ES256", "RS256"], audience=audience, issuer=issuer)
    good = jwt.PyJWKSet.from_dict(sets["prod"])[jwt.get_unverified_header(issued)["kid"]]
    options = {"algorithms": ["ES256"], "audience": "https://payments.acme.example"}
    assert jwt.decode(issued, good, issuer=live.issuer("prod"), **options)["env"] == "prod"
    with pytest.raises(jwt.InvalidIssuerError):
        jwt.decode(issued, good, issuer=live.issuer("dev"), **options)
    for env in ("prod", "dev"):
        answer = await live.exchange(issued, env, audience="payments", scope="deploy:write")
        assert answer.json()["reason"] == "token_untrusted"


async def test_a_token_for_one_env_is_no_good_at_the_other(live: Live) -> None:
    answer = await live.exchange(live.token(env="dev"), "prod", audience="payments", scope="deploy:write")
    assert answer.json()["reason"] == "token_audience"


async def test_error_pages_run_nothing_and_load_nothing(live: Live) -> None:
    for reason in sorted(PUBLIC_REASONS):
        page = await live.client.get(f"/prod/errors/{reason}")
        policy = page.headers["content-security-policy"]
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert not re.search(r"<script|\son\w+=|javascript:|<iframe|<img|<link|@import|url\(", page.text, re.IGNORECASE)
        style = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
        assert len(style) == 1
        assert f"'sha256-{base64.b64encode(sha256(style[0].encode()).digest()).decode()}'" in policy


@pytest.mark.parametrize("reason", ["nothing", "<script>", "../../etc/passwd", "", "Revoked", "revoked/x", "issuer_unknown"])
async def test_a_page_that_does_not_exist_is_a_plain_404(reason: str, live: Live) -> None:
    page = await live.client.get(f"/prod/errors/{reason}")
    assert page.status_code == 404
    assert page.headers["content-type"] == "application/json"
    assert "<script" not in page.text


async def test_no_html_but_the_error_pages(live: Live) -> None:
    for path in ("/", "/prod", "/prod/", "/prod/token", "/nowhere", "/api/v1", "/prod/jwks.json", "/healthz", "/metrics"):
        answer = await live.client.get(path)
        assert "html" not in answer.headers["content-type"], path
