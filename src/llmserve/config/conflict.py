"""What is wrong in a manifest: a conflict, which rules find, and a problem, which has a line of the file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmserve.config.schema.section import path_text
from llmserve.core.errors import ManifestError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Values that are right alone and cannot be combined, or cannot be used here. The finding is reported at
    the first path. The other paths are the keys that it conflicts with."""

    paths: tuple[Path, ...]
    message: str

    @classmethod
    def at(cls, message: str, *keys: str) -> "Conflict":
        """Takes keys as the documentation writes them: `deployment.replicas.router`."""
        return cls(tuple(tuple(key.split(".")) for key in keys), message)

    def as_error(self) -> ManifestError:
        """Returns the finding without its line, for callers that have no file."""
        key = self.paths[0]
        return ManifestError(f"{path_text(key)}: {self.message}", key=key)

    @classmethod
    def of(cls, error: ManifestError) -> "Conflict":
        """The reverse of `as_error`; the error has a key."""
        return cls((error.key,), error.message.removeprefix(f"{path_text(error.key)}: "))


def refuse(conflicts: Iterable[Conflict]) -> None:
    """Errors: ManifestError for the first conflict, if there is one."""
    for conflict in conflicts:
        raise conflict.as_error()


def named_twice(path: Path, names: Sequence[str], words: str) -> Iterator[Conflict]:
    """Yields the items of a list that repeat an earlier one. words: how messages write an item."""
    for index, name in enumerate(names):
        first = names.index(name)
        if first < index:
            yield Conflict(((*path, index), (*path, first)), f"names {words.format(name)} twice")


@dataclass(frozen=True, slots=True)
class ManifestProblem:
    """line: counts from 1. path: empty for the file as a whole."""

    line: int
    path: Path
    message: str
