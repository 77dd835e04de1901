"""What a client is told whose request does not have the form that its route expects."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param

from llmserve.apiserver.http.errors import ApiError
from llmserve.config.messages import describe

_MOST_SENTENCES = 4
_MOST_COMPARED = 100
_MOST_CHARACTERS = 500
# Where a field may be of several classes, the place of an error names the one that was tried.
_CLASS_NAME = re.compile(r"[A-Z]+[a-z][A-Za-z]*")


def wrong_body(error: RequestValidationError) -> ApiError:
    """Returns a sentence for each field that is wrong, and the name of the first one."""
    found = list(error.errors())[:_MOST_COMPARED]
    details = [one for one in found if isinstance(one, dict)]
    if len(details) < len(found):  # a text: the framework itself refuses the request
        return ApiError(400, str(found[0])[:_MOST_CHARACTERS])
    if len(details) == 1 and (text := _not_json(details[0])):
        return ApiError(400, text)
    meant = list(_meant(details))
    sentences = list(dict.fromkeys(map(_sentence, meant)))
    shown = "; ".join(sentences[:_MOST_SENTENCES])
    more = len(sentences) - _MOST_SENTENCES
    return ApiError(400, f"{shown}; and {more} more" if more > 0 else shown, _field(meant[0]) or None)


def _not_json(one: dict[str, Any]) -> str:
    """Returns what is wrong with a body that is no JSON at all; empty when it is."""
    if one["type"] == "json_invalid":
        return f"the body is not JSON: {one['ctx']['error']} at character {one['loc'][-1]}"
    if isinstance(one.get("input"), bytes):
        return "the body has to be JSON, with the header `Content-Type: application/json`"
    return ""


def _meant(details: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the errors of what the client meant. Of the classes that a value may be of, only the closest one
    counts: its role or type is not another one, and fewest of its fields are wrong."""
    of_fields: defaultdict[tuple[Any, ...], defaultdict[str, list[dict[str, Any]]]]
    of_fields = defaultdict(lambda: defaultdict(list))
    for one in details:
        path = one["loc"]
        tried = next(
            (index for index, part in enumerate(path) if _CLASS_NAME.fullmatch(str(part))), len(path)
        )
        of_fields[path[:tried]][str(path[tried : tried + 1])].append(one)
    for of_classes in of_fields.values():
        yield from min(of_classes.values(), key=_distance)


def _distance(errors: Sequence[dict[str, Any]]) -> tuple[bool, int]:
    return any(one["type"] == "literal_error" for one in errors), len(errors)


def _sentence(one: dict[str, Any]) -> str:
    text = describe(one, secret=False).removeprefix("Value error, ")[:_MOST_CHARACTERS]  # type: ignore[arg-type]
    field = _field(one)
    return f"{field}: {text}" if field else text


def _field(one: dict[str, Any]) -> str:
    """The path of a field without the part of the request that it is in; empty where none is named."""
    if parameter := getattr(one.get("ctx", {}).get("error"), "parameter", None):  # vLLM's own
        return str(parameter)
    path = tuple(part for part in one["loc"][1:] if not _CLASS_NAME.fullmatch(str(part)))
    return clean_loc_for_param(path) if path else ""
