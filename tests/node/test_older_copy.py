"""An older copy of the store under a node that starts: what is behind the machine's witness serves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.admin.acts import RotateKeys
from broker.node import WITNESS, local_operator
from broker.telemetry import log
from tests.support.issuer import OidcIssuer
from tests.support.live import Live

RING = "broker:{prod}:keys"


async def test_a_condemned_key_does_not_come_back_with_an_older_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info")
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        await live.node.rings.tick("prod")  # what its schedule does at the start is done: nobody else changes the ring now
        older = await live.raw.hgetall(RING)
        await live.node.admin.perform(RotateKeys("prod", "it leaked", fresh=True), local_operator())
        newer = await live.raw.hgetall(RING)
        await live.raw.hset(RING, mapping=older)
        async with live.beside() as started:
            answer = await started.client.get("/readyz")
            assert answer.status_code == 503
            assert "went back from version" in answer.json()["failing"]["keys prod"]
            assert "key ring refused" in "".join(capsys.readouterr())
            assert (await started.deploys()).status_code == 503
            assert (await started.client.get("/prod/jwks.json")).status_code == 503, "the condemned key is not published either"
            assert (await started.deploys("dev")).status_code == 200
            code, out, _ = await live.run("doctor", "--json")
            found = {row["what"]: row for row in map(json.loads, out.splitlines())}
            assert (code, found["witness"]["verdict"]) == (1, "bad")
            assert "key ring of prod ends at" in found["witness"]["found"]
            await live.raw.hset(RING, mapping=newer)
            await started.node.rings.tick("prod")
            assert (await started.client.get("/readyz")).status_code == 200
        await live.raw.hset(RING, mapping=older)
        (live.data / WITNESS).rename(live.data / "aside")
        async with live.beside() as deliberate:
            assert (await deliberate.client.get("/readyz")).status_code == 200, "an operator who knows goes on"
            code, out, _ = await live.run("doctor", "--json")
            assert '"what": "witness", "verdict": "ok"' in out


async def test_doctor_finds_a_revocation_log_that_is_behind(tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        head = await live.raw.hgetall("broker:{prod}:head")
        await live.revoke(service_account="svc-payments-deploy")
        await live.raw.rpop("broker:{prod}:log")
        await live.raw.hset("broker:{prod}:head", mapping=head)
        code, out, _ = await live.run("doctor", "--json")
        assert code == 1
        assert "revocation log of prod ends at 0, and 1 was seen" in out
