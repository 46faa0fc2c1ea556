"""One exchange from the caller's side: what is tried again and what is not, and what a refusal says to do."""

from __future__ import annotations

import copy
import json
import pickle
import time
from base64 import urlsafe_b64encode

import pytest

from broker.client import Credential, IdentityFailed, Misused, Plan, Refused, Server, Step, Unavailable, Unreachable, Wanted
from broker.client.ambient import Found
from broker.client.exchange import obtain, preview
from broker.client.values import claims_of
from tests.support.place import Place, Reply

DEPLOY = Wanted(("payments",), ("deploy:write",))


def source(place: Place, *, fresh: bool = True, **claims: object) -> Found:
    kept = place.token(**claims)
    return Found("test", "a test", "here", lambda audience: place.token(**{"aud": audience, **claims}) if fresh else kept, fresh)


def server(place: Place) -> Server:
    return Server.of(place.front.url, "prod")


def refused(place: Place, wanted: Wanted = DEPLOY, **claims: object) -> Refused:
    with pytest.raises(Refused) as caught:
        obtain(server(place), wanted, source(place, **claims))
    return caught.value


def presented(place: Place) -> list[str]:
    return [form["subject_token"][0] for form in place.front.exchanges()]


def test_a_credential_says_what_it_is_without_saying_it(place: Place) -> None:
    credential = obtain(server(place), DEPLOY._replace(ttl_s=60), source(place))
    assert isinstance(credential, Credential)
    assert 55 < credential.expires_at - time.time() <= 60
    assert credential.scope == ("deploy:write",)
    assert credential.audience == ("https://payments.acme.example",)
    assert credential.service_account == "svc-payments-deploy"
    assert credential.request_id.startswith("req_")
    assert len(credential.trace_id) == 32
    assert credential.token not in f"{credential}{credential!r}"


def test_a_credential_is_not_taken_for_part_of_a_json_document(place: Place) -> None:
    credential = obtain(server(place), DEPLOY, source(place))
    with pytest.raises(TypeError):
        json.dumps({"credential": credential})
    assert credential.token not in json.dumps({"credential": credential}, default=repr)


def test_its_life_is_counted_from_before_the_answer_travelled(place: Place) -> None:
    place.front.script.append(Reply(0, hold_s=1.5))
    credential = obtain(server(place), DEPLOY, source(place))
    claims = claims_of(credential.token)
    assert credential.expires_at < claims["exp"] + 1


def test_all_patience_is_used(place: Place) -> None:
    place.front.script += [Reply(502)] * 20
    began = time.monotonic()
    with pytest.raises(Unavailable):
        obtain(server(place), DEPLOY, source(place), patience_s=2)
    assert time.monotonic() - began >= 1.5


@pytest.mark.parametrize("given", [b"eyJ.eyJ.x", None, 7], ids=str)
def test_an_identity_token_that_is_no_text_is_no_identity_token(place: Place, given: object) -> None:
    with pytest.raises(Misused, match=f"gave no text for an identity token, but {type(given).__name__}"):
        obtain(server(place), DEPLOY, Found("own", "the caller", "the caller's own function", lambda _: given))


def test_a_preview_issues_nothing(place: Place) -> None:
    plan = preview(server(place), DEPLOY, source(place))
    assert isinstance(plan, Plan)
    assert (plan.service_account, plan.trust_rule, plan.expires_in) == ("svc-payments-deploy", "release workflow", 600)
    assert [path for path, *_ in place.front.requests] == ["/prod/check"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(503, {"Retry-After": "1"}, b'{"error": "temporarily_unavailable"}'),
        Reply(429, {"Retry-After": "1"}, b'{"error": "temporarily_unavailable"}'),
        Reply(502, {}, b"<html>bad gateway</html>"),
        Reply(500, {}, b'{"error": "server_error"}'),
        Reply(drop=True),
    ],
    ids=["503", "429", "a gateway's 502", "500", "a connection that ends"],
)
def test_what_may_pass_is_tried_again_with_a_fresh_identity_token(place: Place, reply: Reply) -> None:
    place.front.script.append(reply)
    assert obtain(server(place), DEPLOY, source(place)).token
    assert len(set(presented(place))) == 2


