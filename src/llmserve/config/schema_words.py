"""Types and defaults of knobs as the documentation writes them."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmserve.config.knob import Section
from llmserve.config.messages import number

_NAMES = {bool: "`true` or `false`", int: "integer", float: "number", str: "text"}
_BOUNDS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.MultipleOf: ("multiple_of", "a multiple of"),
}


def type_text(field: FieldInfo) -> str:
    """`integer ≥ 1`, `list of text`, or the choices."""
    return ", ".join((_type_name(field.annotation), *_bounds(field.metadata)))


def default_text(field: FieldInfo) -> str:
    """As YAML writes it; a dash for "not set"."""
    if field.default is PydanticUndefined:
        return "**required**"
    if field.default is None:
        return "—"
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_yaml(held)}' for name, held in value.items())}}}"
    return number(value) if isinstance(value, int | float) else str(value)


def _type_name(annotation: Any) -> str:
    if annotation in _NAMES:
        return _NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is dict:
        return f"mapping of {_plural(_type_name(arguments[0]))} to {_type_name(arguments[1])}"
    if origin is tuple:
        return f"list of {_plural(_type_name(arguments[0]))}"
    if origin in (Union, UnionType):
        return " or ".join(_type_name(one) for one in arguments if one is not NoneType)
    raise TypeError(f"the documentation has no words for {annotation}")


def _plural(name: str) -> str:
    return f"{name}s" if name in ("integer", "number", "mapping") else name


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        for kind, (name, words) in _BOUNDS.items():
            if isinstance(item, kind):
                yield f"{words} {number(getattr(item, name))}"
