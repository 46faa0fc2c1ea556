"""Attacks by and around issuers (K), and their faults: what a stranger names is never called, what misbehaves is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker import errors
from broker.config import Limits
from broker.identity.fetch import Fetched, Fetcher
from broker.identity.sources import Unreadable, load
from tests.support.forgery import Bad
from tests.support.gate import Gate
from tests.support.issuer import DISCOVERY, JWKS, Fault, OidcIssuer
from tests.support.signing import signing_key
from tests.support.tls import Authority
from tests.support.tripwire import Tripwire

LIMITS = Limits(fetch_s_max=1, jwks_wait_s_max=2, fetch_bytes_max=262_144)


@pytest.fixture
async def github() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer("github-actions") as issuer:
        yield issuer


@pytest.fixture
async def gate(github: OidcIssuer) -> AsyncIterator[Gate]:
    async with Gate(github, limits=LIMITS) as gate:
        yield gate


async def test_k01_an_unregistered_issuer_is_never_asked(gate: Gate) -> None:
    async with OidcIssuer("github-actions", number=2) as attacker, Tripwire() as wire:
        for claims in ({}, {"iss": wire.url}, {"iss": wire.url, "jku": wire.url}):
            token = attacker.token(now=gate.now, aud=gate.audience, **claims)
            await gate.refuses(Bad("a live issuer that nobody trusts", token, (errors.IssuerUnknown,)))
        assert attacker.connections == 0
        assert wire.connections == 0


async def test_k01_a_spiffe_id_of_an_unknown_trust_domain_is_never_looked_up(gate: Gate) -> None:
    async with Tripwire() as wire:
        good = gate.good()
        for sub in (f"spiffe://127.0.0.1:{wire.port}/x", "spiffe://evil.example/ns/a"):
            token = good.key.sign(good.header, {**good.claims, "iss": wire.url, "sub": sub})
            await gate.refuses(Bad(sub, token, (errors.IssuerUnknown,)))
        assert wire.connections == 0


@pytest.mark.parametrize(
    "uri",
    [
        "http://issuer.example/keys",
        "https://user@issuer.example/keys",
        "https://issuer.example/keys#a",
        "/keys",
        "keys",
        "",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/keys",
        None,
        1,
        {"a": "b"},
    ],
)
async def test_k04_a_jwks_uri_that_is_no_plain_https_url_is_refused(github: OidcIssuer, uri: Any) -> None:
    if uri is None:
        github.fault = Fault.NO_JWKS_URI
    github.jwks_uri = uri
    with pytest.raises(Unreadable):
        await load(github.entry(), Fetcher(LIMITS), LIMITS)
    assert github.requests == {DISCOVERY: 1}


async def test_k04_a_private_jwks_uri_needs_an_issuer_that_is_private_itself() -> None:
    class Public(Fetcher):
        """Answers discovery as a public host would; all else goes the real way."""

        async def get(self, url: str, *, ca_file: str | None = None, private_allowed: bool = False) -> Fetched:
            if url.endswith(DISCOVERY):
                return Fetched({"issuer": "https://issuer.example", "jwks_uri": f"https://127.0.0.1:{wire.port}/"}, b"", False)
            return await super().get(url, ca_file=ca_file, private_allowed=private_allowed)

    async with Tripwire() as wire, OidcIssuer() as issuer:
        with pytest.raises(Unreadable, match="private address"):
            await load(issuer.entry(url="https://issuer.example"), Public(LIMITS), LIMITS)
        assert wire.connections == 0


async def test_k04_keys_on_another_host_are_fine(github: OidcIssuer) -> None:
    async with OidcIssuer(number=2) as elsewhere, Gate(github, limits=LIMITS) as gate:
        github.jwks_uri = elsewhere.jwks_url
        token = gate.good().key.sign({**github.header(), "kid": "rs256-1"}, gate.good().claims)
        assert type(await gate.refusal(token)) is errors.KeyUnknown
        elsewhere.published.append(github.key.jwk)
        assert (await gate.admit(token)).issuer == "github"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("place", ["discovery", "jwks"])
async def test_k05_redirects_are_not_followed(github: OidcIssuer, place: str, status: int) -> None:
    async with Tripwire() as wire, Gate(github, limits=LIMITS) as gate:
        github.fault, github.fault_at = Fault.REDIRECT, place
        github.redirect_to, github.redirect_status = wire.url, status
        assert type(await gate.refusal(gate.good().token)) is errors.IssuerUnavailable
        assert wire.connections == 0
        github.fault = Fault.NONE
        assert (await gate.admit(gate.good().token)).issuer == "github"


MISBEHAVIOUR = [
    (Fault.WRONG_ISSUER, "discovery"),
    (Fault.NO_JWKS_URI, "discovery"),
    (Fault.LIST_JWKS_URI, "discovery"),
    *[
        (fault, place)
        for place in ("discovery", "jwks")
        for fault in (
            *(Fault.RESET, Fault.HUGE, Fault.ENDLESS, Fault.GZIP_BOMB, Fault.STATUS_404, Fault.STATUS_500),
            *(Fault.NOT_MODIFIED, Fault.HTML, Fault.NOT_JSON, Fault.DUPLICATE_MEMBERS, Fault.DEEP_JSON),
        )
    ],
]


@pytest.mark.parametrize(("fault", "place"), MISBEHAVIOUR, ids=lambda value: getattr(value, "name", value))
async def test_k06_k08_what_misbehaves_leaves_the_last_good_keys_and_recovers(
    github: OidcIssuer, fault: Fault, place: str
) -> None:
    async with Gate(github, limits=LIMITS) as gate:
        assert (await gate.admit(gate.good().token)).issuer == "github"
        github.fault, github.fault_at = fault, place
        gate.clock.pass_s(LIMITS.jwks_refresh_s)
        await gate.keys.tick()
        assert gate.keys.health()["github"].last_error
        assert (await gate.admit(gate.good().token)).issuer == "github"
        new = github.rotate()
        assert type(await gate.refusal(gate.good().token)) is errors.IssuerUnavailable
        github.fault = Fault.NONE
        assert (await gate.admit(gate.good().token)).key_id == new.kid


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.DRIP_HEADERS, Fault.DRIP_BODY])
async def test_k07_a_slow_issuer_is_cut_off_and_holds_up_nobody(github: OidcIssuer, fault: Fault) -> None:
    async with OidcIssuer(name="other", number=2) as other, Gate(github, other, limits=LIMITS) as gate:
        await gate.keys.warm(gate.entries)
        github.fault = fault
        github.arrived.clear()
        stuck = asyncio.create_task(gate.refusal(gate.good().under(kid="unknown")))
        await github.arrived.wait()
        assert (await gate.admit(gate.good(github).token)).issuer == "github"
        assert (await gate.admit(gate.good(other).token)).issuer == "other"
        other.rotate()
        assert (await gate.admit(gate.good(other).token)).issuer == "other"
        assert not stuck.done()
        assert type(await stuck) is errors.IssuerUnavailable
        assert "within 1 s" in gate.keys.health()["github"].last_error


async def test_k10_secrets_in_a_key_set_serve_nobody(github: OidcIssuer) -> None:
    thief = signing_key("RS256", 95)
    github.published += [{"kty": "oct", "k": "AAAA", "kid": "oct", "alg": "HS256"}, thief.private_jwk]
    async with Gate(github, limits=LIMITS) as gate:
        good = gate.good()
        await gate.refuses(Bad("a private key", thief.sign({**good.header, "kid": thief.kid}, good.claims), (errors.KeyUnknown,)))
        await gate.refuses(Bad("a symmetric key", good.under(alg="HS256", kid="oct"), (errors.AlgorithmNotAllowed,)))


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.STATUS_404, Fault.STATUS_500, Fault.RESET])
async def test_k11_a_flood_of_invented_kids_costs_the_issuer_a_handful_of_requests(github: OidcIssuer, fault: Fault) -> None:
    async with Gate(github, limits=LIMITS) as gate:
        await gate.keys.warm(gate.entries)
        github.fault = fault
        good, before = gate.good(), github.connections
        verdict = errors.KeyUnknown if fault is Fault.NONE else errors.IssuerUnavailable
        flood = [good.under(kid=f"invented-{n}") for n in range(100)]
        refusals = [await gate.refusal(token) for token in flood]
        refusals += await asyncio.gather(*map(gate.refusal, flood))
        assert {type(refusal) for refusal in refusals} == {verdict}
        spent = github.connections - before
        assert spent <= 2 * LIMITS.unknown_kid_burst
        assert (await gate.admit(good.token)).issuer == "github"
        assert github.connections - before == spent
        gate.clock.pass_s(LIMITS.unknown_kid_refill_s)
        await asyncio.gather(*map(gate.refusal, flood))
        assert github.connections - before <= 2 * (LIMITS.unknown_kid_burst + 1)


async def test_k13_an_outage_is_no_verdict_and_known_keys_outlive_it(github: OidcIssuer) -> None:
    async with Gate(github, limits=LIMITS) as gate:
        token = gate.good().token
        assert (await gate.admit(token)).issuer == "github"
        await github.down()
        gate.clock.pass_s(LIMITS.jwks_stale_s_max)
        assert (await gate.admit(token)).issuer == "github"
        gate.clock.pass_s(1)
        refusal = await gate.refusal(token)
        assert type(refusal) is errors.IssuerUnavailable
        assert not isinstance(refusal, errors.TokenRejected)
        await github.up()
        gate.clock.pass_s(LIMITS.unknown_kid_refill_s)
        assert (await gate.admit(token)).issuer == "github"


async def test_k15_a_withdrawn_key_no_longer_vouches(github: OidcIssuer) -> None:
    async with Gate(github, limits=LIMITS) as gate:
        old = gate.good().token
        assert (await gate.admit(old)).issuer == "github"
        kid = github.key.kid
        github.rotate()
        github.withdraw(kid)
        gate.clock.pass_s(LIMITS.jwks_refresh_s)
        await gate.keys.tick()
        await gate.refuses(Bad("signed by a withdrawn key", old, (errors.KeyUnknown,)))


async def test_k16_entries_that_look_alike_share_nothing() -> None:
    async with OidcIssuer(name="one") as one, OidcIssuer(name="two", number=2) as two:
        twisted = two.entry(name="one ")
        async with Gate(one, two, entries=[one.entry(), twisted], limits=LIMITS) as gate:
            await gate.keys.warm(gate.entries)
            assert gate.keys.known(twisted, one.key.kid, "RS256") is None
            forged = one.key.sign({**two.header(), "kid": one.key.kid}, gate.good(two).claims)
            await gate.refuses(Bad("one's key for two", forged, (errors.KeyUnknown,)), one)


@pytest.mark.parametrize("fault", ["self-signed", "expired", "wrong-name", "old-protocol"])
async def test_k17_an_issuer_whose_certificate_is_not_good_is_unavailable(tmp_path: Path, fault: str) -> None:
    authority = Authority.create(tmp_path)
    async with OidcIssuer(tls=authority.server(fault)) as issuer:
        entry = issuer.entry(ca_file=str(authority.ca_file))
        async with Gate(issuer, entries=[entry], limits=LIMITS) as gate:
            assert type(await gate.refusal(gate.good().token)) is errors.IssuerUnavailable
            assert not issuer.requests
    async with OidcIssuer(tls=authority.server()) as issuer:
        entry = issuer.entry(ca_file=str(authority.ca_file))
        async with Gate(issuer, entries=[entry], limits=LIMITS) as gate:
            assert (await gate.admit(gate.good().token)).issuer == "github"


async def test_k18_caching_headers_change_nothing(github: OidcIssuer) -> None:
    async with Gate(github, limits=LIMITS) as gate:
        github.fault = Fault.HOSTILE_CACHING
        assert (await gate.admit(gate.good().token)).issuer == "github"
        old = github.key.kid
        github.rotate()
        github.withdraw(old)
        gate.clock.pass_s(LIMITS.jwks_refresh_s)
        await gate.keys.tick()
        assert github.requests == {DISCOVERY: 2, JWKS: 2}
        assert (await gate.admit(gate.good().token)).issuer == "github"
        assert all("if-none-match" not in headers for headers in github.headers_seen)


async def test_an_issuer_that_is_down_at_start_costs_its_own_callers_only() -> None:
    github = OidcIssuer("github-actions")
    async with github, OidcIssuer(name="other", number=2) as other:
        await github.down()
        async with Gate(github, other, limits=LIMITS) as gate:
            await gate.keys.warm(gate.entries)
            assert type(await gate.refusal(gate.good(github).token)) is errors.IssuerUnavailable
            assert (await gate.admit(gate.good(other).token)).issuer == "other"
            await github.up()
            gate.clock.pass_s(LIMITS.unknown_kid_refill_s)
            assert (await gate.admit(gate.good(github).token)).issuer == "github"
