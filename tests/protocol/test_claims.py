"""Reading claims: typed, by path, never by likeness; what is missing or of another type is not there."""

from __future__ import annotations

from typing import Any

import pytest

from broker import presets
from broker.protocol.claims import ClaimSpec, Reading, audience_of, derive_spiffe, pointer

SPECS = {
    "text": ClaimSpec("text", ("text",)),
    "number": ClaimSpec("number", ("number",), ("integer",)),
    "flag": ClaimSpec("flag", ("flag",), ("boolean",)),
    "deep": ClaimSpec("deep", ("kubernetes.io", "namespace")),
    "derived": ClaimSpec("derived", ()),
}


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"text": "a", "number": 1, "flag": True}, {"text": "a", "number": 1, "flag": True}),
        ({"text": 1, "number": "1", "flag": "true"}, {}),
        ({"text": None, "number": True, "flag": 1}, {}),
        ({"number": 1.0}, {}),
        ({"kubernetes.io": {"namespace": "a"}}, {"deep": "a"}),
        ({"kubernetes.io": {"namespace": {"a": 1}}}, {}),
        ({"kubernetes.io": "a"}, {}),
        ({"kubernetes": {"io": {"namespace": "a"}}}, {}),
        ({"iss": "i", "sub": "s", "jti": "j", "aud": "a"}, {"iss": "i", "sub": "s", "jti": "j", "aud": ("a",)}),
        ({"iss": 1, "sub": None, "jti": ["j"], "aud": [1]}, {}),
        ({"aud": ["a", "b"]}, {"aud": ("a", "b")}),
        ({"aud": []}, {}),
        ({"derived": "forged"}, {}),
    ],
)
def test_claims_are_read_by_path_and_type(payload: dict[str, Any], found: dict[str, Any]) -> None:
    assert Reading.of(SPECS).read(payload) == found


def test_a_family_stands_for_all_claims_with_its_prefix() -> None:
    family = ClaimSpec("prop_*", ("prop_*",), ("string",), family=True)
    assert Reading.of({}, (family,)).read({"prop_a": "x", "prop_b": 1, "propc": "y", "prop_": "z"}) == {"prop_a": "x", "prop_": "z"}
    nested = ClaimSpec("tag.*", ("tags", "*"), ("string",), family=True)
    assert Reading.of({}, (nested,)).read({"tags": {"team": "x"}}) == {"tag.team": "x"}
    assert Reading.of({}, (nested,)).read({"tags": "x"}) == {}


def test_a_family_never_replaces_a_claim_of_its_own_type() -> None:
    family = ClaimSpec("a*", ("a*",), ("string",), family=True)
    assert Reading.of({}, (family,)).read({"aud": "x"})["aud"] == ("x",)
    assert "aud" not in Reading.of({}, (family,)).read({"aud": [1]})


@pytest.mark.parametrize(
    "sub",
    [
        "",
        "spiffe://prod.acme.example",
        "spiffe://prod.acme.example/",
        "spiffe://Prod.acme.example/a",
        "SPIFFE://prod.acme.example/a",
        "spiffe://prod.acme.example:8443/a",
        "spiffe://u@prod.acme.example/a",
        "spiffe://prod.acme.example/a/",
        "spiffe://prod.acme.example//a",
        "spiffe://prod.acme.example/a/../b",
        "spiffe://prod.acme.example/a/.",
        "spiffe://prod.acme.example/a%2fb",
        "spiffe://prod.acme.example/a?b",
        "spiffe://prod.acme.example/a#b",
        "spiffe://prod.acme.example/a\n",
        "spiffe:///a",
        "spiffe://prod.acme.example/" + "a" * 2048,
        "spiffe://" + "a" * 256 + "/a",
        "https://prod.acme.example/a",
    ],
)
def test_what_is_no_spiffe_id_of_a_workload_derives_nothing(sub: str) -> None:
    assert derive_spiffe(sub) == {}


def test_a_spiffe_id_derives_trust_domain_and_path() -> None:
    found = derive_spiffe("spiffe://prod.acme.example/ns/payments/sa/deployer")
    assert found == {"trust_domain": "prod.acme.example", "path": "/ns/payments/sa/deployer"}
    spiffe = presets.load("spiffe")
    assert "path" not in Reading.of(spiffe.claims).read({"path": "/forged", "trust_domain": "forged"})


@pytest.mark.parametrize(
    ("name", "path"),
    [("a.b", ("a.b",)), ("/a/b", ("a", "b")), ("/a~1b/c~0d", ("a/b", "c~d")), ("oidc.x.com/y", ("oidc.x.com/y",))],
)
def test_a_name_is_split_only_where_it_is_a_json_pointer(name: str, path: tuple[str, ...]) -> None:
    assert pointer(name) == path


def test_an_audience_is_text_or_a_list_of_texts() -> None:
    assert [audience_of({"aud": value}) for value in ("a", ["a", "b"], ["a", 1], 1, None, {})] == [
        ("a",),
        ("a", "b"),
        (),
        (),
        (),
        (),
    ]
