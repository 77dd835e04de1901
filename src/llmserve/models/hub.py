"""A model of the Hugging Face hub, downloaded into the hub's own cache."""

import os
from pathlib import Path

from llmserve.core.errors import ModelNotFound
from llmserve.models.directory import weight_files
from llmserve.models.prepared import Progress

_TEXTS = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_NOT_OURS = ["original/*", "onnx/*", "*/*.safetensors"]


def download(repo: str, revision: str | None, progress: Progress) -> Path:
    """The snapshot's directory, whose name is the commit. Without a network, what the hub's cache holds.
    Errors: ModelNotFound saying what was tried and what to do."""
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


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The directory in the hub's cache, perhaps half a download; None: there is none. Asks no network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # it comes with vLLM
        return None
    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def cache_folder() -> Path:
    """Where the hub's client keeps its downloads."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)


def _explain(repo: str, revision: str | None, error: Exception) -> str:
    """The class names are the hub client's."""
    kind = type(error).__name__
    source = f"model 'hub:{repo}'"
    if kind == "GatedRepoError":
        return f"{source}: is gated; accept its terms on the hub and set HF_TOKEN"
    if kind == "RevisionNotFoundError":
        return f"{source}: has no revision '{revision}' on the hub"
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return (
            f"{source}: there is no such model on the hub, or it is private: check the name, or set HF_TOKEN"
        )
    tried = "the hub's cache (HF_HUB_OFFLINE is set)" if _offline() else "the hub and its cache"
    first = str(error).strip().partition("\n")[0] or kind
    return (
        f"{source}: is not to be had from {tried}: {first}. Connect to the network, or download it elsewhere "
        "and use dir:/PATH, or use a package: source, which needs no hub"
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
