"""The certificate of a process: files that are read again when they change, and whom a certificate is of.

A certificate names its owner in a URI (`llmserve://CLUSTER/ROLE/NAME`), and servers also in a DNS name
(`ROLE.CLUSTER.llmserve`), which clients ask for instead of the host: processes move, and a worker must not
pass for a router. The name `*` stands for every process of a role, which then say their names themselves.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from cryptography import x509

from llmserve.core.errors import NotAuthenticated, StartFailed
from llmserve.rpc.callers import CallerIdentity, CallerRole

CERTIFICATE_FILE, KEY_FILE, AUTHORITIES_FILE = "tls.crt", "tls.key", "ca.crt"  # as cert-manager names them
ANY_NAME = "*"
_FILES = (CERTIFICATE_FILE, KEY_FILE, AUTHORITIES_FILE)
_SCHEME = "llmserve://"
_PROTOCOLS = (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
_LOOK_SECONDS = 1.0
# Processes read a new authority one after the other; until all have, the one before is accepted, too.
_OVERLAP_SECONDS = 600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CertificateOwner:
    cluster: str
    role: CallerRole
    name: str = ANY_NAME

    @property
    def uri(self) -> str:
        return f"{_SCHEME}{self.cluster}/{self.role}/{quote(self.name, safe='*')}"

    @property
    def dns_name(self) -> str:
        return server_name(self.cluster, self.role)

    @classmethod
    def of(cls, uris: Iterable[str]) -> "CertificateOwner":
        """uris: all that a certificate names. Errors: NotAuthenticated unless one of them is an owner's."""
        ours = [uri.removeprefix(_SCHEME).split("/") for uri in uris if uri.startswith(_SCHEME)]
        if len(ours) != 1 or len(ours[0]) != 3 or ours[0][1] not in set(CallerRole) or not all(ours[0]):
            raise NotAuthenticated("the certificate names no process of a cluster")
        cluster, role, name = ours[0]
        return cls(cluster, CallerRole(role), unquote(name))

    def check(self, caller: CallerIdentity) -> None:
        """Errors: NotAuthenticated when this is not the certificate of the caller."""
        if self.role is not caller.role or self.name not in (ANY_NAME, caller.name):
            raise NotAuthenticated(
                f"the certificate of {self.role} {self.name} is not that of {caller.role} {caller.name}"
            )


