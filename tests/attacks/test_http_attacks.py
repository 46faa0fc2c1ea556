"""Attacks on HTTP itself (H), with raw sockets against a real `broker serve`."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from broker.protocol import oauth
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tree import write_tree

REQUEST_S_MAX = 1
PATIENCE_S = 8.0
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("github-actions")) as running:
        yield running


@pytest.fixture(scope="module")
def broker(issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder: Path = tmp_path_factory.mktemp("http")
    policies = write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
    with Broker(folder / "data", policies, env={"BROKER_REQUEST_S_MAX": str(REQUEST_S_MAX)}) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_serves(broker: Broker, issuer: OidcIssuer) -> Iterator[None]:
    """The positive control: whatever a test did, the good exchange passes right after."""
    yield
    token = issuer.token(now=time.time(), aud=broker.issuer(), jti=secrets.token_hex(16))
    assert broker.exchange(token, audience="payments", scope="deploy:write").status_code == 200
    assert "Traceback" not in broker.log.read_text()


def good_request(broker: Broker, issuer: OidcIssuer, *headers: str, scope: str = "deploy:write") -> bytes:
    token = issuer.token(now=time.time(), aud=broker.issuer(), jti=secrets.token_hex(16))
    body = urlencode({
        "grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN,
        "audience": "payments", "scope": scope,
    })  # fmt: skip
    more = "".join(f"{header}\r\n" for header in headers)
    return f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def connect(broker: Broker) -> socket.socket:
    return socket.create_connection(("127.0.0.1", broker.port), timeout=PATIENCE_S)


def read_to_end(line: socket.socket) -> bytes:
    """All until the broker closes; a reset ends it too.  Fails if it never closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := line.recv(65_536):
            found += data
    return found


def talk(broker: Broker, sent: bytes) -> bytes:
    """What comes back for these bytes until the broker closes."""
    with connect(broker) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(sent)
        return read_to_end(line)


