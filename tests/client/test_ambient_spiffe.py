"""SPIFFE: a JWT-SVID from a Workload API over gRPC; of several identities none is taken silently."""

from __future__ import annotations

import sys
import time

import grpc
import pytest

from broker.client import ambient
from broker.client.errors import IdentityFailed
from broker.client.values import claims_of
from tests.client.conftest import Stand

AUDIENCE = "https://broker.acme.example/prod"
ONE, TWO = "spiffe://acme.example/ns/payments/sa/deployer", "spiffe://acme.example/ns/payments/sa/web"


def test_the_agent_is_asked_for_the_audience(stand: Stand) -> None:
    job = stand("spiffe")
    ambient.find(job.around()).fetch(AUDIENCE)
    assert job.more.asked == [([AUDIENCE], "")]


def test_several_identities_are_an_error_that_names_them(stand: Stand) -> None:
    job = stand("spiffe")
    job.more.ids = [TWO, ONE]
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(job.around()).fetch(AUDIENCE)
    assert str(caught.value) == f"SPIFFE gave several identities: {ONE}, {TWO}"
    assert caught.value.hints == ("BROKER_SPIFFE_ID=spiffe://… chooses",)


@pytest.mark.parametrize("wish", [ONE, TWO])
def test_a_variable_chooses_among_them(wish: str, stand: Stand) -> None:
    job = stand("spiffe")
    job.more.ids = [ONE, TWO]
    token = ambient.find(job.around(env={**job.env, "BROKER_SPIFFE_ID": wish})).fetch(AUDIENCE)
    assert claims_of(token)["sub"] == wish
    assert job.more.asked == [([AUDIENCE], wish)]


def test_the_same_identity_twice_is_one(stand: Stand) -> None:
    job = stand("spiffe")
    job.more.ids = [ONE, ONE]
    assert claims_of(ambient.find(job.around()).fetch(AUDIENCE))["sub"] == ONE


@pytest.mark.parametrize("wish", ["https://acme.example/x", "spiffe://", "payments"])
def test_a_wish_that_is_no_spiffe_id_says_so(wish: str, stand: Stand) -> None:
    job = stand("spiffe")
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(job.around(env={**job.env, "BROKER_SPIFFE_ID": wish})).fetch(AUDIENCE)
    assert not caught.value.passing
    assert job.more.asked == []


def test_a_process_that_is_not_registered_is_told_so(stand: Stand) -> None:
    job = stand("spiffe")
    job.more.ids = []
    with pytest.raises(IdentityFailed, match="no SPIFFE identity is registered for this process") as caught:
        ambient.find(job.around()).fetch(AUDIENCE)
    assert caught.value.passing
    assert "spire-server entry create" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("code", "passing"),
    [(grpc.StatusCode.UNAVAILABLE, True), (grpc.StatusCode.RESOURCE_EXHAUSTED, True), (grpc.StatusCode.INTERNAL, False)],
)
def test_an_agents_trouble_says_whether_asking_again_can_help(code: grpc.StatusCode, passing: bool, stand: Stand) -> None:
    job = stand("spiffe")
    job.more.broken = code
    with pytest.raises(IdentityFailed, match=f"{code.name} the agent is starting") as caught:
        ambient.find(job.around()).fetch(AUDIENCE)
    assert caught.value.passing is passing


@pytest.mark.parametrize("endpoint", ["unix:///nowhere/agent.sock", "tcp://127.0.0.1:9"])
def test_nobody_at_the_endpoint_ends_within_the_bound(endpoint: str) -> None:
    began = time.monotonic()
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(ambient.Around({"SPIFFE_ENDPOINT_SOCKET": endpoint}, within_s=1.0)).fetch(AUDIENCE)
    assert time.monotonic() - began < 3
    assert "SPIFFE gave no identity token" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["/run/agent.sock", "https://127.0.0.1:9", "unix://host/path", "tcp://localhost:9"])
def test_an_endpoint_that_is_none_says_so(endpoint: str) -> None:
    with pytest.raises(IdentityFailed, match="SPIFFE gave no identity token") as caught:
        ambient.find(ambient.Around({"SPIFFE_ENDPOINT_SOCKET": endpoint})).fetch(AUDIENCE)
    assert not caught.value.passing


def test_without_its_package_the_extra_is_named(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stand("spiffe")
    monkeypatch.setitem(sys.modules, "spiffe", None)
    with pytest.raises(IdentityFailed, match="needs a package that is not installed") as caught:
        ambient.find(job.around()).fetch(AUDIENCE)
    assert caught.value.hints == ('pip install "federation-broker[spiffe] @ git+https://YOUR-COPY@COMMIT"',)
