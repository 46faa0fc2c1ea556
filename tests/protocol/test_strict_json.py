"""JSON is read as every careful reader would, or not at all: the classes of the well-known parser test suites, and the rule for
members that occur twice.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.compact import NotStrictJson, strict_json

DEPTH_MAX = 8


def accepts(raw: bytes, depth_max: int = DEPTH_MAX) -> bool:
    try:
        strict_json(raw, depth_max)
    except NotStrictJson:
        return False
    return True


REFUSED = {
    "nothing": b"",
    "a space": b" ",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16 with mark": '{"a":1}'.encode("utf-16"),
    "UTF-16 without mark": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "an invalid octet in a value": b'["\xff"]',
    "an invalid octet in a name": b'{"\xff":1}',
    "an invalid octet outside a string": b"[\xff]",
    "an overlong form": b'["\xc0\xaf"]',
    "a surrogate in UTF-8": b'["\xed\xa0\x80"]',
    "a cut sequence": b'["\xe2\x82"]',
    "beyond Unicode": b'["\xf4\xbf\xbf\xbf"]',
    "a lone high surrogate": b'["\\ud800"]',
    "a lone low surrogate": b'["\\udc00"]',
    "a lone surrogate in a name": b'{"\\ud800":1}',
    "two high surrogates": b'["\\ud800\\ud800"]',
    "a high surrogate and a letter": b'["\\ud800x"]',
    "a high surrogate and another escape": b'["\\ud800\\u0041"]',
    "a newline in a string": b'["\n"]',
    "a tab in a string": b'["\t"]',
    "a NUL in a string": b'["\x00"]',
    "unit separator in a string": b'["\x1f"]',
    "a control character behind an escape": b'["\\n\x01"]',
    "a control character behind an umlaut": b'["\xc3\xa4\x01"]',
    "a NUL behind": b"{}\x00",
    "a leading zero": b"[01]",
    "a negative leading zero": b"[-01]",
    "two zeros": b"[00]",
    "a plus": b"[+1]",
    "no digit behind the point": b"[1.]",
    "no digit before the point": b"[.5]",
    "a point and an exponent": b"[1.e3]",
    "no exponent": b"[1e]",
    "a sign alone as exponent": b"[1e+]",
    "a minus alone": b"[-]",
    "two minus": b"[--1]",
    "hexadecimal": b"[0x1]",
    "an underscore": b"[1_0]",
    "digits of another script": "[\u0661]".encode(),
    "fullwidth digits": "[\uff11]".encode(),
    "NaN": b"[NaN]",
    "-NaN": b"[-NaN]",
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "inf": b"[inf]",
    "beyond a double": b"[1e400]",
    "beyond a double, below": b"[-1e400]",
    "beyond 64 bits": b"[18446744073709551616]",
    "beyond 64 bits, below": b"[-9223372036854775809]",
    "an integer of 31 digits": b"[1000000000000000000000000000000]",
    "an integer of 400 digits": b"[" + b"9" * 400 + b"]",
    "an integer of 5,000 digits": b"[" + b"9" * 5_000 + b"]",
    "a huge integer deep inside": b'{"a":[{"b":18446744073709551616}]}',
    "a trailing comma in a list": b"[1,]",
    "a trailing comma in an object": b'{"a":1,}',
    "a leading comma": b"[,1]",
    "two commas": b"[1,,2]",
    "no comma": b"[1 2]",
    "no colon": b'{"a" 1}',
    "two colons": b'{"a"::1}',
    "a comma for a colon": b'{"a",1}',
    "a name that is no string": b"{1:1}",
    "a name without quotes": b"{a:1}",
    "single quotes": b"['a']",
    "two values": b"1 2",
    "text behind": b"{}x",
    "a bracket behind": b"[]]",
    "another list behind": b"[][]",
    "a comment": b"[]/**/",
    "a comment inside": b"[1/**/]",
    "a hash": b"[]#",
    "form feed": b"[]\x0c",
    "no-break space": b"[]\xc2\xa0",
    "line separator between": b"[\xe2\x80\xa8]",
    "capital literals": b"[True]",
    "a cut literal": b"[tru]",
    "a long literal": b"[nullx]",
    "a bare word": b"a",
    "an unknown escape": b'["\\x41"]',
    "an escaped quote of the other kind": b'["\\\'"]',
    "a short escape": b'["\\u00"]',
    "a wrong escape": b'["\\u00g0"]',
    "a capital U": b'["\\U0041"]',
    "an escaped tab character": b'["\\\t"]',
    "a string that does not end": b'["',
    "an escape that does not end": b'["\\"]',
    "a list that does not end": b"[1",
    "an object that does not end": b'{"a":1',
    "crossed brackets": b"[{]}",
    "1,000 lists": b"[" * 1_000 + b"]" * 1_000,
    "100,000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 lists that do not end": b"[" * 100_000,
    "50,000 objects that do not end": b'{"":' * 50_000,
}

ACCEPTED = {
    "an empty object": b"{}",
    "an empty list": b"[]",
    "a string": b'"a"',
    "a number": b"42",
    "null": b"null",
    "white space around": b" \t\r\n{ \"a\" : 1 } \n",
    "zero": b"[0, -0, 0.0, -0.0, 0e1]",
    "exponents": b"[1e5, 1E+2, 1.5e-3]",
    "as small as it gets": b"[1e-400]",
    "64 bits": b"[18446744073709551615, -9223372036854775808]",
    "a long fraction": b"[0.1234567890123456789012345678901234567890]",
    "every escape": b'["\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041"]',
    "a pair of surrogates": b'["\\ud83d\\ude00"]',
    "an escaped NUL": b'["\\u0000"]',
    "delete": b'["\x7f"]',
    "a noncharacter": "[\"\uffff\"]".encode(),
    "umlauts": '{"ä":"ö"}'.encode(),
    "an empty name": b'{"":0}',
    "colons everywhere": b'{"a:b":"c:d:","::":[":"]}',
    "one name in two objects": b'{"a":{"a":1},"b":{"a":1}}',
    "names that differ by case": b'{"a":1,"A":1}',
    "names that look alike": '{"a":1,"\u0430":1}'.encode(),
}

TWICE = {
    "side by side": b'{"a":1,"a":1}',
    "far apart": b'{"a":1,"b":2,"c":3,"a":4}',
    "three times": b'{"a":1,"a":2,"a":3}',
    "empty names": b'{"":1,"":2}',
    "inside": b'{"x":{"a":1,"a":2}}',
    "inside a list": b'[{"a":1},{"a":1,"a":2}]',
    "the dropped one full of colons": b'{"a":"::::","b":1,"a":"c"}',
    "the kept one full of colons": b'{"a":1,"a":"::::"}',
    "the dropped one an object": b'{"a":{"b":1,"c":2},"a":1}',
    "an escaped twin": b'{"a":1,"\\u0061":2}',
    "an escaped twin in front": b'{"\\u0061":1,"a":2}',
    "two escaped twins": b'{"\\u0061":1,"\\u0061":2}',
    "an escaped colon makes up for the lost one": b'{"a":1,"a":"\\u003a"}',
    "an escaped slash": b'{"a\\/":1,"a/":2}',
    "an escape elsewhere": b'{"a":1,"a":2,"b":"\\n"}',
    "umlauts": '{"ä":1,"\\u00e4":2}'.encode(),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_readers_disagree_on_is_refused(raw: bytes) -> None:
    assert not accepts(raw)


@pytest.mark.parametrize("raw", ACCEPTED.values(), ids=ACCEPTED)
def test_plain_json_is_read_as_the_standard_library_reads_it(raw: bytes) -> None:
    assert strict_json(raw, DEPTH_MAX) == json.loads(raw)


@pytest.mark.parametrize("raw", TWICE.values(), ids=TWICE)
def test_a_member_that_occurs_twice_is_refused(raw: bytes) -> None:
    assert not accepts(raw)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_depth_counts_objects_and_lists(depth: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        raw = opening * (depth - 1) + b"[]" + closing * (depth - 1)
        assert accepts(raw, depth)
        assert not accepts(raw, depth - 1)


def test_scalars_stand_at_no_depth() -> None:
    assert strict_json(b"1", 1) == 1
    assert not accepts(b"18446744073709551616")


def test_the_reason_carries_nothing_of_the_text() -> None:
    for raw in (b'{"secret":1,"secret":2}', b'{"secret"', b'{"a":"secret\xff"}', b"[[[[[[[[[[\"secret\"]]]]]]]]]]"):
        with pytest.raises(NotStrictJson) as caught:
            strict_json(raw, DEPTH_MAX)
        assert "secret" not in str(caught.value)
        assert caught.value.__context__ is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_whatever_is_written_plainly_reads_back(value: Any, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        read = strict_json(raw, 64)
    except NotStrictJson:
        assert any("\ud800" <= character <= "\udfff" for character in repr(value) + raw.decode("utf-8", "surrogatepass"))
    else:
        assert read == value


@given(st.lists(st.tuples(st.sampled_from(["a", "b", ":", "a:", "\\u0061", "\\u003a", "\\/"]), JSON), max_size=5))
def test_an_object_is_read_exactly_if_its_names_differ(members: list[tuple[str, Any]]) -> None:
    raw = ("{" + ",".join(f'"{name}":{json.dumps(value)}' for name, value in members) + "}").encode()
    names = [json.loads(f'"{name}"') for name, _ in members]
    assert accepts(raw, 64) is (len(set(names)) == len(names))


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0123456789eE+-.truefalsn \n', max_size=40).map(str.encode))
def test_noise_is_refused_or_read_as_the_standard_library_reads_it(raw: bytes) -> None:
    try:
        value = strict_json(raw, DEPTH_MAX)
    except NotStrictJson:
        return
    assert json.loads(raw.decode("utf-8")) == value
