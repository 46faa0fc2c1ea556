"""The load's material: an issuer's key, thousands of pre-signed GitHub-shaped tokens, a policy that takes them, a collector.

Tokens are signed by this process alone, once; the issuer's keys reach the broker as a file, so that no request to an
issuer is in any figure.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey

from broker.presets import load
from broker.protocol import oauth

ISSUER = "http://127.0.0.1:9"  # nobody is there, and nobody is asked
LIFE_S = 6 * 3600


@dataclass(frozen=True, slots=True)
class Pool:
    """Where everything lies."""

    folder: Path
    base_url: str
    collector_port: int

    @property
    def bodies(self) -> Path:
        """One form body a line."""
        return self.folder / "bodies"

    def make(self, size: int) -> None:
        """Signs `size` tokens on all cores."""
        key = RSAKey.generate_key(2048, parameters={"kid": "bench", "use": "sig", "alg": "RS256"})
        (self.folder / "issuer.json").write_text(json.dumps(key.as_dict(private=False)))
        (self.folder / "jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
        parts = [(key.as_dict(private=True), self.base_url, size // 8)] * 8
        with ProcessPoolExecutor() as pool, self.bodies.open("w") as out:
            for bodies in pool.map(_sign, parts):
                out.writelines(body + "\n" for body in bodies)

    def policies(self, name: str, replay: str) -> Path:
        """A small tree whose one issuer is the pool's."""
        target = self.folder / f"policies-{name}"
        shutil.rmtree(target, ignore_errors=True)
        (target / "prod").mkdir(parents=True)
        shutil.copy(self.folder / "jwks.json", target / "jwks.json")
        (target / "issuers.yaml").write_text(
            "issuers:\n  github:\n    preset: github-actions\n"
            f"    url: {ISSUER}\n    jwks_file: jwks.json\n    max_age: 6h\n    max_lifetime: 6h\n    replay: {replay}\n"
        )
        (target / "apis.yaml").write_text(
            "apis:\n  payments:\n    audience: https://payments.acme.example\n"
            "    scopes:\n      deploy:write: {sensitivity: high, description: Roll out a release}\n      releases:read: {}\n"
        )
        (target / "environments.yaml").write_text("environments:\n  prod: {max_ttl: 15m, default_ttl: 10m, issuers: [github]}\n")
        (target / "prod" / "svc-payments-deploy.yaml").write_text(account("svc-payments-deploy", "7432112"))
        return target


def account(name: str, repository_id: str) -> str:
    """A service account file of the usual kind: five claims and a condition."""
    return f"""service_account: {name}
owner: team-payments
contact: payments-oncall@acme.example
description: Rolls releases out
tags: {{system: payments}}
expires: 2027-06-30
access:
  payments: [deploy:write, releases:read]
trust:
  - name: release workflow
    issuer: github
    where:
      repository_id: "{repository_id}"
      repository_owner_id: "98123"
      environment: production
      ref: {{glob: "refs/tags/v*"}}
    condition: claims.event_name != "pull_request"
    access: {{payments: [deploy:write]}}
    max_ttl: 10m
"""


def claims(base_url: str) -> dict[str, Any]:
    """The fixture's claims, fresh."""
    now = int(time.time())
    times = {"iss": ISSUER, "aud": f"{base_url}/prod", "iat": now, "nbf": now, "exp": now + LIFE_S, "jti": secrets.token_hex(16)}
    return dict(load("github-actions").fixture.claims) | times


def _sign(part: tuple[dict[str, Any], str, int]) -> list[str]:
    raw, base_url, count = part
    key = RSAKey.import_key(raw)
    form = {
        "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
        "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN,
        "audience": "payments",
        "scope": "deploy:write",
    }
    head = {"alg": "RS256", "kid": "bench", "typ": "JWT"}
    return [
        urlencode({**form, "subject_token": jwt.encode(head, claims(base_url), key, algorithms=["RS256"])}) for _ in range(count)
    ]
