"""Rings followed and rotated through a real store: nodes agree, the store's clock rules, and what is suspect signs nothing."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.config import Limits
from broker.errors import KeysUnavailable, StoreUnavailable
from broker.keys.rotation import KeyRings
from broker.keys.sealed import KeyEncryptionKey
from broker.store import names
from broker.store.commit import Store
from broker.store.embedded import EmbeddedStore
from broker.store.witness import Witness, ring_of
from tests.store.conformance import told
from tests.support.store_model import ModelStore

KEY = KeyEncryptionKey(bytes(range(32)))
DAY_S = 86_400
Rings = Callable[..., KeyRings]
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "k", "oth"}


@pytest.fixture
def rings(tmp_path: Path) -> Rings:
    """Makes nodes.  Those of one machine share its witness."""

    def make(store: Any, key: KeyEncryptionKey = KEY, *, publish_before_s: int = DAY_S, machine: str = "here") -> KeyRings:
        return KeyRings(
            store, key, Witness(tmp_path / machine), limits=Limits(), rotate_every_s=30 * DAY_S,
            publish_before_s=publish_before_s, record=lambda env, act: f"{act} {env}".encode(),
        )  # fmt: skip

    return make


class Slow(ModelStore):
    """Holds back what it has answered already."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.held_back: asyncio.Event | None = None

    async def keys_get(self, slot: str) -> tuple[int, bytes] | None:
        answer = await super().keys_get(slot)
        if self.held_back is not None:
            self.asked.set()
            await self.held_back.wait()
        return answer


def kids(node: KeyRings, env: str = "prod") -> list[str]:
    return [key["kid"] for key in json.loads(node.jwks(env))["keys"]]


def states(node: KeyRings) -> list[str]:
    return [key["state"] for key in node.listing("prod")]


async def test_two_nodes_that_begin_at_once_end_with_one_ring(store: Store, rings: Rings) -> None:
    nodes = [rings(store), rings(store)]
    await asyncio.gather(*(node.open("prod") for node in nodes))
    assert kids(nodes[0]) == kids(nodes[1])
    assert await told(store) == [b"keys_birth prod"]
    for alg in ("ES256", "RS256"):
        assert nodes[0].signing_key("prod", alg).kid == nodes[1].signing_key("prod", alg).kid


async def test_two_nodes_that_rotate_at_once_end_with_one_ring(store: Store, rings: Rings) -> None:
    nodes = [rings(store), rings(store)]
    for node in nodes:
        await node.open("prod")
    await nodes[0].tick("prod")
    before = kids(nodes[0])
    await asyncio.gather(*(node.rotate("prod", fresh=False, record=b"rotate") for node in nodes))
    for node in nodes:
        await node.tick("prod")
        assert kids(node) == before


async def test_of_two_fresh_rotations_at_once_one_wins(store: Store, rings: Rings) -> None:
    nodes = [rings(store), rings(store)]
    for node in nodes:
        await node.open("prod")
    won = await asyncio.gather(*(node.rotate("prod", fresh=True, record=b"rotate") for node in nodes))
    assert sorted(won) == [False, True]
    assert kids(nodes[0]) == kids(nodes[1])
    assert (await told(store)).count(b"rotate") == 1