def statuses(answer: bytes) -> list[int]:
    return [int(part.split(b" ", 2)[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def test_h01_a_body_that_is_announced_too_large_is_cut_off_before_it_is_read(broker: Broker) -> None:
    head = f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Content-Length: 100000000\r\n\r\n".encode()
    assert statuses(talk(broker, head)) == [413]
    taken = 0
    with connect(broker) as line:
        line.sendall(head)
        with contextlib.suppress(ConnectionError):
            while taken < 100_000_000:
                taken += line.send(b"x" * 65_536)
    assert taken < 20_000_000, "the body was read on"


def test_h01_a_chunked_body_without_end_is_cut_off(broker: Broker) -> None:
    head = f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Transfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    taken = 0
    with connect(broker) as line:
        line.sendall(head)
        with contextlib.suppress(ConnectionError):
            while taken < 100_000_000:
                taken += line.send(chunk)
    assert taken < 20_000_000
    assert statuses(talk(broker, head + chunk * 8 + b"0\r\n\r\n")) == [413], "an honest client reads why"


@pytest.mark.parametrize("path", ["/healthz", "/prod/jwks.json", "/nowhere", "/prod/errors/revoked"])
def test_h01_no_route_takes_a_large_body(path: str, broker: Broker) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n".encode()
    assert statuses(talk(broker, head + b"x" * 100_000)) == [413]


def test_h01_a_length_that_is_too_small_leaves_no_second_request(broker: Broker, issuer: OidcIssuer) -> None:
    request = good_request(broker, issuer)
    short = request.replace(b"Content-Length: ", b"Content-Length: 5\r\nX: ")
    assert statuses(talk(broker, short)) in ([400], [400, 400])


def test_h01_a_length_that_is_too_large_times_out(broker: Broker) -> None:
    head = f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Content-Length: 500\r\n\r\ngrant_type=x".encode()
    assert statuses(talk(broker, head)) == [408]


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "99999999999999999999999", "1,1", "+5", "5 5", ""])
def test_h01_a_length_that_is_no_number_is_refused(length: str, broker: Broker) -> None:
    answer = talk(broker, f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Content-Length: {length}\r\n\r\nabcde".encode())
    assert statuses(answer) in ([400], [413])
    assert b"access_token" not in answer


def test_h03_a_header_of_20_mb_is_cut_off(broker: Broker) -> None:
    taken = 0
    with connect(broker) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while taken < 20_000_000:
                taken += line.send(b"y" * 65_536)
        answer = read_to_end(line)
    assert taken < 20_000_000, "the header was kept in memory"
    assert b"200 OK" not in answer


def test_h03_a_trailer_of_20_mb_is_cut_off(broker: Broker) -> None:
    taken = 0
    with connect(broker) as line:
        line.sendall(f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Transfer-Encoding: chunked\r\n\r\n0\r\nX: ".encode())
        with contextlib.suppress(ConnectionError):
            while taken < 20_000_000:
                taken += line.send(b"y" * 65_536)
    assert taken < 20_000_000


def test_a_body_in_many_small_chunks_is_still_a_body(broker: Broker, issuer: OidcIssuer) -> None:
    head, _, body = good_request(broker, issuer, "Connection: close").partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    answer = talk(broker, b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + chunks)
    assert statuses(answer) == [200]


def test_h03_100_000_headers_are_cut_off(broker: Broker) -> None:
    many = b"".join(b"x%d: y\r\n" % n for n in range(100_000))
    assert statuses(talk(broker, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")) in ([431], [])
    few = b"".join(b"x%d: y\r\n" % n for n in range(101))
    assert statuses(talk(broker, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + few + b"\r\n")) == [431]


def test_h03_a_url_of_200_kb_is_cut_off(broker: Broker) -> None:
    assert statuses(talk(broker, b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == [414]


SLOW = {
    "says nothing": b"",
    "half a request line": b"POST /prod/tok",
    "half a header": b"POST /prod/token HTTP/1.1\r\nHost: x\r\nContent-",
    "headers without end": b"POST /prod/token HTTP/1.1\r\nHost: x\r\n",
    "half a body": f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Content-Length: 100\r\n\r\ngrant".encode(),
    "half a chunk": f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Transfer-Encoding: chunked\r\n\r\n10\r\nabc".encode(),
    "a second request that is never whole": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
}


def test_h04_a_request_that_never_ends_is_closed(broker: Broker) -> None:
    with contextlib.ExitStack() as stack:
        lines = {name: stack.enter_context(connect(broker)) for name in SLOW}
        for name, line in lines.items():
            line.sendall(SLOW[name])
        for name, line in lines.items():
            assert statuses(read_to_end(line)) == ([200, 408] if SLOW[name].startswith(b"GET") else [408]), name


def drip_until_closed(broker: Broker, start: bytes, drip: bytes) -> bool:
    with connect(broker) as line:
        line.sendall(start)
        line.settimeout(0.05)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < PATIENCE_S:
                line.sendall(drip)
                with contextlib.suppress(TimeoutError):
                    if not line.recv(65_536):
                        return True
            return False
    return True


def test_h04_a_drip_does_not_keep_a_connection_open(broker: Broker) -> None:
    """The clock runs from the first byte, not from the last; empty lines between requests are no way round it."""
    starts = (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    with ThreadPoolExecutor(6) as pool:
        cases = [(start, drip) for start in starts for drip in (b"X", b"\r\n")]
        tries = {case: pool.submit(drip_until_closed, broker, *case) for case in cases}
    assert [case for case, closed in tries.items() if not closed.result()] == []


def test_h04_a_thousand_silent_connections_leave_the_others_their_service(broker: Broker, issuer: OidcIssuer) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(broker)) for _ in range(1_000)]
        for _ in range(5):
            assert statuses(talk(broker, good_request(broker, issuer, "Connection: close"))) == [200]
        assert statuses(read_to_end(silent[-1])) == [408]


SMUGGLING = {
    "CL.TE": "Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n",
    "TE.CL": "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGET /admin HTTP/1.1\r\n\r\n0\r\n\r\n",
    "TE twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "TE of an odd kind": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE with a space": "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE with a tab": "Transfer-Encoding:\tchunked, identity\r\n\r\n0\r\n\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "the same length twice": "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "a folded header": "X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a header without a name": ": x\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": "X : y\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a header": "X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a bare CR": "X: a\rY: b\r\nContent-Length: 0\r\n\r\n",
    "a bare LF": "X: a\nY: b\nContent-Length: 0\n\n",
    "a chunk size that is none": "Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "a negative chunk": "Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n",
    "a chunk size of 40 digits": f"Transfer-Encoding: chunked\r\n\r\n{'f' * 40}\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": "Transfer-Encoding: chunked\r\n\r\n2\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING)
def test_h05_a_request_that_two_readers_could_read_differently_gets_one_refusal_and_the_end(rest: str, broker: Broker) -> None:
    answer = talk(broker, f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}{rest}".encode("latin-1"))
    assert len(statuses(answer)) == 1
    assert 400 <= statuses(answer)[0] < 500
    assert b"uvicorn" not in answer.lower()


@pytest.mark.parametrize("hosts", ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n"], ids=["none", "two", "the same twice"])
def test_exactly_one_host(hosts: str, broker: Broker) -> None:
    assert statuses(talk(broker, f"GET /healthz HTTP/1.1\r\n{hosts}\r\n".encode())) == [400]


def test_base_comes_from_configuration_whatever_host_says(broker: Broker) -> None:
    forwarded = "Forwarded: host=evil.example;proto=https\r\nX-Forwarded-Proto: https"
    for header in ("Host: evil.example", "Host: x\r\nX-Forwarded-Host: evil.example", f"Host: x\r\n{forwarded}"):
        request = f"GET /prod/.well-known/openid-configuration HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n"
        answer = talk(broker, request.encode())
        assert statuses(answer) == [200]
        assert b"evil" not in answer
        assert broker.issuer("prod").encode() in answer
    absolute = talk(broker, b"GET http://evil.example/prod/jwks.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"evil" not in absolute


def test_pipelined_requests_are_answered_in_order(broker: Broker, issuer: OidcIssuer) -> None:
    both = good_request(broker, issuer) + good_request(broker, issuer, "Connection: close", scope="everything")
    answer = talk(broker, both)
    assert statuses(answer) == [200, 400]
    assert answer.index(b"access_token") < answer.index(b"scope_not_granted")


@pytest.mark.parametrize("second", [
    b"GET / HTTP/1.1\r\n\r\n", b"GARBAGE\r\n\r\n", b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /prod/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n",
], ids=["no host", "garbage", "long url", "large body"])
def test_an_answer_never_comes_out_of_turn(second: bytes, broker: Broker, issuer: OidcIssuer) -> None:
    """A refusal of the second request that came before the first one's answer would be taken for it."""
    answer = talk(broker, good_request(broker, issuer) + second)
    assert statuses(answer)[0] == 200
    assert len(statuses(answer)) <= 2


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_h10_no_other_protocol_is_switched_to(upgrade: str, broker: Broker) -> None:
    more = "HTTP2-Settings: AAMAAABkAAQAAP__" if upgrade == "h2c" else "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13"
    request = f"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n{more}\r\n\r\n"
    with connect(broker) as line:
        line.sendall(request.encode())
        assert b"101" not in line.recv(65_536).split(b"\r\n")[0]
    with connect(broker) as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"200" not in line.recv(65_536).split(b"\r\n")[0]


def test_h13_nothing_says_what_serves(broker: Broker) -> None:
    for path in ("/healthz", "/prod/jwks.json", "/nowhere", "/prod/errors/revoked", "/docs", "/openapi.json", "/prod/token"):
        answer = broker.client.get(path)
        assert "server" not in answer.headers, path
        assert "uvicorn" not in answer.text.lower() + str(answer.headers).lower(), path
    for path in ("/docs", "/openapi.json", "/redoc", "/debug", "/.env"):
        assert broker.client.get(path).status_code == 404
    assert b"uvicorn" not in talk(broker, b"GARBAGE\r\n\r\n").lower()


def test_h12_a_multipart_body_is_never_looked_into(broker: Broker) -> None:
    answer = broker.client.post("/prod/token", files={"subject_token": b"a.b.c"}, data={"grant_type": "x"})
    assert answer.status_code == 415


def test_h02_a_form_of_very_many_fields_is_refused(broker: Broker) -> None:
    for body in (b"&".join(b"a=%d" % n for n in range(8_000)), b"&" * 60_000, b"=" * 60_000, b"a&" * 30_000):
        head = f"POST /prod/token HTTP/1.1\r\nHost: x\r\n{FORM}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert statuses(talk(broker, head + body)) == [400]
