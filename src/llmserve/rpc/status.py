"""The one table between our errors and gRPC status.

An error crosses as its status code, its message, and its class name in the trailing metadata, so
that the far side raises the same class. An unknown or foreign status maps by code alone.
"""

import grpc
import grpc.aio

from llmserve.core import errors

ERROR_KEY = "llmserve-error"
RETRY_KEY = "llmserve-retry-after"

_CODES: dict[type[errors.LLMServeError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.LeaseEnded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TransferError: grpc.StatusCode.ABORTED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.LLMServeError: grpc.StatusCode.INTERNAL,
}

_CLASSES = {code: cls for cls, code in _CODES.items()}


def code_of(error: errors.LLMServeError) -> grpc.StatusCode:
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def trailing_metadata(error: errors.LLMServeError) -> tuple[tuple[str, str], ...]:
    pairs = [(ERROR_KEY, type(error).__name__)]
    if error.retry_after_seconds is not None:
        pairs.append((RETRY_KEY, f"{error.retry_after_seconds:.3f}"))
    return tuple(pairs)


def error_named(name: str, message: str, retry_after_seconds: float | None = None) -> errors.LLMServeError:
    """An error from its class name on the wire; an unknown name gives the root class."""
    cls = getattr(errors, name, errors.LLMServeError)
    if not (isinstance(cls, type) and issubclass(cls, errors.LLMServeError)):
        cls = errors.LLMServeError
    return cls(message, retry_after_seconds=retry_after_seconds)


def from_grpc(error: grpc.aio.AioRpcError) -> errors.LLMServeError:
    """The error that the far side raised, or the one that fits what gRPC itself reports."""
    metadata: dict[str, str | bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    message = error.details() or error.code().name
    name = metadata.get(ERROR_KEY)
    if isinstance(name, str):
        retry = metadata.get(RETRY_KEY)
        return error_named(name, message, float(retry) if retry else None)
    return _CLASSES.get(error.code(), errors.LLMServeError)(message)
