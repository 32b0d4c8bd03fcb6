"""An authority of our own and the server's certificate, made on first start, renewed before they end.

Strict verification accepts them: key identifiers, key usage and names are all there.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from local_runner.mock_server.credentials import write_secret

_CA_DAYS = 3650
_LEAF_DAYS = 397
_LOCAL = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)
_RENEW_DAYS = 30
"""A certificate with less than this left is made anew at start."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files."""

    ca: Path
    """What a client must trust."""
    chain: Path
    """The server's certificate."""
    key: Path
    """Its key; only its owner can read it."""
    public_chain: Path
    """Its certificate for the public cloud's names, which is shown to those who come through the proxy."""


def ensure(
    folder: Path,
    *,
    host: str = "localhost",
    public: Sequence[str] = (),
    now: dt.datetime | None = None,
) -> Certificates:
    """The certificates in the folder; made where they are missing, broken, or about to end.

    Args:
        folder: where they are.
        host: what clients call the server, besides the names of loopback.
        public: the public names that the second certificate is for.
        now: the time, if it is not now.
    """
    at = now or dt.datetime.now(tz=dt.UTC)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = Certificates(
        folder / "ca.pem", folder / "server.pem", folder / "server.key", folder / "public.pem"
    )
    ca_key_file = folder / "ca.key"
    if not _is_good(files.ca, at) or not ca_key_file.exists():
        _make_ca(files.ca, ca_key_file, at)
        files.chain.unlink(missing_ok=True)
    local = [*_LOCAL, _name(host)] if _name(host) not in _LOCAL else [*_LOCAL]
    if not _is_good(files.chain, at) or not files.key.exists() or not _has(files.chain, local):
        files.public_chain.unlink(missing_ok=True)
        files.chain.unlink(missing_ok=True)  # killed between the two, we make both anew
        _write_key(files.key, ec.generate_private_key(ec.SECP256R1()))
        _make_leaf(files.chain, files, ca_key_file, at, local)
    wanted = [x509.DNSName(name) for name in public]
    if public and not (_is_good(files.public_chain, at) and _has(files.public_chain, wanted)):
        _make_leaf(files.public_chain, files, ca_key_file, at, wanted)
    return files


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _has(file: Path, names: Sequence[x509.GeneralName]) -> bool:
    """Whether a certificate is for all these names."""
    found = x509.load_pem_x509_certificate(file.read_bytes()).extensions
    there = list(found.get_extension_for_class(x509.SubjectAlternativeName).value)
    return all(name in there for name in names)


def _is_good(file: Path, at: dt.datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        return False
    return certificate.not_valid_after_utc - at > dt.timedelta(days=_RENEW_DAYS)


def _make_ca(file: Path, key_file: Path, at: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "maas mock authority")])
    certificate = (
        _builder(name, name, key.public_key(), at, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    file.unlink(missing_ok=True)
    _write_key(key_file, key)
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _make_leaf(
    file: Path,
    files: Certificates,
    ca_key_file: Path,
    at: dt.datetime,
    names: Sequence[x509.GeneralName],
) -> None:
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)  # noqa: S101 - we wrote it
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - we wrote it
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(names[0].value))])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _builder(subject, ca.subject, key.public_key(), at, _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    at: dt.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - dt.timedelta(hours=1))  # clocks differ
        .not_valid_after(at + dt.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_secret(file, text)
