"""What a rule says about a combination of right values that cannot be."""

from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """The first path is where it is reported; the others are what it conflicts with."""

    paths: tuple[Path, ...]
    message: str
