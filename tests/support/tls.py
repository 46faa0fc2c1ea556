"""A certificate authority made at run time, and server certificates that are good or wrong in one way."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import warnings
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

FAULTS = ("self-signed", "expired", "wrong-name", "old-protocol")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA in a folder: `ca_file` is what a client would trust.  `server(fault)` gives a server's TLS context."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, folder: Path, name: str = "test authority") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key.public_key(), name, key, ca=True)
        authority = cls(folder, key, certificate)
        authority.ca_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        return authority

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def server(self, fault: str | None = None) -> ssl.SSLContext:
        """A context for 127.0.0.1, ::1 and localhost; `fault` is one of FAULTS."""
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = ["elsewhere.example"] if fault == "wrong-name" else ["localhost", "127.0.0.1", "::1"]
        signer, issuer = (key, "localhost") if fault == "self-signed" else (self.key, self.certificate)
        certificate = _certificate("localhost", key.public_key(), issuer, signer, hosts=hosts, expired=fault == "expired")
        chain = self.folder / f"server-{fault or 'good'}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain.write_bytes(private + certificate.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if fault == "old-protocol":
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            with warnings.catch_warnings(action="ignore"):
                context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.load_cert_chain(chain)
        return context


def _certificate(
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | str,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    hosts: list[str] | None = None,
    expired: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    end = now - dt.timedelta(hours=1) if expired else now + dt.timedelta(days=1)
    issuer_name = _name(issuer) if isinstance(issuer, str) else issuer.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
