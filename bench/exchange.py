"""Floor and broker side by side: throughput, latency, CPU an exchange, alternated round by round in one run.

The broker is whole: one worker, embedded store with an fsync before each answer, a trace for each exchange to a collector
on this machine.  Servers are held on one core, load generator, store and collector on the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from bench.pool import Pool

CALLERS = (1, 8, 32, 128)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LUA = Path(__file__).with_name("exchange.lua")


@dataclass(frozen=True, slots=True)
class Server:
    """One measured server: where it takes exchanges, and the processes whose CPU counts."""

    name: str
    url: str
    processes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One round: exchanges a second, latency in ms, CPU microseconds an exchange by process."""

    server: str
    callers: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]


def on_core(core: int, command: list[str]) -> list[str]:
    """A command held on one core where the machine has two."""
    return ["taskset", "-c", str(core), *command] if (os.cpu_count() or 1) > 1 else command


@contextlib.contextmanager
def floor(pool: Pool, port: int, kind: str) -> Iterator[Server]:
    process = subprocess.Popen(on_core(0, [sys.executable, "-m", "bench.floor", str(port), str(pool.folder), kind]))
    try:
        url = f"http://127.0.0.1:{port}/"
        wait(url)
        yield Server(kind, url, (("server", process.pid),))
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def broker(pool: Pool, port: int, name: str, policies: Path) -> Iterator[Server]:
    data = pool.folder / f"data-{name}"
    environment = {
        "PATH": os.environ["PATH"],
        "BROKER_DATA": str(data),
        "BROKER_POLICIES": str(policies),
        "BROKER_PORT": str(port),
        "BROKER_LOG_LEVEL": "warning",
        **({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{pool.collector_port}"} if pool.collector_port else {}),
    }
    command = [sys.executable, "-m", "broker", "serve"]
    process = subprocess.Popen(command, env=environment)
    try:
        base = f"http://127.0.0.1:{port}"
        wait(f"{base}/readyz")
        store, worker = _children(process.pid)
        for core, pid in ((0, worker), (1, store), (1, process.pid)):
            subprocess.run(["taskset", "-a", "-c", "-p", str(core), str(pid)], check=False, stdout=subprocess.DEVNULL)
        yield Server(name, f"{base}/prod/token", (("server", worker), ("store", store)))
    finally:
        process.terminate()
        process.wait()


def measure(server: Server, callers: int, seconds: int, pool: Pool, offset: int) -> Round:
    """One round of wrk.  Raises if any answer is not a credential."""
    before = {name: cpu_s(pid) for name, pid in server.processes}
    command = ["wrk", "-t1", f"-c{callers}", f"-d{seconds}s", "--timeout", "10s", "-s", str(LUA), server.url]
    environment = os.environ | {"BENCH_POOL": str(pool.bodies), "BENCH_OFFSET": str(offset)}
    done = subprocess.run(on_core(1, command), env=environment, capture_output=True, text=True, check=True)
    figures = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    if figures["errors"] or figures["socket_errors"] or done.stderr:
        raise SystemExit(f"{server.name}: not every answer was a credential: {figures} {done.stderr}")
    count = figures["requests"]
    return Round(
        server=server.name,
        callers=callers,
        per_s=count / (figures["duration_us"] / 1e6),
        p50_ms=figures["p50_us"] / 1e3,
        p99_ms=figures["p99_us"] / 1e3,
        cpu_us={name: (cpu_s(pid) - before[name]) * 1e6 / count for name, pid in server.processes},
    )


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def wait(url: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, trust_env=False).status_code < 501:
                return
        time.sleep(0.05)
    raise SystemExit(f"{url} did not come up")


def _children(parent: int) -> tuple[int, int]:
    """(store, worker) of a `broker serve`."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.strip().partition(" ") for line in found.splitlines()]
    store = next(
        int(pid) for pid, _, command in rows if "unixsocket" in command or "valkey" in command or "redis-server" in command
    )
    worker = next(int(pid) for pid, _, command in rows if "spawn_main" in command)
    return store, worker
