"""Reading the form of the token endpoint, statement by statement (RFC 6749, 7523, 8693, 8707)."""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import errors
from broker.config import Limits
from broker.protocol import oauth
from broker.web import token

LIMITS = Limits()
USED = token.FormReader(LIMITS)
GOOD = {
    "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
    "subject_token": "a.b.c",
    "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN,
    "audience": "payments",
    "scope": "deploy:write",
}


def read(pairs: dict[str, str] | list[tuple[str, str]] | bytes, *, authorization: bool = False) -> token.Asking:
    """By a reader that has never read, and by one that has read nearly the same: they must not differ."""
    body = pairs if isinstance(pairs, bytes) else urlencode(pairs).encode()
    fresh = outcome(token.FormReader(LIMITS), body, authorization)
    for name in (b"subject_token=", b"assertion="):
        outcome(USED, body.replace(name, name + b"x"), authorization)
        outcome(USED, body.replace(name, name + b"x", 1), authorization)
    assert repr(outcome(USED, body, authorization)) == repr(fresh)
    if isinstance(fresh, errors.RequestRejected):
        raise fresh
    asking, _ = fresh
    return asking


def outcome(reader: token.FormReader, body: bytes, authorization: bool) -> tuple[token.Asking, str] | errors.RequestRejected:
    try:
        return reader.read(body, authorization=authorization)
    except errors.RequestRejected as refusal:
        return refusal


def changed(**changes: str | None) -> dict[str, str]:
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not None}


def test_a_good_form_becomes_a_request() -> None:
    asking, subject_token = token.FormReader(LIMITS).read(urlencode(GOOD).encode(), authorization=False)
    assert asking.audience == ("payments",)
    assert asking.scope == ("deploy:write",)
    assert subject_token == "a.b.c"


def test_of_a_form_that_is_remembered_the_token_is_the_one_that_came_with_it() -> None:
    reader = token.FormReader(LIMITS)
    tokens = [f"a.{n}.c" for n in range(3)]
    read = [reader.read(urlencode(changed(subject_token=each)).encode(), authorization=False) for each in tokens]
    assert [each for _, each in read] == tokens
    assert not any(each in repr(reader._known) for each in tokens)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param("grant_type={bearer}&subject_token=x.y.z&assertion=a.b.c", "a.b.c", id="the other grant's token is there too"),
        pytest.param("grant_type={bearer}&assertion=a.b.c&subject_token=x.y.z", "a.b.c", id="and in the other order"),
        pytest.param("grant_type={exchange}&{type}&assertion=x.y.z&subject%5Ftoken=a.b.c", "a.b.c", id="its name is escaped"),
        pytest.param("grant_type={exchange}&{type}&no_subject_token=x.y.z&subject_token=a.b.c", "a.b.c", id="its name ends another"),
        pytest.param("grant_type={exchange}&{type}&subject_token=a%2Eb.c", "a.b.c", id="it is escaped"),
    ],
)
def test_the_token_is_taken_from_where_its_grant_has_it(body: str, found: str) -> None:
    known = {"bearer": oauth.GRANT_JWT_BEARER, "exchange": oauth.GRANT_TOKEN_EXCHANGE}
    sent = body.format(**known, type=f"subject_token_type={oauth.TOKEN_TYPE_JWT}").encode()
    reader = token.FormReader(LIMITS)
    assert [reader.read(sent, authorization=False)[1] for _ in range(2)] == [found, found]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"grant_type=%zz", id="a percent sign that is no escape"),
        pytest.param(b"grant_type=%", id="a lone percent sign"),
        pytest.param(b"grant_type=%ff%fe", id="bytes that are no UTF-8, escaped"),
        pytest.param(b"grant_type=\xff\xfe", id="bytes that are no UTF-8, bare"),
        pytest.param(b"grant_type=a%00b", id="NUL"),
        pytest.param("&".join(f"p{n}=1" for n in range(200)).encode(), id="too many parameters"),
    ],
)
def test_tx_04_strict_decoding(body: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        read(body)


def test_tx_04_names_are_compared_byte_for_byte() -> None:
    with pytest.raises(errors.MalformedRequest, match="grant_type is missing"):
        read({"GRANT_TYPE": oauth.GRANT_TOKEN_EXCHANGE})


@pytest.mark.parametrize("name", ["subject_token", "subject_token_type", "grant_type"])
def test_tx_06_an_empty_parameter_is_absent(name: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=f"{name} is missing"):
        read(changed(**{name: ""}))


def test_tx_06_an_empty_scope_is_no_scope() -> None:
    assert read(changed(scope="")).scope is None


@pytest.mark.parametrize("name", ["subject_token", "scope", "grant_type", "client_id", "service_account", "unknown"])
@pytest.mark.parametrize("second", ["same", "other", ""])
def test_tx_07_a_parameter_more_than_once_is_refused(name: str, second: str) -> None:
    first = GOOD.get(name, "x")
    pairs = [*GOOD.items(), *([] if name in GOOD else [(name, first)]), (name, {"same": first}.get(second, second))]
    with pytest.raises(errors.MalformedRequest, match="more than once"):
        read(pairs)


@pytest.mark.parametrize("name", ["audience", "resource"])
def test_tx_07_targets_may_repeat(name: str) -> None:
    pairs = [(key, value) for key, value in GOOD.items() if key != "audience"]
    request = read([*pairs, (name, "https://a.example"), (name, "https://b.example")])
    assert getattr(request, name) == ("https://a.example", "https://b.example")


def test_tx_08_unknown_parameters_are_ignored() -> None:
    assert read({**GOOD, "x-unknown": "1"}).scope == ("deploy:write",)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        pytest.param(None, errors.MalformedRequest, id="absent"),
        pytest.param("refresh_token", errors.UnsupportedGrantType, id="tx 38 refresh_token"),
        pytest.param("password", errors.UnsupportedGrantType, id="tx 38 password"),
        pytest.param("authorization_code", errors.UnsupportedGrantType, id="tx 38 authorization_code"),
        pytest.param("client_credentials", errors.UnsupportedGrantType, id="client_credentials, not open yet"),
        pytest.param(oauth.GRANT_TOKEN_EXCHANGE.upper(), errors.UnsupportedGrantType, id="in another case"),
        pytest.param(oauth.GRANT_TOKEN_EXCHANGE + " ", errors.UnsupportedGrantType, id="with a space behind"),
    ],
)
def test_tx_20_grant_type(value: str | None, error: type[errors.BrokerError]) -> None:
    with pytest.raises(error):
        read(changed(grant_type=value))


