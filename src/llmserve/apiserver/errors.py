"""Our errors as vLLM's serving layer wants them, and as HTTP bodies."""

from http import HTTPStatus
from typing import Any

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import GracefulHTTPError, VLLMError

from llmserve.core.errors import LLMServeError

# A client that is not told when to come back retries at once, into the same wall.
_DEFAULT_RETRY_SECONDS = 1.0
_STANDARD = frozenset(status.value for status in HTTPStatus)
_RETRYABLE = frozenset({429, 503, 504})

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ServingError(GracefulHTTPError):
    """An LLMServeError on its way through vLLM's layer, which answers with http_status."""

    def __init__(self, error: LLMServeError) -> None:
        super().__init__(error.message, _status(error.http_status))
        self.retry_after_seconds = error.retry_after_seconds


def _status(code: int) -> HTTPStatus:
    """499 (client gone) is not in the standard's table, and nobody is there to read it either."""
    return HTTPStatus(code) if code in _STANDARD else HTTPStatus.INTERNAL_SERVER_ERROR


def as_serving_error(error: Exception) -> Exception:
    """What generate() raises: vLLM's own errors as they are, ours wrapped."""
    if isinstance(error, LLMServeError):
        return ServingError(error)
    return error


def is_meant_for_the_client(error: Exception) -> bool:
    return isinstance(error, VLLMError)


def status_of(error: Exception) -> int:
    return int(create_error_response(error).error.code)


def retry_after_seconds(error: Exception) -> float | None:
    """For the Retry-After header, of the errors after which a retry makes sense."""
    seconds: float | None = getattr(error, "retry_after_seconds", None)
    if seconds is None and status_of(error) in _RETRYABLE:
        return _DEFAULT_RETRY_SECONDS
    return seconds


def body_of(error: Exception, path: str) -> dict[str, Any]:
    """OpenAI's shape, and Anthropic's for its own routes."""
    answer: dict[str, Any] = create_error_response(error).model_dump()
    if not path.startswith("/v1/messages"):
        return answer
    detail = answer["error"]
    kind = _ANTHROPIC_TYPES.get(detail["code"], "api_error")
    return {"type": "error", "error": {"type": kind, "message": detail["message"]}}
