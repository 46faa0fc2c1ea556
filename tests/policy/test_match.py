"""The operators of `where`, as tables; globs against a slow and obvious reading."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker.policy.match import Contains, Equals, Exists, Glob, GlobInvalid, In, Matcher, NotIn, tokens_of


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        pytest.param("refs/tags/v*", "refs/tags/v1.2", True, id="star matches within a segment"),
        pytest.param("refs/tags/v*", "refs/tags/v", True, id="star matches nothing"),
        pytest.param("refs/tags/v*", "refs/tags/v1/x", False, id="star never crosses a slash"),
        pytest.param("a:*", "a:b:c", False, id="star never crosses a colon"),
        pytest.param("a:**", "a:b:c/d", True, id="two stars cross both"),
        pytest.param("refs/tags/v*", None, False, id="a missing claim never matches"),
        pytest.param("refs/tags/v*", "refs/tags/v1\n", True, id="a newline is a character like any other"),
        pytest.param("v*x", "v1\nx", True, id="also in the middle"),
        pytest.param("a*a", "a", False, id="prefix and suffix do not share characters"),
        pytest.param("**", "", True, id="two stars match nothing too"),
        pytest.param("a.*", "axb", False, id="a dot is a dot"),
        pytest.param("*", 7, False, id="a number is no text"),
        pytest.param("*", ("a",), False, id="a list is no text"),
        pytest.param("https://**/job/PR-*/", "https://ci/x/job/PR-1/", True, id="several stars"),
        pytest.param("https://**/job/PR-*/", "https://ci/x/job/main/", False, id="several stars, other text"),
    ],
)
def test_glob(pattern: str, value: Any, matches: bool) -> None:
    assert matches is Glob(pattern).holds(value)


@pytest.mark.parametrize("pattern", ["", "abc", "a***"])
def test_a_glob_that_says_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(GlobInvalid):
        Glob(pattern)


@settings(max_examples=400, deadline=None)
@given(st.text("ab/:*", min_size=1, max_size=8), st.text("ab/:", max_size=10))
def test_a_glob_means_what_the_obvious_reading_says(pattern: str, value: str) -> None:
    assume("*" in pattern and "***" not in pattern)
    parts = {"*": "[^/:]*", "**": ".*"}
    obvious = "".join(parts.get(token, re.escape(token)) for token in tokens_of(pattern))
    assert Glob(pattern).holds(value) is (re.fullmatch(obvious, value, re.DOTALL) is not None)


@pytest.mark.parametrize(
    ("matcher", "yes", "no"),
    [
        pytest.param(Equals("1"), ["1"], [1, True, ("1",), None, "1 ", "", {"a": "1"}], id="equals text"),
        pytest.param(Equals(1), [1], ["1", True, None], id="equals an integer"),
        pytest.param(Equals(True), [True], [1, "true", None, False], id="equals true"),
        pytest.param(In(("a", 1)), ["a", 1], ["1", True, None, ("a",)], id="in"),
        pytest.param(NotIn(("a", 1)), ["b", True, 2], ["a", 1, None, ("b",), {"x": 1}], id="not_in wants a value"),
        pytest.param(Exists(True), ["", 0, False, ()], [None], id="exists"),
        pytest.param(Exists(False), [None], ["", 0, False], id="exists: false is what a missing claim satisfies"),
        pytest.param(Contains("a"), [("a",), ("b", "a")], ["a", None, ("A",), (), (["a"],)], id="contains"),
    ],
)
def test_operators_compare_type_and_value(matcher: Matcher, yes: list[Any], no: list[Any]) -> None:
    assert [matcher.holds(value) for value in yes] == [True] * len(yes)
    assert [matcher.holds(value) for value in no] == [False] * len(no)
    assert matcher.expected
