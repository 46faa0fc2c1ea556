"""CEL: exactly true or no; typed names; nothing that could grow, hang or match a part."""

from __future__ import annotations

from typing import Any

import pytest

from broker import presets
from broker.config import Limits
from broker.policy.condition import ConditionInvalid, Language, TextPattern
from broker.policy.expression import unanchored

GITHUB = Language(presets.load("github-actions"), Limits())
GITLAB = Language(presets.load("gitlab"), Limits())
PLAIN = Language(None, Limits())


@pytest.mark.parametrize(
    ("text", "claims", "holds"),
    [
        ('claims.event_name != "pull_request"', {"event_name": "push"}, True),
        ('claims.event_name != "pull_request"', {"event_name": "pull_request"}, False),
        ('claims.event_name != "pull_request"', {}, False),
        ('!(claims.event_name == "pull_request")', {}, False),
        ('present("environment") && claims.environment == "x"', {"environment": "x"}, True),
        ('!present("environment")', {}, True),
        ('!present("environment")', {"environment": ""}, False),
        ('claims.ref.matches("^refs/(heads|tags)/.*$")', {"ref": "refs/tags/v1"}, True),
        ('claims.ref.matches("^refs$")', {"ref": "refs\n"}, False),
        ('"x" in claims.aud', {"aud": ("y", "x")}, True),
        ('claims.aud.exists(a, a == "x")', {"aud": ("y",)}, False),
        ('claims.repo_property_tier == "gold"', {"repo_property_tier": "gold"}, True),
        ('claims.repo_property_tier != "gold"', {}, False),
        ('request.env == "prod" && "payments" in request.audience && "a" in request.scope', {}, True),
        ('claims.ref == "x" || true', {}, True),
    ],
)
def test_a_condition_holds_if_it_is_exactly_true(text: str, claims: dict[str, Any], holds: bool) -> None:
    assert GITHUB.compile(text).holds(claims, ("payments",), ("a",), "prod") is holds


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ('claims.event_nam == "x"', 6, "no claim `event_nam`"),
        ('claims.ref == "é" && claims.foo == "x"', 27, "no claim `foo`"),
        ('present("envronment")', 7, "no claim `envronment`"),
        ("claims.run_id == 7", 14, "no matching overload"),
        ("has(claims.ref)", 0, "`has` is not available"),
        ("claims.ref", 0, "true or false"),
        ("1", 0, "true or false"),
        ("claims.size() == 1", 0, "by name"),
        ("claims[request.env] == 1", 0, "by name"),
        ("[claims.ref].map(a, a + a).size() == 1", 16, "`map` and `filter`"),
        ("[1].exists(a, [2].exists(b, a == b))", 24, "a loop inside a loop"),
        ("dyn(1) == 1", 3, "`dyn` is not available"),
        ("present(claims.ref)", 7, "literal text"),
        ('claims.ref.matches("refs")', 18, "start with ^"),
        ("claims.ref.matches(claims.sha)", 18, "literal text"),
        ('claims.ref.matches("^(?P<$")', 19, "must end with $"),
        ('claims.ref.matches("^a{2,1}$")', 19, "no regular expression"),
        ("x == 1", 0, "undeclared"),
        ("claims.ref == ", 14, "Syntax error"),
        ("true" + " " * 2000, 2000, "at most 2000"),
    ],
)
def test_what_may_not_load_is_told_with_its_place(text: str, offset: int, message: str) -> None:
    with pytest.raises(ConditionInvalid) as raised:
        GITHUB.compile(text)
    assert any(message in fault.message for fault in raised.value.faults)
    assert abs(raised.value.faults[0].offset - offset) <= 1


@pytest.mark.parametrize(
    ("pattern", "anchored"),
    [
        ("^a$", True),
        ("^(a|b)$", True),
        ("^[|]$", True),
        ("^[]|]$", True),
        ("^[^]|]$", True),
        ("^[[:alpha:]|]$", True),
        ("^[\\[]x$|.*[b]$", False),
        ("^[[:alpha:](]x$|.*[[:alpha:])]$", False),
        ("^a\\\\$", True),
        ("^a\\$", False),
        ("a$", False),
        ("^a", False),
        ("^a|b$", False),
        ("^a$|^b$", False),
        ("^*a$", False),
        ("(?m)^a$", False),
        ("^(?im:a)$", False),
        ("^a[$", False),
        ("", False),
        ("^\\Qa|b\\E$", False),
    ],
)
def test_patterns_are_anchored_at_both_ends(pattern: str, anchored: bool) -> None:
    assert (unanchored(pattern) == "") is anchored


def test_conditions_say_which_claims_they_mention() -> None:
    condition = GITHUB.compile('claims.event_name == "a" && present("environment") && "x" in request.scope')
    assert condition.claims == ("event_name", "environment")
    assert condition.reads_request


def test_without_a_preset_claims_are_a_map() -> None:
    assert PLAIN.compile('claims.job == "x" && claims["/a/b"] == 3').holds({"job": "x", "/a/b": 3}, (), (), "prod")
    assert not PLAIN.compile('claims.job != "x"').holds({}, (), (), "prod")
    assert PLAIN.compile("claims.flag == true").holds({"flag": True}, (), (), "prod")


def test_numbers_beyond_64_bits_do_not_hold() -> None:
    assert not GITLAB.compile("claims.runner_id > 0").holds({"runner_id": 2**70}, (), (), "prod")


@pytest.mark.parametrize("bad", ["(", "a{2,1}", "[z-a]"])
def test_a_naming_pattern_is_read_by_a_linear_engine(bad: str) -> None:
    with pytest.raises(ValueError, match="RE2"):
        TextPattern(bad)
    pattern = TextPattern("(a+)+|b")
    assert pattern.fits("aaa")
    assert not pattern.fits("a" * 5000 + "!")
    assert not pattern.fits("ab")
