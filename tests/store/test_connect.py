"""From URL to connection: every form that is taken, every one that is not, TLS and Sentinel for real, no password in any text."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.config import Limits
from broker.errors import CannotReach, SettingsInvalid, StoreUnavailable
from broker.store.commit import Committed, Store
from broker.store.connect import StoreAddress, Tls, parse
from tests.support.store import READY, born, commit_of, emptied, external, free_port

SECRET = "s3cr3t"
SHORT = Limits(store_timeout_s=1)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", StoreAddress("redis", (("h", 6379),))),
        ("redis://h:1/3", StoreAddress("redis", (("h", 1),), db=3)),
        ("redis://u:p%40ss@[::1]:1", StoreAddress("redis", (("::1", 1),), username="u", password="p@ss")),
        ("redis://:p@h", StoreAddress("redis", (("h", 6379),), password="p")),
        ("rediss://h", StoreAddress("rediss", (("h", 6379),), tls=Tls())),
        ("rediss://h?ca_file=/a&cert_file=/b&key_file=/c", StoreAddress("rediss", (("h", 6379),), tls=Tls("/a", "/b", "/c"))),
        ("unix:///a%20b/s.sock?db=2", StoreAddress("unix", path="/a b/s.sock", db=2)),
        (
            "redis+sentinel://u:p@a,b:7/main?db=1&sentinel_username=su&sentinel_password=sp",
            StoreAddress(
                "redis+sentinel", (("a", 26379), ("b", 7)), db=1, service="main", username="u", password="p",
                sentinel_username="su", sentinel_password="sp",
            ),
        ),
        ("redis+sentinel://a/main?tls=true", StoreAddress("redis+sentinel", (("a", 26379),), service="main", tls=Tls())),
    ],
)  # fmt: skip
def test_forms_that_are_taken(url: str, address: StoreAddress) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"http://u:{SECRET}@h",
        f"postgres://u:{SECRET}@h",
        f"redis+cluster://u:{SECRET}@h",
        f"redis://u:{SECRET}@",
        f"redis://u:{SECRET}@h:port",
        f"redis://u:{SECRET}@h:99999",
        f"redis://u:{SECRET}@h/prod",
        f"redis://u:{SECRET}@h#part",
        f"redis://u:{SECRET}@h?timeout=1",
        f"redis://u:{SECRET}@h?ca_file=/a",
        f"rediss://u:{SECRET}@h?ssl_cert_reqs=none",
        f"rediss://u:{SECRET}@h?ca_flie=/a",
        f"redis://u:{SECRET}@[::1",
        "unix://relative/s.sock",
        "unix:///s.sock?password=" + SECRET,
        f"redis+sentinel://u:{SECRET}@a:1,b:2",
        f"redis+sentinel://u:{SECRET}@a:1,,b:2/main",
        f"redis+sentinel://u:{SECRET}@a/main?tls=maybe",
    ],
)
def test_anything_else_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        parse(url)
    assert SECRET not in "".join((str(refused.value), *refused.value.hints))
    assert refused.value.__cause__ is None
    assert refused.value.hints


def test_an_address_shows_neither_user_nor_password() -> None:
    address = parse(f"redis+sentinel://admin:{SECRET}@a:1,b/main?sentinel_password={SECRET}&sentinel_username=admin")
    assert address.label == "redis+sentinel://a:1,b:26379/main"
    assert SECRET not in repr(address) + address.label
    assert "admin" not in repr(address) + address.label


def test_tls_files_that_are_not_there_are_named_as_such() -> None:
    with pytest.raises(CannotReach, match="TLS files"):
        Store(f"rediss://:{SECRET}@h?ca_file=/nowhere")


# TLS


class Authority:
    """A certificate authority for one test, and what it signs, as PEM files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._signed(self.name, self.key.public_key(), True).public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(self._signed(subject, key.public_key(), False).public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return certificate, private

    def _signed(self, subject: x509.Name, public: ec.EllipticCurvePublicKey, authority: bool) -> x509.Certificate:
        begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        alternatives: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self.key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def tls_port(authority: Authority) -> Iterator[int]:
    certificate, private = authority.sign("server")
    port = free_port()
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(private), "--tls-ca-cert-file", str(authority.file))
    with external("--tls-port", str(port), "--tls-auth-clients", "yes", *files, port=0):
        yield port


@pytest.mark.needs("redis-server")
async def test_tls_both_ways(authority: Authority, tls_port: int) -> None:
    certificate, private = authority.sign("client")
    url = f"rediss://127.0.0.1:{tls_port}?ca_file={authority.file}&cert_file={certificate}&key_file={private}"
    server = await born(await emptied(url))
    assert isinstance(await server.commit(commit_of(1)), Committed)
    assert (await server.check()).reachable
    await server.close()


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("fault", ["authority", "name", "client", "system authorities"])
async def test_tls_refuses(authority: Authority, tls_port: int, fault: str, tmp_path: Path) -> None:
    certificate, private = authority.sign("client")
    host = "localhost" if fault == "name" else "127.0.0.1"
    own = "" if fault == "client" else f"&cert_file={certificate}&key_file={private}"
    trusted = {"authority": f"?ca_file={Authority(tmp_path, 'theirs').file}{own}", "system authorities": ""}
    server = Store(f"rediss://{host}:{tls_port}" + trusted.get(fault, f"?ca_file={authority.file}{own}"), SHORT)
    for failing in (server.commit(commit_of(1)), server.now()):
        with pytest.raises(StoreUnavailable):
            await failing
    await server.close()


# Sentinel


@pytest.mark.needs("redis-server")
async def test_sentinels_name_the_primary(tmp_path: Path) -> None:
    with external() as primary, sentinel(tmp_path, primary) as port:
        server = await born(await emptied(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/main"))
        assert isinstance(await server.commit(commit_of(1)), Committed)
        assert await server.registration("prod", "jti_1") == ("live", b"facts 1")
        await server.close()
        unknown = Store(f"redis+sentinel://127.0.0.1:{port}/other", SHORT)
        for failing in (unknown.commit(commit_of(1)), unknown.now()):
            with pytest.raises(StoreUnavailable):
                await failing
        await unknown.close()


class sentinel:
    def __init__(self, folder: Path, primary: int) -> None:
        self.port = free_port()
        self.file = folder / "sentinel.conf"
        self.file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {primary} 1\n")

    def __enter__(self) -> int:
        server = shutil.which("redis-server")
        assert server is not None
        self.process = subprocess.Popen([server, str(self.file), "--sentinel"], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert any(b"+monitor" in line or READY in line for line in self.process.stdout)
        return self.port

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()
