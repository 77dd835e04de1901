"""`engine.options`: values of the manifest as vLLM's arguments of their types."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from vllm.engine.arg_utils import EngineArgs

from llmserve.config.conflict import Conflict
from llmserve.config.engine_options import unknown_options, wrong_option
from llmserve.config.messages import did_you_mean
from llmserve.config.schema import EngineConfig

_TYPES: Mapping[str, Any] = {field.name: field.type for field in fields(EngineArgs)}


def option_refusals(engine: EngineConfig) -> Iterator[Conflict]:
    """Yields the options that vLLM does not know, or whose values it does not take."""
    yield from unknown_options(engine, _TYPES.keys())
    for name in engine.options.keys() & _TYPES.keys():
        try:
            _typed(_TYPES[name], engine.options[name])
        except ValueError as error:
            yield wrong_option(name, _reason(error))


def typed_options(engine: EngineConfig) -> dict[str, Any]:
    """Returns the options, which `option_refusals` has passed."""
    return {name: _typed(_TYPES[name], value) for name, value in engine.options.items()}


def _typed(expected: Any, value: Any) -> Any:
    """A member of an enumeration is written by its name, as for `vllm serve`. All else is read as JSON, in
    which a list may be a set and a mapping may be a class of vLLM, but text is no number. Errors:
    ValueError."""
    for kind in (expected, *get_args(expected)):
        if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
            return _member(kind, value)
    if isinstance(expected, str):  # a name that only type checkers can resolve
        return value
    return TypeAdapter(expected).validate_json(json.dumps(value), strict=True)


def _member(kind: type[Enum], name: str) -> Enum:
    names = {known.lower(): known for known in kind.__members__}
    if name.lower() not in names:
        hint = did_you_mean(name, list(kind.__members__)) or f"; it has {', '.join(kind.__members__)}"
        raise ValueError(f"there is no '{name}'{hint}")
    return kind[names[name.lower()]]


def _reason(error: ValueError) -> str:
    """Returns the first finding, with its place below the option."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
