"""The one tree of errors. Foreign errors are mapped into it at the edge of each package.

Each class carries the HTTP status a client sees; rpc/status.py has the matching gRPC codes.
"""

from typing import ClassVar


class LLMServeError(Exception):
    """Root. `message` says what and where, in words for the user."""

    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


# -- the caller's mistakes


class InvalidRequest(LLMServeError):
    """The request is wrong, and would be so anywhere: it is never tried again. `field` names the part of it;
    empty when there is no single one."""

    http_status = 400

    def __init__(self, message: str, *, field: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.field = field


class RequestTooLarge(InvalidRequest):
    """The body of an HTTP request is over the limit."""

    http_status = 413


class ManifestError(InvalidRequest):
    """The manifest is wrong, or asks for what is not to be had here: another try ends alike.

    The message names file, line, path and a suggestion. Where only the manifest's key is known, `key` has it:
    the message begins with it, and whoever has the file adds the line (config/load.py).
    """

    def __init__(
        self,
        message: str,
        *,
        key: tuple[str | int, ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.key = key


class NotAuthenticated(LLMServeError):
    http_status = 401


class Forbidden(LLMServeError):
    """It is known who asks, and that may not be done by them."""

    http_status = 403


class NotFound(LLMServeError):
    """A model, worker or request that does not exist."""

    http_status = 404


class ModelNotFound(NotFound):
    """A model source that cannot be read; names the source and what was tried."""


# -- no room, now


class Overloaded(LLMServeError):
    """A limit is reached; retry_after_seconds says when to come back."""

    http_status = 429


class QueueFull(Overloaded):
    pass


class QueueTimeout(Overloaded):
    """The request waited in the queue as long as it was allowed to."""

    http_status = 503


# -- something is away


class Unavailable(LLMServeError):
    """A role that the request needs is not there. Safe to retry."""

    http_status = 503


class NoWorkerAvailable(Unavailable):
    pass


class RouterUnavailable(Unavailable):
    pass


class NotLeader(RouterUnavailable):
    """Another router leads; the message says which."""


class StateUnavailable(Unavailable):
    """The routers' shared state does not answer."""


class WorkerLost(Unavailable):
    """The connection to a worker broke while it ran the request."""


class WorkerDraining(Unavailable):
    """The worker is to stop and hands its requests back: they go on elsewhere."""


class StreamLost(LLMServeError):
    """Tokens were sent, and no other worker can go on from them. Safe to send again as a whole."""

    http_status = 503


class DeadlineExceeded(LLMServeError):
    http_status = 504


class WorkerStalled(DeadlineExceeded):
    """A worker that is there gave no output in time."""


# -- KV


class TransferError(LLMServeError):
    """A KV transfer failed; the request recomputes or fails, as `on_failure` says."""


class TransportUnavailable(TransferError):
    """A transport cannot be used on this machine; the message says why."""


class PeerGone(TransferError):
    """Nobody listens where a worker did: its process has ended."""


class LeaseEnded(TransferError):
    """The lease was released, expired, or is of another epoch: its blocks must not be read."""


class BlockUnreadable(LLMServeError):
    """A stored KV block cannot be decoded: a miss, never a failed request. The subclass says why."""


class BlockDamaged(BlockUnreadable):
    """Its header or payload is not what was written, or belongs to another block."""


class FormatUnknown(BlockUnreadable):
    """It was stored in a format that this release does not know."""


class KeyUnknown(BlockUnreadable):
    """It is encrypted under a key that is no longer configured; the message has the key's id."""


# -- ours


class EngineDead(Unavailable):
    """The engine's processes are gone; its worker must be restarted."""


class StartFailed(LLMServeError):
    """A role did not become ready; the message carries the reason it gave."""


class Cancelled(LLMServeError):
    """Given up on purpose (client gone, shutdown)."""

    http_status = 499
