"""What can go wrong with a request to a bucket, in this system's words. obstore's errors end here.

An error of obstore carries the whole answer of the server, and the address with its query, where some
clouds put signatures. Of all that a reason keeps the HTTP status and the server's code.
"""

import re
from enum import StrEnum

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from llmserve.core.errors import Unavailable


class FailureKind(StrEnum):
    GONE = "gone"  # no such object
    DENIED = "denied"  # credentials wrong, missing or not enough
    THROTTLED = "throttled"  # too many requests
    SERVER = "server"  # it answers with an error of its own
    UNREACHABLE = "unreachable"  # no connection, or it broke
    SLOW = "slow"  # no answer in time
    FULL = "full"  # a quota or a disk behind it
    REFUSED = "refused"  # anything else: a request that it will not take
    CLOSED_GATE = "closed-gate"  # not sent: the bucket was away a moment ago


# Worth another attempt.
TRANSIENT = frozenset({FailureKind.THROTTLED, FailureKind.SERVER, FailureKind.UNREACHABLE, FailureKind.SLOW})

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r'(?:<Code>|"code": ?")(\w{1,64})')
_THROTTLES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "ServerBusy"}
)
_NO_ROOM = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"})
_SPEED_STATUS = 429
_NO_ROOM_STATUS = 507
_DENIED_STATUS = (401, 403)
_NOT_FOUND_STATUS = 404
# Where a cloud's machines ask who they are. A request that ends there had no credentials to begin with.
_IDENTITY_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_NO_CREDENTIALS = "no credentials in the environment, and this machine has no identity that a cloud knows"


class RequestFailed(Unavailable):
    """A request to the bucket, after its retries."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def failure_of(error: Exception) -> RequestFailed:
    """Maps anything that a request of obstore raises."""
    text = str(error)
    if any(host in text for host in _IDENTITY_HOSTS):
        return RequestFailed(FailureKind.DENIED, f"{FailureKind.DENIED}: {_NO_CREDENTIALS}")
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    code = _CODE.search(text)
    kind = _kind(error, status, code[1] if code else "", text)
    said = " ".join(part for part in (f"HTTP {status}" if status else "", code[1] if code else "") if part)
    return RequestFailed(kind, f"{kind}: {said}" if said else f"{kind}: {_plain(error)}")


def _kind(error: Exception, status: int, code: str, text: str) -> FailureKind:
    if isinstance(error, FileNotFoundError) or status == _NOT_FOUND_STATUS:
        return FailureKind.GONE
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return FailureKind.DENIED
    if status in _DENIED_STATUS:
        return FailureKind.DENIED
    if status == _NO_ROOM_STATUS or code in _NO_ROOM or "No space left" in text:
        return FailureKind.FULL
    if status == _SPEED_STATUS or code in _THROTTLES:
        return FailureKind.THROTTLED
    if status >= 500:
        return FailureKind.SERVER
    if not status and "HTTP error" in text:
        return FailureKind.UNREACHABLE
    return FailureKind.REFUSED


def _plain(error: Exception) -> str:
    """The last words of the first line, without an address: `HTTP error: error sending request`."""
    line = str(error).partition("\n")[0]
    words = line.rpartition(" - ")[2] if isinstance(error, BaseError) else type(error).__name__
    return re.sub(r"\S+://\S+", "(address)", words)[:200]
