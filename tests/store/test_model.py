"""Any sequence of calls: the server and the model in memory answer alike and keep the same records."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.model import SingleUse
from broker.store.commit import Committed, Position, Store
from tests.support.store import BIRTH, commit_of
from tests.support.store_model import ModelStore

few = st.integers(0, 2)
positions = st.sampled_from([BIRTH, Position(1, 1, "tag-1"), Position(2, 2, "tag-2"), Position(0, 0, "elsewhere")])
tokens = st.none() | few
CALLS = st.one_of(
    st.tuples(st.just("birth")),
    st.tuples(st.just("commit"), few, few, positions, tokens, st.lists(few, max_size=2)),
    st.tuples(st.just("void"), few, few, tokens),
    st.tuples(st.just("mark"), few),
    st.tuples(st.just("add"), positions, few, st.sampled_from(["d1", "d2"])),
    st.tuples(st.just("append"), st.none() | positions, tokens),
    st.tuples(st.just("read"), st.none() | positions),
    st.tuples(st.just("swap"), few),
)


async def answer(store: Any, call: tuple[Any, ...], number: int, now: int) -> Any:
    record = b"%d" % number

    def claim(token: int | None) -> SingleUse | None:
        return None if token is None else SingleUse(str(token), now + 900)

    match call:
        case ("birth",):
            return await store.birth("prod", BIRTH.tag, "{}", record)
        case ("commit", who, jti, position, token, parents):
            made = commit_of(
                who, position=position, jti=f"jti_{jti}", claim=claim(token), now=now, cred_until=now + 600, record=record,
                parents=tuple(f"jti_{parent}" for parent in parents),
            )  # fmt: skip
            outcome = await store.commit(made)
            return Committed(0.0) if isinstance(outcome, Committed) else outcome
        case ("void", who, jti, token):
            values = {"jti": f"jti_{jti}", "id": f"req_{who}", "claim": claim(token), "tomb_until": now + 60, "record": record}
            return await store.void("prod", **values)
        case ("mark", jti):
            return await store.mark("prod", f"jti_{jti}", record)
        case ("add", previous, n, digest):
            return await store.add(
                "prod", previous=previous, n=n, tag=f"tag-{n}", entry="{}", id=f"e{n}", digest=digest, record=record
            )
        case ("append", position, token):
            return await store.append("prod", record, position=position, claim=claim(token), now=now)
        case ("read", position):
            return await store.read("prod", position)
        case ("swap", version):
            return await store.keys_swap("prod", version, record, record)


async def state(store: Any) -> list[Any]:
    records = [record for _, record in await store.records("prod", newest_first=False)]
    credentials = [await store.registration("prod", f"jti_{jti}") for jti in range(3)]
    return [records, credentials, await store.read("prod", None), await store.keys_get("prod"), await store.slots()]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALLS, max_size=14))
async def test_server_and_model_agree(store: Store, calls: list[tuple[Any, ...]]) -> None:
    await store._client.execute_command("FLUSHALL")
    model = ModelStore()
    now = int(time.time())
    for number, call in enumerate(calls):
        assert await answer(store, call, number, now) == await answer(model, call, number, now)
    assert await state(store) == await state(model)
