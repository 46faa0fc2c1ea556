"""The operator's pages and the command line's, as an operator follows them: what they show serves, and does what they say."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import select
import shlex
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.config import SETTINGS
from tests.docs.pages import DOCS, ROOT, blocks
from tests.docs.start_pages import NOT_OURS, URL
from tests.docs.test_commands import BINARIES, shell
from tests.docs.test_examples import tree_files, write
from tests.support.broker import Broker, free_port
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.platforms import platform
from tests.support.store import external
from tests.support.tls import Authority

README, CLI, FIRST = ROOT / "README.md", DOCS / "cli.md", DOCS / "start" / "first-exchange.md"


def shown(page: Path, word: str) -> str:
    """The page's one block with this word."""
    (found,) = [block.text for block in blocks(page) if word in block.words]
    return found


# A broker that the pages' own lines start


class Served(Broker):
    """What a script that ends in `broker serve …` starts, in a folder that has `policies`; `url` is where it listens.

    `begun` is the folder in which the script begins, where that is another.
    """

    def __init__(self, folder: Path, script: str, url: str, variables: dict[str, str], begun: Path | None = None) -> None:
        super().__init__(folder / "broker-data", folder / "policies")
        self.begun = begun or folder
        self.script = re.sub("^broker serve", "exec broker serve", script, flags=re.MULTILINE)
        self.workers = int(variables.get("BROKER_WORKERS", "1"))
        path = {"PATH": f"{BINARIES}:{os.environ['PATH']}", "HOME": str(folder), "NO_PROXY": "*", "no_proxy": "*"}
        self.environment = path | variables
        trusted = ssl.create_default_context(cafile=variables.get("SSL_CERT_FILE"))
        # An idle connection would hold a stop up.
        self.client = httpx2.Client(base_url=url, trust_env=False, timeout=30, verify=trusted, headers={"Connection": "close"})

    def start(self) -> None:
        with self.log.open("wb") as log:
            command = ["sh", "-euc", self.script]
            self.process = subprocess.Popen(command, cwd=self.begun, env=self.environment, stdout=log, stderr=log)
        self.wait_ready()


def certificates(folder: Path, certificate: str, key: str) -> str:
    """Puts a certificate for localhost and its key there; the authority's file."""
    authority = Authority.create(folder)
    authority.server()
    for name in (certificate, key):
        shutil.copyfile(folder / "server-good.pem", folder / name)
    return str(authority.ca_file)


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("github-actions")) as issuer:
        yield issuer


def tree(folder: Path, page: Path, issuer: OidcIssuer) -> None:
    """The policy that a page shows; its GitHub is the issuer at hand."""
    files = tree_files(page)
    assert "github: {preset: github-actions}" in files["issuers.yaml"]
    files["issuers.yaml"] = f"issuers: {{github: {{preset: github-actions, url: '{issuer.url}'}}}}\n"
    write(folder / "policies", files)


def test_the_first_pages_lead_from_a_checkout_to_an_exchange_and_leave_it_as_it_was(issuer: OidcIssuer, tmp_path: Path) -> None:
    """The tree and the steps of the page, served by the README's lines, which end in the page's own."""
    checkout = tmp_path / "checkout"
    (checkout / "policies").mkdir(parents=True)
    (checkout / "policies" / "issuers.yaml").write_text("of the demo")
    begin = shown(README, "folder")
    folder = Path(shell(f"{begin}\npwd", {}, checkout).stdout.strip())
    tree(folder, FIRST, issuer)
    assert shown(README, "serve").endswith(shown(FIRST, "serve"))
    port = free_port()
    url = f"https://localhost:{port}"
    script = begin + shown(README, "serve").replace(URL, url).replace("--port 443", f"--port {port}")
    variables = {"SSL_CERT_FILE": certificates(folder, "fullchain.pem", "privkey.pem")}
    with Served(folder, script, url, variables, begun=checkout):
        flags = script.partition("broker serve")[2].strip()
        looked = shell(f"broker doctor {flags}", variables, folder)
        assert looked.returncode == 0, looked.stdout
        ask = f"broker token --url {url} --env prod --audience payments --scope deploy:write"
        with platform("github-actions", issuer, tmp_path) as job:
            tried = shell(f"{ask} --check", {**job.env, **variables}, tmp_path)
            done = shell(ask, {**job.env, **variables}, tmp_path)
        assert (tried.returncode, done.returncode) == (0, 0), tried.stderr + done.stderr
        found = shell("broker audit search", variables, folder).stdout
        assert re.search(r"would_issue.*\n.*issued|issued.*\n.*would_issue", found), found
    left = {path.name: path.read_text() for path in checkout.rglob("*") if path.is_file()}
    assert left == {"issuers.yaml": "of the demo"}, "the checkout's own policies are the demo's and the tests'"


