"""Chains against a real store: what was seen once must be there for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import StoreUnavailable
from broker.protocol.revocations import Entry
from broker.revocation.chain import Revocations
from broker.revocation.witness import Seen, Witness
from broker.store.commit import Store

KEY = b"k" * 32


def chains(store: Store, folder: Path) -> Revocations:
    return Revocations(store=store, key=KEY, witness=Witness(folder / "witness"), birth_record=lambda _slot: b"{}")


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
    other = Revocations(store=store, key=b"x" * 32, witness=Witness(tmp_path / "w"), birth_record=lambda _slot: b"{}")
    await other.open("prod", 1)
    with pytest.raises(StoreUnavailable, match="does not verify"):
        other.view("prod")
