"""Good tokens of every platform pass and become exactly the workload that they name (V01-V13); what only looks so does not."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from broker import errors
from broker.identity.subject_token import authenticate
from broker.model import ExchangeRequest, SingleUse, UnverifiedToken, Workload
from broker.protocol import oauth
from tests.support.forgery import Bad
from tests.support.gate import BASE_URL, Gate, issuers_of
from tests.support.issuer import OidcIssuer
from tests.support.signing import signing_key

PREFIX = "urn:ietf:params:oauth:token-type:"


async def test_v02_a_github_token_becomes_a_workload() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        good = gate.good()
        workload = await gate.admit(good.token)
        assert workload.issuer == "github"
        assert workload.iss == github.url
        assert workload.subject == "repo:acme@98123/payments@7432112:environment:production"
        assert workload.claims["repository_id"] == "7432112"
        assert workload.claims["aud"] == (gate.audience,)
        assert workload.ids["repository_id"] == "7432112"
        assert set(workload.ids) <= set(github.preset.stable_ids)
        assert set(workload.recorded) == set(github.preset.recorded)
        assert workload.recorded["environment"] == "production"
        assert workload.recorded["check_run_id"] is None
        assert workload.tenant == "98123"
        assert workload.token_sha256 == hashlib.sha256(good.token.encode()).hexdigest()
        assert workload.key_id == github.key.kid
        assert workload.expires_at == good.claims["exp"]
        assert isinstance(workload.single_use, SingleUse)


async def test_v01_a_github_subject_of_the_old_form_passes() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        old = "repo:acme/payments:ref:refs/heads/main"
        assert (await gate.admit(gate.good(sub=old).token)).subject == old


async def test_v03_gitlab_keeps_its_booleans_as_strings_and_its_integer_an_integer() -> None:
    async with OidcIssuer("gitlab", name="gitlab") as gitlab, Gate(gitlab) as gate:
        workload = await gate.admit(gate.good().token)
        assert workload.claims["ref_protected"] == "true"
        assert workload.claims["runner_id"] == 12270807
        assert workload.recorded["runner_id"] == "12270807"
        assert workload.tenant == "12885807"
        assert workload.single_use is None


async def test_v04_a_kubernetes_token_with_a_list_of_one_passes() -> None:
    async with OidcIssuer("kubernetes", name="cluster") as cluster, Gate(cluster) as gate:
        good = gate.good()
        assert good.claims["aud"] == [gate.audience]
        workload = await gate.admit(good.token)
        assert workload.claims["namespace"] == "payments"
        assert workload.claims["service_account"] == "deployer"
        assert set(workload.ids) == {"service_account_uid"}
        assert workload.tenant == ""


async def test_a_list_of_several_audiences_passes_if_all_are_ours() -> None:
    async with OidcIssuer("kubernetes", name="cluster") as cluster, Gate(cluster) as gate:
        both = [gate.audience, f"{gate.audience}/token"]
        assert (await gate.admit(gate.good().but(aud=both))).claims["aud"] == tuple(both)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"])
async def test_v05_every_algorithm_that_an_entry_allows_passes(algorithm: str) -> None:
    async with OidcIssuer("kubernetes", name="i", algorithm=algorithm) as issuer:
        async with Gate(issuer, entries=[issuer.entry(algorithms=(algorithm,))]) as gate:
            assert (await gate.admit(gate.good().token)).issuer == "i"
        async with Gate(issuer, entries=[issuer.entry(algorithms=())]) as gate:
            assert type(await gate.refusal(gate.good().token)) is errors.AlgorithmNotAllowed


async def test_v06_the_last_second_and_a_little_skew_pass() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        now = int(gate.now)
        assert await gate.admit(gate.good(exp=now + 1, iat=now - 200, nbf=now - 200).token)
        assert await gate.admit(gate.good(iat=now + 20, nbf=now + 20, exp=now + 300).token)
        assert await gate.admit(gate.good(iat=now - 0.5, exp=now + 100.5).token)


async def test_v10_letters_of_other_scripts_pass() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        workload = await gate.admit(gate.good(workflow="auslösen 🚀 выпуск", unused="日本").token)
        assert workload.claims["workflow"] == "auslösen 🚀 выпуск"


async def test_v11_a_large_token_with_many_claims_passes() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        more = {f"extra_{n}": "x" * 120 for n in range(30)}
        token = gate.good(**more).token
        assert 6_000 < len(token) < 16_384
        assert await gate.admit(token)


async def test_v13_one_jti_of_two_issuers_is_two_tokens() -> None:
    async with OidcIssuer(name="one") as one, OidcIssuer(name="two", number=2) as two, Gate(one, two) as gate:
        uses = [(await gate.admit(gate.good(issuer).token)).single_use for issuer in (one, two)]
        assert None not in uses
        assert uses[0] != uses[1]


# The kind of token


@pytest.mark.parametrize("declared", [None, PREFIX + "jwt", PREFIX + "id_token"])
async def test_a_declared_identity_token_passes(declared: str | None) -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        assert await gate.admit(gate.good().token, subject_token_type=declared)


@pytest.mark.parametrize("declared", ["access_token", "refresh_token", "saml1", "saml2", "txn_token", "unsigned_json", ""])
async def test_another_declared_type_is_refused(declared: str) -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        error = await gate.refusal(gate.good().token, subject_token_type=PREFIX + declared)
        assert type(error) is errors.TokenMalformed


@pytest.mark.parametrize("declared", [None, PREFIX + "jwt", PREFIX + "id_token", PREFIX + "access_token"])
async def test_an_access_token_is_no_identity_whatever_it_is_declared(declared: str | None) -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        error = await gate.refusal(gate.good().under(typ="at+jwt"), subject_token_type=declared)
        assert type(error) is errors.TokenMalformed


# Claims


async def test_a_claim_of_another_type_is_not_there_and_a_stable_id_of_another_type_refuses() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        workload = await gate.admit(gate.good().but(environment=1, ref=["refs/heads/main"]))
        assert "environment" not in workload.claims
        assert workload.recorded["ref"] is None
        await gate.refuses(Bad("an integer id", gate.good().but(repository_id=7432112)))


async def test_a_missing_stable_id_is_just_not_there() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        workload = await gate.admit(gate.good().without("repository_id", "repository_owner_id", "enterprise_id"))
        assert "repository_id" not in workload.ids
        assert workload.recorded["repository_id"] is None
        assert workload.tenant == ""
        assert await gate.admit(gate.good().but(enterprise_id=None))


async def test_a_nested_stable_id_of_another_type_refuses() -> None:
    async with OidcIssuer("kubernetes", name="cluster") as cluster, Gate(cluster) as gate:
        good = gate.good()
        for account in ({"name": "a", "uid": 1}, {"name": "a", "uid": ["u"]}, "a"):
            token = good.but(**{"kubernetes.io": {"namespace": "payments", "serviceaccount": account}})
            await gate.refuses(Bad(f"serviceaccount {account!r}", token))


async def test_a_long_value_is_recorded_by_its_hash() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        workload = await gate.admit(gate.good(workflow="w" * 300).token)
        assert workload.recorded["workflow"] == "sha256:" + hashlib.sha256(b"w" * 300).hexdigest()
        assert workload.claims["workflow"] == "w" * 300


# SPIFFE


async def test_a_jwt_svid_is_routed_by_its_trust_domain() -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire, Gate(spire) as gate:
        good = gate.good()
        assert "iss" not in good.claims
        workload = await gate.admit(good.token, subject_token_type=PREFIX + "jwt")
        assert workload.iss == "spiffe://prod.acme.example"
        assert workload.subject == "spiffe://prod.acme.example/ns/payments/sa/deployer"
        assert workload.claims["trust_domain"] == "prod.acme.example"
        assert workload.claims["path"] == "/ns/payments/sa/deployer"
        assert workload.recorded["path"] == "/ns/payments/sa/deployer"
        assert workload.recorded["jti"] is None
        assert workload.tenant == "prod.acme.example"
        assert spire.requests == {"/keys": 1}


async def test_a_jwt_svid_may_lack_iat_and_carry_an_iss_that_means_nothing() -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire, Gate(spire) as gate:
        assert await gate.admit(gate.good().without("iat"))
        assert await gate.admit(gate.good(iss="https://oidc.prod.acme.example").token)
        now = int(gate.now)
        far = gate.good(iat=None, exp=now + 3_600 + 31).token
        await gate.refuses(Bad("lives too long, without iat", far, (errors.TokenLivesTooLong,)))
        assert await gate.admit(gate.good(iat=None, exp=now + 3_600).token)


@pytest.mark.parametrize(
    "sub",
    [
        "spiffe://prod.acme.example",
        "spiffe://prod.acme.example/",
        "spiffe://prod.acme.example/a/",
        "spiffe://prod.acme.example//a",
        "spiffe://prod.acme.example/./a",
        "spiffe://prod.acme.example/../a",
        "spiffe://prod.acme.example/a%2fb",
        "spiffe://prod.acme.example/a?b",
        "spiffe://prod.acme.example/a#b",
        "spiffe://prod.acme.example:8443/a",
        "spiffe://user@prod.acme.example/a",
        "spiffe://PROD.acme.example/a",
        "spiffe://prod.acme.example/" + "a" * 2_048,
        "spiffe://prod.acme.example/ä",
        "spiffe://prod.acme.example/a\n",
    ],
)
async def test_a_sub_that_is_no_spiffe_id_is_refused(sub: str) -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire, Gate(spire) as gate:
        await gate.refuses(Bad(sub, gate.good().but(sub=sub)))


async def test_other_spellings_and_other_trust_domains_are_unknown() -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire, Gate(spire) as gate:
        for sub in ("spiffe://acme.example/a", "spiffe://prod.acme.example.evil/a", "spiffe://xprod.acme.example/a"):
            await gate.refuses(Bad(sub, gate.good().but(sub=sub), (errors.IssuerUnknown,)))
        await gate.refuses(Bad("capitals", gate.good().but(sub="SPIFFE://prod.acme.example/a")))


async def test_the_trust_domain_is_checked_also_where_iss_found_the_entry() -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire, Gate(spire) as gate:
        for sub in ("spiffe://other.example/a", "plain"):
            token = gate.good().but(iss="spiffe://prod.acme.example", sub=sub)
            await gate.refuses(Bad(sub, token))


@pytest.mark.parametrize("header", [{"x5t": "AAAA"}, {"nonce": "n"}, {"typ": "jwt"}, {"typ": "JWT-SVID"}, {"typ": ""}])
async def test_a_jwt_svid_header_holds_three_parameters_only(header: dict[str, Any]) -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire, Gate(spire) as gate:
        await gate.refuses(Bad(str(header), gate.good().under(**header)))
        assert await gate.admit(gate.good().under(typ="JOSE"))
        assert await gate.admit(gate.good().under("typ", "kid"))


async def test_a_certificate_key_of_the_bundle_signs_no_token() -> None:
    async with OidcIssuer("spiffe", name="spiffe") as spire:
        other = signing_key("ES256", 7)
        spire.published.append(other.used_for("x509-svid").jwk)
        async with Gate(spire) as gate:
            token = other.sign({**spire.header(), "kid": other.kid}, gate.good().claims)
            await gate.refuses(Bad("an x509-svid key", token, (errors.KeyUnknown,)))


async def test_an_ordinary_token_with_a_spiffe_sub_belongs_to_its_iss() -> None:
    async with (
        OidcIssuer("github-actions") as github,
        OidcIssuer("spiffe", name="spiffe") as spire,
        Gate(github, spire) as gate,
    ):
        sub = "spiffe://prod.acme.example/ns/payments/sa/deployer"
        workload = await gate.admit(gate.good(github, sub=sub).token)
        assert workload.issuer == "github"
        assert "trust_domain" not in workload.claims


# Cost


async def test_on_a_warm_cache_nothing_is_awaited() -> None:
    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        await gate.keys.warm(gate.entries)
        connections = github.connections
        request = ExchangeRequest(
            env="prod",
            request_id="req_1",
            trace_id="",
            grant_type=oauth.GRANT_JWT_BEARER,
            subject_token=UnverifiedToken(gate.good().token),
        )
        trusted = issuers_of(gate.entries)
        walk = authenticate(request, trusted, gate.keys, base_url=BASE_URL, now=gate.now, limits=gate.limits)
        with pytest.raises(StopIteration) as ended:
            walk.send(None)
        assert isinstance(ended.value.value, Workload)
        assert github.connections == connections


async def test_trust_without_any_issuer_refuses() -> None:
    async with OidcIssuer("github-actions") as github, Gate() as gate:
        token = Gate(github).good().token
        assert type(await gate.refusal(token)) is errors.IssuerUnknown
