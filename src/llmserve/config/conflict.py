"""What a rule says about a manifest of right values that cannot be."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmserve.config.schema.section import path_text
from llmserve.core.errors import ManifestError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """The first path is where it is reported; the others are what it conflicts with."""

    paths: tuple[Path, ...]
    message: str

    def as_error(self) -> ManifestError:
        """Without the line, for whoever has no file."""
        key = self.paths[0]
        return ManifestError(f"{path_text(key)}: {self.message}", key=key)

    @classmethod
    def of(cls, error: ManifestError) -> "Conflict":
        """error: one with a key."""
        return cls((error.key,), error.message.removeprefix(f"{path_text(error.key)}: "))


def refuse(conflicts: Iterable[Conflict]) -> None:
    """Errors: ManifestError for the first, if there is one."""
    for conflict in conflicts:
        raise conflict.as_error()
