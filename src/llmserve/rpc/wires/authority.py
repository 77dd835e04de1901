"""Makes certificates for the processes of one machine: an authority of one's own, and what it signs.

An authority is a folder `ca` with `ca.crt` and `ca.key`. Beside it each role has a folder as
`CertificateFolder` reads it. Files are replaced as a whole: who reads them meanwhile finds the old ones or
the new ones.
"""

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llmserve.core.errors import StartFailed
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.wires.certificates import AUTHORITIES_FILE, CERTIFICATE_FILE, KEY_FILE, CertificateOwner

AUTHORITY_FOLDER = "ca"
_AUTHORITY_KEY = "ca.key"
_CLOCKS_APART = timedelta(minutes=5)  # of two machines
_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_USAGES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority, whose cluster is its common name."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, cluster: str, days: float) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(cluster)
        builder = _builder(name, name, key, days)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, folder: Path) -> "Authority":
        """folder: the one above `ca`. Errors: StartFailed."""
        place = folder / AUTHORITY_FOLDER
        try:
            certificate = x509.load_pem_x509_certificate((place / AUTHORITIES_FILE).read_bytes())
            key = serialization.load_pem_private_key((place / _AUTHORITY_KEY).read_bytes(), None)
        except OSError as error:
            raise StartFailed(
                f"{error.filename}: {error.strerror}: is this a folder of `llmserve certs init`?"
            ) from error
        except (ValueError, TypeError) as error:
            raise StartFailed(f"{place}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StartFailed(f"{place / _AUTHORITY_KEY}: is not a key of an elliptic curve")
        return cls(certificate, key)

    @property
    def cluster(self) -> str:
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def write(self, folder: Path) -> None:
        """Errors: StartFailed, also where there is one already."""
        place = folder / AUTHORITY_FOLDER
        if (place / _AUTHORITY_KEY).exists():
            raise StartFailed(
                f"{place} has an authority already; `llmserve certs issue` makes certificates of it"
            )
        _write(place, {_AUTHORITY_KEY: _pem(self.key), AUTHORITIES_FILE: _pem_of(self.certificate)})

    def issue(self, folder: Path, role: CallerRole, days: float, name: str = "*") -> None:
        """Writes a new key and a certificate for the processes of a role. folder: the one above those of the
        roles. name: of the only process that it is for. Errors: StartFailed."""
        owner = CertificateOwner(self.cluster, role, name)
        key = ec.generate_private_key(ec.SECP256R1())
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        names = [x509.DNSName(owner.dns_name), x509.UniformResourceIdentifier(owner.uri)]
        certificate = (
            _builder(_name(f"{role} {name}"), self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(_USAGES, critical=False)
            .add_extension(signer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        files = {KEY_FILE: _pem(key), CERTIFICATE_FILE: _pem_of(certificate)}
        _write(folder / role, files | {AUTHORITIES_FILE: _pem_of(self.certificate)})


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Errors: StartFailed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            fresh = folder / f".{name}.{secrets.token_hex(4)}"
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            fresh.replace(folder / name)
    except OSError as error:
        raise StartFailed(f"{error.filename or folder}: {error.strerror}") from error
