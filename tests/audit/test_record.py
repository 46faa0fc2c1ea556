"""Records: one line, bounded, and nothing foreign that a terminal or a parser could trip over."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.audit import record
from broker.model import Finding

HOSTILE = ["\r\nINFO forged", "\x1b[31mred", "\u2028line", "\u2029par", "\x00nul", "\u202ereversed", "\u2066iso", "\x7f", "\ufeff"]


@pytest.mark.parametrize("text", HOSTILE)
def test_u03_hostile_text_is_escaped_on_one_line(text: str) -> None:
    shown = record.clean(text)
    assert shown.isprintable()
    line = record.encode({"subject": shown}, 4096)
    assert b"\n" not in line
    assert json.loads(line)["subject"] == shown


def test_u06_a_token_in_the_wrong_place_is_cut_out() -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lzcyJ9.c2lnbmF0dXJl"
    assert record.clean(token) == "[token]"
    assert record.clean(f"https://x.example/{token}?y") == "https://x.example/[token]?y"
    assert record.clean("x" * 250 + token) == "x" * 250 + "[toke" + record.CUT, "cut out first, then shortened"


def test_u03_long_text_is_cut_with_a_mark() -> None:
    shown = record.clean("x" * 1_000_000)
    assert len(shown) == record.TEXT_CHARACTERS_MAX
    assert shown.endswith(record.CUT)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text(max_size=30), st.text(max_size=2_000), max_size=40),
    st.integers(0, 60),
    st.text(max_size=300),
)
def test_a_record_never_passes_its_bound_and_keeps_its_core(claims, reasons, agent) -> None:
    body = record.base("exchange", "refused", env="prod", now=1.5, node="n", reason="no_rule_matched")
    body |= {"claims": claims, "client": {"user_agent": agent}, "request_id": "req_1"}
    record.add_reasons(body, [Finding("rule", f"claim{n}", n % 2 == 0, "e" * 200, "s" * 200) for n in range(reasons)])
    line = record.encode(body, 4096)
    assert len(line) <= 4096
    kept = json.loads(line)
    assert (kept["outcome"], kept["reason"], kept["request_id"]) == ("refused", "no_rule_matched", "req_1")


def test_what_failed_outlives_what_held() -> None:
    body = record.base("exchange", "refused", env="prod", now=1.5, node="n")
    record.add_reasons(body, [Finding("r", "held", True, "e" * 200, "s" * 200)] * 30 + [Finding("r", "failed", False, "e", "s")])
    kept = json.loads(record.encode(body, 4096))
    assert [reason["claim"] for reason in kept["reasons"]] == ["failed"]
    assert kept["cut"] == ["reasons"]


def test_time_is_rfc_3339_in_utc_with_milliseconds() -> None:
    assert record.timestamp(1795500000.1239) == "2026-11-24T06:00:00.123Z"
