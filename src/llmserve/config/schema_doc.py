"""Generates docs/configuration.md and the JSON Schema for editors from the schema.

python -m llmserve.config.schema_doc --write docs/configuration.md
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmserve.config.changes import is_live
from llmserve.config.key_text import default_text, meaning, type_text
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import (
    ITEM,
    ForAllModels,
    KeyUnit,
    ManifestKey,
    Planned,
    VllmOnly,
    marker,
    path_text,
    walk,
)

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
    yield f"{_whole_meaning(key)}\n"
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
            _whole_meaning(key),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _whole_meaning(key: ManifestKey) -> str:
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
