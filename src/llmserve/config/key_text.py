"""What is said of one key of the manifest: its meaning, its type, its default."""

import ast
import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmserve.config.messages import number
from llmserve.config.schema.section import ManifestKey, ManifestSection

_NAMES: dict[Any, str] = {
    bool: "`true` or `false`",
    int: "integer",
    float: "number",
    str: "text",
    JsonValue: "values",
}
_BOUNDS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.MultipleOf: ("multiple_of", "a multiple of"),
}


def meaning(key: ManifestKey) -> str:
    """Returns the docstring below a key; of a key that holds a section and has none, that of the section."""
    texts = (
        text for holder in key.holder.__mro__ for text in [_docstrings(holder).get(key.path[-1])] if text
    )
    inherited = key.section.__doc__ if key.section is not None else ""
    return " ".join(next(texts, inherited or "").split())


@functools.cache
def _docstrings(holder: type) -> dict[str, str]:
    """Returns the docstrings below the fields of a class. They are read from the source, here alone: pydantic
    would read them in every process at its start, which takes half a second."""
    if not issubclass(holder, ManifestSection):
        return {}
    (node,) = ast.parse(inspect.getsource(holder)).body
    assert isinstance(node, ast.ClassDef), "the source of a class"
    return {
        field.target.id: below.value.value
        for field, below in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }


def type_text(field: FieldInfo) -> str:
    """Describes the type of a key: `integer ≥ 1`, `list of text`, or the choices."""
    return ", ".join((_type_name(field.annotation), *_bounds(field.metadata)))


def default_text(field: FieldInfo) -> str:
    """Writes a default as YAML does; a dash means "not set"."""
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
    if isinstance(annotation, type) and issubclass(annotation, ManifestSection):
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