@pytest.mark.parametrize("line", shown(CLI, "serve").splitlines())
def test_the_command_lines_page_serves(line: str, issuer: OidcIssuer, tmp_path: Path) -> None:
    tree(tmp_path, README, issuer)
    port, tls = free_port(), "--tls-cert" in line
    variables = {"BROKER_PORT": str(port)} | ({"SSL_CERT_FILE": certificates(tmp_path, "c.pem", "k.pem")} if tls else {})
    here = f"http://127.0.0.1:{port}"
    with Served(tmp_path, line, f"https://localhost:{port}" if tls else here, variables) as broker:
        metadata = broker.client.get("/prod/.well-known/openid-configuration").json()
    assert metadata["issuer"] == f"{URL if tls else here}/prod"


@pytest.mark.needs("redis-server")
def test_the_stores_page_serves_from_an_external_store(issuer: OidcIssuer, tmp_path: Path) -> None:
    tree(tmp_path, README, issuer)
    (tmp_path / "key-encryption-key").write_text(secrets.token_hex(32))
    (tmp_path / "key-encryption-key").chmod(0o600)
    script, port = shown(DOCS / "operations" / "store.md", "serve").replace("/etc/broker/", f"{tmp_path}/"), free_port()
    with external() as store:
        (tmp_path / "store-url").write_text(f"redis://127.0.0.1:{store}")
        with Served(tmp_path, script, f"http://127.0.0.1:{port}", {"BROKER_PORT": str(port)}) as broker:
            assert broker.client.get("/readyz").json()["durability"] == "disk"
    assert not (tmp_path / "broker-data" / "store").exists()


def test_the_systemd_units_service_starts_reloads_and_stops(issuer: OidcIssuer, tmp_path: Path) -> None:
    tree(tmp_path, README, issuer)
    (tmp_path / "key-encryption-key").write_text(secrets.token_hex(32))
    (tmp_path / "key-encryption-key").chmod(0o400)
    unit = next(block.text for block in blocks(DOCS / "operations" / "running.md") if block.language == "ini")
    here = {"/var/lib/broker": f"{tmp_path}/broker-data", "/etc/broker": str(tmp_path), "127.0.0.1:8790": f"127.0.0.1:{free_port()}"}
    for old, new in here.items():
        assert old in unit
        unit = unit.replace(old, new)
    pairs = [pair.partition("=") for line in re.findall("^Environment=(.*)$", unit, re.MULTILINE) for pair in shlex.split(line)]
    variables = {name: value for name, _, value in pairs}
    assert {name.removeprefix("BROKER_").lower() for name in variables} <= set(SETTINGS)
    (command,) = re.findall("^ExecStart=/opt/broker/bin/(.*)$", unit, re.MULTILINE)
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in unit
    admin = f"http://{variables['BROKER_ADMIN_BIND']}"
    with Served(tmp_path, command, admin, variables | {"BROKER_PORT": str(free_port())}) as broker:
        assert broker.process is not None
        broker.process.send_signal(signal.SIGHUP)
        broker.wait_ready()
        assert broker.stop() == 0


# A broker that is there


