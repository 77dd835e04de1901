"""What is generated from the schema: docs/configuration.md, and the JSON Schema for editors.

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
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmserve.config.changes import is_live
from llmserve.config.messages import number
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import (
    ITEM,
    KeyUnit,
    ManifestKey,
    ManifestSection,
    Planned,
    VllmOnly,
    marker,
    path_text,
    walk,
)

_NAMES = {bool: "`true` or `false`", int: "integer", float: "number", str: "text"}
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

The sections below stand under `spec:`. In a short manifest `spec:` may be left out, and they stand at the
top. `llmserve apply -f FILE` checks a manifest and shows what it would start; `llmserve schema` prints the
JSON Schema for your editor. [llmserve.yaml](../llmserve.yaml) and the files in [examples/](../examples) are
complete manifests.

A mistake is refused with its file and line, never ignored: an unknown key, a wrong type (`"2"` is not a
number), a combination that cannot be. So is every key that is **planned**: until something obeys it, any
value but its default is answered with "not available yet". All other keys are available.

A key marked **live** can be changed while the cluster runs: `llmserve reload` ([reload.md](reload.md)). All
others need a restart of the processes that obey them, which the reload names.

A dash as default means that the key is not set; its text says what happens then. GiB and KiB are powers of
1024. Text may be quoted or not; quote what looks like a number, such as an API key `"123"`.
"""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the manifest as it is written; a knob has `x-unit`, `x-status`, `x-live`."""
    schema = Manifest.model_json_schema()
    for knob in walk(Manifest):
        _annotate(_properties_of(schema, knob)[knob.path[-1]], knob)
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


def _properties_of(schema: dict[str, Any], knob: ManifestKey) -> dict[str, Any]:
    holder = schema if len(knob.path) == 1 else schema["$defs"][knob.holder.__name__]
    properties: dict[str, Any] = holder["properties"]
    return properties


def _annotate(target: dict[str, Any], knob: ManifestKey) -> None:
    unit, planned = marker(knob.field, KeyUnit), marker(knob.field, Planned)
    target["description"] = meaning(knob)
    target["x-status"] = "available" if planned is None else "planned"
    if unit is not None:
        target["x-unit"] = unit.name
    if is_live(knob.path):
        target["x-live"] = True


def markdown() -> str:
    """docs/configuration.md."""
    knobs = list(walk(Manifest))
    scalars = [knob for knob in knobs if len(knob.path) == 1 and knob.section is None]
    parts = [_INTRODUCTION, "## The file\n", *_tables(scalars)]
    for knob in knobs:
        if knob.section is not None:
            parts += _section(knob, knobs)
    return "\n".join(parts)


def _section(knob: ManifestKey, knobs: list[ManifestKey]) -> Iterator[str]:
    """A heading, and tables of the keys that hold values."""
    depth = sum(1 for part in knob.path if part != ITEM)
    yield f"{'#' * (depth + 1)} `{path_text(knob.path)}`\n"
    yield f"{_meaning(knob)}\n"
    twin = next(one for one in knobs if one.section is knob.section)
    if twin is not knob:
        yield f"Keys as in `{path_text(twin.path)}`.\n"
        return
    yield from _tables([one for one in knobs if one.parent == knob.path and one.section is None])


def _tables(knobs: list[ManifestKey]) -> Iterator[str]:
    """First what is available, then what is planned."""
    planned = [knob for knob in knobs if _is_planned(knob)]
    yield from _table([knob for knob in knobs if not _is_planned(knob)])
    if planned:
        yield "Planned, not available yet:\n"
        yield from _table(planned)


def _is_planned(knob: ManifestKey) -> bool:
    return marker(knob.field, Planned) is not None


def _table(knobs: list[ManifestKey]) -> Iterator[str]:
    if not knobs:
        return
    yield "| Key | Type | Unit | Default | Meaning |"
    yield "|---|---|---|---|---|"
    for knob in knobs:
        unit = marker(knob.field, KeyUnit)
        cells = (
            f"`{path_text(knob.path)}`",
            type_text(knob.field),
            unit.name if unit is not None else "",
            default_text(knob.field),
            _meaning(knob),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _meaning(knob: ManifestKey) -> str:
    text = meaning(knob)
    planned = marker(knob.field, Planned)
    if marker(knob.field, VllmOnly) is not None:
        text += " No effect on the simulated engine."
    if knob.section is None and is_live(knob.path):
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
