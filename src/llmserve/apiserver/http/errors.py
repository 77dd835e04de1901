"""Every error of the API as one ApiError, and the one place where a ApiError becomes a body.

Errors come from our own tree, from vLLM (raised, or answered in OpenAI's envelope) and from the web
framework. The HTTP edge makes a ApiError of each and gives it the form that the route's clients expect.
"""

import json
import logging
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from llmserve.core.errors import InvalidRequest, LLMServeError, NotAuthenticated

_log = logging.getLogger(__name__)

# A client that does not know when to come back retries at once, and fails again.
_DEFAULT_RETRY_SECONDS = 1.0
_STANDARD = frozenset(status.value for status in HTTPStatus)
_RETRYABLE = frozenset({429, 503, 504})

# What Python raises about a value whose shape the code does not expect. vLLM answers ValueError and TypeError
# with 400 and forgets these; before an engine was asked only the request can be at fault.
MISREAD = (AttributeError, LookupError, RecursionError)

# The classes that OpenAI's clients raise for these statuses; vLLM uses several of the names as well.
_OPENAI_TYPES: Mapping[int, str] = MappingProxyType(
    {
        400: "BadRequestError",
        401: "AuthenticationError",
        403: "PermissionDeniedError",
        404: "NotFoundError",
        409: "ConflictError",
        422: "UnprocessableEntityError",
        429: "RateLimitError",
        501: "NotImplementedError",
        503: "ServiceUnavailableError",
        504: "TimeoutError",
    }
)
# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        409: "conflict_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
)


class ErrorForm(StrEnum):
    """The form of an error's body."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error without a form. status: of HTTP. param: the field that is wrong, if it is known."""

    status: int
    message: str
    param: str | None = None


class ServingError(GracefulHTTPError):
    """An LLMServeError on its way through vLLM's layer, which answers with http_status."""

    def __init__(self, error: LLMServeError) -> None:
        super().__init__(error.message, _status(error.http_status))
        self.message, self.field = error.message, error.field
        self.retry_after_seconds = error.retry_after_seconds


class InvalidField(VLLMValidationError):
    """An InvalidRequest about one field on the same way: vLLM's layer answers 400 with its name."""

    def __init__(self, error: InvalidRequest) -> None:
        super().__init__(error.message, parameter=error.field)
        self.message = error.message

    def __str__(self) -> str:
        return self.message


def _status(code: int) -> HTTPStatus:
    """499 (client gone) is not in the standard's table, and no client is there to read it."""
    return HTTPStatus(code) if code in _STANDARD else HTTPStatus.INTERNAL_SERVER_ERROR


def as_serving_error(error: Exception, *, before_engine: bool = False) -> Exception:
    """Returns what generate() raises: vLLM's own errors as they are, ours as ones that its layer knows."""
    if isinstance(error, InvalidRequest) and error.field:
        return InvalidField(error)
    if isinstance(error, LLMServeError):
        return ServingError(error)
    if before_engine and isinstance(error, MISREAD):
        return ServingError(InvalidRequest(f"a field of the request cannot be read: {error}"))
    return error


def is_expected(error: BaseException) -> bool:
    """Returns whether a failure is the client's, or no defect of the cluster (overload, a lost worker). Its
    traceback is of no use to anybody."""
    if not isinstance(error, Exception):
        return False
    return isinstance(error, LLMServeError | GracefulHTTPError) or api_error_of(error).status < 500


def report(problem: ApiError, raised: Exception) -> None:
    """Logs what the application raised: with its traceback if it is a defect, else in one line, and without
    what the client may have written if that is at fault. The client, and its record, have the whole
    message."""
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(raised, LLMServeError):
        _log.error("a request failed on a defect", exc_info=raised)
        return
    frames = traceback.extract_tb(raised.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    is_server_s = problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    what = repr(raised) if is_server_s else f"{type(raised).__name__} {problem.param or ''}".rstrip()
    _log.warning("a request is answered with %d: %s%s", problem.status, what, where)


def retry_after_seconds(error: Exception) -> float | None:
    """Returns the value of Retry-After; None for errors after which a retry makes no sense."""
    seconds: float | None = getattr(error, "retry_after_seconds", None)
    if seconds is None and api_error_of(error).status in _RETRYABLE:
        return _DEFAULT_RETRY_SECONDS
    return seconds


def headers_of(error: Exception) -> Iterator[tuple[bytes, bytes]]:
    """Yields what a client should know of an error besides its body."""
    if (seconds := retry_after_seconds(error)) is not None:
        yield b"retry-after", str(max(1, math.ceil(seconds))).encode()
    if isinstance(error, NotAuthenticated):
        yield b"www-authenticate", b"Bearer"


def api_error_of(error: Exception) -> ApiError:
    """Returns an exception as an ApiError: ours word for word, others as vLLM describes them to clients."""
    error = as_serving_error(error)
    if isinstance(error, ServingError):
        return ApiError(int(error.http_status), error.message, error.field or None)
    info = create_error_response(error).error
    return ApiError(int(info.code), info.message, info.param)


def api_error_in(status: int, body: bytes) -> ApiError | None:
    """Returns the error in an answer that has an error's status; None when its body is JSON of another kind,
    such as that of /health."""
    try:
        content = json.loads(body)
    except ValueError:
        return ApiError(status, body.decode("utf-8", "replace") or _status(status).phrase)
    detail = content.get("error", content.get("detail")) if isinstance(content, dict) else None
    if isinstance(detail, str):
        return ApiError(status, detail)
    if not isinstance(detail, dict) or "message" not in detail:
        return None
    return ApiError(status, str(detail["message"]), detail.get("param"))


def form_of(path: str, headers: Iterable[tuple[bytes, bytes]]) -> ErrorForm:
    """Anthropic's for its own routes, and on all others for its clients, which send their API's version."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return ErrorForm.ANTHROPIC
    sent = any(name == b"anthropic-version" for name, _ in headers)
    return ErrorForm.ANTHROPIC if sent else ErrorForm.OPENAI


def body_of(problem: ApiError, form: ErrorForm = ErrorForm.OPENAI, request_id: str = "") -> dict[str, Any]:
    """request_id: is part of Anthropic's form only."""
    if form is ErrorForm.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(problem.status, _default(problem, "invalid_request_error", "api_error"))
        return {
            "type": "error",
            "error": {"type": kind, "message": problem.message},
            "request_id": request_id,
        }
    kind = _OPENAI_TYPES.get(problem.status, _default(problem, "BadRequestError", "InternalServerError"))
    detail = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.status}
    return {"error": detail}


def _default(problem: ApiError, client_s: str, server_s: str) -> str:
    return client_s if problem.status < HTTPStatus.INTERNAL_SERVER_ERROR else server_s
