"""Who calls inside a cluster: what a process shows with each call, and how the other one checks it.

All processes of a cluster know one secret. A call carries the caller's role and name with a code
(HMAC-SHA256) that only a process with the secret can compute. So a stranger who reaches a port is refused,
and one process cannot take another one's place by mistake. Whoever reads the secret can call as any of them,
and so can whoever reads a network on which calls are not encrypted.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from llmserve.core.errors import NotAuthenticated, StartFailed

SECRET_NAME = "secret"
SECRET_VARIABLE = "LLMSERVE_CLUSTER_SECRET_FILE"
_METADATA_KEY = "llmserve-caller"
_SECRET_BYTES = 32
_LONGEST_NAME = 512  # as it is written, with escapes
_Metadata = Iterable[tuple[str, Any]] | None


class CallerRole(StrEnum):
    """operator: somebody at a command line who may read the cluster's secret."""

    APISERVER = "apiserver"
    ROUTER = "router"
    WORKER = "worker"
    KVMANAGER = "kvmanager"
    OPERATOR = "operator"


_ROLES = frozenset(role.value for role in CallerRole)


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    role: CallerRole
    name: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this process shows, and asks of those that call it. secret: that of the cluster; None: calls show
    nothing, and nothing is asked of them."""

    own: CallerIdentity = CallerIdentity(CallerRole.OPERATOR, "")
    secret: bytes | None = None

    def __repr__(self) -> str:
        return f"<Credentials of {self.own.role} {self.own.name}>"

    @classmethod
    def read(cls, role: CallerRole, name: str, file: str | None = None) -> "Credentials":
        """Reads the secret from a file. file: None: that of LLMSERVE_CLUSTER_SECRET_FILE, if that is set.
        Errors: StartFailed."""
        path = file or os.environ.get(SECRET_VARIABLE)
        return cls(CallerIdentity(role, name), _secret_in(Path(path)) if path else None)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what goes with a call."""
        if self.secret is None:
            return ()
        name = quote(self.own.name, safe="")  # metadata is ASCII
        return ((_METADATA_KEY, f"{self.own.role}/{name}/{_code(self.secret, self.own)}"),)

    def caller_of(self, metadata: _Metadata) -> CallerIdentity | None:
        """Returns who calls; None when nothing is asked of callers. Errors: NotAuthenticated."""
        if self.secret is None:
            return None
        caller, code = _read(metadata)
        if caller is None:
            raise NotAuthenticated("the call shows no credentials of this cluster")
        if not hmac.compare_digest(code.encode(), _code(self.secret, caller).encode()):
            raise NotAuthenticated("the call's credentials are not of this cluster")
        return caller


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


def _code(secret: bytes, caller: CallerIdentity) -> str:
    return hmac.new(secret, f"{caller.role}/{caller.name}".encode(), hashlib.sha256).hexdigest()
