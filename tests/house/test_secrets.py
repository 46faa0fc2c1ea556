"""Nothing secret is written down (promise 6): every outcome once, then a search through all that the broker wrote.

Looked through: its log at level debug, every span as raw bytes, /metrics, audit records, error bodies, the store's files and
the rest of the data folder, and the output of commands.  Looked for: each subject token, each credential, the
key-encryption key and what is derived from it, each private key, client secrets.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from broker.config import Settings
from broker.keys.sealed import decode_ring, key_encryption_key, key_file
from broker.protocol import oauth
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.otlp import Otlp
from tests.support.signing import signing_key
from tests.support.tree import write_tree

SECRET = "cl13nt-s3cr3t-" + "x" * 20
GOOD = {"audience": "payments", "scope": "deploy:write"}
KEYS_MADE = 4  # generations of two envs at a first start: current and next


@dataclass(slots=True)
class Found:
    """What was sent and received, and where the broker may have written."""

    needles: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, bytes] = field(default_factory=dict)

    def hide(self, name: str, value: str | bytes) -> None:
        """A secret, and the forms in which it could lie about."""
        raw = value.encode() if isinstance(value, str) else value
        self.needles[name] = raw
        if isinstance(value, bytes):
            self.needles |= {f"{name}, hex": raw.hex().encode(), f"{name}, base64": base64.b64encode(raw).rstrip(b"=")}
            self.needles[f"{name}, base64url"] = base64.urlsafe_b64encode(raw).rstrip(b"=")
        elif raw.count(b".") == 2:
            # The header is the same for all tokens of an issuer, and so is much of the payload; a signature is never.
            header, payload, signature = raw.split(b".")
            self.needles |= {f"{name}, payload": payload, f"{name}, signature": signature[:24]}
            self.needles[f"{name}, start"] = header + b"." + payload[:16]


def search(needles: Mapping[str, bytes], places: Mapping[str, bytes]) -> list[str]:
    """Which secret lies where."""
    return [f"{name} in {place}" for place, text in places.items() for name, needle in needles.items() if needle in text]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """A broker that has seen every outcome, stopped, and everything that it wrote."""
    folder: Path = tmp_path_factory.mktemp("secrets")
    found = Found()
    with in_thread(OidcIssuer("github-actions")) as issuer, Otlp() as otlp:
        policies = write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
        env = {"BROKER_LOG_LEVEL": "debug", "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.url}
        env |= {"BROKER_REFUSALS_PER_S": "100000", "BROKER_REFUSALS_UNVERIFIED_PER_S": "100000"}  # a record for each
        broker = Broker(folder / "data", policies, env=env)
        with broker:
            exercise(broker, issuer, found)
            found.places["metrics"] = broker.client.get("/metrics").content + broker.client.get("/readyz").content
            found.places["records"] = json.dumps(broker.records()).encode()
            commands = (("audit", "search", "--limit", "0"), ("keys", "list"), ("config", "show"))
            said = [broker.run(*command) for command in commands]
            found.places["commands"] = "".join(done.stdout + done.stderr for done in said).encode()
            keys(broker, found)
        found.places["spans"] = b"".join(otlp.bodies)
        found.places["log"] = broker.log.read_bytes()
        own_key = key_file(Settings(data=broker.data))
        for file in broker.data.rglob("*"):
            if file.is_file() and file != own_key:
                found.places[str(file.relative_to(broker.data))] = file.read_bytes()
        yield found


def exercise(broker: Broker, issuer: OidcIssuer, found: Found) -> None:
    """Exchanges of every outcome, good tokens in wrong places among them."""

    def token(name: str, **claims: object) -> str:
        made = issuer.token(now=time.time(), **{"aud": broker.issuer(), "jti": secrets.token_hex(16)} | claims)
        found.hide(name, made)
        return made

    issued = broker.exchange(token("a good token"), **GOOD).json()["access_token"]
    found.hide("a credential", issued)
    rs256 = broker.exchange(token("another good token"), audience="ledger", scope="entries:read").json()["access_token"]
    found.hide("an RS256 credential", rs256)
    used = token("a used token")
    broker.exchange(used, **GOOD)
    forged = signing_key("RS256", 88).sign(issuer.header(), issuer.claims(now=time.time(), aud=broker.issuer()))
    found.hide("a forged token", forged)
    refused = [
        (used, GOOD), (forged, GOOD), (issued, GOOD), (token("an own workload's", environment="x"), GOOD),
        (token("a stranger's", repository_id="1"), GOOD), (token("wrong audience", aud="https://x.example"), GOOD),
        (token("expired", iat=1, nbf=1, exp=2), GOOD), (token("cut")[:-5], GOOD), (token("spaced") + " ", GOOD),
        (token("no scope"), {"audience": "payments"}), (token("bad scope"), {**GOOD, "scope": "nothing"}),
        (token("no target"), {"scope": "nothing"}), (token("bad target"), {**GOOD, "audience": "nowhere"}),
        (token("bad ttl"), {**GOOD, "ttl": "x"}), (token("bad grant"), {**GOOD, "grant_type": "password"}),
        (token("bad type"), {**GOOD, "subject_token_type": "x"}), (token("with a secret"), {**GOOD, "client_secret": SECRET}),
        (token("a claim that is a token", ref=token("a token in a claim")), GOOD),
    ]  # fmt: skip
    answers = [broker.exchange(sent, **form) for sent, form in refused]
    answers += [broker.exchange(sent, act="check", **form) for sent, form in refused]
    answers.append(broker.exchange(token("a dry run's"), act="check", **GOOD))
    for place in ("audience", "scope", "service_account", "client_id", "resource", "requested_token_type", "actor_token", "ttl"):
        stray = token(f"a token as {place}")
        for value in (stray, f"https://x.example/{stray}"):
            answers.append(broker.exchange(token(f"beside {value[:9]} as {place}"), **{**GOOD, place: value}))
    for header in ("authorization", "user-agent", "x-request-id", "traceparent", "tracestate", "cookie", "x-forwarded-for"):
        stray = token(f"a token in {header}")
        form = {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": token(f"beside it ({header})"), **GOOD}
        answers.append(broker.client.post("/prod/token", data=form, headers={header: f"Bearer {stray}"}))
    found.hide("a client secret", SECRET)
    for path in (f"/prod/token?subject_token={token('a token in the query')}", f"/prod/{token('a token in the path')}",
                 f"/prod/errors/{token('a token as a reason')}", f"/prod/jwks.json?x={token('a token for keys')}"):  # fmt: skip
        answers += [broker.client.get(path), broker.client.post(path, data={"subject_token": used})]
    raw = token("a token that is no form")
    for kind, body in (("text/plain", raw), ("application/x-www-form-urlencoded", f"{quote(raw)}=1&grant_type={raw}")):
        answers.append(broker.client.post("/prod/token", content=body, headers={"content-type": kind}))
    broker.run("revoke", "--service-account", "svc-payments-deploy", "--reason", "a test", "--yes")
    answers.append(broker.exchange(token("a revoked workload's"), **GOOD))
    for number, answer in enumerate(answers):
        if answer.status_code == 200 and "access_token" in answer.json():
            found.hide(f"credential {number}", answer.json()["access_token"])
    found.places["error bodies"] = "\n".join(answer.text for answer in answers if answer.status_code >= 400).encode()


def keys(broker: Broker, found: Found) -> None:
    """Every private key that lies sealed in the store, and the key that opens them."""
    key = key_encryption_key(Settings(data=broker.data), create=False)
    found.hide("the key-encryption key", key.secret)
    found.hide("the chain's key", key.derive("revocation"))
    socket = (broker.data / "run" / "socket").read_text().strip()
    with redis.Redis(unix_socket_path=socket) as store:
        for env in ("prod", "dev"):
            found.hide(f"the sealing key of {env}", key.derive("seal", env))
            found.hide(f"the ring's key of {env}", key.derive("ring", env))
            version, raw = store.hmget(f"broker:{{{env}}}:keys", ["version", "ring"])
            for generation in decode_ring(raw, env, int(version), key).generations:
                for pair in generation.keys:
                    private = json.loads(key.unseal(env, pair.kid, pair.alg, pair.sealed))
                    for member in ("d", "p", "q"):
                        if member in private:
                            found.hide(f"{member} of {pair.kid}", private[member])


def test_no_secret_lies_anywhere(found: Found) -> None:
    assert search(found.needles, found.places) == []


def test_everything_was_looked_through(found: Found) -> None:
    """The search above proves something only if the places are full and the secrets many."""
    assert b"exchange" in found.places["spans"]
    assert b"authenticate" in found.places["spans"]
    assert b"broker_exchanges_total" in found.places["metrics"]
    for word in ("issued", "refused", "would_issue", "token_replayed", "revoked", "own_credential", "signature_invalid"):
        assert f'"{word}"'.encode() in found.places["records"], word
    files = [name for name in found.places if name.startswith("store/")]
    assert any(b"subject_token_sha256" in found.places[name] for name in files), "the store's own file is not among them"
    assert len([name for name in found.needles if name.startswith("d of ")]) >= KEYS_MADE
    assert len(found.needles) > 100
    assert found.places["log"]


@pytest.mark.parametrize("place", ["log", "records", "spans", "metrics", "error bodies"])
def test_a_secret_that_is_planted_is_found(place: str, found: Found) -> None:
    """The test of the test: each kind of secret, in each place, must make the search above fail."""
    for name, needle in found.needles.items():
        planted = {place: found.places[place] + b' {"detail": "' + needle + b'"}'}
        assert f"{name} in {place}" in search(found.needles, planted)
