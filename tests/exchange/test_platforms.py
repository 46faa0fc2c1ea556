"""Every platform's token, over HTTP, against one broker that trusts them all: whom the careful rule admits, and nobody else."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import jwt
import pytest

from broker import presets
from broker.presets import Preset
from tests.policy.trees import write
from tests.presets import careful
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.signing import signing_key

RUNS = [
    pytest.param(name, run, id=f"{name}: {run.name}") for name in presets.names() for run in careful.runs(presets.load(name))
]
ALGORITHMS = [(name, algorithm) for name in presets.names() for algorithm in presets.load(name).algorithms]
NO = {"no_rule_matched", "claims_not_satisfied"}


@dataclass(frozen=True, slots=True)
class Platforms:
    """One broker, and for each preset an issuer that it trusts."""

    broker: Broker
    issuers: dict[str, OidcIssuer]

    def audience(self, preset: Preset) -> Any:
        return self.broker.issuer("prod") if preset.audience_free else preset.fixture.claims["aud"]

    def payload(self, name: str, **changes: Any) -> dict[str, Any]:
        preset = presets.load(name)
        fresh = {"jti": secrets.token_hex(16)} if "jti" in preset.fixture.claims else {}
        return self.issuers[name].claims(now=time.time(), **{"aud": self.audience(preset), **fresh, **changes})

    def exchange(self, name: str, payload: dict[str, Any], algorithm: str | None = None) -> httpx2.Response:
        issuer = self.issuers[name]
        key = signing_key(algorithm or issuer.algorithm).used_for(issuer.preset.key_use)
        token = key.sign(issuer.header(alg=key.alg, kid=key.kid), payload)
        return self.broker.exchange(token, audience="payments", scope=careful.scope(issuer.preset))


@pytest.fixture(scope="module")
def platforms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platforms]:
    folder = tmp_path_factory.mktemp("platforms")
    files: dict[str, str] = {}
    with ExitStack() as stack:
        issuers = {name: stack.enter_context(in_thread(OidcIssuer(name, name=name))) for name in presets.names()}
        for name, issuer in issuers.items():
            preset = issuer.preset
            keys = [signing_key(algorithm).used_for(preset.key_use) for algorithm in preset.algorithms]
            issuer.published[:] = [key.jwk for key in keys]
            files[f"prod/svc-{name}.yaml"] = careful.account(preset, careful.where(preset))
        base = careful.tree({name: careful.entry(issuer.preset, issuer.url) for name, issuer in issuers.items()})
        broker = stack.enter_context(Broker(folder / "data", write(folder / "policies", files, base)))
        yield Platforms(broker, issuers)


def allowed(answer: httpx2.Response, name: str) -> None:
    body = answer.json()
    assert answer.status_code == 200, body
    issued = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert issued["sub"] == f"svc-{name}"
    assert body["scope"] == careful.scope(presets.load(name))


def refused(answer: httpx2.Response, reasons: set[str]) -> None:
    body = answer.json()
    assert answer.status_code == 400, body
    assert body["reason"] in reasons, body
    assert "access_token" not in body


@pytest.mark.parametrize("name", presets.names())
def test_the_fixtures_workload_is_given_a_credential(platforms: Platforms, name: str) -> None:
    allowed(platforms.exchange(name, platforms.payload(name)), name)


@pytest.mark.parametrize(("name", "algorithm"), ALGORITHMS)
def test_each_algorithm_of_the_platform_is_read(platforms: Platforms, name: str, algorithm: str) -> None:
    allowed(platforms.exchange(name, platforms.payload(name), algorithm), name)


@pytest.mark.parametrize("name", presets.names())
def test_each_shape_of_the_audience_is_read(platforms: Platforms, name: str) -> None:
    ours = platforms.audience(presets.load(name))
    text = ours[0] if isinstance(ours, list) else ours
    for shape in (text, [text]):
        allowed(platforms.exchange(name, platforms.payload(name) | {"aud": shape}), name)


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_a_strangers_run_is_given_nothing(platforms: Platforms, name: str, run: careful.Run) -> None:
    payload = careful.changed(presets.load(name), platforms.payload(name), run.changes)
    refused(platforms.exchange(name, payload), NO)


@pytest.mark.parametrize("name", presets.names())
def test_somebody_else_at_the_same_issuer_is_given_nothing(platforms: Platforms, name: str) -> None:
    preset = presets.load(name)
    payload = careful.changed(preset, platforms.payload(name), careful.strangers_tenant(preset))
    refused(platforms.exchange(name, payload), NO)


@pytest.mark.parametrize("name", presets.names())
def test_another_tenants_issuer_is_not_trusted(platforms: Platforms, name: str) -> None:
    issuer = platforms.issuers[name]
    theirs: dict[str, Any] = {"iss": f"{issuer.url}/another"}
    if issuer.trust_domain is not None:
        theirs = {"sub": f"spiffe://another.example{presets.load(name).fixture.claims['sub'].removeprefix('spiffe:/')}"}
    refused(platforms.exchange(name, platforms.payload(name, **theirs)), {"token_untrusted"})


@pytest.mark.parametrize("name", presets.names())
def test_a_token_for_another_audience_is_refused(platforms: Platforms, name: str) -> None:
    elsewhere = "https://broker.acme.example/dev"
    refused(platforms.exchange(name, platforms.payload(name, aud=elsewhere)), {"token_audience"})


@pytest.mark.parametrize("name", presets.names())
def test_a_second_exchange_of_one_token_is_as_the_preset_says(platforms: Platforms, name: str) -> None:
    payload = platforms.payload(name)
    allowed(platforms.exchange(name, payload), name)
    again = platforms.exchange(name, payload)
    if presets.load(name).replay_default == "reject":
        refused(again, {"token_replayed"})
    else:
        allowed(again, name)


def test_a_step_without_a_key_is_read_and_decides_nothing(platforms: Platforms) -> None:
    allowed(platforms.exchange("buildkite", platforms.payload("buildkite") | {"step_key": None}), "buildkite")


def test_ids_that_are_numbers_where_the_platform_sends_text_are_no_ids(platforms: Platforms) -> None:
    payload = platforms.payload("fly") | {"app_id": 2773142}
    refused(platforms.exchange("fly", payload), {"token_malformed"})
