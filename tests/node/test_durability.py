"""A store that promises less than was asked for makes the node unfit, at the start and later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2

from tests.support.issuer import OidcIssuer
from tests.support.live import Live

SOON_S = 10.0


async def test_a_store_that_stops_syncing_makes_the_node_unfit(tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        assert (await live.client.get("/readyz")).status_code == 200
        await live.raw.config_set("appendfsync", "no")
        assert "promises" in (await until_ready_is(503, live)).json()["failing"]["store"]
        await live.raw.config_set("appendfsync", "always")
        await until_ready_is(200, live)


async def test_while_the_node_knows_that_writes_are_not_synced_nothing_is_issued(tmp_path: Path) -> None:
    """Promise 1: recorded durably, or 503.  A refusal too; what cuts off is taken all the same."""
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        await live.raw.config_set("appendfsync", "everysec")
        await until_ready_is(503, live)
        for act, claims in (("token", {}), ("token", {"environment": "x"}), ("check", {})):
            answer = await live.exchange(live.token(**claims), act=act, audience="payments", scope="deploy:write")
            assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable"), act
        assert not await live.records(outcome="issued")
        assert not await live.records(outcome="unissued")  # nothing was sent that would have to be given up
        assert not await live.records(outcome="refused")
        await live.revoke(subject="somebody")
        await live.raw.config_set("appendfsync", "always")
        await until_ready_is(200, live)
        assert (await live.deploys()).status_code == 200


async def until_ready_is(status: int, live: Live) -> httpx2.Response:
    async with asyncio.timeout(SOON_S):
        while (answer := await live.client.get("/readyz")).status_code != status:
            await asyncio.sleep(0.05)
        return answer
