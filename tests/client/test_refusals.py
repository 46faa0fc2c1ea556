"""What a refusal says, and in which order: the broker's words, what was asked, what to change, where to read, what was presented."""

from __future__ import annotations

import json

import pytest

from broker.client import Refused, Server, Wanted
from broker.client.ambient import Around, Found, find
from broker.client.ambient.given import from_text
from broker.client.errors import Refusal
from broker.client.exchange import obtain
from broker.client.refusals import SENTENCES, advice
from tests.support.place import Place, Reply

ASKS = Found("test", "a test", "here", str)
SERVER = Server.of("https://broker.acme.example", "prod")
PRESENTED = {"iss": "https://token.example", "sub": "s", "aud": "https://elsewhere.example", "ref": "r"}
NOTHING = Wanted()


def lines(reason: str, source: Found = ASKS, wanted: Wanted = NOTHING, claims: tuple[str, ...] = ()) -> list[str]:
    refusal = Refusal(400, "invalid_request", "no; in short", "https://page", reason, "req_7", "t", claims, (), (), ())
    return list(advice(refusal, PRESENTED, source, SERVER, wanted))


@pytest.mark.parametrize("reason", [*SENTENCES, "no_rule_matched", "token_audience", "token_expired", "ambiguous_account", "unheard_of"])
def test_the_page_and_then_the_claims_stand_last(reason: str) -> None:
    said = lines(reason)
    assert said[0] == "no"
    assert said[-2] == "https://page   request req_7   trace t"
    assert said[-1].startswith("presented from a test:")


def test_the_named_claims_stand_before_what_to_change() -> None:
    assert lines("claims_not_satisfied", claims=("ref", "environment"))[1:4] == [
        "ref is r",
        "environment is not in the token",
        SENTENCES["claims_not_satisfied"],
    ]


@pytest.mark.parametrize("reason", ["no_rule_matched", "target_unknown", "scope_not_granted", "malformed_request"])
def test_a_refusal_of_what_was_asked_repeats_it(reason: str) -> None:
    asked = Wanted(("paymnts", "artifacts"), ("deploy:write",))
    assert lines(reason, wanted=asked)[1] == "asked for: audience paymnts artifacts; scope deploy:write"
    assert lines(reason)[1] == "asked for: audience (none); scope (none)"


@pytest.mark.parametrize("reason", ["token_expired", "claims_not_satisfied", "revoked", "scope_missing"])
def test_any_other_refusal_does_not(reason: str) -> None:
    assert not [line for line in lines(reason, wanted=Wanted(("payments,x",), ("a,b",))) if "asked" in line or "one name" in line]


def test_a_comma_between_names_is_told_apart(place: Place) -> None:
    source = Found("test", "a test", "here", lambda audience: place.token(aud=audience))
    with pytest.raises(Refused) as caught:
        obtain(Server.of(place.front.url, "prod"), Wanted(("payments",), ("deploy:write,releases:read",)), source)
    assert caught.value.hints[1:3] == (
        "asked for: audience payments; scope deploy:write,releases:read",
        "deploy:write,releases:read is one name: separate names by spaces, or repeat the option",
    )
    assert "payments,artifacts is one name: separate names by spaces, or repeat the option" in lines(
        "target_unknown", wanted=Wanted(("payments,artifacts",))
    )


def test_a_token_of_no_trusted_issuer_may_also_be_one_whose_keys_were_replaced() -> None:
    (line,) = [line for line in lines("token_untrusted") if line.startswith("its issuer is https://token.example: ")]
    assert "issuers.yaml must have an entry with this very url, and prod be open to it; or its keys are not those" in line
    assert "jwks_file" in line


@pytest.mark.parametrize(
    ("env", "at"),
    [
        ({"BROKER_SUBJECT_TOKEN_FILE": "/token"}, " (Kubernetes: `audience:` of the projected volume)"),
        ({"GITLAB_CI": "true", "BROKER_ID_TOKEN": "a.b.c"}, " (`aud:` of its entry in id_tokens)"),
        ({"BITBUCKET_STEP_OIDC_TOKEN": "a.b.c"}, " (`audiences:` of the step's oidc)"),
        ({"BROKER_SUBJECT_TOKEN": "a.b.c"}, ""),
        ({"SEMAPHORE_OIDC_TOKEN": "a.b.c"}, ""),
        ({"TF_BUILD": "1", "SYSTEM_OIDCREQUESTURI": "https://dev.azure.com/x", "SYSTEM_ACCESSTOKEN": "x"}, ""),
        ({"CIRCLECI": "true", "CIRCLE_OIDC_TOKEN_V2": "a.b.c"}, ""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_token_that_somebody_else_has_made_is_not_asked_for_anew(env: dict[str, str], at: str) -> None:
    said = lines("token_audience", find(Around({"PATH": "", **env})))
    made = "the identity token is made for https://elsewhere.example"
    assert f"{made}; have it made for https://broker.acme.example/prod{at}" in said
    assert not [line for line in said if "--identity-audience" in line or "get one" in line]
    fixed = "where its platform fixes that, the issuer's entry in issuers.yaml has to accept it"
    assert (fixed in said) is (at == "")


def test_a_token_that_is_asked_for_is_asked_for_another_audience() -> None:
    said = lines("token_audience")
    made = "the identity token is made for https://elsewhere.example"
    assert f"{made}; get one from a test for https://broker.acme.example/prod" in said
    assert "--identity-audience, or BROKER_IDENTITY_AUDIENCE, says what to ask the platform for" in said
    assert not from_text("a.b.c", "stdin").asks


def test_a_token_of_a_pod_shows_the_value_that_the_rule_looked_at(place: Place) -> None:
    """The broker names the claim as the preset does; in the token it stands deeper."""
    body = {"error": "invalid_request", "reason": "claims_not_satisfied", "claims": ["service_account"]}
    place.front.script.append(Reply(400, {}, json.dumps(body).encode()))
    pod = {"kubernetes.io": {"namespace": "payments", "serviceaccount": {"name": "deployer", "uid": "8a31"}}}
    source = Found("test", "a test", "here", lambda _: place.token(**pod))
    with pytest.raises(Refused) as caught:
        obtain(Server.of(place.front.url, "prod"), Wanted(("payments",)), source)
    assert "service_account is deployer (kubernetes.io.serviceaccount.name)" in caught.value.hints
