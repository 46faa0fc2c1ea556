"""Logs: nothing that looks like a token gets through, from wherever it comes."""

from __future__ import annotations

import json
import logging
from base64 import urlsafe_b64encode

import pytest

from broker.protocol.revocations import fact
from broker.telemetry import log, trace

TOKEN = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJyZXBvOmFjbWUvcGF5bWVudHMifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda: log.get("x").warning("refused", token=TOKEN), id="as a fact"),
        pytest.param(lambda: log.get("x").warning(f"refused {TOKEN}"), id="as words"),
        pytest.param(lambda: logging.getLogger("library").warning("bad token %s", TOKEN), id="by a library"),
        pytest.param(lambda: log.get("x").warning("refused", cause=ValueError(TOKEN)), id="in an error"),
    pytest.param(lambda: log.get("x").warning("refused", problems=[f"a {TOKEN}"], deep={"a": [TOKEN]}), id="deep inside"),
    ],
)
def test_a_token_never_reaches_a_log_line(write, capsys) -> None:
    log.configure("info")
    write()
    line = capsys.readouterr().err
    assert "eyJ" not in line
    assert "[token]" in line


def test_a_traceback_is_scrubbed_too(capsys) -> None:
    log.configure("info")
    try:
        raise ValueError(TOKEN)
    except ValueError as error:
        log.get("x").error("unforeseen", exc_info=error)
    assert "eyJ" not in capsys.readouterr().err


def test_lines_are_json_and_carry_the_trace(capsys) -> None:
    log.configure("info")
    made = trace.begin()
    log.get("x").info("hello", n=1)
    body = json.loads(capsys.readouterr().err)
    assert body["event"] == "hello"
    assert body["trace_id"] == made.trace_id_hex


@pytest.mark.parametrize("header", [b'{"alg":1}', b'{ "alg":1}', b'{\n"alg":1}', b'{\t"alg":1}', b'{\r"alg":1}'])
def test_a_token_is_known_by_every_way_in_which_json_may_begin(header: bytes) -> None:
    token = ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in (header, b'{"a":1}', b"signature"))
    assert log.TOKEN_LIKE.sub("", f"a {token} b") == "a  b"
    assert fact(token).startswith("sha256:")
