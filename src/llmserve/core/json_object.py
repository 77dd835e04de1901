"""Reads text that is to be a JSON object. Pure."""

import json
from collections.abc import Callable
from typing import Any


def json_object(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """parse_constant: of the json module. Errors: ValueError, whose message ends a sentence such as "it is";
    also for text that is nested too deeply."""
    try:
        found = json.loads(text, parse_constant=parse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found
