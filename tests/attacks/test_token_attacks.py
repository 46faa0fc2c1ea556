"""Attacks on the subject token (J): each forgery meets its exact error, and after each one a good token still passes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import errors
from broker.errors import BrokerError
from tests.support.forgery import Bad, Good, forge, j04, j31
from tests.support.gate import BASE_URL, Gate
from tests.support.issuer import OidcIssuer
from tests.support.signing import signing_key
from tests.support.tripwire import Tripwire


@pytest.fixture
async def github() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer("github-actions") as issuer:
        issuer.published.append(signing_key("RS256", 2).jwk)  # a token without kid must not find a key by luck
        yield issuer


@pytest.fixture
async def gate(github: OidcIssuer) -> AsyncIterator[Gate]:
    async with Gate(github) as gate:
        yield gate


async def refuse_family(gate: Gate, family: str, issuer: OidcIssuer | None = None) -> None:
    bads = forge(family, gate.good(issuer))
    assert bads
    for bad in bads:
        await gate.refuses(bad, issuer)


async def refuse_key_sets(family: str, algorithm: str) -> None:
    """Families that bring keys along: each forgery against a fresh issuer that publishes them."""
    async with OidcIssuer("github-actions", algorithm=algorithm) as issuer:
        good_keys = list(issuer.published)
        entry = issuer.entry(algorithms=(algorithm, "ES256", "ES384", "EdDSA"))
        async with Gate(issuer, entries=[entry]) as probe:
            bads = forge(family, probe.good())
        for bad in bads:
            issuer.published = [*good_keys, *map(dict, bad.published)]
            async with Gate(issuer, entries=[entry]) as gate:
                await gate.refuses(bad)


async def test_j01_a_token_without_signature_is_refused_however_none_is_spelt(gate: Gate) -> None:
    await refuse_family(gate, "J01")


async def test_j02_a_public_key_is_never_an_hmac_secret(gate: Gate) -> None:
    await refuse_family(gate, "J02")


async def test_j03_a_key_in_the_header_is_refused(gate: Gate) -> None:
    await refuse_family(gate, "J03")


async def test_j04_a_url_in_the_header_is_refused_and_never_called(gate: Gate) -> None:
    async with Tripwire() as wire:
        for bad in j04(gate.good(), wire.url):
            await gate.refuses(bad)
        assert wire.connections == 0


async def test_j06_a_kid_is_data_and_never_a_path_query_or_pattern(gate: Gate, github: OidcIssuer) -> None:
    await gate.admit(gate.good().token)
    before = github.connections
    await refuse_family(gate, "J06")
    assert github.connections - before <= 2 * gate.limits.unknown_kid_burst


async def test_j07_a_member_that_occurs_twice_is_refused(gate: Gate) -> None:
    await refuse_family(gate, "J07")


async def test_j08_critical_extensions_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J08")


async def test_j09_unencoded_and_detached_payloads_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J09")


async def test_j10_encrypted_nested_and_compressed_tokens_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J10")


async def test_j11_json_serialisations_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J11")


async def test_j12_anything_but_three_canonical_parts_is_refused(gate: Gate) -> None:
    await refuse_family(gate, "J12")


async def test_j13_what_is_too_large_is_refused(gate: Gate) -> None:
    await refuse_family(gate, "J13")


async def test_j14_deep_nesting_is_refused(gate: Gate) -> None:
    await refuse_family(gate, "J14")


async def test_j15_dates_that_are_no_sane_numbers_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J15")


async def test_j16_tokens_outside_their_time_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J16")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"exp": -29}, None, id="exp 29 s ago, within the leeway"),
        pytest.param({"exp": -30}, errors.TokenExpired, id="exp 30 s ago, at the end of the leeway"),
        pytest.param({"exp": -31}, errors.TokenExpired, id="exp 31 s ago"),
        pytest.param({"exp": 1}, None, id="exp in one second"),
        pytest.param({"exp": 0}, None, id="exp now"),
        pytest.param({"nbf": 30}, None, id="nbf 30 s ahead"),
        pytest.param({"nbf": 31}, errors.TokenNotYetValid, id="nbf 31 s ahead"),
        pytest.param({"iat": 30}, None, id="iat 30 s ahead"),
        pytest.param({"iat": 31}, errors.TokenNotYetValid, id="iat 31 s ahead"),
        pytest.param({"iat": -930, "exp": -30 + 1}, errors.TokenLivesTooLong, id="one second more than max_lifetime"),
        pytest.param({"iat": -600, "exp": 300}, None, id="exactly max_lifetime"),
        pytest.param({"iat": -600, "exp": 301}, errors.TokenLivesTooLong, id="one second beyond max_lifetime"),
        pytest.param({"iat": -880, "exp": 20}, None, id="nearly max_age"),
        pytest.param({"iat": -629, "max_age_s": 600, "exp": 1}, None, id="max_age and nearly the leeway"),
        pytest.param({"iat": -630, "max_age_s": 600, "exp": 1}, None, id="max_age and the leeway"),
        pytest.param({"iat": -631, "max_age_s": 600, "exp": 1}, errors.TokenTooOld, id="one second older than that"),
    ],
)
async def test_j16_the_edges_of_time_second_by_second(
    github: OidcIssuer, changes: dict[str, int], error: type[BrokerError] | None
) -> None:
    offsets = dict(changes)
    entry = github.entry(max_age_s=offsets.pop("max_age_s", 900))
    base = {"iat": -60, "nbf": -60, "exp": 200}
    async with Gate(github, entries=[entry]) as gate:
        token = gate.good(**{name: int(gate.now) + offset for name, offset in (base | offsets).items()}).token
        if error is None:
            assert (await gate.admit(token)).issuer == "github"
        else:
            assert type(await gate.refusal(token)) is error
            assert (await gate.admit(gate.good().token)).issuer == "github"


async def test_j17_missing_claims_are_refused(gate: Gate, github: OidcIssuer) -> None:
    await refuse_family(gate, "J17")
    entry = github.entry(required=("iss", "sub", "aud", "exp", "iat", "jti"))
    async with Gate(github, entries=[entry]) as strict:
        await strict.refuses(Bad("no jti where it is required", strict.good().without("jti")))


async def test_j18_wrongly_typed_claims_are_refused(gate: Gate) -> None:
    await refuse_family(gate, "J18")


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256", "EdDSA"])
async def test_j20_signatures_at_the_edges_are_refused(algorithm: str) -> None:
    async with OidcIssuer("github-actions", algorithm=algorithm) as issuer, Gate(issuer) as gate:
        await refuse_family(gate, "J20")


async def test_j22_a_key_serves_its_own_curve_and_algorithm_only() -> None:
    await refuse_key_sets("J22", "ES256")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_j25_keys_meant_for_something_else_are_refused(algorithm: str) -> None:
    await refuse_key_sets("J25", algorithm)


async def test_j26_only_our_own_audience_is_accepted_and_no_other_beside_it(gate: Gate) -> None:
    await refuse_family(gate, "J26")


async def test_j26_the_refusal_tells_the_expected_audience(gate: Gate) -> None:
    error = await gate.refusal(gate.good().but(aud="https://elsewhere.example"))
    assert error.told == {"expected_audience": f"{BASE_URL}/prod"}


async def test_j26_an_audience_of_one_env_is_refused_at_another(gate: Gate) -> None:
    good = gate.good()
    assert type(await gate.refusal(good.token, env="dev")) is errors.TokenAudience
    assert (await gate.admit(good.token, env="prod")).issuer == "github"


async def test_j26_an_entry_without_audience_for_an_env_refuses_all(github: OidcIssuer) -> None:
    async with Gate(github, entries=[github.entry(audiences={"dev": ("a",)})]) as gate:
        assert type(await gate.refusal(gate.good().token)) is errors.TokenAudience
        assert (await gate.admit(gate.good().but(aud="a"), env="dev")).issuer == "github"


async def test_j27_keys_belong_to_their_issuer() -> None:
    async with OidcIssuer(name="one") as one, OidcIssuer(name="two", number=2) as two, Gate(one, two) as gate:
        for mine, other in ((one, two), (two, one)):
            stolen = Good({**mine.header(), "kid": other.key.kid}, gate.good(mine).claims, other.key, gate.now)
            await gate.refuses(Bad("signed by the other's key", stolen.token, (errors.KeyUnknown,)), mine)
            disguised = Good(mine.header(), gate.good(mine).claims, other.key, gate.now)
            await gate.refuses(Bad("under my kid", disguised.token, (errors.SignatureInvalid,)), mine)


async def test_j27_one_kid_at_two_issuers_names_two_keys() -> None:
    async with OidcIssuer(name="one") as one, OidcIssuer(name="two", number=2) as two, Gate(one, two) as gate:
        for issuer in (one, two):
            issuer.key = issuer.key.renamed("shared")
            issuer.published = [issuer.key.jwk]
        for mine, other in ((one, two), (two, one)):
            assert (await gate.admit(gate.good(mine).token)).issuer == mine.name
            forged = Good(mine.header(), gate.good(mine).claims, other.key, gate.now)
            await gate.refuses(Bad("the other's key of the same kid", forged.token, (errors.SignatureInvalid,)), mine)


async def test_j28_an_issuer_is_compared_byte_for_byte(gate: Gate) -> None:
    await refuse_family(gate, "J28")


async def test_j31_our_own_credentials_are_no_identity(gate: Gate) -> None:
    for bad in j31(gate.good(), BASE_URL):
        await gate.refuses(bad)


async def test_j31_not_even_if_an_entry_trusts_this_broker() -> None:
    async with OidcIssuer("github-actions") as issuer:
        async with Gate(issuer, base_url=issuer.url) as gate:
            token = gate.good(iss=f"{issuer.url}").token
            assert type(await gate.refusal(token)) is errors.OwnCredential
        async with Gate(issuer) as gate:
            assert (await gate.admit(gate.good().token)).issuer == "github"


async def test_j32_two_presentations_claim_the_same_single_use(gate: Gate) -> None:
    good = gate.good()
    first, second = await gate.admit(good.token), await gate.admit(good.token)
    assert first.single_use == second.single_use is not None


async def test_j32_the_claim_outlives_the_last_moment_of_acceptance(gate: Gate) -> None:
    good = gate.good()
    exp, leeway = good.claims["exp"], gate.limits.leeway_s
    workload = await gate.admit(good.token, now=exp + leeway - 1)
    assert workload.single_use is not None
    assert workload.single_use.until >= exp + leeway + 2 * gate.limits.store_clock_skew_s
    assert type(await gate.refusal(good.token, now=exp + leeway)) is errors.TokenExpired


async def test_j32_the_twin_of_an_ecdsa_signature_is_the_same_use() -> None:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    async with OidcIssuer("github-actions", algorithm="ES256") as issuer, Gate(issuer) as gate:
        good = gate.good(jti=None)
        token = good.without("jti")
        twin = _twin(token, order)
        assert twin != token
        first, second = await gate.admit(token), await gate.admit(twin)
        assert first.single_use == second.single_use is not None
        assert first.token_sha256 != second.token_sha256


def _twin(token: str, order: int) -> str:
    import base64

    signing_input, _, part = token.rpartition(".")
    raw = base64.urlsafe_b64decode(part + "==")
    s = order - int.from_bytes(raw[32:], "big")
    return signing_input + "." + base64.urlsafe_b64encode(raw[:32] + s.to_bytes(32, "big")).rstrip(b"=").decode()


async def test_j35_a_bound_token_without_proof_is_refused(gate: Gate) -> None:
    await refuse_family(gate, "J35")


async def test_j36_odd_headers_are_refused_and_unknown_parameters_ignored(gate: Gate) -> None:
    await refuse_family(gate, "J36")
    good = gate.good()
    junk = {f"junk{n}": n for n in range(100)}
    assert (await gate.admit(good.under(**junk, x5t="AAAA", **{"x5t#S256": "AAAA"}))).issuer == "github"
    for typ in ("JWT", "jwt", "JOSE"):
        assert (await gate.admit(good.under(typ=typ))).issuer == "github"
    assert (await gate.admit(good.under("typ"))).issuer == "github"


async def test_a_refusal_carries_nothing_of_the_token(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-" + hashlib.sha256(b"x").hexdigest()
    good = gate.good()
    for token in (
        good.but(iss=f"https://{canary}.example"),
        good.but(aud=canary),
        good.but(sub=[canary]),
        good.under(kid=canary),
        good.under(alg=canary),
        good.under(typ=canary),
        good.with_payload(b'{"a":"' + canary.encode() + b'",}'),
        good.with_payload(b'{"a":"' + canary.encode() + b'\xff"}'),
    ):
        error = await gate.refusal(token)
        chain: Any = error
        while chain is not None:
            assert canary not in str(chain)
            assert canary not in repr(getattr(chain, "object", ""))
            chain = chain.__cause__ or chain.__context__
    assert canary not in caplog.text
