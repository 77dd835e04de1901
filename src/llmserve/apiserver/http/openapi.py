"""What `/openapi.json` says of every route: the statuses of errors, which all may answer with, and the scopes
of a key, of which one is enough."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI

from llmserve.apiserver.auth.permissions import needed_scopes

_NAME = "LLMServeError"
_TEXT = {"type": "string"}
_MAYBE_TEXT = {"anyOf": [_TEXT, {"type": "null"}]}
_DETAIL = {"message": _TEXT, "type": _TEXT, "param": _MAYBE_TEXT, "code": {"type": "integer"}}
_ERROR = {
    "title": _NAME,
    "type": "object",
    "required": ["error"],
    "description": "An error as OpenAI's clients expect it; `type` and `request_id` are for Anthropic's.",
    "properties": {
        "error": {"type": "object", "required": ["message", "type"], "properties": _DETAIL},
        "type": _TEXT,
        "request_id": _TEXT,
    },
}
_OF_ALL: Mapping[int, str] = MappingProxyType(
    {
        400: "The request is wrong",
        401: "There is no key, or it is not known",
        403: "The key may not do this",
        404: "There is nothing of this name",
        405: "The path is for other methods",
        429: "A limit is reached",
        431: "The headers are too many or too large",
        500: "A fault of the server",
        503: "Nobody can serve it now",
    }
)
_OF_BODIES: Mapping[int, str] = MappingProxyType(
    {
        408: "The body took too long to arrive",
        413: "The body is too large",
        415: "The body is no JSON",
        504: "A deadline passed",
        507: "There is no room for the file",
    }
)
_SCOPES = "x-llmserve-scopes"
# What FastAPI documents for wrong fields, which are answered with 400.
_NEVER = "422"


def document_errors(app: FastAPI) -> None:
    """Adds the statuses and scopes to the description that the application makes of itself."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            _add_errors(schema)
            _add_scopes(schema)
        assert app.openapi_schema is not None, "FastAPI keeps what it made"
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_errors(schema: dict[str, Any]) -> None:
    schema.setdefault("components", {}).setdefault("schemas", {})[_NAME] = _ERROR
    for method, operation in _operations(schema):
        answers = operation["responses"]
        answers.pop(_NEVER, None)
        for status, description in {**_OF_ALL, **(_OF_BODIES if method == "post" else {})}.items():
            answers[str(status)] = _answer(description)


def _add_scopes(schema: Mapping[str, Any]) -> None:
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation[_SCOPES] = sorted(needed_scopes(path))


def _operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for operations in schema["paths"].values():
        yield from operations.items()


def _answer(description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_NAME}"}}}
    return {"description": description, "content": content}
