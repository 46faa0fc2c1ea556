"""The rings of this node: loaded, followed, rotated on schedule; nodes agree through the store's compare-and-set.

Two nodes that rotate at once: one wins, and both end with its ring.  A ring that does not verify, or is older than this
node holds or its machine's witness has seen, is refused, loudly: a condemned key must not come back with an older copy of
the store.  The last good one stays in use while the store is away.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from joserfc.jwk import ECKey, JWKRegistry, RSAKey

from broker.config import Limits
from broker.errors import BrokerError, KeysUnavailable
from broker.keys.keyring import Generation, KeyPair, Ring, Schedule, born, rotated, rotated_fresh, wants_next, with_next
from broker.keys.sealed import KeyEncryptionKey, decode_ring, encode_ring
from broker.keys.signer import SigningKey
from broker.store.commit import Store
from broker.store.witness import Seen, Witness, ring_of, ring_seen
from broker.telemetry import log

RSA_BITS = 3072
POLL_S = 5.0
FRESH_SETTLE_S = int(3 * POLL_S)  # every node has heard of the ring by then, so every node publishes the key before it signs
TRIES_MAX = 5

Record = Callable[[str, str], bytes]


@dataclass(slots=True)
class _Held:
    ring: Ring
    seen: Seen
    keys: dict[str, SigningKey] = field(default_factory=dict)
    signing: dict[str, KeyPair] = field(default_factory=dict)
    published: dict[str, KeyPair] = field(default_factory=dict)
    since: float = 0.0
    until: float = 0.0


class KeyRings:
    """Signing keys by env.  `record(env, act)` builds the audit record that is written with every change."""

    def __init__(
        self,
        store: Store,
        key: KeyEncryptionKey,
        witness: Witness,
        *,
        limits: Limits,
        rotate_every_s: int,
        publish_before_s: int,
        record: Record,
    ) -> None:
        self._store = store
        self._key = key
        self._witness = witness
        self._record = record
        published_s = max(publish_before_s, limits.key_publish_s_min)
        self._scheduled = Schedule(rotate_every_s, published_s, limits.key_retire_s)
        self._asked = Schedule(rotate_every_s, limits.key_publish_s_min, limits.key_retire_s)
        self._held: dict[str, _Held] = {}
        self._refused: dict[str, str] = {}
        self._clock_ahead_s = 0.0

    def now(self) -> float:
        """The store's clock, by which keys begin and end."""
        return time.time() + self._clock_ahead_s

    def signing_key(self, env: str, alg: str) -> SigningKey:
        """What signs now with this algorithm.  Raises `KeysUnavailable`."""
        held = self._now(self._good(env))
        pair = held.signing.get(alg)
        if pair is None:
            raise KeysUnavailable(f"no {alg} key of {env} may sign now")
        return held.keys.get(pair.kid) or self._opened(env, held, pair)

    def key(self, env: str, kid: str) -> SigningKey | None:
        """A key that this node still publishes, by its kid."""
        held = self._held.get(env)
        if held is None or (pair := self._now(held).published.get(kid)) is None:
            return None
        return held.keys.get(kid) or self._opened(env, held, pair)

    def jwks(self, env: str) -> bytes:
        """The public key set, current keys first (RFC 7517 §5).  Raises `KeysUnavailable` if none was ever loaded.

        While a ring is refused the last good set stays published: public keys harm nobody, and verifiers need them.
        """
        if env not in self._held:
            raise KeysUnavailable(f"the key ring of {env} has not been loaded")
        ring = self._held[env].ring
        keys = [dict(pair.public) for generation in ring.published(self.now()) for pair in generation.keys]
        return msgspec.json.encode({"keys": keys})

    def listing(self, env: str) -> tuple[dict[str, Any], ...]:
        """Every key that is not gone: state, kid, alg, instants in epoch seconds."""
        ring, now = self._good(env).ring, self.now()
        return tuple(
            {
                "env": env,
                "state": ring.state(generation, now),
                "kid": pair.kid,
                "alg": pair.alg,
                "published_at": generation.published_at,
                "active_from": generation.active_from,
                "gone_at": generation.gone_at,
            }
            for generation in ring.published(now)
            for pair in generation.keys
        )

    async def open(self, env: str) -> None:
        """Loads the ring of an env, or makes its first.  Raises `KeysUnavailable`, `StoreUnavailable`.

        A ring that the witness shows to be an older copy's is refused: this env signs nothing, and the others go on.
        """
        self._clock_ahead_s = await self._store.now() - time.time()
        for _ in range(TRIES_MAX):
            await self._load(env)
            if env in self._held or env in self._refused:
                return
            ring = born(await self._fresh(env), int(self.now()))
            await self._store.keys_swap(env, 0, encode_ring(ring, env, self._key), self._record(env, "keys_birth"))
        raise KeysUnavailable(f"no first key ring of {env} could be made")

    async def rotate(self, env: str, *, fresh: bool, record: bytes) -> bool:
        """Replaces the keys of an env as an operator asks; False if another node changed them at the same moment."""
        await self._load(env)
        ring, now = self._good(env).ring, int(self.now())
        if fresh:
            changed = rotated_fresh(ring, await self._fresh(env), now, FRESH_SETTLE_S)
        elif ring.next(now) is None:
            ring = with_next(ring, await self._fresh(env), now, self._asked)
            changed = Ring(ring.version, rotated(ring, now, self._asked).generations)
        else:
            changed = rotated(ring, now, self._asked)
        won = await self._store.keys_swap(env, changed.version - 1, encode_ring(changed, env, self._key), record)
        await self._load(env)
        return won

    async def run(self, stop: asyncio.Event) -> None:
        """Follows the rings and keeps a successor published, until `stop` is set."""
        while not stop.is_set():
            for env in {*self._held, *self._refused}:
                try:
                    await self.tick(env)
                except BrokerError as error:
                    log.get("keys").warning("a key ring could not be followed", env=env, cause=error.detail)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_S)

    async def tick(self, env: str) -> None:
        """One look: follows the ring, and publishes a successor where none is."""
        self._clock_ahead_s = await self._store.now() - time.time()
        await self._load(env)
        ring, now = self._good(env).ring, int(self.now())
        if wants_next(ring, now):
            changed = with_next(ring, await self._fresh(env), now, self._scheduled)
            encoded = encode_ring(changed, env, self._key)
            if await self._store.keys_swap(env, ring.version, encoded, self._record(env, "keys_next")):
                log.get("keys").info("the next signing keys are published", env=env, version=changed.version)
            await self._load(env)

    async def _load(self, env: str) -> None:
        try:
            known = self._witness.read().get(ring_of(env), Seen(0, ""))
        except ValueError as error:
            return self._refuse(env, str(error))
        held = self._held.get(env)
        if held is not None and held.seen.n > known.n:
            known = held.seen
        version, raw = await self._store.keys_get(env) or (0, b"")
        seen = ring_seen(version, raw)
        if version < known.n:
            went = f"went back from version {known.n} to {version}" if version else "is gone from the store"
            return self._refuse(env, f"the key ring of {env} {went}: an older copy of the store?")
        if version == known.n > 0 and seen != known:
            return self._refuse(env, f"the key ring of {env} is another version {version} than was seen: another history")
        held = self._held.get(env)  # another task may have come further while this one waited
        if held is not None and (version, env in self._refused) <= (held.seen.n, False):
            return None
        if version:
            self._take(env, raw, seen)
        self._refused.pop(env, None)
        return None

    def _take(self, env: str, raw: bytes, seen: Seen) -> None:
        held = self._held.get(env)
        try:
            ring = decode_ring(raw, env, seen.n, self._key)
        except KeysUnavailable as error:
            self._refuse(env, error.detail)
            raise
        self._witness.note(ring_of(env), seen)
        self._held[env] = _Held(ring, seen, held.keys if held else {})

    def _now(self, held: _Held) -> _Held:
        """What a ring means at this moment, worked out again only when one of its instants has passed."""
        now = self.now()
        if not held.since <= now < held.until:
            current = held.ring.current(now)
            held.signing = {pair.alg: pair for pair in current.keys} if current else {}
            held.published = {pair.kid: pair for generation in held.ring.published(now) for pair in generation.keys}
            held.since, held.until = held.ring.unchanged(now)
        return held

    def _good(self, env: str) -> _Held:
        if env in self._refused:
            raise KeysUnavailable(self._refused[env])
        if env not in self._held:
            raise KeysUnavailable(f"the key ring of {env} has not been loaded")
        return self._held[env]

    def _refuse(self, env: str, why: str) -> None:
        if self._refused.get(env) != why:
            log.get("keys").error("key ring refused", env=env, why=why)
        self._refused[env] = why

    def _opened(self, env: str, held: _Held, pair: KeyPair) -> SigningKey:
        opened = held.keys.get(pair.kid)
        if opened is None:
            private = json.loads(self._key.unseal(env, pair.kid, pair.alg, pair.sealed))
            key = JWKRegistry.import_key(private)
            if not isinstance(key, ECKey | RSAKey):
                raise KeysUnavailable(f"the key {pair.kid} of {env} is of no kind that signs here")
            opened = held.keys[pair.kid] = SigningKey(pair.kid, pair.alg, key)
        return opened

    async def _fresh(self, env: str) -> Generation:
        """A new pair of pairs, made in a thread: an RSA key takes a good part of a second."""
        keys = await asyncio.to_thread(_generate)
        pairs = tuple(KeyPair(kid, alg, public, self._key.seal(env, kid, alg, private)) for kid, alg, public, private in keys)
        return Generation(0, 0, pairs)


def _generate() -> list[tuple[str, str, dict[str, Any], bytes]]:
    made: list[tuple[str, str, dict[str, Any], bytes]] = []
    for alg, key in (("ES256", ECKey.generate_key("P-256")), ("RS256", RSAKey.generate_key(RSA_BITS))):
        kid = key.thumbprint()  # RFC 7638
        public = {**key.as_dict(private=False), "kid": kid, "use": "sig", "alg": alg}
        private = json.dumps(key.as_dict(private=True)).encode()
        made.append((kid, alg, public, private))
    return made
