"""Platforms on demand: `stand("buildkite")` is one, until the test ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.issuer import OidcIssuer
from tests.support.platforms import platform
from tests.support.platforms_make import Platform

Stand = Callable[..., Platform]


@cache
def signer(preset: str) -> OidcIssuer:
    """Signs tokens of a preset's shape; it need not run for that."""
    return OidcIssuer(preset)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """Puts a platform up.  botocore reads the process's own variables, so AWS's are set there too."""
    with contextlib.ExitStack() as stack:

        def up(preset: str, way: str = "", **options: str) -> Platform:
            folder = tmp_path / f"{preset} {way}".strip().replace(" ", "-")
            folder.mkdir()
            job = stack.enter_context(platform(preset, signer(preset), folder, way=way, **options))
            for name, value in job.env.items():
                if name.startswith("AWS_"):
                    monkeypatch.setenv(name, value)
            return job

        yield up


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address where a connection is neither taken nor refused, as a link-local one where nobody is."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # more than wait to be accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"
