"""The schema as a tree of knobs: for suggestions, for the documentation, and for the plan's notes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo

from llmserve.config.knob import Section

ITEM = "[]"


@dataclass(frozen=True, slots=True)
class Knob:
    """A key of the manifest. In `path`, "[]" stands for any item of a list. `holder` is the mapping it
    is a key of; `section` the mapping (or the mapping in each item) that it holds, if it holds one."""

    path: tuple[str, ...]
    field: FieldInfo
    holder: type[Section]
    section: type[Section] | None

    @property
    def parent(self) -> tuple[str, ...]:
        """The path of the key that holds the holder."""
        above = self.path[:-1]
        return above[:-1] if above and above[-1] == ITEM else above


def walk(root: type[Section], path: tuple[str, ...] = ()) -> Iterator[Knob]:
    """All knobs below a section, parents first, in the order of the schema."""
    for name, field in root.model_fields.items():
        section, repeated = _section_of(field.annotation)
        yield Knob((*path, name), field, root, section)
        if section is not None:
            yield from walk(section, (*path, name, ITEM) if repeated else (*path, name))


def section_at(root: type[Section], path: Sequence[str | int]) -> type[Section] | None:
    """The section at a path of a manifest, whose list items are numbered."""
    section: type[Section] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        section, _ = _section_of(section.model_fields[part].annotation)
    return section


def path_text(path: Sequence[str | int]) -> str:
    """`security.api_keys[0].key`."""
    text = ""
    for part in path:
        item = isinstance(part, int) or part == ITEM
        text += (f"[{part}]" if isinstance(part, int) else ITEM) if item else f".{part}"
    return text.removeprefix(".")


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a type holds, itself or optional or in a tuple, and whether it repeats."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    repeated = getattr(annotation, "__origin__", None) is tuple
    for argument in get_args(annotation):
        section, _ = _section_of(argument)
        if section is not None:
            return section, repeated
    return None, False
