"""A broker whose policy is what the start pages show, and the issuers that its workloads get their tokens from."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.docs.pages import DOCS, ROOT
from tests.docs.test_examples import ENVIRONMENTS, tree_files, write
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread

PRESETS = {"github": "github-actions", "gitlab": "gitlab", "prod-cluster": "kubernetes"}


@dataclass(frozen=True, slots=True)
class Shown:
    """The broker of the start pages.  `request_url` is where a job asks for its identity token, as GitHub has it."""

    broker: Broker
    issuers: dict[str, OidcIssuer]
    request_url: str

    def token(self, issuer: str, audience: str, **claims: str) -> str:
        return self.issuers[issuer].token(now=time.time(), aud=audience, jti=secrets.token_hex(16), **claims)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("docs")
    files: dict[str, str] = {}
    for page in ("github-actions", "gitlab", "kubernetes"):
        files |= tree_files(DOCS / "start" / f"{page}.md")
    with ExitStack() as stack:
        issuers = {name: stack.enter_context(in_thread(OidcIssuer(preset))) for name, preset in PRESETS.items()}
        entries = {name: {"preset": preset, "url": issuers[name].url} for name, preset in PRESETS.items()}
        files["issuers.yaml"] = yaml.safe_dump({"issuers": entries})
        files["environments.yaml"] = ENVIRONMENTS.replace("ISSUERS", ", ".join(entries))
        broker = stack.enter_context(Broker(folder / "data", write(folder / "policies", files)))
        yield Shown(broker, issuers, stack.enter_context(IdentityTokens(issuers["github"])))


class IdentityTokens:
    """Answers as a GitHub runner's token service does: `{"value": TOKEN}` for the audience that is asked for."""

    def __init__(self, issuer: OidcIssuer) -> None:
        self.issuer = issuer

    def __enter__(self) -> str:
        issuer = self.issuer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["Authorization"] == "bearer of-the-runner"
                audience = parse_qs(urlsplit(self.path).query)["audience"][0]
                body = f'{{"value": "{issuer.token(now=time.time(), aud=audience, jti=secrets.token_hex(16))}"}}'.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/token?api-version=2.0"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, OidcIssuer]]:
    """A broker on the shipped policies/, whose github is an issuer at hand."""
    from broker.demo.stage import copy_policies

    folder = tmp_path_factory.mktemp("example")
    with in_thread(OidcIssuer("github-actions")) as issuer:
        copy_policies(ROOT / "policies", folder / "policies", {"github": issuer.url})
        with Broker(folder / "data", folder / "policies") as broker:
            yield broker, issuer
