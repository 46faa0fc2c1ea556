"""The projected token of a pod: read anew, for the broker, and never the one that is for the API server."""

from __future__ import annotations

import pytest

from broker.client import ambient
from broker.client.errors import IdentityFailed
from tests.client.conftest import Stand, signer

AUDIENCE = "https://broker.acme.example/prod"
ISS = signer("kubernetes").url


def test_a_token_that_the_kubelet_replaced_is_the_new_one(stand: Stand) -> None:
    pod = stand("kubernetes", "projected")
    found = ambient.find(pod.around())
    first = found.fetch(AUDIENCE)
    pod.more.write_text("a.b.c")
    with pytest.raises(IdentityFailed):
        found.fetch(AUDIENCE)
    pod.more.write_text(first)
    assert found.fetch(AUDIENCE) == first


def test_the_other_place_by_convention_is_looked_at_too(stand: Stand) -> None:
    pod = stand("kubernetes", "projected")
    other = pod.more.parents[1] / "tokens/broker"
    other.parent.mkdir()
    pod.more.rename(other)
    assert ambient.find(pod.around()).where == "/var/run/secrets/tokens/broker"


def test_a_file_without_the_clusters_variables_is_found(stand: Stand) -> None:
    pod = stand("kubernetes", "projected")
    assert ambient.find(pod.around(env={})).name == "kubernetes"


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"aud": [ISS]}, id="the issuer's own audience"),
        pytest.param({"aud": [AUDIENCE, ISS]}, id="two audiences"),
        pytest.param({"aud": ["https://kubernetes.default.svc"]}, id="the API server's name"),
        pytest.param({"aud": ["https://kubernetes.default.svc.cluster.local"]}, id="its long name"),
        pytest.param({"aud": "https://kubernetes.default.svc"}, id="as a string"),
        pytest.param({"aud": None, "iss": None}, id="a legacy token"),
    ],
)
def test_a_token_for_the_api_server_is_sent_nowhere(claims: dict[str, object], stand: Stand) -> None:
    pod = stand("kubernetes", "projected")
    token = signer("kubernetes").token(now=1795500000, **{"iss": ISS, **claims})
    pod.more.write_text(token)
    with pytest.raises(IdentityFailed, match="is for the cluster's API server and is sent nowhere") as caught:
        ambient.find(pod.around()).fetch(AUDIENCE)
    assert caught.value.hints[0].startswith("volumes: ")
    assert token not in f"{caught.value}"


def test_the_token_of_every_pod_is_not_looked_for(stand: Stand) -> None:
    pod = stand("kubernetes", "projected")
    own = pod.more.parents[1] / "kubernetes.io/serviceaccount/token"
    own.parent.mkdir(parents=True)
    pod.more.rename(own)
    outcomes = {detector.name: outcome for detector, outcome in ambient.survey(pod.around())}
    assert not [name for name, outcome in outcomes.items() if isinstance(outcome, ambient.Found)]
