"""Strict YAML: everything that could mean two things is refused where it stands."""

from __future__ import annotations

import pytest

from broker.compiler.document import Listing, Scalar, Table, place, read
from broker.config import Limits

LIMITS = Limits()


def refused(text: bytes) -> tuple[int, int, str]:
    root, problems = read(text, "f.yaml", LIMITS)
    assert root is None
    (problem,) = problems
    return problem.line, problem.column, problem.message


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        pytest.param(b"", 1, 1, "empty", id="an empty file"),
        pytest.param(b"# only a comment\n", 1, 1, "empty", id="a file of comments"),
        pytest.param(b"a: &x 1\n", 1, 4, "anchors", id="an anchor"),
        pytest.param(b"a: 1\nb: *x\n", 2, 4, "aliases", id="an alias"),
        pytest.param(b"a: !!python/object/apply:os.system [ls]\n", 1, 4, "tags", id="a tag that would run something"),
        pytest.param(b"a: ! x\n", 1, 4, "tags", id="the non-specific tag"),
        pytest.param(b"x: {a: 1}\ny:\n  <<: {b: 2}\n", 3, 3, "merge keys", id="a merge key"),
        pytest.param(b"allow: false\nallow: true\n", 2, 1, "second time", id="a duplicate key"),
        pytest.param(b"a: 1\n---\nb: 2\n", 2, 1, "second document", id="two documents"),
        pytest.param(b"%YAML 1.1\n---\na: 1\n", 1, 1, "directives", id="a directive"),
        pytest.param(b"? [a]\n: b\n", 1, 3, "key", id="a key that is a list"),
        pytest.param(b"a: \xff\n", 1, 4, "UTF-8", id="no UTF-8"),
        pytest.param("a: 1".encode("utf-16"), 1, 1, "UTF-8", id="UTF-16"),
        pytest.param(b"\xef\xbb\xbfa: 1\n", 1, 1, "byte order mark", id="a byte order mark"),
        pytest.param(b"a: \x01\n", 1, 4, "character", id="a control character"),
        pytest.param(b"a:\n  - b\n c: d\n", 3, 2, "not YAML", id="broken indentation"),
        pytest.param(b"[" * 200_000, 1, 33, "nested deeper", id="two hundred thousand brackets"),
        pytest.param(b"a:\n" + b"- 1\n" * 20_001, 19_999, 3, "more than 20000", id="twenty thousand values"),
    ],
)
def test_what_is_refused_is_refused_where_it_stands(text: bytes, line: int, column: int, message: str) -> None:
    found_line, found_column, found = refused(text)
    assert message in found
    assert (found_line, found_column) == (line, column)


def test_a_file_larger_than_the_limit_is_refused_unread() -> None:
    assert "larger" in refused(b"a" * (LIMITS.policy_file_bytes_max + 1))[2]


def test_scalars_stay_text_with_style_and_place() -> None:
    root, problems = read(b"a: no\nb: ['012', 12:30:00]\n", "f.yaml", LIMITS)
    assert problems == ()
    assert isinstance(root, Table)
    assert root.entries["a"] == Scalar("no", True, 1, 4)
    listing = root.entries["b"]
    assert isinstance(listing, Listing)
    assert listing.items == (Scalar("012", False, 2, 5), Scalar("12:30:00", True, 2, 12))
    assert place(root, ("b", 1)) == (2, 12)
    assert place(root, ("b",), key=True) == (2, 1)
    assert place(root, ("b", "missing")) == (2, 4)


@pytest.mark.parametrize("size", [7, 40, 1000])
def test_an_alias_tower_costs_nothing(size: int) -> None:
    tower = b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, size)
    )
    assert refused(tower)[0] == 1
