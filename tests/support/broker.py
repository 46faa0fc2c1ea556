"""A whole broker as a process of its own: `broker serve` on a folder, and what a client sends to it.

with Broker(folder, policies) as broker:
    broker.url, broker.issuer("prod")
    broker.exchange(token, audience="payments", scope="deploy:write")      an httpx2.Response
    broker.records(request_id=…)                                           audit records, by the command line
    broker.run("revoke", …)                                                a command against the same folder
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx2

from broker.protocol import oauth

READY_WITHIN_S = 40.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broker:
    """One `broker serve`."""

    def __init__(
        self, data: Path, policies: Path, *arguments: str, env: dict[str, str] | None = None, port: int | None = None
    ) -> None:
        self.data = data
        self.policies = policies
        self.arguments = arguments
        self.port = port or free_port()
        self.log = data.parent / f"{data.name}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "OTEL_", "PROMETHEUS_"))}
        self.environment = kept | {
            "BROKER_DATA": str(data),
            "BROKER_POLICIES": str(policies),
            "BROKER_PORT": str(self.port),
            **(env or {}),
        }
        self.workers = int(arguments[arguments.index("--workers") + 1]) if "--workers" in arguments else 1
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx2.Client(base_url=self.url, trust_env=False, timeout=30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def issuer(self, env: str = "prod") -> str:
        return f"{self.url}/{env}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.client.close()

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "broker", "serve", *self.arguments]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.wait_ready()

    def wait_ready(self, within_s: float = READY_WITHIN_S) -> float:
        """Seconds until /readyz said 200."""
        begun = time.monotonic()
        while time.monotonic() - begun < within_s:
            if self.process is not None and self.process.poll() is not None:
                break
            with contextlib.suppress(httpx2.TransportError):
                answer = self.client.get("/readyz")
                pids = {worker["pid"] for worker in answer.json()["workers"]}
                # The workers of a killed parent may still answer for a moment.
                if answer.status_code == 200 and len(pids) == self.workers and pids <= set(self.worker_pids()):
                    return time.monotonic() - begun
            time.sleep(0.02)
        raise AssertionError(f"the broker is not ready; its log ends:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> int | None:
        """SIGTERM; the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process = None
        return code

    def exchange(self, token: str, env: str = "prod", act: str = "token", **form: Any) -> httpx2.Response:
        """One exchange of a subject token."""
        base = {"grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN}
        return self.client.post(
            f"/{env}/{act}", data={name: value for name, value in {**base, **form}.items() if value is not None}
        )

    def run(self, *arguments: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command against the same folder."""
        done = subprocess.run(
            [sys.executable, "-m", "broker", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            input=input,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def records(self, **fields: str) -> list[dict[str, Any]]:
        """Audit records, newest first."""
        filters = [part for name, value in fields.items() for part in ("--" + name.replace("_", "-"), value)]
        done = self.run("audit", "search", "--json", "--limit", "0", *filters, check=False)
        assert done.returncode in {0, 1}, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def children(self) -> list[tuple[int, str]]:
        """(pid, command line) of the processes below the parent."""
        assert self.process is not None
        found = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout
        rows = [line.strip().partition(" ") for line in found.splitlines()]
        return [(int(pid), command) for pid, _, command in rows]

    def store_pid(self) -> int:
        found = [pid for pid, command in self.children() if "valkey" in command or "redis" in command]
        assert found, f"no store among {self.children()}; the log ends:\n{self.log.read_text()[-2000:]}"
        return found[0]

    def worker_pids(self) -> list[int]:
        return [pid for pid, command in self.children() if "spawn_main" in command]
