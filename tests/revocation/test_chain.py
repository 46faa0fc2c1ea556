"""Chains against a real store: what was seen once must be there for good."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from broker.errors import ActRefused, StoreUnavailable
from broker.protocol.revocations import Entry, in_force, parse_entry
from broker.revocation.chain import Revocations
from broker.store.commit import Store
from broker.store.names import SYSTEM_SLOT
from broker.store.witness import Seen, Witness

KEY = b"k" * 32


def chains(store: Store, folder: Path) -> Revocations:
    return Revocations(store=store, key=KEY, witness=Witness(folder / "witness"), record=lambda *_: b"{}")


def entry(id: str) -> Entry:
    return Entry(id=id, act="revoke", by="ann", at=1, selectors={"service_account": id})


async def test_a_chain_is_born_once_extended_and_read_again(store: Store, tmp_path: Path) -> None:
    first = chains(store, tmp_path)
    await first.open("prod", 1)
    assert await first.extend("prod", entry("a"), b"{}") == 1
    second = chains(store, tmp_path / "other")
    await second.open("prod", 2)
    assert second.view("prod").position == first.view("prod").position
    assert await second.extend("prod", entry("a"), b"{}") == 1, "the same act is the same entry"


async def test_another_history_is_noticed_however_far_it_has_come(store: Store, tmp_path: Path) -> None:
    """An older copy that somebody wrote to since is longer than what was seen, and still not it."""
    chain = chains(store, tmp_path)
    await chain.open("prod", 1)
    for id in ("a", "b", "c"):
        await chain.extend("prod", entry(id), b"{}")
    other = chains(store, tmp_path / "other")
    other.witness.note("prod", Seen(2, "0" * 64))
    await other.open("prod", 1)
    with pytest.raises(StoreUnavailable, match="another history"):
        other.view("prod")


async def test_less_than_was_seen_is_noticed(store: Store, tmp_path: Path) -> None:
    chain = chains(store, tmp_path)
    await chain.open("prod", 1)
    chain.witness.note("prod", Seen(5, "0" * 64))
    again = chains(store, tmp_path)
    await again.open("prod", 1)
    with pytest.raises(StoreUnavailable, match="older copy"):
        again.view("prod")


async def test_another_key_reads_nothing(store: Store, tmp_path: Path) -> None:
    await chains(store, tmp_path).open("prod", 1)
    other = Revocations(store=store, key=b"x" * 32, witness=Witness(tmp_path / "w"), record=lambda *_: b"{}")
    await other.open("prod", 1)
    with pytest.raises(StoreUnavailable, match="does not verify"):
        other.view("prod")


async def test_a_damaged_witness_closes_the_slot_and_says_why(store: Store, tmp_path: Path) -> None:
    await chains(store, tmp_path).open("prod", 1)
    (tmp_path / "witness").write_text("{")
    again = chains(store, tmp_path)
    await again.open("prod", 1)
    with pytest.raises(StoreUnavailable, match="damaged"):
        again.view("prod")


async def test_the_id_of_another_act_is_refused_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    chain = chains(store, tmp_path)
    await chain.open("prod", 1)
    await chain.extend("prod", entry("a"), b"{}")
    with pytest.raises(ActRefused, match="another act"):
        await chain.extend("prod", replace(entry("a"), selectors={"subject": "x"}), b"{}")
    assert len(chain.view("prod").entries) == 2


# What is said for every env


def standing(chain: Revocations, slot: str) -> list[str]:
    return [known.id for known in in_force(chain.view(slot).entries, 100)]


async def test_what_was_revoked_in_every_env_holds_in_one_that_is_born_later(store: Store, tmp_path: Path) -> None:
    first = chains(store, tmp_path)
    await first.open("prod", 1)
    for slot in (SYSTEM_SLOT, *await first.envs()):
        await first.extend(slot, entry("a"), b"{}")
    second = chains(store, tmp_path / "other")
    await second.open("qa", 2)
    assert standing(second, "qa") == ["a"]
    again = chains(store, tmp_path / "third")
    await again.open("qa", 3)
    assert again.view("qa").position == second.view("qa").position, "passed on once"


async def test_an_env_that_is_born_while_others_are_counted_is_not_forgotten(store: Store, tmp_path: Path) -> None:
    """The worst moment: counted before the birth, so nobody will tell the new env, and its opening has to see for itself."""
    revoker = chains(store, tmp_path)
    await revoker.open("prod", 1)
    born = asyncio.Event()
    spoken = asyncio.Event()

    class Meanwhile(Store):
        async def birth(self, slot: str, tag: str, entry: str, record: bytes) -> bool:
            if slot == "qa":
                await spoken.wait()
            done = await super().birth(slot, tag, entry, record)
            born.set()
            return done

    other = Meanwhile.__new__(Meanwhile)
    other.__dict__.update(store.__dict__)
    opener = chains(other, tmp_path / "other")
    opening = asyncio.create_task(opener.open("qa", 2))
    await revoker.extend(SYSTEM_SLOT, entry("a"), b"{}")
    assert await revoker.envs() == ("prod",)
    spoken.set()
    await opening
    assert born.is_set()
    assert standing(opener, "qa") == ["a"]


async def test_what_is_lifted_or_past_or_lifted_in_one_env_alone_is_not_passed_on(store: Store, tmp_path: Path) -> None:
    chain = chains(store, tmp_path)
    await chain.open("prod", 1)
    for id, until in (("lifted", None), ("past", 50), ("here", None)):
        for slot in (SYSTEM_SLOT, "prod"):
            await chain.extend(slot, replace(entry(id), until=until), b"{}")
    lifts = Entry(id="l1", act="lift", by="ann", at=2, lifts="lifted")
    await chain.extend(SYSTEM_SLOT, lifts, b"{}")
    await chain.extend("prod", lifts, b"{}")
    await chain.extend("prod", Entry(id="l2", act="lift", by="ann", at=3, lifts="here"), b"{}")
    again = chains(store, tmp_path)
    for slot, stands in (("prod", []), ("qa", ["here"])):
        await again.open(slot, 100)
        assert standing(again, slot) == stands, slot


async def test_a_lift_everywhere_reaches_an_env_that_was_just_told_of_the_rule(store: Store, tmp_path: Path) -> None:
    chain = chains(store, tmp_path)
    for slot in ("prod", "qa"):
        await chain.open(slot, 1)
        await chain.extend(slot, entry("a"), b"{}")
    await chain.extend(SYSTEM_SLOT, entry("a"), b"{}")
    await chain.extend(SYSTEM_SLOT, Entry(id="l1", act="lift", by="ann", at=2, lifts="a"), b"{}")
    again = chains(store, tmp_path)
    await again.open("qa", 3)
    assert standing(again, "qa") == []


async def test_an_entry_of_a_newer_version_is_passed_on_as_it_is(store: Store, tmp_path: Path) -> None:
    text = '{"act":"revoke","at":1,"by":"x","id":"r9","reason":"","selectors":{"service_account":"b"},"unless":{},"until":null}'
    chain = chains(store, tmp_path)
    await chain.open("prod", 1)
    await chain.extend(SYSTEM_SLOT, parse_entry(text), b"{}")
    await chain.open("qa", 2)
    told = chain.view("qa").entries[-1]
    assert (told.canonical(), told.unknown) == (text, ("unless",))


async def test_without_the_log_of_every_env_no_env_is_open(store: Store, tmp_path: Path) -> None:
    await chains(store, tmp_path).open("prod", 1)
    Witness(tmp_path / "witness").note(SYSTEM_SLOT, Seen(9, "0" * 64))
    again = chains(store, tmp_path)
    await again.open("prod", 2)
    with pytest.raises(StoreUnavailable, match="what holds in every env cannot be read"):
        again.view("prod")
