"""What git and kubectl talk to, over TLS on loopback: `git http-backend`, and what a kube-apiserver says to `get pods`.

Both verify what they are shown with PyJWT, by the keys that the env's own metadata names.  They are strict: a credential
for another audience, of another issuer, or past its end gets 401.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import jwt

from tests.support.place import Server


class TlsServer(Server):
    """A `Server` that speaks TLS."""

    def __init__(self, answer: Any, context: ssl.SSLContext) -> None:
        super().__init__(answer)
        # Nobody has its address yet.  A handshake belongs to the thread of its own connection, not to the one that accepts.
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:", 1)


@dataclass
class Verifier:
    """Believes the credentials of one env for one audience, each of them `uses_max` times.  `shown`: all that came."""

    audience: str | list[str]
    issuer: str = ""
    uses_max: int | None = None
    shown: list[str] = field(default_factory=list)

    @cached_property
    def keys(self) -> jwt.PyJWKClient:
        metadata = httpx2.get(f"{self.issuer}/.well-known/openid-configuration", trust_env=False).json()
        assert metadata["issuer"] == self.issuer
        return jwt.PyJWKClient(metadata["jwks_uri"])

    def claims(self, token: str) -> dict[str, Any]:
        """What a credential says.  Raises `jwt.PyJWTError`."""
        self.shown.append(token)
        claims: dict[str, Any] = jwt.decode(
            token,
            self.keys.get_signing_key_from_jwt(token),
            algorithms=["ES256", "RS256"],
            issuer=self.issuer,
            audience=self.audience,
            options={"require": ["iss", "aud", "exp", "sub"]},
        )
        if self.uses_max is not None and self.shown.count(token) > self.uses_max:
            raise jwt.ExpiredSignatureError
        return claims

    def refuses(self, token: str) -> bool:
        """Whether a credential is good no more."""
        try:
            self.claims(token)
        except jwt.ExpiredSignatureError:
            return True
        return False


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Answers; `_` in a header's name stands for `-`."""
    handler.send_response(status)
    for name, value in {**headers, "Content_Length": str(len(body))}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class GitServer:
    """Serves the repositories of a folder to whoever's password is a credential: repo:read to fetch, repo:write to push.

    `plain` asks for a password over plain http.
    """

    def __init__(self, folder: Path, context: ssl.SSLContext) -> None:
        self.folder = folder
        self.users: list[str] = []
        self.server = TlsServer(self._answer, context)
        self.url = self.server.url
        self.verifier = Verifier(self.url)
        self.plain = Server(self._answer)

    def close(self) -> None:
        self.server.close()
        self.plain.close()

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        kind, _, text = handler.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(text).decode().partition(":")
        try:
            if kind != "Basic":
                raise jwt.InvalidTokenError
            claims = self.verifier.claims(password)
        except jwt.PyJWTError:
            reply(handler, 401, WWW_Authenticate='Basic realm="git"')
            return
        self.users.append(user)
        needed = "repo:write" if "git-receive-pack" in handler.path else "repo:read"
        if needed in claims["scope"].split():
            self._backend(handler, body, user)
        else:
            reply(handler, 403)

    def _backend(self, handler: BaseHTTPRequestHandler, body: bytes, user: str) -> None:
        """`git http-backend` by CGI (RFC 3875)."""
        parts = urlsplit(handler.path)
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": handler.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": handler.headers.get("Content-Encoding", ""),
            "REMOTE_USER": user,
            "REQUEST_METHOD": handler.command,
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "CONTENT_TYPE": handler.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
        }
        done = subprocess.run(["git", "http-backend"], env=variables, input=body, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        reply(handler, status, content, **headers)


# What kubectl asks for on the way to `get pods`.
DOCUMENTS: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.1"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]}],
    },
    "/api/v1/namespaces/default/pods": {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {},
        "items": [{"metadata": {"name": "payments-7d4b", "namespace": "default"}, "spec": {}, "status": {}}],
    },
}
UNAUTHORIZED = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Unauthorized", "code": 401}


class ApiServer:
    """Stands in for a kube-apiserver whose AuthenticationConfiguration is `authenticator`, an entry of its `jwt` list.

    It does with it what Kubernetes documents for issuer, audiences and the user's name, and has no roles: whoever is known
    may read.  `users`: the names of those who came; `paths`: what was asked for.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.users: list[str] = []
        self.paths: list[str] = []
        self.server = TlsServer(self._answer, context)
        self.url = self.server.url

    def trust(self, authenticator: dict[str, Any]) -> None:
        """Sets whose tokens it believes."""
        issuer, name = authenticator["issuer"], authenticator["claimMappings"]["username"]
        self.verifier = Verifier(issuer["audiences"], issuer["url"])
        self.users.clear()
        self.paths.clear()
        self.claim, self.prefix = name["claim"], name["prefix"]

    def _answer(self, handler: BaseHTTPRequestHandler, _: bytes) -> None:
        kind, _, token = handler.headers.get("Authorization", "").partition(" ")
        path = urlsplit(handler.path).path
        self.paths.append(path)
        try:
            if kind != "Bearer":
                raise jwt.InvalidTokenError
            self.users.append(self.prefix + self.verifier.claims(token)[self.claim])
        except jwt.PyJWTError:
            status, document = 401, UNAUTHORIZED
        else:
            status, document = (200, DOCUMENTS[path]) if path in DOCUMENTS else (404, {})
        reply(handler, status, json.dumps(document).encode(), Content_Type="application/json")
