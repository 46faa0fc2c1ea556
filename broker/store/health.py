"""What a store server says of itself: role, persistence, memory policy.  For /readyz and `broker doctor`.

Managed services hide CONFIG: what they do not tell stays None, and is never taken for a yes.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from broker.store.line import code_of
from broker.store.values import StoreHealth


async def examine(client: redis.asyncio.Redis, label: str) -> StoreHealth:
    """Asks one server; never raises: what cannot be reached is a finding."""
    try:
        info: dict[str, Any] = await client.info("server", "replication", "persistence", "memory")
        config = await _config(client)
    except ResponseError as error:
        return StoreHealth(reachable=False, detail=f"the store at {label} answers {code_of(error)}")
    except (RedisError, OSError, TimeoutError) as error:
        return StoreHealth(reachable=False, detail=f"the store at {label} does not answer: {type(error).__name__}")
    software = str(info.get("server_name", "redis"))
    version = info.get("valkey_version") if software == "valkey" else info.get("redis_version")
    appendonly = config.get("appendonly")
    on_rewrite = config.get("no-appendfsync-on-rewrite")
    return StoreHealth(
        reachable=True,
        software=software,
        version=str(version or ""),
        role=str(info.get("role", "")),
        replicas=int(info.get("connected_slaves", 0)),
        appendonly=bool(info.get("aof_enabled", 0)) if appendonly is None else appendonly == "yes",
        appendfsync=config.get("appendfsync"),
        fsync_on_rewrite=None if on_rewrite is None else on_rewrite == "no",
        maxmemory_policy=info.get("maxmemory_policy") or config.get("maxmemory-policy"),
        aof_writable=info.get("aof_last_write_status", "ok") == "ok",
    )


async def _config(client: redis.asyncio.Redis) -> dict[str, str]:
    try:
        found: Any = await client.execute_command(
            "CONFIG GET", "appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy"
        )
    except ResponseError:
        return {}
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
