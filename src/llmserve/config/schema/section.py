"""What the schema of the manifest is built from, and how its keys are walked.

A section is a frozen pydantic model. A key is a field of it: its annotation carries the unit and other
markers, `Field` its bounds, and the docstring below it its text in docs/configuration.md. A key that holds a
section and has no docstring is described by that section's docstring.

A key that nothing reads yet is marked `Planned`, and every value but its default is an error: a key is obeyed
or refused, never ignored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, LiteralString, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from llmserve.core.errors import InvalidRequest

NOT_AVAILABLE = "not_available_yet"
ITEM = "[]"

Reader = Literal["cluster", "router", "kvmanager", "apiserver", "worker"]
"""The processes that read a key. `worker`: prefill, decode or both in one. `cluster`: the planner of
processes."""

_T = TypeVar("_T")
_Section = TypeVar("_Section", bound="ManifestSection")


@dataclass(frozen=True, slots=True)
class KeyUnit:
    """The unit of a number: "tokens", "seconds", "GiB" ..."""

    name: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Marks a key that nothing reads yet. comes_with: the feature that will read it."""

    comes_with: str


@dataclass(frozen=True, slots=True)
class VllmOnly:
    """Marks a key that the simulated engine does not read. The plan says so when it is set."""


@dataclass(frozen=True, slots=True)
class ForAllModels:
    """Marks a key with one value for all models, which the entry of one model cannot change."""


@dataclass(frozen=True, slots=True)
class Live:
    """Marks a key that a reload of the manifest brings, with all keys below it, to running processes.

    readers: the processes that apply it while they run. at_start: those that apply it only at their next
    start.
    """

    readers: tuple[Reader, ...]
    at_start: tuple[Reader, ...] = ()


@dataclass(frozen=True, slots=True)
class AtStart:
    """Marks a key below a live list that these readers apply only at their next start."""

    readers: tuple[Reader, ...]


Seconds = Annotated[float, KeyUnit("seconds")]
Tokens = Annotated[int, KeyUnit("tokens")]
Requests = Annotated[int, KeyUnit("requests")]
GiB = Annotated[float, KeyUnit("GiB")]


def marker(field: FieldInfo, kind: type[_T]) -> _T | None:
    """Returns the marker of this kind on a key, or on a type in its annotation; None without one."""
    inner = (item for part in get_args(field.annotation) for item in getattr(part, "__metadata__", ()))
    return next((item for item in (*field.metadata, *inner) if isinstance(item, kind)), None)


class ManifestSection(BaseModel):
    """A mapping of the manifest. Types are strict: text never becomes a number."""

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


@contextmanager
def refusing(kind: LiteralString) -> Iterator[None]:
    """Turns an InvalidRequest in a validator into an error of the manifest. kind: pydantic's type of it."""
    try:
        yield
    except InvalidRequest as error:
        raise PydanticCustomError(kind, "{text}", {"text": error.message}) from error


@dataclass(frozen=True, slots=True)
class ManifestKey:
    """A key of the manifest. In `path`, "[]" stands for any item of a list. `holder` is the section that has
    the key. `section` is the section that the key (or each item of its list) holds, if it holds one. A key
    that holds a section or a list of others, as `models` does, is followed by a second one for the list, with
    a path that ends with "[]"."""

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
    """Yields all keys below a section, parents first, in the order of the schema."""
    for name, field in root.model_fields.items():
        sections, here = tuple(_sections_of(field.annotation)), (*path, name)
        if not sections:
            yield ManifestKey(here, field, root, None)
        for index, (section, repeated) in enumerate(sections):
            below = (*here, ITEM) if repeated else here
            yield ManifestKey(below if index else here, field, root, section)
            yield from walk(section, below)


def section_at(root: type[ManifestSection], path: Sequence[str | int]) -> type[ManifestSection] | None:
    """Returns the section at a path of a manifest, in which list items are numbered; None: there is none."""
    section: type[ManifestSection] | None = root
    for index, part in enumerate(path):
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        sections = tuple(_sections_of(section.model_fields[part].annotation))
        is_item = isinstance(next(iter(path[index + 1 :]), None), int)
        fitting = (one for one, repeated in sections if repeated == is_item or len(sections) == 1)
        section = next(fitting, None)
    return section


def path_text(path: Sequence[str | int]) -> str:
    """Writes a path as messages do: `security.api_keys[0].key`."""
    parts = (f"[{part}]" if isinstance(part, int) else part if part == ITEM else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def merged(below: _Section, over: _Section) -> _Section:
    """Returns a section with the keys that another one sets. Sections and mappings in it are merged likewise;
    lists are replaced."""
    update = {name: _merged_value(below, over, name) for name in over.model_fields_set}
    return below.model_copy(update=update)


def _merged_value(below: ManifestSection, over: ManifestSection, name: str) -> Any:
    under, value = getattr(below, name), getattr(over, name)
    if isinstance(under, dict) and isinstance(value, dict):
        return {**under, **value}
    sections = isinstance(under, ManifestSection) and isinstance(value, ManifestSection)
    return merged(under, value) if sections else value


def _sections_of(annotation: Any) -> Iterator[tuple[type[ManifestSection], bool]]:
    """Yields the sections that a type holds, itself or optional or in a tuple, and whether each repeats."""
    if isinstance(annotation, type) and issubclass(annotation, ManifestSection):
        yield annotation, False
        return
    is_tuple = getattr(annotation, "__origin__", None) is tuple
    for argument in get_args(annotation):
        for section, repeated in _sections_of(argument):
            yield section, repeated or is_tuple
