"""A fetch is bounded in time, bytes, hops and addresses, whoever answers; real sockets, real TLS."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from broker.config import Limits
from broker.identity.fetch import (
    AddressRefused,
    BadAnswer,
    Fetched,
    Fetcher,
    FetchFailed,
    NotReachable,
    Redirected,
    TlsFailed,
    TookTooLong,
    TooLarge,
    UrlRefused,
    checked_url,
    judge,
)
from tests.support.issuer import JWKS, Fault, OidcIssuer
from tests.support.tls import FAULTS, Authority
from tests.support.tripwire import Tripwire

LIMITS = Limits(fetch_s_max=1, fetch_bytes_max=65_536)


async def got(url: str, **options: Any) -> Fetched:
    return await Fetcher(LIMITS).get(url, **{"private_allowed": True} | options)


async def failure(url: str, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await got(url, **options)
    return caught.value


async def test_a_document_comes_with_its_text() -> None:
    async with OidcIssuer() as issuer:
        fetched = await got(issuer.jwks_url)
    assert fetched.value == {"keys": issuer.published}
    assert fetched.private is True


async def test_nothing_but_the_question_is_sent() -> None:
    async with OidcIssuer() as issuer:
        issuer.fault = Fault.COOKIE
        fetcher = Fetcher(LIMITS)
        for _ in range(2):
            await fetcher.get(issuer.jwks_url, private_allowed=True)
        assert issuer.requests == {JWKS: 2}
        for headers in issuer.headers_seen:
            assert not {"cookie", "authorization", "if-none-match", "referer"} & set(headers)
            assert headers["host"] == issuer.url.removeprefix("http://")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.SILENT, TookTooLong),
        (Fault.DRIP_HEADERS, TookTooLong),
        (Fault.DRIP_BODY, TookTooLong),
        (Fault.RESET, NotReachable),
        (Fault.HUGE, TooLarge),
        (Fault.ENDLESS, TooLarge),
        (Fault.GZIP_BOMB, TooLarge),
        (Fault.STATUS_404, BadAnswer),
        (Fault.STATUS_500, BadAnswer),
        (Fault.NOT_MODIFIED, Redirected),
        (Fault.HTML, BadAnswer),
        (Fault.NOT_JSON, BadAnswer),
        (Fault.DUPLICATE_MEMBERS, BadAnswer),
        (Fault.DEEP_JSON, BadAnswer),
    ],
)
async def test_each_way_to_misbehave_has_its_error(fault: Fault, error: type[FetchFailed]) -> None:
    limits = Limits(fetch_s_max=1, fetch_bytes_max=262_144)
    async with OidcIssuer() as issuer:
        issuer.fault = fault
        with pytest.raises(FetchFailed) as caught:
            await Fetcher(limits).get(issuer.jwks_url, private_allowed=True)
        assert type(caught.value) is error
        issuer.fault = Fault.NONE
        assert await Fetcher(limits).get(issuer.jwks_url, private_allowed=True)


async def test_a_packed_answer_is_unpacked_within_the_bound() -> None:
    async with OidcIssuer() as issuer:
        issuer.fault = Fault.GZIP
        assert (await got(issuer.jwks_url)).value == {"keys": issuer.published}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_k05_a_redirect_is_not_followed(status: int) -> None:
    async with OidcIssuer() as issuer, Tripwire() as wire:
        issuer.fault, issuer.redirect_to, issuer.redirect_status = Fault.REDIRECT, wire.url, status
        assert type(await failure(issuer.jwks_url)) is Redirected
        assert wire.connections == 0


async def test_nobody_listens() -> None:
    async with OidcIssuer() as issuer:
        url = issuer.jwks_url
    assert type(await failure(url)) is NotReachable


async def test_a_name_without_address_is_not_reachable() -> None:
    assert isinstance(await failure("https://nowhere.invalid/"), NotReachable | TookTooLong)


# TLS


async def test_k17_a_private_ca_is_trusted_where_the_entry_names_it(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    async with OidcIssuer(tls=authority.server()) as issuer:
        assert await got(issuer.jwks_url, ca_file=str(authority.ca_file))
        assert await got(issuer.jwks_url.replace("127.0.0.1", "localhost"), ca_file=str(authority.ca_file))
        assert type(await failure(issuer.jwks_url)) is TlsFailed
        (tmp_path / "other").mkdir()
        other = Authority.create(tmp_path / "other", "another authority")
        assert type(await failure(issuer.jwks_url, ca_file=str(other.ca_file))) is TlsFailed


@pytest.mark.parametrize("fault", FAULTS)
async def test_k17_a_certificate_that_is_wrong_in_one_way_is_refused(tmp_path: Path, fault: str) -> None:
    authority = Authority.create(tmp_path)
    async with OidcIssuer(tls=authority.server(fault)) as issuer:
        error = await failure(issuer.jwks_url, ca_file=str(authority.ca_file))
        assert type(error) is TlsFailed
        assert not issuer.requests


async def test_a_ca_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    async with OidcIssuer(tls=authority.server()) as issuer:
        (tmp_path / "empty.pem").write_text("")
        for name in ("missing.pem", "empty.pem"):
            assert type(await failure(issuer.jwks_url, ca_file=str(tmp_path / name))) is TlsFailed
        assert issuer.connections == 0


async def test_a_replaced_ca_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    old, new = Authority.create(tmp_path, "old"), Authority.create(tmp_path / "new", "new, with a longer name")
    fetcher = Fetcher(LIMITS)
    async with OidcIssuer(tls=new.server()) as issuer:
        with pytest.raises(TlsFailed):
            await fetcher.get(issuer.jwks_url, ca_file=str(old.ca_file), private_allowed=True)
        old.ca_file.write_bytes(new.ca_file.read_bytes())
        assert await fetcher.get(issuer.jwks_url, ca_file=str(old.ca_file), private_allowed=True)


async def test_k17_the_environment_brings_no_proxy_and_no_key_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority.create(tmp_path)
    key_log = tmp_path / "keys.log"
    async with OidcIssuer(tls=authority.server()) as issuer, Tripwire() as wire:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, wire.url)
        monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
        assert await got(issuer.jwks_url, ca_file=str(authority.ca_file))
        assert wire.connections == 0
        assert not key_log.exists()


# URLs and addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://10.0.0.1/keys",
        "http://127.1/keys",
        "http://localhost.evil.example/keys",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "ftp://issuer.example/keys",
        "https://user@issuer.example/keys",
        "https://user:word@issuer.example/keys",
        "https://issuer.example/keys#fragment",
        "https://issuer.example/keys#",
        "//issuer.example/keys",
        "/keys",
        "keys",
        "https:///keys",
        "https://",
        "",
        "https://issuer.example/a b",
        "https://issuer.example\\@evil.example/",
        "https://issuer.example/\n",
        "https://①②⑦.⓪.⓪.①/",
        "https://issuer.example:99999/",
        "https://issuer.example:x/",
        "https://[::1/",
        "javascript:alert(1)",
    ],
)
async def test_k04_urls_that_are_not_plain_https_are_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        checked_url(url)
    assert type(await failure(url)) is UrlRefused


@pytest.mark.parametrize(
    "url",
    ["https://issuer.example/keys?a=b", "https://issuer.example:8443", "http://localhost:1/", "http://127.0.0.1/", "http://[::1]:1/"],
)
def test_https_and_loopback_http_are_taken(url: str) -> None:
    assert checked_url(url).geturl() == url


NEVER = (
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "fe80::1",
    "0.0.0.0",
    "::",
    "::ffff:0.0.0.0",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
)
PRIVATE = ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1")
MAPPED = ("::ffff:10.0.0.1", "64:ff9b::7f00:1")
LOOPBACK = ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]")
PUBLIC = ("140.82.112.3", "2606:50c0:8000::1", "::ffff:140.82.112.3", "64:ff9b::8c52:7003")


@pytest.mark.parametrize("address", NEVER)
def test_k02_some_addresses_are_never_connected_to(address: str) -> None:
    with pytest.raises(AddressRefused):
        judge(ipaddress.ip_address(address), private_allowed=True)


@pytest.mark.parametrize("address", PRIVATE + MAPPED)
def test_k02_private_addresses_need_a_private_issuer(address: str) -> None:
    with pytest.raises(AddressRefused):
        judge(ipaddress.ip_address(address), private_allowed=False)
    assert judge(ipaddress.ip_address(address), private_allowed=True) is True


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_fine(address: str) -> None:
    assert judge(ipaddress.ip_address(address), private_allowed=False) is False


@pytest.mark.parametrize("host", LOOPBACK)
async def test_k02_every_spelling_of_loopback_is_private(tmp_path: Path, host: str) -> None:
    authority = Authority.create(tmp_path)
    async with OidcIssuer(tls=authority.server()) as issuer:
        url = issuer.jwks_url.replace("127.0.0.1", host)
        error = await failure(url, ca_file=str(authority.ca_file), private_allowed=False)
        assert type(error) is AddressRefused
        assert issuer.connections == 0


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "0.0.0.0", "0"])
async def test_k02_the_metadata_address_is_never_called(host: str) -> None:
    assert type(await failure(f"https://{host}/")) is AddressRefused
