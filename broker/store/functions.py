"""The server's half: functions.lua under a name that carries its hash, loaded where it is missing.

Two versions of the broker share a server: each calls its own functions.  "Function not found" (a promoted replica, a
flushed server) means that nothing ran: load and call again, once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import redis.asyncio
from redis.exceptions import ResponseError

_PLACEHOLDER: Final = "@HASH@"
_HASH_CHARACTERS: Final = 12
MISSING: Final = "Function not found"
PRESENT: Final = "already exists"


@dataclass(frozen=True, slots=True)
class Library:
    """One version of the server functions: its name and its code."""

    name: str
    code: str

    def function(self, short: str) -> str:
        """The whole name of a function: `commit` -> `broker_1a2b3c_commit`."""
        return f"{self.name}_{short}"


def read_library() -> Library:
    """The functions that this version of the broker calls."""
    source = (Path(__file__).parent / "functions.lua").read_text("utf-8")
    digest = hashlib.sha256(source.encode()).hexdigest()[:_HASH_CHARACTERS]
    return Library(f"broker_{digest}", source.replace(_PLACEHOLDER, digest))


class Functions:
    """Calls by redis-py, for all that is not the hot path."""

    def __init__(self, client: redis.asyncio.Redis, library: Library) -> None:
        self._client = client
        self._library = library

    async def call(self, short: str, keys: tuple[str, ...], args: tuple[str | bytes | int, ...]) -> list[Any]:
        """What the function answers.  Raises redis-py's errors."""
        try:
            return await self._call(short, keys, args)
        except ResponseError as error:
            if MISSING not in str(error):
                raise
        await self.load()
        return await self._call(short, keys, args)

    async def load(self) -> None:
        """Puts the library into the server; another node may have been first."""
        try:
            await self._client.execute_command("FUNCTION LOAD", self._library.code)
        except ResponseError as error:
            if PRESENT not in str(error):
                raise

    async def _call(self, short: str, keys: tuple[str, ...], args: tuple[str | bytes | int, ...]) -> list[Any]:
        name = self._library.function(short)
        answer: Any = await self._client.execute_command("FCALL", name, len(keys), *keys, *args)
        return cast("list[Any]", answer)