@pytest.mark.parametrize(
    "kind",
    [
        oauth.TOKEN_TYPE_ACCESS_TOKEN,
        oauth.TOKEN_TYPE_REFRESH_TOKEN,
        "urn:ietf:params:oauth:token-type:saml2",
        "urn:ietf:params:oauth:token-type:unsigned_json",
        "jwt",
        "urn:x:unknown",
    ],
)
def test_tx_22_subject_token_types_that_are_not_accepted(kind: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="subject_token_type"):
        read(changed(subject_token_type=kind))


def test_ex_07_jwt_and_id_token_are_synonyms() -> None:
    assert read(changed(subject_token_type=oauth.TOKEN_TYPE_JWT)).subject_token_type == oauth.TOKEN_TYPE_JWT


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({"actor_token": "a.b.c"}, id="a token without its type"),
        pytest.param({"actor_token_type": oauth.TOKEN_TYPE_JWT}, id="a type without its token"),
        pytest.param({"actor_token": "a.b.c", "actor_token_type": oauth.TOKEN_TYPE_JWT}, id="both: not supported here"),
    ],
)
def test_tx_24_actor_tokens_are_refused(extra: dict[str, str]) -> None:
    with pytest.raises(errors.MalformedRequest, match="actor_token"):
        read({**GOOD, **extra})


@pytest.mark.parametrize(
    "uri",
    [
        "payments",
        "/relative",
        "https://payments.acme.example#fragment",
        "https://user@payments.acme.example",
        "javascript:alert(1)",
        "https://",
        "https://a b.example",
        "//payments.acme.example",
        "https://[::1",
    ],
)
def test_tx_25_a_resource_must_be_an_absolute_uri(uri: str) -> None:
    with pytest.raises(errors.MalformedTarget):
        read(changed(resource=uri))


@pytest.mark.parametrize("scope", [
    "a  b", " a", "a ", "a\tb", "a\nb", "a\u00a0b", 'a"b', "a\\b", "é", "a a",
    " ".join(f"s{n}" for n in range(LIMITS.scopes_max + 1)),
], ids=["two spaces", "space before", "space behind", "tab", "newline", "nbsp", "quote", "backslash", "non-ascii", "twice", "too many"])  # fmt: skip
def test_tx_29_malformed_scope(scope: str) -> None:
    with pytest.raises(errors.MalformedScope):
        read(changed(scope=scope))


