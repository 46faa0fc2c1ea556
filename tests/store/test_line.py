"""The hot connection when things go wrong: lost, frozen, absent, refused.  What is not known is never called done."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest

from broker.config import Limits
from broker.errors import StoreUnavailable
from broker.store.commit import Committed, Store
from broker.store.embedded import EmbeddedStore
from tests.store.conformance import told
from tests.support.store import born, commit_of, emptied, external, free_port

SHORT = Limits(store_timeout_s=1)
PASSWORD = "hunter2hunter2"


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedStore]:
    with tempfile.TemporaryDirectory(prefix="broker-test-") as folder:
        server = EmbeddedStore(Path(folder))
        await server.start()
        yield server
        await server.stop()


async def test_what_was_answered_survives_kill_9_under_load(embedded: EmbeddedStore) -> None:
    """64 commits are in flight all the time; the server is killed in the middle and restarted by its supervisor."""
    server = await born(await emptied(embedded.url))
    stop = asyncio.Event()
    keeping = asyncio.create_task(embedded.supervise(stop))
    answered: set[bytes] = set()
    unknown = 0
    enough = asyncio.Event()

    async def caller(number: int) -> None:
        nonlocal unknown
        for turn in range(40):
            commit = commit_of(f"{number}.{turn}")
            try:
                assert isinstance(await server.commit(commit), Committed)
                answered.add(commit.record)
            except StoreUnavailable:
                unknown += 1
            if len(answered) > 500:
                enough.set()

    callers = [asyncio.create_task(caller(number)) for number in range(64)]
    await enough.wait()
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGKILL)
    await asyncio.gather(*callers)
    kept = set(await told(server))
    assert unknown > 0
    assert answered <= kept
    assert isinstance(await server.commit(commit_of("after")), Committed)
    stop.set()
    await keeping
    await server.close()


async def test_a_frozen_server_is_unknown_after_the_deadline_and_mended_by_itself(embedded: EmbeddedStore) -> None:
    server = await born(await emptied(embedded.url, SHORT))
    await server.commit(commit_of(1))
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGSTOP)
    outcomes = await asyncio.gather(*(server.commit(commit_of(n)) for n in range(2, 10)), return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    os.kill(embedded.pid, signal.SIGCONT)
    assert isinstance(await server.commit(commit_of(10)), Committed)
    await server.close()


async def test_a_lost_connection_fails_what_is_in_flight_and_nothing_is_sent_twice() -> None:
    """A server that reads calls and hangs up without an answer; then a real look at how often each arrived."""
    seen: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        resp = hiredis.Reader(notEnoughData=None)
        while data := await reader.read(65_536):
            resp.feed(data)
            while (command := resp.gets()) is not None:
                if command[0] == b"FCALL":
                    seen.append(command[11])
                    writer.close()
                    return
                writer.write(b"*1\r\n+there\r\n")

    fake = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = fake.sockets[0].getsockname()[1]
    server = Store(f"redis://127.0.0.1:{port}", SHORT)
    for number in range(3):
        with pytest.raises(StoreUnavailable):
            await server.commit(commit_of(number))
    assert len(seen) == len(set(seen)) == 3
    await server.close()
    fake.close()
    await fake.wait_closed()


async def test_an_answer_of_no_known_form_is_unknown() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(b"!nonsense\r\n" if b"FCALL" in data else b"*1\r\n+there\r\n")
        writer.close()

    fake = await asyncio.start_server(babble, "127.0.0.1", 0)
    server = Store(f"redis://127.0.0.1:{fake.sockets[0].getsockname()[1]}", SHORT)
    with pytest.raises(StoreUnavailable, match="could not be read"):
        await server.commit(commit_of(1))
    await server.close()
    fake.close()


async def test_an_absent_server_is_said_to_be_so_without_its_password() -> None:
    server = Store(f"redis://someone:{PASSWORD}@127.0.0.1:{free_port()}", SHORT)
    for failing in (server.commit(commit_of(1)), server.now(), server.slots()):
        with pytest.raises(StoreUnavailable) as failed:
            await failing
        assert "127.0.0.1" in failed.value.detail
        assert not {PASSWORD, "someone"} & set(failed.value.detail.replace(":", " ").replace("@", " ").split())
    assert not (await server.check()).reachable
    assert PASSWORD not in repr(await server.check()) + repr(server._connector.address)
    await server.close()


@pytest.mark.needs("redis-server")
async def test_a_wrong_password_is_refused_without_being_told() -> None:
    with external("--requirepass", "right") as port:
        server = Store(f"redis://:{PASSWORD}@127.0.0.1:{port}", SHORT)
        for failing in (server.commit(commit_of(1)), server.now()):
            with pytest.raises(StoreUnavailable) as failed:
                await failing
            assert PASSWORD not in failed.value.detail
        await server.close()


async def test_a_caller_that_gives_up_does_not_shift_the_answers_of_others(embedded: EmbeddedStore) -> None:
    server = await born(await emptied(embedded.url))
    await server.commit(commit_of("warm"))
    tasks = [asyncio.create_task(server.commit(commit_of(n, token=n % 4))) for n in range(16)]
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    for task in tasks[::3]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    recorded = set(await told(server))
    for number, outcome in enumerate(outcomes):
        if not isinstance(outcome, asyncio.CancelledError):
            assert isinstance(outcome, Committed) == (b"issued %d" % number in recorded)
    await server.close()


async def test_a_closed_store_answers_at_once(embedded: EmbeddedStore) -> None:
    server = await born(await emptied(embedded.url))
    await server.commit(commit_of(1))
    await server.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await server.commit(commit_of(2))


async def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    short = Path(tempfile.mkdtemp(prefix="broker-test-")) / "late.sock"
    server = Store(f"unix://{short}", Limits())
    pending = asyncio.create_task(server.append("prod", b"record", now=0))
    with pytest.raises(StoreUnavailable):
        await server.now()
    target = EmbeddedStore(tmp_path)
    url = await target.start()
    short.symlink_to(url.removeprefix("unix://"))
    await pending
    await server.close()
    await target.stop()
    short.unlink()
    short.parent.rmdir()


