"""Voids that wait for a store: in order, none lost while there is room, and a bound that is counted."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import REGISTRY

from broker.config import Limits
from broker.credentials.voids import Void, Voids
from broker.store.commit import Store


def void(number: int) -> Void:
    return Void("prod", f"jti-{number}", f"req_{number}", None, 2_000_000_000, b"{}")


def dropped() -> float:
    return REGISTRY.get_sample_value("broker_records_dropped_total", {"kind": "unissued"}) or 0.0


async def test_a_store_that_is_away_keeps_them_waiting_up_to_the_bound(tmp_path: Path) -> None:
    store = Store(f"unix://{tmp_path}/nobody", Limits(store_timeout_s=1))
    waiting, before = Voids(store, pending_max=2), dropped()
    for number in range(3):
        waiting.give_up(void(number))
    assert dropped() - before == 1, "the oldest went, and was counted"
    assert await waiting.settle() is False
    assert await waiting.settle() is False, "what the store did not take stays first in line"
    await store.close()


async def test_nothing_to_settle_is_settled(tmp_path: Path) -> None:
    store = Store(f"unix://{tmp_path}/nobody", Limits())
    assert await Voids(store, pending_max=2).settle() is True
    await store.close()
