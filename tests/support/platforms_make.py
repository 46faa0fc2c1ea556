"""A platform that stands, and what its builders have at hand."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.client.ambient import Around
from tests.support.issuer import OidcIssuer
from tests.support.platforms_service import Program, Ran, Reply, Seen, Service


@dataclass
class Platform:
    """What a job there finds.

    `env`: variables, enough for a process of its own unless `in_process`; `name`: what `broker whoami` calls the way;
    `root`, `addresses`: as in `Around`, for tests in this process; `fixed`: the audience that tokens have, whatever is asked
    for.  `service`, `program`: what stands behind, with its faults.
    """

    name: str
    env: dict[str, str]
    root: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    fixed: str = ""
    fresh: bool = True
    in_process: bool = False
    service: Service | None = None
    program: Program | None = None
    more: Any = None
    handed_out: list[str] = field(default_factory=list, repr=False)  # every token so far

    def audience(self, asked: str) -> str:
        """What a token is made for when it is asked for `asked`."""
        return self.fixed or asked

    def around(self, **changes: Any) -> Around:
        """The surroundings for `ambient.find`; no metadata server answers but the platform's own."""
        nobody = dict.fromkeys(("google", "azure", "aws"), "http://127.0.0.1:9")
        values = {"env": self.env, "root": self.root, "addresses": nobody | self.addresses, **changes}
        return Around(**values)


class Make:
    """Builds one platform: its services end with `stack`."""

    def __init__(self, issuer: OidcIssuer, folder: Path, audience: str, stack: contextlib.ExitStack) -> None:
        self.issuer, self.folder, self.audience, self.stack = issuer, folder, audience, stack
        self.base = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self.handed_out: list[str] = []

    def token(self, audience: str, **claims: Any) -> str:
        """A token of the platform's shape, another each time where its shape has an id."""
        fixture = self.issuer.shape.fixture
        claims |= {name: secrets.token_hex(11) for name in ("jti", "uti") if name in fixture and name not in claims}
        token = self.issuer.token(now=time.time(), aud=audience, **claims)
        self.handed_out.append(token)
        return token

    def service(self, answer: Callable[[Seen], Reply], unix: Path | None = None) -> Service:
        service = Service(answer, unix)
        self.stack.callback(service.close)
        return service

    def program(self, name: str, runs: Callable[[list[str]], Ran]) -> Program:
        """Puts a program first in PATH."""
        program = Program(name, self.folder, runs)
        self.stack.callback(program.service.close)
        self.base["PATH"] = f"{program.folder}{os.pathsep}{os.environ['PATH']}"
        return program

    def short(self) -> Path:
        """A folder with a short name: a unix socket's path has 107 bytes."""
        folder = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))
        self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def variable(self, name: str, variable: str, fixed: str = "", **env: str) -> Platform:
        """A platform that puts the token into a variable when the job starts, for what the job's file says."""
        audience = fixed or self.audience
        return Platform(name, {**self.base, **env, variable: self.token(audience)}, fixed=audience, fresh=False)

    def file(self, name: str, path: Path, fixed: str = "") -> Path:
        """A file with a token in it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.token(fixed or self.audience))
        return path
