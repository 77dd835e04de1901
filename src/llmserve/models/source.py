"""The words of `models.primary.source`, taken apart. Pure but for a look whether a bare path exists."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmserve.core.errors import ModelNotFound


class SourceKind(StrEnum):
    HUB = "hub"
    DIRECTORY = "dir"
    GGUF = "gguf"
    PACKAGE = "package"


@dataclass(frozen=True, slots=True)
class Source:
    """place: the hub id, the path, or PACKAGE/FILE."""

    kind: SourceKind
    place: str


def parse_source(text: str) -> Source:
    """Errors: ModelNotFound for a bare path that is not there."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme in tuple(SourceKind):
        return Source(SourceKind(scheme), rest)
    path = Path(text).expanduser()
    if path.is_dir():
        return Source(SourceKind.DIRECTORY, text)
    if path.is_file():
        return Source(SourceKind.GGUF, text)
    if _is_hub_id(text):
        return Source(SourceKind.HUB, text)
    raise ModelNotFound(
        f"model '{text}': there is no such file or directory here, and a hub id has the form ORG/NAME"
    )


def _is_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and text[0] not in "./~" and not text.endswith(".gguf")
