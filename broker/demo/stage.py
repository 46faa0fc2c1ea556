"""Setting the stage: a copy of the policies that trusts the demo's issuers, a broker of its own, its command line."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from broker.errors import CannotStart

READY_WITHIN_S = 30.0
POLL_S = 0.05


def copy_policies(source: Path, target: Path, urls: Mapping[str, str]) -> None:
    """Copies the tree and points the issuers named in `urls` at the demo; nothing else is changed."""
    if not (source / "issuers.yaml").is_file():
        raise CannotStart(f"{source} holds no policy tree", "run it in a checkout of the project, or give --policies DIR")
    shutil.copytree(source, target)
    file = target / "issuers.yaml"
    document = yaml.load(file.read_text("utf-8"), Loader=yaml.CSafeLoader)
    for name, url in urls.items():
        document["issuers"][name]["url"] = url
    file.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False), "utf-8")


@dataclass(slots=True)
class Stage:
    """A broker in a folder of its own, and the commands that a person would type."""

    folder: Path
    port: int
    collector_port: int
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """BASE of the demo's broker."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def policies(self) -> Path:
        """The demo's copy of the policy tree."""
        return self.folder / "policies"

    def environment(self) -> dict[str, str]:
        """The environment of every process of the demo: nothing of the caller's own broker or collector reaches it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BROKER_", "OTEL_", "PROMETHEUS_"))}
        return kept | {
            "BROKER_DATA": str(self.folder / "data"),
            "BROKER_POLICIES": str(self.policies),
            "BROKER_PORT": str(self.port),
            "BROKER_LOG_LEVEL": "warning",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.collector_port}",
        }

    async def start(self, client: httpx2.AsyncClient) -> None:
        """Starts `broker serve` and waits until it is ready.  Raises `CannotStart` with the end of its log."""
        log = (self.folder / "broker.log").open("wb")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broker", "serve", env=self.environment(), cwd=self.folder, stderr=log, start_new_session=True
        )
        log.close()
        deadline = asyncio.get_running_loop().time() + READY_WITHIN_S
        while asyncio.get_running_loop().time() < deadline and self.process.returncode is None:
            try:
                if (await client.get(f"{self.url}/readyz")).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(POLL_S)
        tail = (self.folder / "broker.log").read_text("utf-8")[-2000:]
        raise CannotStart(f"the demo's broker did not become ready; its log ends:\n{tail}")

    async def stop(self) -> int:
        """Stops the broker; its exit code."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.terminate()
        return await self.process.wait()

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Runs `broker ARGUMENTS` as a person would; exit code and stdout."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broker", *arguments,
            env=self.environment(), cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode() or err.decode()

    async def record_of(self, request_id: str) -> dict[str, Any]:
        """The audit record of a request, read by the command line; empty if there is none."""
        _, out = await self.command("audit", "search", "--request-id", request_id, "--json")
        lines = [line for line in out.splitlines() if line.startswith("{")]
        return json.loads(lines[0]) if lines else {}
