"""Keys are always at hand, never older than allowed, and an issuer's trouble is its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.config import Limits
from broker.errors import IssuerUnavailable, KeyUnknown
from broker.identity.issuers import IssuerKeys
from tests.support.gate import Clock
from tests.support.issuer import DISCOVERY, JWKS, Fault, OidcIssuer
from tests.support.signing import compact_json, signing_key

LIMITS = Limits(fetch_s_max=1, jwks_wait_s_max=1)
ONCE = {DISCOVERY: 1, JWKS: 1}


async def test_a_warm_cache_answers_without_any_request() -> None:
    async with OidcIssuer() as issuer:
        keys, entry = IssuerKeys(LIMITS), issuer.entry()
        await keys.warm([entry])
        assert issuer.requests == ONCE
        for _ in range(100):
            assert keys.known(entry, issuer.key.kid, "RS256") is not None
            assert await keys.find(entry, issuer.key.kid, "RS256") is not None
        assert issuer.requests == ONCE
        assert issuer.connections == 2


async def test_a_cold_cache_is_filled_by_the_first_who_asks_and_by_nobody_else() -> None:
    async with OidcIssuer() as issuer:
        keys, entry = IssuerKeys(LIMITS), issuer.entry()
        assert keys.known(entry, issuer.key.kid, "RS256") is None
        found = await asyncio.gather(*[keys.find(entry, issuer.key.kid, "RS256") for _ in range(50)])
        assert len(set(map(id, found))) == 1
        assert issuer.requests == ONCE


async def test_v07_the_first_use_of_a_rotated_key_succeeds_within_one_call() -> None:
    async with OidcIssuer() as issuer:
        keys, entry = IssuerKeys(LIMITS), issuer.entry()
        await keys.warm([entry])
        old, new = issuer.key, issuer.rotate()
        assert (await keys.find(entry, new.kid, "RS256")).kid == new.kid
        assert keys.known(entry, old.kid, "RS256") is not None


async def test_a_key_that_appears_while_a_fetch_is_under_way_is_still_found_in_one_call() -> None:
    async with OidcIssuer() as issuer:
        keys, entry = IssuerKeys(LIMITS), issuer.entry()
        await keys.warm([entry])
        issuer.hold = asyncio.Event()
        issuer.arrived.clear()
        early = asyncio.create_task(keys.find(entry, "nobody's", "RS256"))
        await issuer.arrived.wait()
        late = asyncio.create_task(keys.find(entry, "rs256-2", "RS256"))
        await asyncio.sleep(0)
        issuer.hold.set()
        with pytest.raises(KeyUnknown):
            await early
        issuer.rotate()
        assert (await late).kid == "rs256-2"


async def test_a_withdrawn_key_is_gone_with_the_next_good_fetch() -> None:
    async with OidcIssuer() as issuer:
        clock = Clock()
        keys, entry = IssuerKeys(LIMITS, clock=clock), issuer.entry()
        await keys.warm([entry])
        old = issuer.key
        issuer.rotate()
        issuer.withdraw(old.kid)
        assert keys.known(entry, old.kid, "RS256") is not None
        clock.pass_s(LIMITS.jwks_refresh_s)
        await keys.tick()
        assert keys.known(entry, old.kid, "RS256") is None
        with pytest.raises(KeyUnknown):
            await keys.find(entry, old.kid, "RS256")
        assert keys.known(entry, issuer.key.kid, "RS256") is not None


async def test_an_issuer_that_withdraws_all_keys_is_believed() -> None:
    async with OidcIssuer() as issuer:
        clock = Clock()
        keys, entry = IssuerKeys(LIMITS, clock=clock), issuer.entry()
        await keys.warm([entry])
        issuer.published = []
        clock.pass_s(LIMITS.jwks_refresh_s)
        await keys.tick()
        with pytest.raises(KeyUnknown):
            await keys.find(entry, issuer.key.kid, "RS256")


async def test_refreshing_happens_when_it_is_due_and_not_before() -> None:
    async with OidcIssuer() as issuer:
        clock = Clock()
        keys = IssuerKeys(LIMITS, clock=clock)
        await keys.warm([issuer.entry()])
        clock.pass_s(LIMITS.jwks_refresh_s - 1)
        await keys.tick()
        assert issuer.requests[JWKS] == 1
        clock.pass_s(1)
        await keys.tick()
        assert issuer.requests[JWKS] == 2


async def test_warm_fetches_what_is_missing_only() -> None:
    async with OidcIssuer() as issuer:
        keys = IssuerKeys(LIMITS)
        for _ in range(3):
            await keys.warm([issuer.entry()])
        assert issuer.requests == ONCE


async def test_run_refreshes_by_itself_and_ends_with_its_flag() -> None:
    async with OidcIssuer() as issuer:
        clock = Clock()
        keys = IssuerKeys(Limits(jwks_file_poll_s=1), clock=clock)
        await keys.warm([issuer.entry()])
        clock.pass_s(10_000)
        issuer.arrived.clear()
        stop = asyncio.Event()
        task = asyncio.create_task(keys.run(stop))
        await issuer.arrived.wait()
        stop.set()
        await task


# Trouble


async def test_an_issuer_that_is_down_at_start_is_found_once_it_is_up() -> None:
    issuer = OidcIssuer()
    async with issuer:
        clock = Clock()
        keys, entry = IssuerKeys(LIMITS, clock=clock), issuer.entry()
        await issuer.down()
        await keys.warm([entry])
        assert keys.health()["github"].age_s is None
        assert keys.health()["github"].last_error
        with pytest.raises(IssuerUnavailable):
            await keys.find(entry, issuer.key.kid, "RS256")
        await issuer.up()
        clock.pass_s(LIMITS.unknown_kid_refill_s)
        assert await keys.find(entry, issuer.key.kid, "RS256")
        assert keys.health()["github"] == (0.0, "")


async def test_k13_known_keys_outlive_an_outage_until_they_are_too_old() -> None:
    issuer = OidcIssuer()
    async with issuer:
        clock = Clock()
        keys, entry = IssuerKeys(LIMITS, clock=clock), issuer.entry()
        await keys.warm([entry])
        await issuer.down()
        clock.pass_s(LIMITS.jwks_stale_s_max)
        await keys.tick()
        assert keys.known(entry, issuer.key.kid, "RS256") is not None
        assert keys.health()["github"].age_s == LIMITS.jwks_stale_s_max
        clock.pass_s(1)
        assert keys.known(entry, issuer.key.kid, "RS256") is None
        with pytest.raises(IssuerUnavailable):
            await keys.find(entry, issuer.key.kid, "RS256")
        await issuer.up()
        clock.pass_s(LIMITS.unknown_kid_refill_s)
        assert await keys.find(entry, issuer.key.kid, "RS256")


async def test_during_an_outage_an_unknown_kid_is_no_verdict() -> None:
    issuer = OidcIssuer()
    async with issuer:
        keys, entry = IssuerKeys(LIMITS), issuer.entry()
        await keys.warm([entry])
        await issuer.down()
        for _ in range(LIMITS.unknown_kid_burst + 2):
            with pytest.raises(IssuerUnavailable):
                await keys.find(entry, "new", "RS256")


async def test_during_an_outage_the_loop_and_the_callers_together_ask_once_a_cooldown() -> None:
    async with OidcIssuer() as issuer:
        issuer.fault, clock = Fault.STATUS_500, Clock()
        keys, entry = IssuerKeys(LIMITS, clock=clock), issuer.entry()
        await keys.warm([entry])
        for _ in range(10):
            clock.pass_s(LIMITS.unknown_kid_refill_s)
            for _ in range(5):
                await keys.tick()
                with pytest.raises(IssuerUnavailable):
                    await keys.find(entry, issuer.key.kid, "RS256")
        assert issuer.requests[DISCOVERY] <= 1 + LIMITS.unknown_kid_burst + 10


async def test_a_caller_waits_so_long_and_no_longer() -> None:
    async with OidcIssuer() as issuer:
        issuer.hold = asyncio.Event()
        keys, entry = IssuerKeys(Limits(jwks_wait_s_max=1, fetch_s_max=5)), issuer.entry()
        with pytest.raises(IssuerUnavailable):
            await keys.find(entry, issuer.key.kid, "RS256")
        # The fetch goes on for those who come later.
        issuer.hold.set()
        assert await keys.find(entry, issuer.key.kid, "RS256")
        assert issuer.requests == ONCE


async def test_who_stops_waiting_does_not_stop_the_fetch_for_others() -> None:
    async with OidcIssuer() as issuer:
        issuer.hold = asyncio.Event()
        keys, entry = IssuerKeys(LIMITS), issuer.entry()
        first = asyncio.create_task(keys.find(entry, issuer.key.kid, "RS256"))
        second = asyncio.create_task(keys.find(entry, issuer.key.kid, "RS256"))
        await issuer.arrived.wait()
        first.cancel()
        issuer.hold.set()
        assert await second
        assert issuer.requests == ONCE


async def test_one_issuer_hanging_holds_up_no_other() -> None:
    async with OidcIssuer(name="slow") as slow, OidcIssuer(name="quick", number=2) as quick:
        slow.fault = Fault.SILENT
        keys = IssuerKeys(Limits(fetch_s_max=60, jwks_wait_s_max=60))
        waiting = asyncio.create_task(keys.find(slow.entry(), slow.key.kid, "RS256"))
        await slow.arrived.wait()
        assert await keys.find(quick.entry(), quick.key.kid, "RS256")
        assert not waiting.done()
        waiting.cancel()
        await keys.close()


# Settings


async def test_k16_an_entry_with_another_url_never_meets_the_old_keys() -> None:
    async with OidcIssuer() as old, OidcIssuer(number=2) as new:
        keys = IssuerKeys(LIMITS)
        await keys.warm([old.entry()])
        moved = old.entry(url=new.url)
        assert keys.known(moved, old.key.kid, "RS256") is None
        with pytest.raises(KeyUnknown):
            await keys.find(moved, old.key.kid, "RS256")
        assert await keys.find(moved, new.key.kid, "RS256")


@pytest.mark.parametrize("change", [{"name": "b"}, {"key_use": "x"}, {"ca_file": "/nowhere"}, {"algorithms": ("ES256",)}])
async def test_k16_any_other_setting_means_other_keys(change: dict[str, object]) -> None:
    async with OidcIssuer() as issuer:
        keys = IssuerKeys(LIMITS)
        await keys.warm([issuer.entry()])
        assert keys.known(issuer.entry(**change), issuer.key.kid, "RS256") is None


async def test_what_a_tree_no_longer_names_is_forgotten() -> None:
    async with OidcIssuer(name="one") as one, OidcIssuer(name="two", number=2) as two:
        keys = IssuerKeys(LIMITS)
        await keys.warm([one.entry(), two.entry()])
        keys.retain([two.entry()])
        assert set(keys.health()) == {"two"}
        assert keys.known(one.entry(), one.key.kid, "RS256") is None
        assert keys.known(two.entry(), two.key.kid, "RS256") is not None


async def test_forgetting_an_issuer_ends_its_fetch() -> None:
    async with OidcIssuer() as issuer:
        issuer.fault = Fault.SILENT
        keys = IssuerKeys(Limits(fetch_s_max=60, jwks_wait_s_max=60))
        waiting = asyncio.create_task(keys.find(issuer.entry(), "k", "RS256"))
        await issuer.arrived.wait()
        keys.retain([])
        with pytest.raises(IssuerUnavailable):
            await waiting


async def test_a_jwks_url_needs_no_discovery() -> None:
    async with OidcIssuer() as issuer:
        keys, entry = IssuerKeys(LIMITS), issuer.entry(jwks_url=issuer.jwks_url)
        assert await keys.find(entry, issuer.key.kid, "RS256")
        assert issuer.requests == {JWKS: 1}


async def test_a_spiffe_entry_is_never_looked_up_by_discovery() -> None:
    async with OidcIssuer("spiffe", name="spiffe") as issuer:
        keys = IssuerKeys(LIMITS)
        with pytest.raises(IssuerUnavailable):
            await keys.find(issuer.entry(jwks_url=None), issuer.key.kid, "ES256")
        assert issuer.connections == 0
        assert await keys.find(issuer.entry(), issuer.key.kid, "ES256")


# Files


def write(path: Path, *jwks: object) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(compact_json({"keys": jwks}))
    aside.replace(path)


async def test_a_key_file_needs_no_network_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, one, two = tmp_path / "keys.json", signing_key("RS256", 1), signing_key("RS256", 2)
    issuer, clock = OidcIssuer(), Clock()
    write(path, one.jwk)
    keys, entry = IssuerKeys(LIMITS, clock=clock), issuer.entry(url="https://kubernetes.default.svc", jwks_file=str(path))
    await keys.warm([entry])
    assert keys.known(entry, one.kid, "RS256") is not None
    write(path, two.jwk)
    clock.pass_s(LIMITS.jwks_file_poll_s)
    await keys.tick()
    assert keys.known(entry, one.kid, "RS256") is None
    assert keys.known(entry, two.kid, "RS256") is not None


async def test_a_new_key_in_a_file_is_found_within_one_call(tmp_path: Path) -> None:
    path, one, two = tmp_path / "keys.json", signing_key("RS256", 1), signing_key("RS256", 2)
    write(path, one.jwk)
    keys, entry = IssuerKeys(LIMITS), OidcIssuer().entry(jwks_file=str(path))
    await keys.warm([entry])
    write(path, one.jwk, two.jwk)
    assert await keys.find(entry, two.kid, "RS256")


async def test_a_broken_or_missing_file_leaves_the_last_good_keys(tmp_path: Path) -> None:
    path, one = tmp_path / "keys.json", signing_key("RS256", 1)
    clock = Clock()
    write(path, one.jwk)
    keys, entry = IssuerKeys(LIMITS, clock=clock), OidcIssuer().entry(jwks_file=str(path))
    await keys.warm([entry])
    for breaking in (lambda: path.write_text("{"), lambda: path.write_bytes(b"[" * 600_000), path.unlink):
        breaking()
        clock.pass_s(LIMITS.unknown_kid_refill_s)
        await keys.tick()
        assert keys.known(entry, one.kid, "RS256") is not None
        assert keys.health()["github"].last_error


async def test_an_unchanged_file_stays_fresh(tmp_path: Path) -> None:
    path, one = tmp_path / "keys.json", signing_key("RS256", 1)
    clock = Clock()
    write(path, one.jwk)
    keys, entry = IssuerKeys(LIMITS, clock=clock), OidcIssuer().entry(jwks_file=str(path))
    await keys.warm([entry])
    for _ in range(3):
        clock.pass_s(LIMITS.jwks_stale_s_max)
        await keys.tick()
        assert keys.known(entry, one.kid, "RS256") is not None
