"""The models on this machine: those in the cache of the hub's client, and converted ones. They are listed
without a network, and removed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmserve.core.errors import LLMServeError, ModelNotFound, NotFound
from llmserve.models.converted import RECORD_NAME, read_record
from llmserve.models.directory import check_directory, limits
from llmserve.models.files import file_lock, silent
from llmserve.models.hub import cache_folder, repo_lock

_REPO = "models--"
_LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LocalModel:
    """name: what commands call it: ORG/NAME of the hub, or the directory of a converted one. source: what a
    manifest calls it; empty for a converted one, which has the source of its GGUF file. folder: what is
    removed with it. lock: whoever makes or removes the model holds this file. revisions: commits, with the
    names that point to them. missing: why it cannot be loaded; empty when it can. note: what it
    is good for, if it can be loaded and not served."""

    name: str
    source: str
    folder: Path
    lock: Path
    size_bytes: int
    missing: str = ""
    note: str = ""
    revisions: dict[str, tuple[str, ...]] = field(default_factory=dict)


def local_models(cache_dir: Path) -> list[LocalModel]:
    """Returns all models, by name. cache_dir: of LLMServe. Takes milliseconds for each."""
    return sorted([*_of_hub(), *_converted(cache_dir)], key=lambda model: model.name)


def local_model(name: str, cache_dir: Path) -> LocalModel:
    """name: also with `hub:`. Errors: NotFound."""
    known = {one.name: one for one in local_models(cache_dir)}
    found = known.get(name.removeprefix("hub:"))
    if found is None:
        raise NotFound(f"there is no model '{name}' here; `llmserve models ls` lists those that there are")
    return found


def remove(model: LocalModel) -> None:
    """Errors: LLMServeError for one that is being downloaded or converted, or a file that cannot be
    removed."""
    try:
        with file_lock(model.lock, silent, f"prepares {model.name}", _LOCK_SECONDS):
            doomed = model.folder.with_name(f".removing-{model.folder.name}")
            model.folder.rename(doomed)  # so that nobody finds a half of it
            shutil.rmtree(doomed)
    except OSError as error:
        raise LLMServeError(f"{model.name} cannot be removed: {error}") from error


def _of_hub() -> Iterator[LocalModel]:
    for folder in cache_folder().glob(f"{_REPO}*"):
        name = folder.name.removeprefix(_REPO).replace("--", "/")
        commits = {path.name: _pointing(folder, path.name) for path in folder.glob("snapshots/*")}
        yield LocalModel(
            name=name,
            source=f"hub:{name}",
            folder=folder,
            lock=repo_lock(name),
            size_bytes=_size(folder),
            missing=_missing(folder, name),
            note=_note(folder, name),
            revisions=commits,
        )


def _pointing(folder: Path, commit: str) -> tuple[str, ...]:
    """Returns the branches and tags that point to a commit."""
    refs = (path for path in (folder / "refs").rglob("*") if path.is_file())
    return tuple(str(path.relative_to(folder / "refs")) for path in refs if path.read_text() == commit)


def _missing(folder: Path, name: str) -> str:
    """Returns why no snapshot can be loaded; empty when one can."""
    reasons = [_why_not(snapshot, f"hub:{name}") for snapshot in folder.glob("snapshots/*")]
    if "" in reasons:
        return ""
    partial = sum(path.stat().st_size for path in folder.glob("blobs/*.incomplete"))
    if partial:
        return f"{partial / 1e9:.2f} GB of a file are here: the next pull goes on"
    return reasons[0] if reasons else "nothing of it is here"


def _note(folder: Path, name: str) -> str:
    """Returns what all snapshots that can be loaded are limited to; empty when one can be served."""
    whole = (path for path in folder.glob("snapshots/*") if not _why_not(path, f"hub:{name}"))
    notes = [limits(path) for path in whole]
    return "" if not notes or "" in notes else notes[0]


def _why_not(folder: Path, source: str) -> str:
    try:
        check_directory(folder, source)
    except ModelNotFound as error:
        return error.message
    return ""


def _converted(cache_dir: Path) -> Iterator[LocalModel]:
    for record in cache_dir.glob(f"*/{RECORD_NAME}"):
        folder = record.parent
        if read_record(folder) is not None:
            lock = folder.with_name(f"{folder.name}.lock")
            yield LocalModel(folder.name, "", folder, lock, _size(folder))


def _size(folder: Path) -> int:
    """Returns the bytes of a folder's own files, not of those that links point to."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
