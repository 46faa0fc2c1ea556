"""One bounded request: what a server, a proxy or a network may do, and what the caller reads of it."""

from __future__ import annotations

import base64
import contextlib
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.client.errors import Misused, Unreachable
from broker.client.http import ANSWER_BYTES_MAX, Target, checked, printable, reached, request
from tests.support.tls import Authority

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """A server that does with each connection what `act` does; it keeps what was sent first."""

    def __init__(self, act: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None, unix: Path | None = None) -> None:
        self.act, self.tls, self.heard = act, tls, b""
        self.server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.server.bind(str(unix) if unix else ("127.0.0.1", 0))
        self.server.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/x"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        wrapped = (lambda: self.tls.wrap_socket(connection, server_side=True)) if self.tls else (lambda: connection)
        with contextlib.suppress(OSError), connection, wrapped() as speaking:
            self.heard = speaking.recv(65_536)
            self.act(speaking)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown(socket.SHUT_RDWR) if self.server.family == socket.AF_INET else None
        self.server.close()


def answers(content: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(content)


def drips(first: bytes, byte: bytes) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(byte)
            time.sleep(0.01)

    return act


def test_an_answer_is_its_status_headers_and_body() -> None:
    with Peer(answers(b"HTTP/1.1 201 Created\r\nX-Request-ID: r1\r\nContent-Length: 2\r\n\r\nok")) as peer:
        answer = request(Target(peer.url), "POST", {"X-Own": "1"}, b"a=b")
        assert (answer.status, answer.headers["x-request-id"], answer.body) == (201, "r1", b"ok")
        assert b"POST /x HTTP/1.1" in peer.heard
        assert b"User-Agent: broker-client/" in peer.heard


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    with Peer(answers(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as peer:
        assert request(Target(peer.url)).body == b"all of it"


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(drips(b"", b"H"), id="status line"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nX: ", b"y"), id="headers"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", b"z"), id="body"),
        pytest.param(drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nz\r\n"), id="chunks"),
    ],
)
def test_a_server_that_drips_is_given_up_at_the_deadline(act: Callable[[socket.socket], None]) -> None:
    with Peer(act) as peer:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            request(Target(peer.url), within_s=0.3)
        assert time.monotonic() - began < 3


def test_a_silent_server_is_given_up_at_the_deadline() -> None:
    done = threading.Event()
    with Peer(lambda _: done.wait(20) and None) as peer, pytest.raises(Unreachable, match="did not answer in time"):
        request(Target(peer.url), within_s=0.2)
    done.set()


@pytest.mark.parametrize(
    "head", [b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000, b"\r\n" + b"x" * 200_000], ids=["announced", "endless"]
)
def test_an_answer_is_bounded(head: bytes) -> None:
    assert len(head) > ANSWER_BYTES_MAX
    with Peer(answers(b"HTTP/1.1 200 OK\r\n" + head)) as peer, pytest.raises(Unreachable, match="larger than") as caught:
        request(Target(peer.url))
    assert not caught.value.passing


def chunks_of(size: bytes) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n")
        while True:
            connection.sendall(b"x" * 65_536)

    return act


def goes_on_before_its_answer(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\nX: " + b"y" * 1000 + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("act", "match"),
    [
        pytest.param(chunks_of(b"-1"), "larger than", id="a chunk of -1, which is all that comes"),
        pytest.param(chunks_of(b"-5"), "did not answer as an HTTP server does", id="a chunk of -5"),
        pytest.param(goes_on_before_its_answer, "larger than", id="100 Continue without end"),
        pytest.param(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "before the answer did", id="a part of it"),
    ],
)
def test_wrong_lengths_are_an_error_and_read_no_more_than_the_bound(act: Callable[[socket.socket], None], match: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Peer(act) as peer, pytest.raises(Unreachable, match=match):
        request(Target(peer.url), within_s=3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"\x16\x03\x01", b"HTTP/9.9 what\r\n\r\n", b""])
def test_what_is_no_http_says_so(said: bytes) -> None:
    with Peer(answers(said)) as peer, pytest.raises(Unreachable, match=r"did not answer as an HTTP server does|failed"):
        request(Target(peer.url), within_s=2)


def test_a_redirect_is_an_answer_like_any_other() -> None:
    with Peer(answers(b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n")) as peer:
        assert request(Target(peer.url)).status == 302


def test_nobody_listening_and_no_such_name() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match=f"nobody listens at http://127.0.0.1:{port}"):
        request(Target(f"http://127.0.0.1:{port}"))
    with pytest.raises(Unreachable, match=r"the name broker\.invalid is not found"):
        request(Target("https://broker.invalid"))


def test_http_to_a_port_that_speaks_tls_says_so(tmp_path: Path) -> None:
    with Peer(answers(OK), Authority.create(tmp_path).server()) as peer:
        for act in (answers(b"\x15\x03\x03\x00\x02\x02\x46"), lambda connection: connection.close()):
            with Peer(act) as other:
                for url in (peer.url.replace("https", "http"), other.url):
                    with pytest.raises(Unreachable) as caught:
                        request(Target(url))
                    assert caught.value.hints == ("does that port speak TLS? then the URL begins with https://",)
                with pytest.raises(Unreachable) as caught:
                    request(Target(other.url, plain=True))
                assert caught.value.hints == ()


@pytest.mark.parametrize("fault", [None, "self-signed", "expired", "wrong-name", "old-protocol"])
def test_tls_is_verified_against_what_ssl_cert_file_names(
    fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.create(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    with Peer(answers(OK), authority.server(fault)) as peer:
        if fault is None:
            assert request(Target(peer.url)).body == b"ok"
            return
        with pytest.raises(Unreachable) as caught:
            request(Target(peer.url))
    assert not caught.value.passing
    if fault != "old-protocol":
        assert "is not trusted" in str(caught.value)
        assert any("SSL_CERT_FILE" in hint for hint in caught.value.hints)


def test_an_authority_that_nobody_named_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with (
        Peer(answers(OK), Authority.create(tmp_path).server()) as peer,
        pytest.raises(Unreachable, match=r"certificate of 127\.0\.0\.1"),
    ):
        request(Target(peer.url))


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with Peer(answers(OK)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "internal.example,127.0.0.2:8443")
        yield proxy


def test_a_proxy_of_the_environment_is_asked_to_connect(proxied: Peer) -> None:
    with pytest.raises(Unreachable):
        request(Target("https://broker.acme.example"), within_s=2)
    assert proxied.heard.startswith(b"CONNECT broker.acme.example:443 ")


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nX: "], ids=["at once", "in its headers"])
def test_a_proxy_that_drips_is_given_up_at_the_deadline(proxied: Peer, first: bytes) -> None:
    proxied.act = drips(first, b"H")
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not answer in time"):
        request(Target("https://broker.acme.example"), within_s=0.3)
    assert time.monotonic() - began < 3


def test_a_proxy_that_refuses_is_told_apart_from_the_broker(proxied: Peer) -> None:
    proxied.act = answers(b"HTTP/1.1 407 Who are\x1b[2J you\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(Unreachable, match=r"the proxy 127\.0\.0\.1 lets nobody .* 407 Who are\\x1b\[2J you") as caught:
        request(Target("https://broker.acme.example"), within_s=2)
    assert not caught.value.passing


def test_a_proxy_gets_the_user_and_password_of_its_url(proxied: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://us:p%40ss@127.0.0.1:{proxied.port}")
    with pytest.raises(Unreachable) as caught:
        request(Target("https://[fd00::1]:8443"), within_s=2)
    credentials = base64.b64encode(b"us:p@ss")
    assert proxied.heard.startswith(b"CONNECT [fd00::1]:8443 HTTP/1.1\r\nHost: [fd00::1]:8443\r\n")
    assert b"\r\nProxy-Authorization: Basic " + credentials + b"\r\n" in proxied.heard
    assert "p@ss" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["http://us:s3cr#et@p:3128", "http://us:s3cr/et@p:3128", "socks5://us:s3cret@p", "http://"])
def test_what_is_no_proxy_is_said_without_its_password(proxied: Peer, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(Misused, match="HTTPS_PROXY names no http proxy") as caught:
        request(Target("https://broker.acme.example"), within_s=2)
    assert "s3cr" not in f"{caught.value}{caught.value.hints}"


def test_a_dead_address_of_a_name_leaves_time_for_the_next() -> None:
    """An address of which nothing comes back: a server whose queue is full."""
    with socket.socket() as dead, Peer(answers(OK)) as alive, contextlib.ExitStack() as waiting:
        dead.bind(("127.0.0.1", 0))
        dead.listen(0)
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(dead.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in (dead.getsockname(), ("127.0.0.1", alive.port))]
        began = time.monotonic()
        with reached(found, began + 1) as connected:
            assert connected.getpeername()[1] == alive.port
        assert 0.4 < time.monotonic() - began < 1
        with pytest.raises(TimeoutError):
            reached(found[:1], time.monotonic() + 0.2)


@pytest.mark.parametrize(
    "target",
    [
        Target("https://internal.example"),
        Target("https://127.0.0.2:8443"),
        Target("http://127.0.0.1:1"),
        Target("http://169.254.169.254.invalid/x", proxied=False, plain=True),
    ],
    ids=["NO_PROXY", "NO_PROXY with a port", "loopback", "not to be proxied"],
)
def test_what_must_not_go_through_the_proxy_does_not(proxied: Peer, target: Target) -> None:
    with pytest.raises(Unreachable):
        request(target, within_s=1)
    assert proxied.heard == b""


def test_a_unix_socket_is_a_server_too(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Peer(answers(OK), unix=path):
        assert request(Target("http://localhost/v1/tokens", unix=str(path)), "POST", body=b"{}").body == b"ok"
    with pytest.raises(Unreachable, match="failed"):
        request(Target("http://localhost/", unix=str(tmp_path / "none")))


@pytest.mark.parametrize(
    "url",
    [
        *("", "broker.acme.example", "ftp://x", "https://", "https://u:p@broker.acme.example", "https://x:99999", "https://x:y"),
        *("https://x/\r\nX-Evil: 1", "https://x y", "https://[::1", "file:///etc/passwd", "https://bröker.example"),
    ],
)
def test_what_is_no_url_of_a_server_is_not_asked(url: str) -> None:
    with pytest.raises(Misused, match="is no URL of a server") as caught:
        checked(url)
    assert "\r" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://us:s3cret@x", "https://us:s3cret@x/?a=b", "http://x/?sig=s3cret", "ftp://x/?sig=s3cret", "http://x/s3cret"]
)
def test_what_is_said_of_a_url_leaves_out_what_may_be_secret(url: str) -> None:
    with pytest.raises(Misused) as caught:
        checked(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://broker.acme.example", "http://127.0.0.1.evil.example", "http://10.0.0.1"])
def test_http_is_for_loopback(url: str) -> None:
    with pytest.raises(Misused, match="is not https"):
        checked(url)
    assert checked("http://127.0.0.1:8700").port == 8700
    assert checked("http://[::1]:8700").port == 8700


def test_text_from_outside_is_one_bounded_line() -> None:
    assert printable("a\nb\x1b[31m") == "a\\x0ab\\x1b[31m"
    assert printable("x" * 500) == "x" * 200 + "…"
    assert printable("\u202ereversed") == "\\x202ereversed"


@pytest.mark.parametrize("said", ["x ##[set-output name=a]b", "##vso[task.setvariable variable=a]b", "###teamcity[x]", " ::add-mask::x"])
def test_text_from_outside_is_no_command_to_a_runner(said: str) -> None:
    """GitHub and Azure look for `##[` anywhere in a line, GitHub for `::` behind leading spaces."""
    shown = printable(said)
    assert "##" not in shown
    assert not shown.lstrip().startswith("::")
    assert printable("a::b and http://[::1]:80 #1") == "a::b and http://[::1]:80 #1"