async def test_what_is_published_is_public_and_names_itself(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    await node.tick("prod")
    published = json.loads(node.jwks("prod"))["keys"]
    assert [key["alg"] for key in published] == ["ES256", "RS256"] * 2
    for key in published:
        assert not PRIVATE_MEMBERS & set(key)
        assert key["use"] == "sig"
        assert key["kty"] == {"ES256": "EC", "RS256": "RSA"}[key["alg"]]
    assert states(node) == ["current", "current", "next", "next"]
    signing = {node.signing_key("prod", alg).kid for alg in ("ES256", "RS256")}
    assert signing == set(kids(node)[:2])
    stored = await store.keys_get("prod")
    assert stored is not None
    assert not {f'"{member}":'.encode() for member in PRIVATE_MEMBERS} & set(stored[1].split(b","))


async def test_keys_rotate_by_the_stores_clock_and_follow_each_other(rings: Rings) -> None:
    store = ModelStore()
    node, other = rings(store), rings(store)
    await node.open("prod")
    await other.open("prod")
    await node.tick("prod")
    first, following = kids(node)[0], kids(node)[2]
    await other.tick("prod")
    assert kids(other) == kids(node)
    store.ahead_s = 30 * DAY_S - 60
    await other.tick("prod")
    assert other.signing_key("prod", "ES256").kid == first
    store.ahead_s += 120
    await other.tick("prod")
    await node.tick("prod")
    assert other.signing_key("prod", "ES256").kid == node.signing_key("prod", "ES256").kid == following
    assert kids(node) == kids(other)
    assert states(node) == ["current"] * 2 + ["next"] * 2 + ["retiring"] * 2
    store.ahead_s += Limits().key_retire_s
    await node.tick("prod")
    assert first not in kids(node)
    assert node.key("prod", first) is None


async def test_an_asked_rotation_waits_for_caches_and_no_longer(rings: Rings) -> None:
    store = ModelStore()
    node = rings(store)
    await node.open("prod")
    await node.tick("prod")
    first, following = kids(node)[0], kids(node)[2]
    assert await node.rotate("prod", fresh=False, record=b"rotate")
    assert node.signing_key("prod", "ES256").kid == first
    store.ahead_s = Limits().key_publish_s_min + 1
    await node.tick("prod")
    assert node.signing_key("prod", "ES256").kid == following


async def test_a_publish_time_shorter_than_caches_live_is_lengthened(rings: Rings) -> None:
    store = ModelStore()
    node = rings(store, publish_before_s=1)
    await node.open("prod")
    store.ahead_s = 31 * DAY_S
    await node.tick("prod")
    newest = max(node.listing("prod"), key=lambda key: key["active_from"])
    assert newest["active_from"] - newest["published_at"] >= Limits().key_publish_s_min


async def test_a_fresh_rotation_trusts_nothing_that_was_published(rings: Rings) -> None:
    store = ModelStore()
    node = rings(store)
    await node.open("prod")
    await node.tick("prod")
    before = set(kids(node))
    assert await node.rotate("prod", fresh=True, record=b"rotate fresh")
    store.ahead_s = 60
    await node.tick("prod")
    assert not before & set(kids(node))
    assert node.signing_key("prod", "ES256").kid not in before


async def test_a_node_with_another_key_encryption_key_is_told_so(store: Store, rings: Rings) -> None:
    await rings(store).open("prod")
    stranger = rings(store, KeyEncryptionKey(bytes(32)))
    with pytest.raises(KeysUnavailable, match="another key-encryption key"):
        await stranger.open("prod")
    with pytest.raises(KeysUnavailable):
        stranger.signing_key("prod", "ES256")


async def test_a_ring_that_goes_back_is_refused_until_it_is_mended(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    earlier = await store.keys_get("prod")
    await node.tick("prod")
    later = await store.keys_get("prod")
    assert earlier is not None
    assert later is not None
    await put(store, *earlier)
    with pytest.raises(KeysUnavailable, match="went back"):
        await node.tick("prod")
    with pytest.raises(KeysUnavailable):
        node.signing_key("prod", "ES256")
    await put(store, *later)
    await node.tick("prod")
    assert node.signing_key("prod", "ES256").kid


async def test_an_older_copy_of_the_store_brings_no_condemned_key_back_after_a_restart(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    earlier = await store.keys_get("prod")
    assert earlier is not None
    await node.rotate("prod", fresh=True, record=b"rotate fresh")
    later = await store.keys_get("prod")
    assert later is not None
    await put(store, *earlier)
    again = rings(store)
    await again.open("prod")
    await again.open("dev")
    for call in (lambda: again.signing_key("prod", "ES256"), lambda: again.jwks("prod"), lambda: again.listing("prod")):
        with pytest.raises(KeysUnavailable, match=r"older copy|not been loaded"):
            call()
    with pytest.raises(KeysUnavailable, match="went back from version 2 to 1"):
        await again.tick("prod")
    with pytest.raises(KeysUnavailable, match="went back"):
        await again.rotate("prod", fresh=False, record=b"rotate")
    assert await store.keys_get("prod") == earlier, "nothing is built on an older copy"
    assert again.signing_key("dev", "ES256").kid, "one env's ring is not another's"
    await put(store, *later)
    await again.tick("prod")
    assert again.signing_key("prod", "ES256").kid


async def test_a_ring_that_this_machine_has_seen_is_not_made_anew_in_an_empty_store(store: Store, rings: Rings) -> None:
    await rings(store).open("prod")
    await store._client.delete(names.keys("prod"))
    again = rings(store)
    await again.open("prod")
    with pytest.raises(KeysUnavailable, match="gone"):
        again.signing_key("prod", "ES256")
    assert await store.keys_get("prod") is None


async def test_another_ring_of_the_same_version_is_another_history(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    earlier = await store.keys_get("prod")
    assert earlier is not None
    await node.rotate("prod", fresh=True, record=b"rotate fresh")
    await put(store, *earlier)
    stranger = rings(store, machine="elsewhere")
    await stranger.open("prod")
    await stranger.rotate("prod", fresh=False, record=b"rotate")
    assert (await store.keys_get("prod") or (0, b""))[0] == 2
    again = rings(store)
    await again.open("prod")
    with pytest.raises(KeysUnavailable, match="another history"):
        again.signing_key("prod", "ES256")


async def test_a_running_node_notices_it_too(store: Store, rings: Rings, tmp_path: Path) -> None:
    node, stranger = rings(store), rings(store, machine="elsewhere")
    await node.open("prod")
    earlier = await store.keys_get("prod")
    assert earlier is not None
    await node.rotate("prod", fresh=True, record=b"rotate fresh")
    (tmp_path / "here").unlink()
    await put(store, *earlier)
    await stranger.open("prod")
    await stranger.rotate("prod", fresh=False, record=b"rotate")
    with pytest.raises(KeysUnavailable, match="another history"):
        await node.tick("prod")


async def test_a_witness_that_is_moved_away_lets_an_operator_go_on(store: Store, rings: Rings, tmp_path: Path) -> None:
    node = rings(store)
    await node.open("prod")
    earlier = await store.keys_get("prod")
    assert earlier is not None
    await node.rotate("prod", fresh=True, record=b"rotate fresh")
    await put(store, *earlier)
    (tmp_path / "here").rename(tmp_path / "aside")
    again = rings(store)
    await again.open("prod")
    assert again.signing_key("prod", "ES256").kid
    assert Witness(tmp_path / "here").read()[ring_of("prod")].n == 1


async def test_a_damaged_witness_proves_nothing_so_nothing_is_signed(store: Store, rings: Rings, tmp_path: Path) -> None:
    await rings(store).open("prod")
    (tmp_path / "here").write_text("{")
    again = rings(store)
    await again.open("prod")
    with pytest.raises(KeysUnavailable, match="damaged"):
        again.signing_key("prod", "ES256")


async def test_an_answer_that_a_sibling_has_overtaken_is_no_way_back(rings: Rings) -> None:
    """Two looks at once in one node: the later answer of the store may arrive first."""
    store = Slow()
    node = rings(store)
    await node.open("prod")
    store.held_back = asyncio.Event()
    late = asyncio.create_task(node.tick("prod"))
    await store.asked.wait()
    store.held_back, released = None, store.held_back
    assert await node.rotate("prod", fresh=True, record=b"rotate fresh")
    before = kids(node)
    released.set()
    await late
    assert kids(node)[: len(before)] == before
    assert node.signing_key("prod", "ES256").kid


async def test_an_older_ring_under_a_newer_version_is_refused(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    earlier = await store.keys_get("prod")
    assert earlier is not None
    await node.tick("prod")
    await put(store, 9, earlier[1])
    with pytest.raises(KeysUnavailable, match="version"):
        await node.tick("prod")
    with pytest.raises(KeysUnavailable):
        node.signing_key("prod", "ES256")


async def test_the_ring_of_another_env_is_refused(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("dev")
    stolen = await store.keys_get("dev")
    assert stolen is not None
    await put(store, *stolen)
    with pytest.raises(KeysUnavailable):
        await node.open("prod")
    assert node.signing_key("dev", "ES256").kid


async def test_a_ring_that_vanishes_is_not_quietly_made_anew(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    await store._client.delete(names.keys("prod"))
    with pytest.raises(KeysUnavailable, match="gone"):
        await node.tick("prod")
    assert await store.keys_get("prod") is None


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="broker-test-") as made:
        yield Path(made)


async def test_the_last_good_ring_stays_in_use_while_the_store_is_away(folder: Path, rings: Rings) -> None:
    server = EmbeddedStore(folder)
    store = Store(await server.start())
    node = rings(store)
    await node.open("prod")
    before = node.signing_key("prod", "ES256")
    await server.stop()
    with pytest.raises(StoreUnavailable):
        await node.tick("prod")
    assert node.signing_key("prod", "ES256") == before
    assert kids(node)
    await server.start()
    await node.tick("prod")
    assert node.signing_key("prod", "ES256") == before
    await store.close()
    await server.stop()


async def test_an_env_that_was_not_opened_signs_nothing(store: Store, rings: Rings) -> None:
    with pytest.raises(KeysUnavailable, match="not been loaded"):
        rings(store).signing_key("prod", "ES256")


async def test_an_algorithm_that_no_key_has_signs_nothing(store: Store, rings: Rings) -> None:
    node = rings(store)
    await node.open("prod")
    for alg in ("HS256", "none", "ES384"):
        with pytest.raises(KeysUnavailable):
            node.signing_key("prod", alg)


async def put(store: Store, version: int, ring: bytes) -> None:
    """What somebody with the store's password could do."""
    await store._client.hset(names.keys("prod"), mapping={"version": version, "ring": ring})
