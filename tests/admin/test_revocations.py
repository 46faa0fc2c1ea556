"""Acts over many envs: every env means those of tomorrow too, one that fails stops no other, and a repeated act is the same."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.admin.acts import Lift, Revoke
from broker.errors import CannotReach
from broker.node import local_operator
from tests.support.issuer import OidcIssuer
from tests.support.live import Live

SOON_S = 10.0
ACCOUNT = "svc-payments-deploy"
QA = "  qa: {max_ttl: 1h, issuers: [github]}\n"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as running:
        yield running


def with_qa(tree: Path) -> Path:
    """The same tree with one env more."""
    (tree / "qa").mkdir()
    account = (tree / "prod" / f"{ACCOUNT}.yaml").read_text().replace("  ledger: [entries:read]\n", "")
    (tree / "qa" / f"{ACCOUNT}.yaml").write_text(account)
    with (tree / "environments.yaml").open("a") as file:
        file.write(QA)
    return tree


async def opened(env: str, live: Live) -> None:
    await live.node.reload()
    async with asyncio.timeout(SOON_S):
        while not live.node.serves(env):
            await asyncio.sleep(0.01)


async def verdict(live: Live, env: str, **claims: Any) -> str:
    answer = await live.deploys(env, **claims)
    return "issued" if answer.status_code == 200 else answer.json()["reason"]


async def test_a_revocation_in_every_env_holds_in_an_env_that_the_policy_adds_later(live: Live) -> None:
    revocation = await live.revoke(service_account=ACCOUNT, envs=())
    assert [await verdict(live, env) for env in ("prod", "dev")] == ["revoked"] * 2
    with_qa(live.policies)
    await opened("qa", live)
    assert await verdict(live, "qa") == "revoked"
    passed_on = await live.records("qa", act="revocation_of_every_env")
    assert [record["target"] for record in passed_on] == [{"revocation": revocation}]
    await live.lift(revocation, envs=())
    assert [await verdict(live, env) for env in ("prod", "dev", "qa")] == ["issued"] * 3


async def test_one_in_some_envs_does_not(live: Live) -> None:
    await live.revoke(service_account=ACCOUNT, envs=("prod", "dev"))
    with_qa(live.policies)
    await opened("qa", live)
    assert await verdict(live, "qa") == "issued"


async def test_an_env_that_the_policy_names_and_no_broker_has_opened_can_be_cut_off(live: Live) -> None:
    ahead = with_qa(shutil.copytree(live.policies, live.folder / "ahead"))
    act = ("revoke", "--service-account", ACCOUNT, "--env", "qa", "--reason", "INC-1", "--yes")
    code, _, err = await live.run(*act)
    assert (code, "no env `qa`" in err) == (3, True), "neither the policy nor the store knows it"
    code, out, err = await live.run(*act, "--policies", str(ahead))
    assert code == 0, err
    assert re.search(r"^REVOKED \S+ in qa ", out)
    with_qa(live.policies)
    await opened("qa", live)
    assert [await verdict(live, env) for env in ("qa", "prod")] == ["revoked", "issued"]


async def test_every_env_includes_what_the_policy_names_and_says_so(live: Live) -> None:
    ahead = with_qa(shutil.copytree(live.policies, live.folder / "ahead"))
    code, out, err = await live.run(
        "revoke", "--subject", "nobody", "--reason", "INC-1", "--yes", "--policies", str(ahead)
    )  # fmt: skip
    assert code == 0, err
    assert [f"{env} (entry" in out for env in ("dev", "prod", "qa", "system")] == [True, True, True, False]
    assert "every env that is opened later" in out


# One env that fails


class Damaged:
    """The head of an env's log, led astray: nothing can be added to it."""

    def __init__(self, live: Live, env: str) -> None:
        self.live, self.key = live, f"broker:{{{env}}}:head"

    async def __aenter__(self) -> None:
        self.tag = await self.live.raw.hget(self.key, "tag")
        await self.live.raw.hset(self.key, "tag", "astray")

    async def __aexit__(self, *_: object) -> None:
        await self.live.raw.hset(self.key, "tag", self.tag)


