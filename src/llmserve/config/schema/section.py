"""What a knob of the manifest is made of, beside its type, default and bounds.

A section is a frozen pydantic model; a field of it is a knob, annotated with its unit, its text and,
while nothing obeys it, with `Planned`. That marker alone makes every other value than the inert one
an error: a knob is obeyed or refused, never ignored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

NOT_AVAILABLE = "not_available_yet"

Reader = Literal["cluster", "router", "kvmanager", "apiserver", "worker"]
"""Who obeys a knob. `worker`: prefill, decode, or both in one. `cluster`: whoever plans the processes."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class KeyUnit:
    """What a number counts: "tokens", "seconds", "GiB" ..."""

    name: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Nothing obeys this knob yet, beyond its default. comes_with names what will obey it."""

    comes_with: str


@dataclass(frozen=True, slots=True)
class VllmOnly:
    """The simulated engine does not look at this knob; the plan says so when it is set."""


@dataclass(frozen=True, slots=True)
class Live:
    """A reload of the manifest brings this knob, and what is below it, to these while they run.

    at_start: others that obey it only from their next start.
    """

    readers: tuple[Reader, ...]
    at_start: tuple[Reader, ...] = ()


@dataclass(frozen=True, slots=True)
class AtStart:
    """Below a live list: what these obey only from their next start."""

    readers: tuple[Reader, ...]


def marker(field: FieldInfo, kind: type[_T]) -> _T | None:
    """The annotation of this kind on a field, if it has one."""
    return next((item for item in field.metadata if isinstance(item, kind)), None)


class ManifestSection(BaseModel):
    """A mapping of the manifest. Types are strict: no text becomes a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_planned(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        planned = marker(field, Planned)
        if planned is not None and value != field.get_default():
            raise PydanticCustomError(
                NOT_AVAILABLE,
                "not available yet; it comes with {comes_with}",
                {"comes_with": planned.comes_with},
            )
        return value


ITEM = "[]"


@dataclass(frozen=True, slots=True)
class ManifestKey:
    """A key of the manifest. In `path`, "[]" stands for any item of a list. `holder` is the mapping it
    is a key of; `section` the mapping (or the mapping in each item) that it holds, if it holds one."""

    path: tuple[str, ...]
    field: FieldInfo
    holder: type[ManifestSection]
    section: type[ManifestSection] | None

    @property
    def parent(self) -> tuple[str, ...]:
        """The path of the key that holds the holder."""
        above = self.path[:-1]
        return above[:-1] if above and above[-1] == ITEM else above


def walk(root: type[ManifestSection], path: tuple[str, ...] = ()) -> Iterator[ManifestKey]:
    """All knobs below a section, parents first, in the order of the schema."""
    for name, field in root.model_fields.items():
        section, repeated = _section_of(field.annotation)
        yield ManifestKey((*path, name), field, root, section)
        if section is not None:
            yield from walk(section, (*path, name, ITEM) if repeated else (*path, name))


def section_at(root: type[ManifestSection], path: Sequence[str | int]) -> type[ManifestSection] | None:
    """The section at a path of a manifest, whose list items are numbered."""
    section: type[ManifestSection] | None = root
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


def _section_of(annotation: Any) -> tuple[type[ManifestSection] | None, bool]:
    """The section that a type holds, itself or optional or in a tuple, and whether it repeats."""
    if isinstance(annotation, type) and issubclass(annotation, ManifestSection):
        return annotation, False
    repeated = getattr(annotation, "__origin__", None) is tuple
    for argument in get_args(annotation):
        section, _ = _section_of(argument)
        if section is not None:
            return section, repeated
    return None, False
