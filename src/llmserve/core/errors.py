"""The one tree of errors. Foreign errors are mapped into it at the edge of each package.

Each class carries the HTTP status a client sees; rpc/status.py has the matching gRPC codes.
"""

from typing import ClassVar


class LLMServeError(Exception):
    """The root. message: what went wrong and where, in words for the user. field: the part of the request
    that is at fault; empty when there is no single one."""

    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message, self.field = message, field
        self.retry_after_seconds = retry_after_seconds


# -- the caller's mistakes


class InvalidRequest(LLMServeError):
    """The request is wrong, and would be so anywhere: it is never tried again."""

    http_status = 400


class RequestTooLarge(InvalidRequest):
    """The body of an HTTP request is over the limit."""

    http_status = 413


class ClientTooSlow(InvalidRequest):
    """The body of an HTTP request did not arrive in time."""

    http_status = 408


class ManifestError(InvalidRequest):
    """The manifest is wrong, or asks for something that this machine or release does not have: another try
    ends alike.

    The message names file, line, path and a suggestion. key: set when only the manifest's key is known.
    The message then begins with it, and whoever has the file adds the line (config/load.py).
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
    """The client is known, and may not do this."""

    http_status = 403


class NotFound(LLMServeError):
    """A model, worker or request does not exist."""

    http_status = 404


class ModelNotFound(NotFound):
    """A model source cannot be read. The message names the source and what was tried."""


# -- no room, now


class Overloaded(LLMServeError):
    """A limit is reached; retry_after_seconds says when to come back."""

    http_status = 429


class QueueFull(Overloaded):
    pass


class QueueTimeout(Overloaded):
    """The request waited in the queue for as long as it may."""

    http_status = 503


class StorageFull(Overloaded):
    """A disk, a bucket or a tenant's part of it has no room for what is to be kept."""

    http_status = 507


# -- something is away


class Unavailable(LLMServeError):
    """A role that the request needs is not there. The request is safe to retry."""

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
    """The worker is about to stop and hands its requests back: they go on at another worker."""


class AdapterUnavailable(LLMServeError):
    """The worker cannot run this version of an adapter now; another one may. Nothing else is wrong with the
    worker, so this is no Unavailable."""

    http_status = 503


class StreamLost(LLMServeError):
    """Tokens were sent, and no other worker can go on from them. The whole request is safe to send again."""

    http_status = 503


class DeadlineExceeded(LLMServeError):
    http_status = 504


class WorkerStalled(DeadlineExceeded):
    """A worker that is connected gave no output in time."""


# -- KV


class TransferError(LLMServeError):
    """A KV transfer failed; the request recomputes or fails, as `on_failure` says."""


class TransportUnavailable(TransferError):
    """A transport cannot be used on this machine; the message says why."""


class PeerGone(TransferError):
    """Nobody listens at the address of a worker: its process has ended."""


class LeaseEnded(TransferError):
    """The lease was released, has expired, or belongs to another epoch: its blocks must not be read."""


class BlockUnreadable(LLMServeError):
    """A stored KV block cannot be decoded. It counts as a miss, and no request fails. The subclass says
    why."""


class BlockDamaged(BlockUnreadable):
    """The header or payload of the block is not what was written, or belongs to another block."""


class FormatUnknown(BlockUnreadable):
    """The block was stored in a format that this release does not know."""


class KeyUnknown(BlockUnreadable):
    """The block is encrypted under a key that is no longer configured. The message has the key's id."""


# -- ours


class EngineDead(Unavailable):
    """The engine's processes are gone; its worker must be restarted."""


class StartFailed(LLMServeError):
    """A role did not become ready. The message has the reason that it gave."""


class Cancelled(LLMServeError):
    """The request was given up on purpose: the client is gone, or the server stops."""

    http_status = 499
