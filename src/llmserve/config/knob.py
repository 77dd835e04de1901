"""What a knob of the manifest is made of, beside its type, default and bounds.

A section is a frozen pydantic model; a field of it is a knob, annotated with its unit, its text and,
while nothing obeys it, with `Planned`. That marker alone makes every other value than the inert one
an error: a knob is obeyed or refused, never ignored.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

NOT_AVAILABLE = "not_available_yet"

Reader = Literal["cluster", "router", "kvmanager", "apiserver", "worker"]
"""Who obeys a knob. `worker`: prefill, decode, or both in one. `cluster`: whoever plans the processes."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Unit:
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


class Section(BaseModel):
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