def server_name(cluster: str, role: CallerRole) -> str:
    """Returns the DNS name in the certificates of a role's servers."""
    return f"{role}.{cluster}.llmserve"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the files of a folder hold at one moment, as PEM, and contexts of sockets with it. chain: the
    certificate and those of authorities above it. authorities: those that the certificates of others must
    come from. expires: Unix time.

    The contexts check no host: `CertificateFolder.owner_at` says who is at the other end."""

    owner: CertificateOwner
    expires: float
    chain: bytes
    key: bytes
    authorities: bytes
    server: ssl.SSLContext
    client: ssl.SSLContext

    def __repr__(self) -> str:
        return f"<Certificate of {self.owner.uri}>"


def read_certificate(folder: Path, former: bytes = b"") -> Certificate:
    """former: authorities that are accepted beside those of the folder. Errors: StartFailed."""
    try:
        chain, key, authorities = ((folder / name).read_bytes() for name in _FILES)
        owner, expires = owner_and_end(chain)
        authorities = b"\n".join(filter(None, (authorities, former)))
        server, client = (make_context(kind, chain, key, authorities) for kind in _PROTOCOLS)
    except OSError as error:  # SSLError, too: a key that is another one's
        raise StartFailed(f"{error.filename or folder}: {error.strerror or error}") from error
    except (ValueError, NotAuthenticated) as error:
        raise StartFailed(f"{folder / CERTIFICATE_FILE}: {error}") from error
    return Certificate(owner, expires, chain, key, authorities, server, client)


def owner_and_end(chain: bytes) -> tuple[CertificateOwner, float]:
    """Returns whom the first certificate of a chain (PEM) is of, and when it expires (Unix time). Errors:
    ValueError when it is none; NotAuthenticated when it names no owner."""
    certificate = x509.load_pem_x509_certificate(chain)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    return CertificateOwner.of(uris), expiry_of(chain)


def expiry_of(chain: bytes) -> float:
    """Returns when the first certificate of a chain (PEM) expires, in Unix time. Errors: ValueError."""
    return x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()


def subject_of(chain: bytes) -> str:
    """Returns the subject of the first certificate of a chain (PEM). Errors: ValueError."""
    return x509.load_pem_x509_certificate(chain).subject.rfc4514_string()


def make_context(protocol: int, chain: bytes, key: bytes, authorities: bytes) -> ssl.SSLContext:
    """Errors: OSError, ValueError."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authorities.decode("ascii"))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a session that is resumed checks no certificate
    # The ssl module reads files only. This one is in memory, and holds what was read before.
    with open(os.memfd_create("certificate"), "wb", buffering=0) as both:
        both.write(chain + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{both.fileno()}", password=no_password)
    return context


def no_password() -> str:
    """Is called for a key with a password, instead of asking for it at the terminal."""
    raise ValueError("the key needs a password")


class CertificateFolder:
    """The certificate of this process, as its files are now. Any thread. While they make no sense, as in the
    middle of a change, the certificate before stays in use."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Errors: StartFailed."""
        self._folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._seen = _signature(folder)  # when they were read last
        self._error = ""  # why they cannot be read now
        self._current = read_certificate(folder)
        self._authorities = self._current.authorities
        self._former, self._former_until = b"", 0.0  # authorities before these
        self._look_at = clock() + _LOOK_SECONDS

    def current(self) -> Certificate:
        """Returns the same object until something has changed."""
        with self._lock:
            now = self._clock()
            if now >= self._look_at:
                self._look_at = now + _LOOK_SECONDS
                self._look(now)
            return self._current

    def check(self, caller: CallerIdentity, uris: Iterable[str]) -> None:
        """uris: those in a caller's certificate. Errors: NotAuthenticated when it is not the caller's."""
        owner = CertificateOwner.of(uris)
        self._check_cluster(owner)
        owner.check(caller)

    def owner_at(self, sock: Any) -> CertificateOwner:
        """Returns who of this cluster is at the other end. sock: an SSLSocket or SSLObject after its
        handshake. Errors: NotAuthenticated."""
        names = (sock.getpeercert() or {}).get("subjectAltName", ())
        owner = CertificateOwner.of(name for kind, name in names if kind == "URI")
        self._check_cluster(owner)
        return owner

    def _check_cluster(self, owner: CertificateOwner) -> None:
        """Errors: NotAuthenticated: one authority may have signed for several clusters."""
        own = self.current().owner.cluster
        if owner.cluster != own:
            raise NotAuthenticated(f"the certificate is of cluster {owner.cluster}, and this is {own}")

    def _look(self, now: float) -> None:
        seen = _signature(self._folder)
        is_over = bool(self._former) and now >= self._former_until
        if seen == self._seen and not is_over:
            return
        try:
            self._current = self._read(now, is_over)
        except StartFailed as error:  # what is wrong need not be in the files: it is tried again
            if error.message != self._error:
                _log.warning("the certificate stays as it was: %s", error.message)
            self._error = error.message
        else:
            self._seen, self._error = seen, ""
            _log.info("certificate of %s read again", self._current.owner.uri)

    def _read(self, now: float, is_over: bool) -> Certificate:
        """Errors: StartFailed."""
        new = read_certificate(self._folder)
        if new.authorities != self._authorities:
            self._former, self._former_until = self._authorities, now + _OVERLAP_SECONDS
            self._authorities = new.authorities
        elif is_over:
            self._former = b""
        return read_certificate(self._folder, self._former) if self._former else new


def _signature(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """Returns what changes with the files."""
    with suppress(OSError):
        stats = [os.stat(folder / name) for name in _FILES]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in stats)
    return ()
