"""What a server says of itself, and what that is worth."""

from __future__ import annotations

from typing import Any

import pytest

from broker.store.values import StoreHealth

GOOD: dict[str, Any] = {
    "reachable": True, "role": "master", "appendonly": True, "appendfsync": "always", "fsync_on_rewrite": True,
    "maxmemory_policy": "noeviction", "aof_writable": True,
}  # fmt: skip


def test_a_server_that_syncs_every_answer_is_durable() -> None:
    assert (StoreHealth(**GOOD).durability, StoreHealth(**GOOD).problems) == ("disk", ())


@pytest.mark.parametrize("changed", [
    {"aof_writable": False}, {"appendonly": False}, {"appendonly": None}, {"appendfsync": "everysec"}, {"appendfsync": None},
    {"fsync_on_rewrite": False}, {"reachable": False},
])  # fmt: skip
def test_one_that_does_not_or_cannot_or_will_not_say_is_unverified(changed: dict[str, Any]) -> None:
    assert StoreHealth(**(GOOD | changed)).durability == "unverified"
