"""Generates docs/configuration.md and the JSON Schema for editors from the schema.

python -m llmserve.config.schema_doc --write docs/configuration.md
"""

import argparse
import ast
import functools
import inspect
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmserve.config.changes import is_live
from llmserve.config.messages import number
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import (
    ITEM,
    ForAllModels,
    KeyUnit,
    ManifestKey,
    ManifestSection,
    Planned,
    VllmOnly,
    marker,
    path_text,
    walk,
)

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


_HEAD = ("apiVersion", "kind", "metadata")

_INTRODUCTION = """\
# Configuration

<!-- Generated: python -m llmserve.config.schema_doc --write docs/configuration.md -->

One YAML file, the manifest, describes a cluster. Only the model is required:

```yaml
apiVersion: llmserve/v1
kind: LLMServe
metadata:
  name: my-cluster
spec:
  models:
    primary:
      source: hub:Qwen/Qwen3-8B
```

The sections below stand under `spec:`. A short manifest may omit `spec:` and have its sections at the top.
`llmserve apply -f FILE` checks a manifest and shows what it would start; `llmserve schema` prints the JSON
Schema for your editor. [llmserve.yaml](../llmserve.yaml) and the files in [examples/](../examples) are
complete manifests.

No mistake is ignored: an unknown key, a wrong type (`"2"` is not a number) or a forbidden combination is
refused with its file and line. A key that is **planned** is not implemented yet, and every value but its
default is refused with "not available yet". All other keys are available.

`llmserve reload` applies a key that is marked **live** while the cluster runs ([reload.md](reload.md)). Every
other key needs a restart of the processes that read it, and the reload names them.

A dash as default means that the key is not set; its text says what happens then. GiB, MiB and KiB are powers
of 1024. Text may be quoted or not; quote text that looks like a number, such as an API key `"123"`.
"""


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (2020-12) of the manifest. Keys have `x-unit`, `x-status` and `x-live`."""
    schema = Manifest.model_json_schema()
    for key in (one for one in walk(Manifest) if one.path[-1] != ITEM):
        _annotate(_properties_of(schema, key)[key.path[-1]], key)
    sections = {key: value for key, value in schema["properties"].items() if key not in _HEAD}
    schema["properties"]["spec"] = {
        "type": "object",
        "description": "The sections, which may stand at the top as well.",
        "properties": sections,
        "required": ["models"],
        "additionalProperties": False,
    }
    schema["required"] = ["kind"]
    schema["oneOf"] = [
        {"required": ["spec"], "properties": dict.fromkeys(sections, False)},
        {"required": ["models"], "properties": {"spec": False}},
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _properties_of(schema: dict[str, Any], key: ManifestKey) -> dict[str, Any]:
    holder = schema if len(key.path) == 1 else schema["$defs"][key.holder.__name__]
    properties: dict[str, Any] = holder["properties"]
    return properties


def _annotate(target: dict[str, Any], key: ManifestKey) -> None:
    unit, planned = marker(key.field, KeyUnit), marker(key.field, Planned)
    target["description"] = meaning(key)
    target["x-status"] = "available" if planned is None else "planned"
    if unit is not None:
        target["x-unit"] = unit.name
    if is_live(key.path):
        target["x-live"] = True


def markdown() -> str:
    """Returns the text of docs/configuration.md."""
    keys = list(walk(Manifest))
    scalars = [key for key in keys if len(key.path) == 1 and key.section is None]
    parts = [_INTRODUCTION, "## The file\n", *_tables(scalars)]
    for key in keys:
        if key.section is not None and not _is_described_above(key, keys):
            parts += _section(key, keys)
    return "\n".join(parts)


def _is_described_above(key: ManifestKey, keys: list[ManifestKey]) -> bool:
    """Whether the key is below one whose section is described at a key above."""
    above = (one for one in keys if one.section is not None and _is_below(key, one))
    return any(_twin(one, keys) is not one for one in above)


def _is_below(key: ManifestKey, above: ManifestKey) -> bool:
    return len(key.path) > len(above.path) and key.path[: len(above.path)] == above.path


def _twin(key: ManifestKey, keys: list[ManifestKey]) -> ManifestKey:
    """Returns the key that describes the section of this key: the one with the shortest path."""
    return min((one for one in keys if one.section is key.section), key=lambda one: len(one.path))


def _section(key: ManifestKey, keys: list[ManifestKey]) -> Iterator[str]:
    """Yields a heading, and tables of the keys that hold values."""
    depth = sum(1 for part in key.path if part != ITEM)
    yield f"{'#' * (depth + 1)} `{path_text(key.path)}`\n"
    yield f"{_meaning(key)}\n"
    twin = _twin(key, keys)
    if twin is not key:
        yield f"Keys as in `{path_text(twin.path)}`.\n"
        return
    own = (one for one in keys if one.holder is key.section and _is_below(one, key))
    yield from _tables([one for one in own if one.section is None])


def _tables(keys: list[ManifestKey]) -> Iterator[str]:
    """Yields first the available keys, then the planned ones."""
    planned = [key for key in keys if _is_planned(key)]
    yield from _table([key for key in keys if not _is_planned(key)])
    if planned:
        yield "Planned, not available yet:\n"
        yield from _table(planned)


def _is_planned(key: ManifestKey) -> bool:
    return marker(key.field, Planned) is not None


def _table(keys: list[ManifestKey]) -> Iterator[str]:
    if not keys:
        return
    yield "| Key | Type | Unit | Default | Meaning |"
    yield "|---|---|---|---|---|"
    for key in keys:
        unit = marker(key.field, KeyUnit)
        cells = (
            f"`{path_text(key.path)}`",
            type_text(key.field),
            unit.name if unit is not None else "",
            default_text(key.field),
            _meaning(key),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _meaning(key: ManifestKey) -> str:
    text = meaning(key)
    planned = marker(key.field, Planned)
    if marker(key.field, VllmOnly) is not None:
        text += " No effect on the simulated engine."
    if marker(key.field, ForAllModels) is not None:
        text += " It is the same for all models."
    if key.section is None and is_live(key.path):
        text += " **Live.**"
    if planned is None:
        return text
    return f"{text} *Planned: comes with {planned.comes_with}.*"


def main(arguments: list[str]) -> int:
    """Prints the JSON Schema, or writes the documentation."""
    parser = argparse.ArgumentParser(prog="python -m llmserve.config.schema_doc", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the documentation here")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(json.dumps(json_schema(), indent=2))
    else:
        options.write.write_text(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
