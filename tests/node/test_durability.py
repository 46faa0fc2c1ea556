"""A store that promises less than was asked for makes the node unfit, at the start and later."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.issuer import OidcIssuer
from tests.support.live import Live

SOON_S = 10.0


async def test_a_store_that_stops_syncing_makes_the_node_unfit(tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        assert (await live.client.get("/readyz")).status_code == 200
        await live.raw.config_set("appendfsync", "no")
        async with asyncio.timeout(SOON_S):
            while (answer := await live.client.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.05)
        assert "promises" in answer.json()["failing"]["store"]
        await live.raw.config_set("appendfsync", "always")
        async with asyncio.timeout(SOON_S):
            while (await live.client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