def test_retry_after_is_obeyed(place: Place) -> None:
    place.front.script.append(Reply(503, {"Retry-After": "2"}, b'{"error": "temporarily_unavailable"}'))
    began = time.monotonic()
    obtain(server(place), DEPLOY, source(place))
    assert time.monotonic() - began >= 2


def test_a_retry_after_that_is_a_date_is_obeyed_by_the_clock_that_wrote_it(place: Place) -> None:
    dates = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 08:28:00 GMT"}
    place.front.script.append(Reply(503, dates, b'{"error": "temporarily_unavailable"}'))
    with pytest.raises(Unavailable) as caught:
        obtain(server(place), DEPLOY, source(place))
    assert caught.value.retry_after_s == 3600


@pytest.mark.parametrize("said", ["soon", "-3", "Wed, 21 Oct 2015 08:28:00 -0000", "Wed, 99 Oct 2015 08:28:00 GMT", ""])
def test_a_retry_after_that_says_nothing_is_left_to_our_own_pace(place: Place, said: str) -> None:
    place.front.script.append(Reply(503, {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": said}, b'{"error": "temporarily_unavailable"}'))
    assert obtain(server(place), DEPLOY, source(place)).token


def test_a_retry_after_beyond_all_patience_is_said_at_once(place: Place) -> None:
    body = {"error": "temporarily_unavailable", "error_description": "later", "request_id": "req_1"}
    place.front.script.append(Reply(429, {"Retry-After": "3600"}, json.dumps(body).encode()))
    with pytest.raises(Unavailable, match=r"prod cannot answer now: later \(429\)") as caught:
        obtain(server(place), DEPLOY, source(place), patience_s=5)
    assert caught.value.retry_after_s == 3600
    assert len(place.front.requests) == 1


def test_a_refusal_is_not_tried_again(place: Place) -> None:
    error = refused(place, ref="refs/heads/main")
    assert error.reason == "claims_not_satisfied"
    assert len(place.front.requests) == 1


def test_an_equal_token_that_came_too_soon_is_fetched_once_more(place: Place) -> None:
    """Platforms without jti hand out the same token twice in one second."""
    used = place.token()
    obtain(server(place), DEPLOY, Found("test", "a test", "here", lambda _: used))
    tokens = [used]
    again = Found("test", "a test", "here", lambda _: tokens.pop() if tokens else place.token())
    assert obtain(server(place), DEPLOY, again).token
    assert presented(place)[0] == presented(place)[1] != presented(place)[2]


def test_a_token_at_hand_that_was_used_is_not_sent_twice_more(place: Place) -> None:
    used = place.token()
    at_hand = Found("variable", "BROKER_SUBJECT_TOKEN", "BROKER_SUBJECT_TOKEN", lambda _: used, fresh=False)
    obtain(server(place), DEPLOY, at_hand)
    with pytest.raises(Refused) as caught:
        obtain(server(place), DEPLOY, at_hand)
    assert caught.value.reason == "token_replayed"
    assert len(place.front.requests) == 2
    assert "BROKER_SUBJECT_TOKEN holds a token that was used already: fetch a new one" in caught.value.hints


def test_a_broker_that_is_down_is_asked_again_as_long_as_there_is_patience(place: Place) -> None:
    steps: list[Step] = []
    began = time.monotonic()
    with pytest.raises(Unreachable, match="nobody listens"):
        obtain(Server.of("http://127.0.0.1:9", "prod"), DEPLOY, source(place), heard=steps.append, patience_s=2)
    assert [step.what for step in steps].count("again") == 2
    assert 1 < time.monotonic() - began < 4


def test_a_name_that_is_not_found_is_tried_a_few_times_only(place: Place) -> None:
    steps: list[Step] = []
    with pytest.raises(Unreachable, match="is not found"):
        obtain(Server.of("https://broker.invalid", "prod"), DEPLOY, source(place), heard=steps.append)
    assert [step.what for step in steps].count("again") == 3


def test_steps_hold_no_secret(place: Place) -> None:
    steps: list[Step] = []
    credential = obtain(server(place), DEPLOY, source(place), heard=steps.append)
    said = str(steps)
    assert credential.token not in said
    assert presented(place)[0] not in said
    assert [step.what for step in steps] == ["identity", "request", "reply"]


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (Reply(301, {"Location": "https://other.example/"}), "redirects to https://other.example/"),
        (Reply(404, {}, b"not found"), "has no env prod, or is not the broker"),
        (Reply(200, {}, b"<html>login</html>"), "answered 200 without a broker's words"),
        (Reply(200, {}, b'{"access_token": 7, "expires_in": 600}'), "holds no credential"),
        (Reply(200, {}, b'{"access_token": "x"}'), "holds no credential"),
        (Reply(200, {}, b"[" * 60_000), "without a broker's words"),
        (Reply(403, {}, b'{"message": "waf"}'), "answered 403 without a broker's words"),
    ],
    ids=["redirect", "404", "a page", "no text", "no life", "deep", "a firewall"],
)
def test_an_answer_that_no_broker_gives_is_told_apart(place: Place, reply: Reply, match: str) -> None:
    place.front.script.append(reply)
    with pytest.raises(Unavailable, match=match):
        obtain(server(place), DEPLOY, source(place))
    assert len(place.front.requests) == 1


def issued(**members: object) -> Reply:
    body = {"access_token": "a.b.c", "token_type": "Bearer", "expires_in": 600, "scope": "deploy:write", **members}
    return Reply(200, {"X-Request-ID": "req_1"}, json.dumps(body).encode())


@pytest.mark.parametrize(
    "members",
    [
        {"access_token": "a.b.c\n::add-path::/evil"},
        {"access_token": "a b"},
        {"access_token": "á.b.c"},
        {"token_type": "N_A"},
        {"token_type": None},
        *({"expires_in": life} for life in (0, -1, True, 1.5, "600", 10**15, 10**400)),
    ],
    ids=lambda members: str(members)[:40],
)
def test_what_could_not_be_sent_or_would_not_last_is_no_credential(place: Place, members: dict[str, object]) -> None:
    place.front.script.append(issued(**members))
    with pytest.raises(Unavailable, match="holds no credential"):
        obtain(server(place), DEPLOY, source(place))
    assert len(place.front.requests) == 1


@pytest.mark.parametrize("life", ["abc", None, -1, "missing"])
def test_a_plan_without_a_life_is_none(place: Place, life: object) -> None:
    place.front.script.append(Reply(200, {}, json.dumps({"allowed": True, "expires_in": life}).encode()))
    with pytest.raises(Unavailable, match="not one of a dry run"):
        preview(server(place), DEPLOY, source(place))


HOSTILE = "x\x1b[2J\n::add-mask::y ##[set-output name=a]b"


def harmless(told: str) -> bool:
    return told.isprintable() and "##" not in told


def test_a_hostile_brokers_words_stay_on_their_line(place: Place) -> None:
    steps: list[Step] = []
    payload = urlsafe_b64encode(json.dumps({"sub": HOSTILE, "aud": [HOSTILE, 7]}).encode()).decode().rstrip("=")
    folded = {"X-Request-ID": "a\r\n ::add-mask::y", "Traceresponse": "00-\x1b[2J-b-01"}
    made = issued(access_token=f"a.{payload}.c", scope=HOSTILE)
    place.front.script.append(Reply(200, folded, made.body))
    asked = DEPLOY._replace(service_account=HOSTILE)
    credential = obtain(server(place), asked, source(place)._replace(where=HOSTILE), heard=steps.append)
    told = [repr(credential), credential.service_account, credential.request_id, credential.trace_id]
    assert [text for text in (*told, *credential.scope, *credential.audience) if not harmless(text)] == []
    assert [step for step in steps if not harmless(step.detail)] == []

    plan = {"allowed": True, "expires_in": 1, "service_account": HOSTILE, "trust_rule": HOSTILE, "audience": HOSTILE, "scope": HOSTILE}
    place.front.script.append(Reply(200, folded, json.dumps(plan).encode()))
    found = preview(server(place), DEPLOY, source(place))
    told = [found.service_account, found.trust_rule, *found.audience, *found.scope, found.request_id, found.trace_id]
    assert [text for text in told if not harmless(text)] == []


def test_a_hostile_refusal_stays_on_its_lines(place: Place) -> None:
    members = ("error", "error_description", "error_uri", "reason", "request_id", "trace_id")
    lists = ("claims", "scopes", "service_accounts", "expected_audience")
    for reason in (HOSTILE, "token_audience", "scope_not_granted", "ambiguous_account", None):
        body = {**dict.fromkeys(members, HOSTILE), **{name: [HOSTILE] for name in lists}, "reason": reason}
        place.front.script.append(Reply(400, {}, json.dumps(body).encode()))
        error = refused(place)
        assert [line for text in (str(error), *error.hints) for line in text.splitlines() if not harmless(line)] == []
        assert "None" not in str(error)


def test_times_beyond_all_calendars_are_passed_over(place: Place) -> None:
    body = {"error": "invalid_request", "reason": "token_expired"}
    for at in (10**400, float("inf"), float("nan"), -(10**400)):
        place.front.script.append(Reply(400, {}, json.dumps(body).encode()))
        payload = urlsafe_b64encode(json.dumps({"iat": at, "exp": 1}).encode()).decode().rstrip("=")
        with pytest.raises(Refused) as caught:
            obtain(server(place), DEPLOY, Found("test", "a test", "here", lambda _, text=payload: f"a.{text}.c"))
        assert any(hint.startswith("exp: valid until") for hint in caught.value.hints)
        assert not any(hint.startswith("iat:") for hint in caught.value.hints)


def test_words_that_are_no_text_are_for_the_broker_to_refuse(place: Place) -> None:
    """As a command line has them that is not UTF-8."""
    assert refused(place, Wanted(("\udcff",), ("deploy:write",))).reason == "target_unknown"


def test_an_error_can_be_copied_and_cross_processes(place: Place) -> None:
    error = refused(place, ref="refs/heads/main")
    for other in (copy.copy(error), *(pickle.loads(pickle.dumps(error, version)) for version in range(6))):
        assert (str(other), vars(other)) == (str(error), vars(error))
        assert type(other) is Refused


# What a refusal says


def test_an_own_workload_reads_which_of_its_claims_were_in_the_way(place: Place) -> None:
    error = refused(place, ref="refs/heads/fix-typo", environment=None)
    assert error.refusal.claims == ("environment", "ref")
    assert "ref is refs/heads/fix-typo" in error.hints
    assert "environment is not in the token" in error.hints
    shown = error.hints[-1]
    assert shown.startswith("presented from a test:\n")
    assert "repository_id 7432112" in shown
    assert "event_name push" in shown
    assert all(len(line) <= 130 for line in shown.splitlines())


def test_every_refusal_names_its_page_and_its_request(place: Place) -> None:
    error = refused(place, ref="refs/heads/main")
    assert error.hints[-2].startswith(f"{place.front.url}/prod/errors/claims_not_satisfied   request req_")
    assert any(f"broker policy explain --request {error.refusal.request_id}" in hint for hint in error.hints)


def test_a_token_that_is_made_for_another_broker_is_not_sent_to_this_one(place: Place) -> None:
    """There it would be good, and whoever is asked here could use it so."""
    with pytest.raises(IdentityFailed) as caught:
        obtain(server(place), DEPLOY, source(place, aud=["https://elsewhere.example/prod", "sts.amazonaws.com"]))
    assert str(caught.value).startswith("the identity token is made for https://elsewhere.example/prod sts.amazonaws.com, and so it is not sent")
    assert f"get one from a test for {place.front.url}/prod" in caught.value.hints
    assert place.front.requests == []


@pytest.mark.parametrize("aud", ["HTTPS://elsewhere.example", " https://elsewhere.example"])
def test_however_it_is_written_it_is_another_broker(place: Place, aud: str) -> None:
    with pytest.raises(IdentityFailed):
        obtain(server(place), DEPLOY, source(place, aud=aud))
    assert place.front.requests == []


def test_the_token_endpoint_is_this_broker_too(place: Place) -> None:
    assert obtain(server(place), DEPLOY, source(place, aud=f"{place.front.url}/prod/token")).token


def test_a_broker_by_another_address_says_which_two_ways_there_are(place: Place) -> None:
    with pytest.raises(IdentityFailed) as caught:
        obtain(server(place), DEPLOY, source(place, aud="https://broker.acme.example/prod"))
    assert caught.value.hints[:2] == (
        "--url https://broker.acme.example, if that is the broker",
        f"--identity-audience https://broker.acme.example/prod, if {place.front.url} is another address of it",
    )


@pytest.mark.parametrize("aud", ["sts.amazonaws.com", "api://AzureADTokenExchange", ["b10c4e2d-5f6a"], 7, None], ids=str)
def test_an_audience_that_names_nobody_is_for_the_broker_to_judge(place: Place, aud: object) -> None:
    assert refused(place, aud=aud).reason.startswith("token_")
    assert len(place.front.exchanges()) == 1


def test_what_a_vendor_fixes_for_everybody_is_for_the_broker_to_judge(place: Place) -> None:
    found = source(place, aud="https://vercel.com/acme")._replace(fixed=True)
    with pytest.raises(Refused):
        obtain(server(place), DEPLOY, found)
    meant = server(place)._replace(identity_audience="https://vercel.com/acme")
    with pytest.raises(Refused):
        obtain(meant, DEPLOY, source(place, aud="https://vercel.com/acme"))


def test_a_wrong_audience_says_which_one_is_right(place: Place) -> None:
    error = refused(place, aud="elsewhere")
    wanted = f"the identity token is made for elsewhere; get one from a test for {place.front.url}/prod"
    assert any(hint.startswith(wanted) for hint in error.hints)


def test_a_scope_too_many_says_which_ones_are_open(place: Place) -> None:
    error = refused(place, DEPLOY._replace(scope=("deploy:write", "releases:delete")))
    assert "open to this workload: --scope deploy:write --scope releases:read" in error.hints


def test_hostile_claims_stay_on_their_line(place: Place) -> None:
    evil = "refs/heads/x\n::set-output name=a::b\x1b[2J" + "y" * 500
    error = refused(place, ref=evil)
    told = "\n".join(error.hints)
    assert "\n::" not in told
    assert "\x1b" not in told
    assert "refs/heads/x\\x0a::set-output" in told
    assert "y" * 200 not in told


def test_no_text_of_a_refusal_holds_the_token(place: Place) -> None:
    error = refused(place, ref="refs/heads/main")
    (token,) = presented(place)
    told = f"{error} {error.hints} {error.refusal} {error!r}"
    assert token not in told
    assert token.split(".")[2] not in told


# What cannot be asked


@pytest.mark.parametrize(
    ("url", "env", "match"),
    [
        ("", "prod", "no broker is named"),
        ("https://broker.acme.example", "", "no env is named"),
        ("https://broker.acme.example/prod", "prod", "already ends in the env"),
        ("broker.acme.example", "prod", "is no URL of a server"),
        ("http://broker.acme.example", "prod", "is not https"),
        ("https://broker.acme.example", "prod/../dev", "is no env"),
        ("https://broker.acme.example?x=y", "prod", "ends with its path"),
        ("https://broker.acme.example/#x", "prod", "ends with its path"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_sent(url: str, env: str, match: str) -> None:
    with pytest.raises(Misused, match=match):
        Server.of(url, env)


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c.d", "a.!!.c", "a.bm90IGpzb24.c", "a.WzFd.c", "x" * 100_000])
def test_claims_of_what_is_no_jwt_are_none(token: str) -> None:
    assert claims_of(token) == {}
