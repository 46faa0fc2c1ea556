"""The story that `broker demo` tells: one job gets its credential, three are refused, one is cut off.

Every line that ends in `ok` states something that was just checked; one that does not hold turns the exit code to 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import jwt

from broker.demo.collector import Collector, SpanSeen
from broker.demo.issuer import DemoIssuer
from broker.demo.stage import Stage
from broker.presets import load
from broker.protocol import oauth

WIDTH = 100
TRACE_WITHIN_S = 5.0
ACCOUNT = "svc-payments-deploy"

Say = Callable[[str], None]


@dataclass(slots=True)
class Teller:
    """Says lines and keeps count of what was checked."""

    say: Say
    checked: int = 0
    failed: list[str] = field(default_factory=list)

    def head(self, text: str) -> None:
        """Begins a chapter."""
        self.say("")
        self.say(text)

    def line(self, label: str, text: str) -> None:
        """A line that tells and claims nothing."""
        self.say(f"   {label:<9} {text}")

    def check(self, label: str, text: str, holds: bool, *, why: str = "") -> None:
        """A line that states something, and whether it holds."""
        self.checked += 1
        mark = "ok" if holds else "NOT SO"
        self.say(f"   {label:<9} {text}".ljust(WIDTH) + f" {mark}")
        if not holds:
            self.failed.append(f"{label} {text}")
            if why:
                self.say(f"             {why}")


@dataclass(slots=True)
class Story:
    """The cast: a broker on its stage, two issuers, a collector, and a teller."""

    stage: Stage
    github: DemoIssuer
    cluster: DemoIssuer
    collector: Collector
    client: httpx2.AsyncClient
    tell: Teller
    refused_id: str = ""  # the request id of the first refusal, once it is told

    async def exchange(self, env: str, claims: Mapping[str, Any], **asked: str) -> httpx2.Response:
        """One exchange with a fresh token of the GitHub-shaped issuer, meant for `audience_env` (default: `env`)."""
        audience_env = asked.pop("audience_env", env)
        token = self.github.token(claims, f"{self.stage.url}/{audience_env}")
        form = {
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "subject_token": token,
            "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN,
            **asked,
        }
        return await self.client.post(f"{self.stage.url}/{env}/token", data=form)

    async def run(self) -> None:
        """The four chapters."""
        await self.start()
        await self.granted()
        await self.refused()
        await self.cut_off()

    async def start(self) -> None:
        """What runs, and the policy that it runs by."""
        tell, stage = self.tell, self.stage
        ready = (await self.client.get(f"{stage.url}/readyz")).json()
        tell.head("1  Start")
        tell.check("store", "private Valkey, unix socket, fsync before each answer", ready["durability"] == "disk")
        for label, name, issuer, shape in (
            ("issuers", "github", self.github, "GitHub"),
            ("", "prod-cluster", self.cluster, "Kubernetes"),
        ):
            keys = (await self.client.get(f"{issuer.url}/keys")).json()["keys"]
            tell.check(label, f"{name:<13} {issuer.url}  {shape}-shaped tokens", len(keys) == 1)
        tell.line("", f"audience      {stage.url}/ENV, for each env its own")
        code, out = await stage.command("policy", "check")
        summary = (
            out.splitlines()[-1].replace(str(stage.policies), "policies/").replace("policies/:", "policies/ ") if out else ""
        )
        tell.check("policy", summary, code == 0, why=out)
        code, out = await stage.command("policy", "test")
        tell.check("", out.splitlines()[-1] if out else "policy tests", code == 0, why=out)
        tell.check("broker", f"{stage.url}  prod, staging, dev", ready["ready"])

    async def granted(self) -> None:
        """A tag build in production gets its ten minutes."""
        tell, claims = self.tell, github_claims()
        tell.head("2  A release job asks for payments in prod")
        tell.line("who", f"github  {claims['repository']} (repository_id {claims['repository_id']})  {claims['ref']}  production")
        tell.line("asks", "audience payments, scope deploy:write")
        answer = await self.exchange("prod", claims, audience="payments", scope="deploy:write")
        body = answer.json()
        if answer.status_code != 200:
            tell.check("ISSUED", "a credential", False, why=answer.text)
            return
        request_id = answer.headers["x-request-id"]
        record = await self.stage.record_of(request_id)
        self._tell_rule(record)
        at = str(record.get("time", ""))
        tell.check(
            "recorded",
            f"audit record {record.get('id', '')[:12]}… on disk, before anything was signed",
            record.get("outcome") == "issued" and bool(at),
        )
        verified = self._verify("prod", body["access_token"], "https://payments.acme.example")
        tell.check("ISSUED", f"{verified.get('sub')} for {body['expires_in'] // 60} min", verified.get("sub") == ACCOUNT)
        tell.line("", f"iss  {verified.get('iss')}    aud  {verified.get('aud')}")
        expires = time.strftime("%H:%M:%SZ", time.gmtime(verified.get("exp", 0)))
        tell.line("", f"scope {verified.get('scope')}   jti {str(verified.get('jti'))[:6]}…  exp {expires}   ES256 at+jwt")
        tell.check(
            "verified", "by PyJWT against /prod/jwks.json, as a resource server would", verified.get("jti") == record.get("jti")
        )
        spans = await self.collector.wait_for(record.get("trace_id", ""), TRACE_WITHIN_S)
        self._tell_trace(record, spans)

    async def refused(self) -> None:
        """Three jobs that must not, each with what its author reads."""
        tell = self.tell
        tell.head("3  Three refusals, as the CI author reads them")
        pull = variant("pull request")
        first = await self.exchange("prod", pull, audience="payments", scope="deploy:write")
        self._tell_refusal("a pull request", first, "claims_not_satisfied", ("claims", {"ref", "environment", "event_name"}))
        staging = github_claims() | {"environment": "staging"}
        second = await self.exchange("prod", staging, audience="payments", scope="deploy:write")
        self._tell_refusal("the staging job, asking at /prod", second, "claims_not_satisfied", ("claims", {"environment"}))
        third = await self.exchange("prod", github_claims(), audience="payments", scope="releases:delete")
        self._tell_refusal("scope releases:delete", third, "scope_not_granted", ("scopes", {"deploy:write"}))
        records = [await self.stage.record_of(answer.headers["x-request-id"]) for answer in (first, second, third)]
        told = all(record.get("outcome") == "refused" and record.get("reasons") for record in records)
        tell.check("recorded", "all three, with what the author was not told", told)
        self.refused_id = first.headers["x-request-id"]
        await self._tell_explanation(self.refused_id)

    async def cut_off(self) -> None:
        """One revocation, and the same job once more."""
        tell = self.tell
        tell.head("4  Cut it off")
        code, out = await self.stage.command(
            "revoke", "--service-account", ACCOUNT, "--env", "prod", "--reason", "demo: the pager went off", "--yes"
        )
        tell.check("revoke", out.splitlines()[0] if out else ACCOUNT, code == 0, why=out)
        answer = await self.exchange("prod", github_claims(), audience="payments", scope="deploy:write")
        record = await self.stage.record_of(answer.headers["x-request-id"])
        covered = record.get("revocation") or [""]
        holds = answer.status_code == 400 and answer.json().get("reason") == "revoked" and bool(covered[0])
        tell.check("again", f"the same job: refused, covered by {covered[0][:8]}…", holds, why=answer.text)

    def _tell_rule(self, record: Mapping[str, Any]) -> None:
        reasons = [reason for reason in record.get("reasons", []) if reason.get("held")]
        place = next((reason["place"] for reason in reasons if reason.get("place")), "")
        rule = record.get("trust_rule", "")
        self.tell.check("rule", f'{place}  "{rule}"', rule == "release workflow")
        for reason in reasons:
            expected = reason["expected"]
            self.tell.line("", f"+ {expected if reason['claim'] == 'condition' else reason['claim'] + ' ' + expected}")

    def _tell_trace(self, record: Mapping[str, Any], spans: list[SpanSeen]) -> None:
        names = {span.name for span in spans}
        whole = {"exchange", "authenticate", "decide", "prepare", "commit", "issue"} <= names
        self.tell.check("trace", str(record.get("trace_id", "")), whole, why=f"spans seen: {sorted(names)}")
        root = next((span for span in spans if span.name == "exchange"), None)
        if root is None:
            return
        self.tell.line("", f"exchange ─ {root.ms:.1f} ms")
        children = [span for span in spans if span.parent_id == root.span_id]
        for number, span in enumerate(children):
            branch = "└" if number == len(children) - 1 else "├"
            self.tell.line("", f"{branch} {span.name:<13} {span.ms:.1f}")

    def _tell_refusal(self, who: str, answer: httpx2.Response, reason: str, told: tuple[str, set[str]]) -> None:
        body = answer.json()
        name, wanted = told
        holds = answer.status_code == 400 and body.get("reason") == reason and set(body.get(name, ())) == wanted
        self.tell.check(
            "REFUSED", f"{who:<32} {answer.status_code} {body.get('error')}  {body.get('reason')}", holds, why=answer.text
        )
        sentence, _, names = str(body.get("error_description", "")).rpartition(": ")
        self.tell.line("", f"{sentence.capitalize()}: {names}.")
        self.tell.line("", f"{body.get('error_uri', '')}  trace {str(body.get('trace_id', ''))[:4]}…")

    async def _tell_explanation(self, request_id: str) -> None:
        code, out = await self.stage.command("policy", "explain", "--request", request_id)
        about_account = out.split(f"\n{ACCOUNT}", 1)[-1].split("\n\n", 1)[0]
        failed = [line for line in about_account.splitlines() if line.strip(" │├└─").startswith("- ")]
        self.tell.check(
            "explained",
            f"what the owner sees: broker policy explain --request {request_id[:12]}…",
            code == 0 and len(failed) >= 3,
            why=out,
        )
        for line in failed:
            self.tell.line("", line.strip(" │├└─"))

    def _verify(self, env: str, token: str, audience: str) -> dict[str, Any]:
        issuer = f"{self.stage.url}/{env}"
        try:
            key = jwt.PyJWKClient(f"{issuer}/jwks.json").get_signing_key_from_jwt(token)
            return jwt.decode(
                token,
                key,
                algorithms=["ES256"],
                audience=audience,
                issuer=issuer,
                options={"require": ["exp", "iat", "jti", "sub"]},
            )
        except jwt.PyJWTError as error:
            self.tell.check("verified", f"by PyJWT: {error}", False)
            return {}


def github_claims() -> dict[str, Any]:
    """The claims of the preset's fixture: a tag build of acme/payments in production."""
    return dict(load("github-actions").fixture.claims)


def cluster_claims() -> dict[str, Any]:
    """The claims of the Kubernetes preset's fixture: a deployer pod."""
    return dict(load("kubernetes").fixture.claims)


def variant(name: str) -> dict[str, Any]:
    """The fixture's claims under one of the preset's variants."""
    return dict(load("github-actions").fixture.variants[name])
