"""Whom a revocation covers: by every selector, for a time, until lifted; and what cannot be evaluated covers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.protocol.revocations import Entry, Facts, covers, fact, facts_from, in_force, parse_entry, tag
from broker.revocation.view import view_of
from broker.store.commit import Position

START = Position(0, 0, "0" * 64)
FACTS = Facts(
    service_account="svc-a",
    issuer="github",
    iss="https://github.example",
    subject="repo:acme/payments:ref:refs/heads/main",
    trust_rule="release",
    claims={"repository_id": "7432112", "environment": None, "ref": "refs/heads/main"},
)


def rule(id: str = "r1", until: int | None = None, **selectors: Any) -> Entry:
    return Entry(id=id, act="revoke", by="ann", at=1, selectors=selectors, until=until)


def lift(lifts: str) -> Entry:
    return Entry(id=f"lift-{lifts}", act="lift", by="ann", at=2, lifts=lifts)


def covering(*entries: Entry, facts: Facts = FACTS, now: float = 100) -> list[str]:
    return [entry.id for entry in view_of("prod", START, entries).covering(facts, now)]


@pytest.mark.parametrize(("selectors", "covered"), [
    pytest.param({"service_account": "svc-a"}, True, id="the account"),
    pytest.param({"service_account": "svc-b"}, False, id="another account"),
    pytest.param({"issuer": "github"}, True, id="the issuer"),
    pytest.param({"issuer": "gitlab"}, False, id="another issuer"),
    pytest.param({"issuer": "old name", "iss": FACTS.iss}, True, id="the issuer under the name that it had"),
    pytest.param({"issuer": "github", "iss": "https://old.example"}, True, id="the issuer at the URL that it had"),
    pytest.param({"issuer": "gitlab", "iss": "https://gitlab.example"}, False, id="another issuer in both forms"),
    pytest.param({"iss": FACTS.iss}, True, id="the issuer by its URL alone"),
    pytest.param({"issuer": "gitlab", "iss": 1}, True, id="an issuer of a wrong type cannot be evaluated"),
    pytest.param({"issuer": "old name", "iss": FACTS.iss, "claims": {"repository_id": "7432112"}}, True, id="a claim under a renamed issuer"),
    pytest.param({"issuer": "old name", "iss": FACTS.iss, "claims": {"repository_id": "1"}}, False, id="another claim under a renamed issuer"),
    pytest.param({"subject": FACTS.subject}, True, id="the subject"),
    pytest.param({"trust_rule": "release"}, True, id="the rule"),
    pytest.param({"issuer": "github", "claims": {"repository_id": "7432112"}}, True, id="a stable id under its issuer"),
    pytest.param({"issuer": "github", "claims": {"repository_id": "1"}}, False, id="another id"),
    pytest.param({"issuer": "gitlab", "claims": {"repository_id": "7432112"}}, False, id="the id under another issuer"),
    pytest.param({"issuer": "github", "claims": {"environment": "prod"}}, False, id="a recorded claim that the token lacks"),
    pytest.param({"service_account": "svc-a", "issuer": "gitlab"}, False, id="every selector must hold"),
    pytest.param({"service_account": "svc-a", "issuer": "github", "claims": {"ref": "refs/heads/main"}}, True, id="a combination"),
    pytest.param({}, True, id="no selector at all cannot be evaluated"),
    pytest.param({"colour": "red"}, True, id="an unknown selector cannot be evaluated"),
    pytest.param({"service_account": ["svc-b"]}, True, id="a selector of a wrong type cannot be evaluated"),
    pytest.param({"claims": {"repository_id": "1"}}, True, id="a claim without its issuer cannot be evaluated"),
    pytest.param({"issuer": "github", "claims": {"workflow": "x"}}, True, id="a claim outside the recorded set cannot be evaluated"),
    pytest.param({"issuer": "github", "claims": {"repository_id": 1}}, True, id="a claim value of a wrong type cannot be evaluated"),
    pytest.param({"issuer": "github", "claims": {}}, True, id="no claims in a claims selector cannot be evaluated"),
])  # fmt: skip
def test_whom_a_rule_covers(selectors: dict[str, Any], covered: bool) -> None:
    assert covering(rule(**selectors)) == (["r1"] if covered else [])


def test_a_rule_ends_at_its_until_and_not_before() -> None:
    assert covering(rule(until=101, service_account="svc-a")) == ["r1"]
    assert covering(rule(until=100, service_account="svc-a")) == []


def test_a_lifted_rule_covers_nobody_and_the_others_stay() -> None:
    first, second = rule("r1", service_account="svc-a"), rule("r2", issuer="github")
    assert covering(first, second, lift("r1")) == ["r2"]


def test_an_entry_with_members_of_a_newer_version_covers() -> None:
    newer = parse_entry(
        '{"act":"revoke","at":1,"by":"x","id":"r9","reason":"","selectors":{"service_account":"svc-b"},"unless":{}}'
    )
    assert covering(newer) == ["r9"]


def test_selectors_that_are_no_object_cover() -> None:
    assert covering(parse_entry('{"act":"revoke","at":1,"by":"x","id":"r9","reason":"","selectors":[]}')) == ["r9"]


def test_a_long_value_is_found_by_its_hash() -> None:
    long = "x" * 400
    facts = Facts("svc-a", "github", "https://github.example", "s", "r", {"ref": fact(long)})
    assert covering(rule(issuer="github", claims={"ref": long}), facts=facts) == ["r1"]


@pytest.mark.parametrize("subject", ["s" * 400, "line\u2028separator", "eyJhbGciOiJIUzI1NiJ9.e30.x"], ids=["long", "unprintable", "a token"])
def test_a_subject_is_found_as_it_is_and_as_the_record_shows_it(subject: str) -> None:
    facts = Facts("svc-a", "github", "https://github.example", fact(subject), "r", {})
    assert covering(rule(subject=subject), facts=facts) == ["r1"]
    assert covering(rule(subject=fact(subject)), facts=facts) == ["r1"]
    assert subject not in fact(subject)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.text(max_size=300), st.integers(), st.booleans(), st.just("eyJhbGciOiJub25lIn0.e30."))))
def test_facts_of_many_claims_are_the_facts_of_each(claims: dict[str, Any]) -> None:
    assert facts_from(claims, "abcdef") == {name: fact(claims[name]) if name in claims else None for name in "abcdef"}


values = st.sampled_from(["a", "b", "c"])
selectors = st.fixed_dictionaries(
    {},
    optional={
        "service_account": values,
        "issuer": values,
        "iss": values | st.just(1),
        "subject": values,
        "trust_rule": values,
        "claims": st.dictionaries(st.sampled_from(["k", "l", "m"]), values, max_size=2),
        "other": values,
    },
)
facts_of_all_kinds = st.builds(
    Facts,
    service_account=values,
    issuer=values,
    iss=values,
    subject=values,
    trust_rule=values,
    claims=st.dictionaries(st.sampled_from(["k", "l"]), st.none() | values, max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(selectors, max_size=6), st.sets(st.integers(0, 5)), facts_of_all_kinds)
def test_the_index_finds_exactly_what_reading_every_rule_would(rules, lifted, facts) -> None:
    entries = [rule(f"r{n}", **chosen) for n, chosen in enumerate(rules)] + [lift(f"r{n}") for n in lifted]
    plain = [entry.id for entry in in_force(entries, 100) if covers(entry, facts)]
    assert sorted(covering(*entries, facts=facts)) == sorted(plain)


def test_the_tag_depends_on_every_part_and_on_where_parts_end() -> None:
    base = tag(b"k", "prod", 1, "t", "entry")
    others = [
        tag(b"l", "prod", 1, "t", "entry"),
        tag(b"k", "dev", 1, "t", "entry"),
        tag(b"k", "prod", 2, "t", "entry"),
        tag(b"k", "prod", 1, "u", "entry"),
        tag(b"k", "prod", 1, "t", "entrz"),
        tag(b"k", "prod1", 1, "t", "entry"),
        tag(b"k", "prod", 1, "te", "ntry"),
    ]
    assert len({base, *others}) == 8


def test_two_tries_of_one_act_have_one_digest() -> None:
    first = Entry(id="r1", act="revoke", by="ann", at=1, selectors={"issuer": "a"})
    again = Entry(id="r1", act="revoke", by="bob", at=9, selectors={"issuer": "a"})
    other = Entry(id="r1", act="revoke", by="ann", at=1, selectors={"issuer": "b"})
    assert first.digest() == again.digest() != other.digest()


def test_what_an_issuers_name_was_bound_to_makes_no_other_act() -> None:
    plain = Entry(id="r1", act="revoke", by="ann", at=1, selectors={"issuer": "a"})
    bound = Entry(id="r1", act="revoke", by="ann", at=1, selectors={"issuer": "a", "iss": "https://a.example"})
    alone = Entry(id="r1", act="revoke", by="ann", at=1, selectors={"iss": "https://a.example"})
    assert plain.digest() == bound.digest() != alone.digest()


def test_a_rule_that_is_met_by_name_and_by_iss_is_told_once() -> None:
    assert covering(rule(issuer="github", iss=FACTS.iss)) == ["r1"]


def test_an_entry_survives_its_canonical_text() -> None:
    entry = rule("r1", until=7, issuer="github", claims={"ref": "é\u2028"})
    assert parse_entry(entry.canonical()) == entry