def test_tx_30_no_scope_is_told_apart_from_a_scope() -> None:
    assert read(changed(scope=None)).scope is None


def test_tx_31_authorization_details_is_never_ignored() -> None:
    with pytest.raises(errors.MalformedRequest, match="authorization_details"):
        read({**GOOD, "authorization_details": "[]"})


@pytest.mark.parametrize("kind", [oauth.TOKEN_TYPE_REFRESH_TOKEN, oauth.TOKEN_TYPE_ID_TOKEN, "urn:x:unknown"])
def test_tx_32_requested_token_types_that_are_not_offered(kind: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="requested_token_type"):
        read({**GOOD, "requested_token_type": kind})


@pytest.mark.parametrize("extra", [{"authorization_details": "[]"}, {"actor_token": "a.b.c"}, {"requested_token_type": "urn:x:unknown"}])
def test_tx_31_jwt_bearer_ignores_nothing_that_narrows_either(extra: dict[str, str]) -> None:
    with pytest.raises(errors.MalformedRequest):
        read({"grant_type": oauth.GRANT_JWT_BEARER, "assertion": "a.b.c", "audience": "payments", "scope": "s", **extra})


def test_tx_32_access_token_may_be_requested() -> None:
    assert read({**GOOD, "requested_token_type": oauth.TOKEN_TYPE_ACCESS_TOKEN})


def test_tx_33_jwt_bearer_takes_an_assertion() -> None:
    form = {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": "a.b.c", "audience": "payments", "scope": "s"}
    asking, assertion = token.FormReader(LIMITS).read(urlencode(form).encode(), authorization=False)
    assert (asking, assertion) == (read(form), "a.b.c")
    with pytest.raises(errors.MalformedRequest, match="assertion is missing"):
        read({"grant_type": oauth.GRANT_JWT_BEARER, "subject_token": "a.b.c"})


def test_tx_37_service_account_under_either_name() -> None:
    assert read({**GOOD, "service_account": "svc-a"}).service_account == "svc-a"
    assert read({**GOOD, "broker_service_account": "svc-a"}).service_account == "svc-a"
    with pytest.raises(errors.MalformedRequest):
        read({**GOOD, "service_account": "svc-a", "broker_service_account": "svc-a"})


@pytest.mark.parametrize("ttl", ["0", "-1", "1.5", "10m", "01", "1" * 12, "1e3"])
def test_ttl_is_a_whole_number_of_seconds(ttl: str) -> None:
    with pytest.raises(errors.TtlInvalid):
        read({**GOOD, "ttl": ttl})
    assert read({**GOOD, "ttl": "60"}).ttl_s == 60


@pytest.mark.parametrize(("extra", "authorization", "error"), [
    pytest.param({"client_secret": "x"}, False, errors.ClientAuthentication, id="secret in the body"),
    pytest.param({}, True, errors.ClientAuthentication, id="an Authorization header"),
    pytest.param({"client_secret": "x"}, True, errors.MalformedRequest, id="ca 01 two methods"),
    pytest.param({"client_assertion": "x"}, False, errors.MalformedRequest, id="tx 36 assertion without its type"),
    pytest.param({"client_assertion": "x", "client_assertion_type": "y"}, False, errors.ClientAuthentication, id="assertion"),
])  # fmt: skip
def test_ca_01_client_authentication_is_refused_until_there_are_clients(extra, authorization, error) -> None:
    with pytest.raises(error):
        read({**GOOD, **extra}, authorization=authorization)


def test_ca_a_bare_client_id_is_ignored() -> None:
    assert read({**GOOD, "client_id": "ci"})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_read_or_refused_never_anything_else(body: bytes) -> None:
    try:
        read(body)
    except errors.RequestRejected:
        pass


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(token.KNOWN)), st.text(max_size=40), max_size=8))
def test_no_message_repeats_what_was_sent(values: dict[str, str]) -> None:
    marked = {name: f"MARK{value}" for name, value in values.items()}
    try:
        read(marked)
    except errors.RequestRejected as refusal:
        assert "MARK" not in f"{refusal.public} {refusal.detail}"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=12), st.text(max_size=30)), max_size=8, unique_by=lambda pair: pair[0]))
def test_a_form_reads_as_the_standard_library_reads_it(pairs: list[tuple[str, str]]) -> None:
    kept = [(name, value) for name, value in pairs if "\0" not in name + value and not _surrogate(name + value)]
    body = urlencode(kept).encode()
    assert token.read_form(body, LIMITS) == parse_qs(body.decode())


def _surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
