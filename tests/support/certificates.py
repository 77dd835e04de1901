"""Certificates that tests make: of a cluster, and of a server on loopback."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.wires.authority import Authority

CLUSTER = "tests"


def make_certificates(folder: Path, cluster: str = CLUSTER) -> Authority:
    """Makes an authority and a certificate for each role."""
    authority = Authority.make(cluster, days=2.0)
    authority.write(folder)
    for role in CallerRole:
        authority.issue(folder, role, days=1.0)
    return authority


def credentials_in(folder: Path, role: CallerRole, name: str = "me") -> Credentials:
    return Credentials.read(role, name, folders=str(folder))


def make_host_certificate(authority: Authority, folder: Path) -> tuple[Path, Path]:
    """Writes the certificate of a server at 127.0.0.1. Returns its file, and that of its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
        .sign(authority.key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    paths = folder / "host.crt", folder / "host.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths
