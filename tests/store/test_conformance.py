"""The promises of a store, over every backend: embedded, somebody else's over TCP, and the model in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.store.conformance import *  # noqa: F403
from tests.support.store import emptied
from tests.support.store_model import ModelStore

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture(params=["embedded", "external", "model"])
async def store(request: pytest.FixtureRequest, embedded_url: str, external_url: str) -> AsyncIterator[Any]:
    urls = {"embedded": embedded_url, "external": external_url}
    opened = await emptied(urls[request.param]) if request.param in urls else ModelStore()
    yield opened
    await opened.close()