@pytest.fixture(scope="module")
def broker(issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("operated")
    tree(folder, README, issuer)
    with Broker(folder / "broker-data", folder / "policies") as broker:
        yield broker


def token(broker: Broker, issuer: OidcIssuer, **claims: Any) -> str:
    return issuer.token(now=time.time(), aud=broker.issuer("prod"), jti=secrets.token_hex(16), **claims)


@pytest.mark.needs("curl")
def test_the_readmes_commands_get_credentials_in_a_job(broker: Broker, issuer: OidcIssuer, tmp_path: Path) -> None:
    programs = {"pip": NOT_OURS["pip"], "deploy.sh": '#!/bin/sh\ntest -s "$BROKER_TOKEN_FILE" && echo deployed\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with platform("github-actions", issuer, tmp_path) as job:
        path = f"{tmp_path}:{BINARIES}:{os.environ['PATH']}"
        script = shown(README, "job").replace(URL, broker.url)
        done = shell(f"PATH={path}\n{script}", job.env, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"eyJ\S+\ndeployed\n", done.stdout)


@pytest.mark.needs("curl")
def test_the_http_pages_requests_are_answered_as_it_shows(broker: Broker, issuer: OidcIssuer, tmp_path: Path) -> None:
    page = DOCS / "http.md"
    shown_answers = [json.loads(block.text.replace(URL, broker.url)) for block in blocks(page) if block.language == "json"]
    script = shown(page, "exchange").replace(URL, broker.url)
    asked = [script, script.replace("/prod/token", "/prod/check")]
    answers = [json.loads(shell(each, {"TOKEN": token(broker, issuer)}, tmp_path).stdout) for each in asked]
    answers.append(broker.client.get("/prod/.well-known/openid-configuration").json())
    own = {"access_token", "expires_in", "request_id", "trace_id"}
    assert [list(answer) for answer in answers] == [list(answer) for answer in shown_answers]
    for answer, example in zip(answers, shown_answers, strict=True):
        assert {name: value for name, value in answer.items() if name not in own} == {
            name: value for name, value in example.items() if name not in own
        }


def test_the_doctor_looks_over_a_broker_that_runs(broker: Broker) -> None:
    done = shell(shown(CLI, "doctor"), broker.environment, broker.data.parent)
    assert done.returncode == 0, done.stdout
    assert "refuses a forged token" in done.stdout


def test_the_audit_log_is_followed_until_it_is_interrupted(broker: Broker, issuer: OidcIssuer) -> None:
    command = [f"{BINARIES}/broker", *shlex.split(shown(CLI, "tail"))[1:]]
    with subprocess.Popen(command, env=broker.environment, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        while not select.select([tail.stdout], [], [], 0.1)[0]:  # nothing tells when it has begun to follow
            broker.exchange(token(broker, issuer, ref="refs/heads/main"), audience="payments", scope="deploy:write")
        line = tail.stdout.readline()
        tail.send_signal(signal.SIGINT)
    assert "claims_not_satisfied" in line
    assert tail.returncode == 130


def at_a_terminal(command: str, broker: Broker) -> str:
    """What a command says to a person who answers yes."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n")
    words = [f"{BINARIES}/broker", *shlex.split(command)[1:]]
    done = subprocess.run(words, env=broker.environment, stdin=theirs, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_revocation_pages_acts_are_done_at_a_terminal(broker: Broker) -> None:
    by_account, by_claim, listing, lift = shown(DOCS / "operations" / "revocation.md", "revoke").splitlines()
    first, second = (re.match(r"REVOKED (\S+) in ", at_a_terminal(each, broker)) for each in (by_account, by_claim))
    assert first is not None
    assert second is not None
    assert {first[1], second[1]} <= set(at_a_terminal(listing, broker).split())
    for found in (first[1], second[1]):
        assert at_a_terminal(lift.replace("9fK2xQ7cLw0aTz1b", found), broker).startswith(f"LIFTED {found} in ")


# Neither


@contextmanager
def demo(folder: Path) -> Generator[tuple[Sequence[str], subprocess.Popen[str]]]:
    """`broker demo --keep` as the page has it, until it waits: what it prints to try."""
    *_, last = shown(FIRST, "demo").splitlines()
    program, *words = shlex.split(last, comments=True)
    assert program == ".venv/bin/broker"
    words = [f"{BINARIES}/broker", *words]
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, "HOME": str(folder)}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while ".well-known/openid-configuration" not in text.partition(TRY)[2]:
            line = process.stdout.readline()
            assert line, text
            text += line
        yield text.partition(TRY)[2].replace("\\\n", " ").strip().splitlines(), process
        process.send_signal(signal.SIGINT)
        process.stdout.read()


TRY = "Try, in another terminal:"


@pytest.mark.needs("curl")
def test_the_demo_runs_and_what_it_prints_to_try_works_in_another_terminal(tmp_path: Path) -> None:
    """In another folder, with a PATH that has no broker, and with nothing to fill in."""
    elsewhere = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "no_proxy": "*", "NO_PROXY": "*"}

    def typed(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-euc", script], env=elsewhere, cwd=tmp_path, capture_output=True, text=True, check=False)

    with demo(tmp_path) as (lines, process):
        fetch, check, *others = (line.strip() for line in lines)
        assert json.loads(typed(f"{fetch}\n{check}").stdout)["allowed"] is True
        done = {line: typed(line) for line in others if "audit tail" not in line}
        assert {line: each.stderr for line, each in done.items() if each.returncode} == {}
        (explained,) = [each.stdout for line, each in done.items() if "policy explain" in line]
        assert explained.startswith("REFUSED  prod  github")
        (found,) = [each.stdout for line, each in done.items() if "audit search" in line]
        assert {line.split()[2] for line in found.splitlines()} == {"refused"}
    assert process.returncode == 0