@pytest.mark.parametrize("envs", [(), ("dev", "prod")], ids=["every env", "two envs"])
async def test_an_env_that_fails_stops_no_other_and_the_act_can_be_repeated(live: Live, envs: tuple[str, ...]) -> None:
    act = Revoke(secrets.token_hex(8), {"service_account": ACCOUNT}, envs, "a test", int(time.time()) + 3_600)
    async with Damaged(live, "dev"):
        with pytest.raises(CannotReach) as failed:
            await live.node.admin.perform(act, local_operator())
        assert await verdict(live, "prod") == "revoked"
    assert failed.value.exit_code == 3
    assert re.search(r"may or may not have taken effect in dev; it holds in .*prod", failed.value.detail)
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(act.until))
    assert f"--id {act.id} --until {until}" in failed.value.hints[0]
    assert await verdict(live, "dev") == "issued"
    done = await live.node.admin.perform(act, local_operator())
    assert {"dev", "prod"} <= set(done.results)
    assert [await verdict(live, env) for env in ("dev", "prod")] == ["revoked"] * 2
    failures = await live.records("dev" if envs else "system", act="revoke", outcome="failed")
    assert "dev" in failures[0]["detail"]


async def test_a_lift_goes_on_behind_an_env_that_fails_and_can_be_repeated(live: Live) -> None:
    revocation = await live.revoke(service_account=ACCOUNT, envs=())
    lift = Lift(secrets.token_hex(8), revocation, (), "a test")
    async with Damaged(live, "dev"):
        with pytest.raises(CannotReach, match="in dev"):
            await live.node.admin.perform(lift, local_operator())
        assert await verdict(live, "prod") == "issued"
    await live.lift(revocation, envs=())
    assert await verdict(live, "dev") == "issued"


async def test_the_command_says_where_it_holds_and_its_hint_can_be_followed(live: Live) -> None:
    act = ("revoke", "--service-account", ACCOUNT, "--reason", "INC-1", "--yes")
    async with Damaged(live, "dev"):
        code, out, err = await live.run(*act, "--until", "2h")
    assert (code, out) == (3, "")
    said = re.search(r"^revocation (\S+): .* until (\S+Z)$", err, re.MULTILINE)
    assert said is not None, "id and end are printed before the first try"
    assert "in dev; it holds in envs that are opened later, prod" in err
    again = re.search(r"^hint: repeat the command with (--id \S+ --until \S+Z):", err, re.MULTILINE)
    assert again is not None
    assert again[1].split()[1::2] == [said[1], said[2]]
    code, out, err = await live.run(*act, *again[1].split(), "--json")
    assert code == 0, err
    assert {json.loads(line)["env"] for line in out.splitlines()} == {"dev", "prod"}
    assert [await verdict(live, env) for env in ("dev", "prod")] == ["revoked"] * 2


async def test_an_id_with_another_end_is_refused_with_the_end_that_it_had(live: Live) -> None:
    act = ("revoke", "--subject", "nobody", "--reason", "INC-1", "--id", "one-act", "--yes")
    code, _, err = await live.run(*act, "--until", "2h")
    assert code == 0, err
    code, out, err = await live.run(*act, "--until", "3h")
    assert (code, out) == (1, "")
    hint = re.search(r"^hint: it was made for subject nobody, with (--until \S+Z)", err, re.MULTILINE)
    assert hint is not None, err
    code, _, err = await live.run(*act, *hint[1].split())
    assert code == 0, err


# An issuer's entry under another name


def renamed(tree: Path) -> None:
    for file in tree.rglob("*.yaml"):
        text = file.read_text()
        for old, new in (("  github:\n", "  actions:\n"), ("[github]", "[actions]"), ("issuer: github\n", "issuer: actions\n")):
            text = text.replace(old, new)
        file.write_text(text)


@pytest.mark.parametrize("selectors", [
    pytest.param({"issuer": "github"}, id="all of the issuer"),
    pytest.param({"issuer": "github", "claims": {"actor": "rogue"}}, id="a claim under it"),
])
async def test_renaming_an_issuers_entry_lifts_nothing(live: Live, selectors: dict[str, Any]) -> None:
    await live.revoke(**selectors)
    assert await verdict(live, "prod", actor="rogue") == "revoked"
    renamed(live.policies)
    await live.node.reload()
    assert live.node.policy.current().issuers.by_name.keys() == {"actions"}
    assert await verdict(live, "prod", actor="rogue") == "revoked"
    assert await verdict(live, "prod", actor="mona") == ("issued" if "claims" in selectors else "revoked")


async def test_an_act_repeated_under_another_policy_is_the_same_act(live: Live) -> None:
    """The first try found no tree that loads, so the name of the issuer was taken as it was."""
    act = Revoke("one-act", {"issuer": "github"}, ("prod",), "a test")
    without = live.node.admin.__class__(
        live.node.store, live.node.revocations, live.node.rings, lambda: None, "test", live.limits, live.clock
    )
    first = await without.perform(act, local_operator())
    assert (await live.node.admin.perform(act, local_operator())).results == first.results
