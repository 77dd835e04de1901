"""Who calls inside a cluster: what a process shows with each call, and how the other one checks it.

All processes of a cluster know one secret. A call carries the caller's role and name with a code
(HMAC-SHA256) that only a process with the secret can compute. So a stranger who reaches a port is refused,
and one process cannot take another one's place by mistake. Whoever reads the secret can call as any of them,
and so can whoever reads a network on which calls are not encrypted. With certificates (`certificates`), calls
are encrypted, and a process can call only as the role that its certificate names.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from prometheus_client import CollectorRegistry

from llmserve.core.errors import NotAuthenticated, StartFailed
from llmserve.metrics.cluster import CertificateMetrics
from llmserve.rpc.callers import CallerIdentity, CallerRole

if TYPE_CHECKING:
    from llmserve.rpc.wires.certificates import CertificateFolder

SECRET_NAME, CERTIFICATES_NAME = "secret", "certificates"  # in the temporary directory of a run
SECRET_VARIABLE = "LLMSERVE_CLUSTER_SECRET_FILE"
CERTIFICATES_VARIABLE = "LLMSERVE_CERTIFICATES"
_METADATA_KEY = "llmserve-caller"
_SECRET_BYTES = 32
_LONGEST_NAME = 512  # as it is written, with escapes
_Metadata = Iterable[tuple[str, Any]] | None
_ROLES = frozenset(role.value for role in CallerRole)
_UNNAMED = CallerIdentity(CallerRole.OPERATOR, "")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this process shows, and asks of those that call it. secret: that of the cluster. certificates: for
    TLS, by which both ends then know each other; the secret only vouches for names. Without either, calls
    show nothing, and nothing is asked of them."""

    own: CallerIdentity = _UNNAMED
    secret: bytes | None = None
    certificates: "CertificateFolder | None" = None

    def __repr__(self) -> str:
        return f"<Credentials of {self.own.role} {self.own.name}>"

    @classmethod
    def read(
        cls, role: CallerRole, name: str, file: str | None = None, folders: str | None = None
    ) -> "Credentials":
        """Reads the secret from a file, and the certificate from the role's folder in `folders`. None: what
        LLMSERVE_CLUSTER_SECRET_FILE and LLMSERVE_CERTIFICATES name, if they are set. Errors: StartFailed."""
        path = file or os.environ.get(SECRET_VARIABLE)
        secret = _secret_in(Path(path)) if path else None
        own = CallerIdentity(role, name)
        folders = folders or os.environ.get(CERTIFICATES_VARIABLE)
        return cls(own, secret, _certificates(Path(folders) / role, own) if folders else None)

    @property
    def are_none(self) -> bool:
        return self.secret is None and self.certificates is None

    def show_expiry(self, registry: CollectorRegistry) -> None:
        """Adds a metric that says when the certificate in use expires, if there is one."""
        if (certificates := self.certificates) is not None:
            shown = CertificateMetrics(registry).expires.labels(self.own.role)
            shown.set_function(lambda: certificates.current().expires)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what goes with a call."""
        if self.are_none:
            return ()
        name = quote(self.own.name, safe="")  # metadata is ASCII
        code = _code(self.secret, self.own) if self.secret else ""
        return ((_METADATA_KEY, f"{self.own.role}/{name}/{code}"),)

    def caller_of(self, metadata: _Metadata) -> CallerIdentity | None:
        """Returns who calls; None when nothing is asked of callers. With certificates this is what the call
        says, and `check_certificate` has yet to prove it. Errors: NotAuthenticated."""
        if self.are_none:
            return None
        caller, code = _read(metadata)
        if caller is None:
            raise NotAuthenticated("the call shows no credentials of this cluster")
        if self.certificates is None and not _is_code(code, self.secret, caller):
            raise NotAuthenticated("the call's credentials are not of this cluster")
        return caller

    def check_certificate(self, caller: CallerIdentity, uris: Iterable[bytes]) -> None:
        """uris: those in the certificate of the connection. Errors: NotAuthenticated when it is not the
        caller's."""
        if self.certificates is not None:
            self.certificates.check(caller, [uri.decode(errors="replace") for uri in uris])


NO_CREDENTIALS = Credentials()


def shown_by(metadata: _Metadata) -> CallerIdentity | None:
    """Returns who a call says that it is of, unchecked; None: it does not say."""
    return _read(metadata)[0]


def _read(metadata: _Metadata) -> tuple[CallerIdentity | None, str]:
    shown = next((str(value) for key, value in metadata or () if key == _METADATA_KEY), "")
    role, _, rest = shown.partition("/")
    name, _, code = rest.partition("/")
    if role not in _ROLES or len(name) > _LONGEST_NAME:
        return None, ""
    return CallerIdentity(CallerRole(role), unquote(name)), code


def certificates_in(temp_dir: Path) -> str | None:
    """Returns the directory of the certificates of a run; None: it uses none. temp_dir: that of the run."""
    link = temp_dir / CERTIFICATES_NAME
    return str(link) if link.is_symlink() else None


def make_secret(path: Path) -> None:
    """Writes a new secret, which only this user can read, to a file that is not there yet. Errors:
    StartFailed."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
    except OSError as error:
        raise StartFailed(f"{path}: the cluster's secret cannot be written: {error.strerror}") from error


def _secret_in(path: Path) -> bytes:
    """Errors: StartFailed."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise StartFailed(f"{path}: the cluster's secret cannot be read: {error.strerror}") from error
    if len(secret) < _SECRET_BYTES:
        raise StartFailed(f"{path}: the cluster's secret has fewer than {_SECRET_BYTES} characters")
    return secret


def _certificates(folder: Path, own: CallerIdentity) -> "CertificateFolder":
    """Errors: StartFailed."""
    from llmserve.rpc.wires.certificates import (
        CertificateFolder,  # only clusters with TLS pay for its libraries
    )

    found = CertificateFolder(folder)
    try:
        found.current().owner.check(own)
    except NotAuthenticated as error:
        raise StartFailed(f"{folder}: {error.message}") from error
    return found


def _is_code(code: str, secret: bytes | None, caller: CallerIdentity) -> bool:
    return secret is not None and hmac.compare_digest(code.encode(), _code(secret, caller).encode())


def _code(secret: bytes, caller: CallerIdentity) -> str:
    return hmac.new(secret, f"{caller.role}/{caller.name}".encode(), hashlib.sha256).hexdigest()
