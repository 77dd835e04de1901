"""Models of the hub, in the cache of the hub's client.

The client downloads a file anew when its process ended in the middle. So the large files (LFS) are downloaded
here, into the place in the client's cache where the client looks for them: `blobs/SHA256`. Until it is whole
and has this SHA-256, a file is called `blobs/SHA256.incomplete`, and the next try goes on from its end. The
client does the rest: small files, names, references.
"""

import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

from llmserve.core.errors import Cancelled, LLMServeError, ModelNotFound, StorageFull
from llmserve.models.directory import PICKLES, SAFETENSORS, only_pickles
from llmserve.models.files import Meter, Progress, file_lock, file_sha256, no_room

_TEXTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_NOT_OURS = ("original/*", "onnx/*", "*/*.safetensors")
_WANTED = (*_TEXTS, SAFETENSORS)
_LOCK_SECONDS = 24 * 3600.0
_THREADS = 4
_MARGIN_BYTES = 64 << 20  # stays free on the file system
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GB = 1e9


@dataclass(frozen=True, slots=True)
class _HubFile:
    """sha256: of a file that is stored with LFS; empty for a small one."""

    name: str
    size_bytes: int
    sha256: str


def download(repo: str, revision: str | None, progress: Progress) -> Path:
    """Downloads a model into the cache of the hub's client and returns the snapshot's directory, whose name
    is the commit. When the hub does not answer, returns what the cache holds. Errors: ModelNotFound with what
    was tried and what to do; StorageFull; LLMServeError for a file with another SHA-256 than the hub's."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    wanted = repo if revision is None else f"{repo} at {revision}"
    progress(f"downloading {wanted} from the hub")
    try:
        commit, listed = _listed(repo, revision)
    except Exception as error:  # the hub's client raises errors of three libraries
        return _cached(repo, revision, error)
    _check_kinds(repo, [file.name for file in listed])
    files = [file for file in listed if _is_wanted(file.name)]
    with file_lock(repo_lock(repo), progress, f"downloads {repo}", _LOCK_SECONDS):
        try:
            _Blobs(repo, commit, progress).fetch([file for file in files if file.sha256])
            return _snapshot(repo, revision, [file.name for file in files])
        except LLMServeError:
            raise
        except Exception as error:
            if no_room(error):
                raise StorageFull(f"model 'hub:{repo}': {cache_folder()} is full: {_GOES_ON}") from error
            raise ModelNotFound(_explain(repo, revision, error)) from error


_GOES_ON = "make room, and the next try goes on where this one stopped"


def _listed(repo: str, revision: str | None) -> tuple[str, Sequence[_HubFile]]:
    """Returns the commit and its files. Errors: those of the hub's client."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    found = [
        _HubFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else "")
        for one in info.siblings or ()
    ]
    return info.sha or "", found


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _WANTED) and not any(
        fnmatch(name, pattern) for pattern in _NOT_OURS
    )


def _check_kinds(repo: str, names: Sequence[str]) -> None:
    """Errors: ModelNotFound for a model whose weights LLMServe does not load, before they are downloaded."""
    if any(fnmatch(name, SAFETENSORS) and _is_wanted(name) for name in names):
        return
    source = f"model 'hub:{repo}'"
    if pickles := [name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES)]:
        raise ModelNotFound(only_pickles(source, pickles))
    if files := [name for name in names if name.endswith(".gguf")]:
        raise ModelNotFound(
            f"{source}: has GGUF files alone, such as {files[0]}: download one of them, and use gguf:/PATH"
        )


def _snapshot(repo: str, revision: str | None, names: Sequence[str], **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        repo, revision=revision, allow_patterns=list(names), ignore_patterns=list(_NOT_OURS), **options
    )
    return Path(found)


def _cached(repo: str, revision: str | None, refusal: Exception) -> Path:
    """Errors: ModelNotFound for the refusal, when the cache does not have the whole model."""
    try:
        return _snapshot(repo, revision, _WANTED, local_files_only=True)
    except Exception as error:
        raise ModelNotFound(_explain(repo, revision, refusal)) from error


class _CountedFile(FileIO):
    """A file that is written from its end on, by writes that are never short, until `stopped` is set."""

    def __init__(self, path: Path, meter: Meter, stopped: Event) -> None:
        super().__init__(path, "ab")
        self._meter = meter
        self._stopped = stopped

    def write(self, data: Any) -> int:
        """Errors: Cancelled, OSError."""
        if self._stopped.is_set():
            raise Cancelled("the download was stopped")
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fileno(), rest) :]
        self._meter.add(len(data))
        return len(data)


class _Blobs:
    """The large files of one commit. The caller holds the lock of the repository."""

    def __init__(self, repo: str, commit: str, progress: Progress) -> None:
        self._repo = repo
        self._commit = commit
        self._progress = progress
        self._folder = _repo_folder(repo) / "blobs"
        self._stopped = Event()

    def fetch(self, files: Sequence[_HubFile]) -> None:
        """Errors: StorageFull, LLMServeError (another SHA-256), OSError, those of the hub's client."""
        missing = {file.sha256: file for file in files if not (self._folder / file.sha256).exists()}
        if not missing:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        there = {sha256: self._size_there(sha256) for sha256 in missing}
        left = sum(file.size_bytes - there[file.sha256] for file in missing.values())
        self._check_room(left)
        if sum(there.values()):
            self._progress(f"going on with a download of which {sum(there.values()) / _GB:.2f} GB are here")
        meter = Meter(left, self._progress, f"downloading {self._repo}")
        with ThreadPoolExecutor(_THREADS) as threads:
            try:
                list(threads.map(lambda file: self._fetch(file, meter), missing.values()))
            except BaseException:  # also Ctrl-C: threads end before this process does
                self._stopped.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _partial(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.incomplete"

    def _size_there(self, sha256: str) -> int:
        partial = self._partial(sha256)
        return partial.stat().st_size if partial.exists() else 0

    def _check_room(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < size_bytes + _MARGIN_BYTES:
            raise StorageFull(
                f"model 'hub:{self._repo}': {size_bytes / _GB:.2f} GB are to be downloaded, and "
                f"{free / _GB:.2f} GB are free in {cache_folder()}: {_GOES_ON}"
            )

    def _fetch(self, file: _HubFile, meter: Meter) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        partial = self._partial(file.sha256)
        with _CountedFile(partial, meter, self._stopped) as target:
            http_get(
                hf_hub_url(self._repo, file.name, revision=self._commit),
                target,
                resume_size=target.tell(),
                headers=build_hf_headers(),
                expected_size=file.size_bytes,
                displayed_filename=file.name,
            )
        found = file_sha256(partial)
        if found != file.sha256:
            partial.unlink()
            raise LLMServeError(
                f"model 'hub:{self._repo}': {file.name} came with the SHA-256 {found}, but the hub says "
                f"{file.sha256}: it was thrown away, and all other files stay"
            )
        partial.rename(self._folder / file.sha256)


# -- the cache of the hub's client


def cache_folder() -> Path:
    """Returns the folder of the hub client's downloads."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)


def _repo_folder(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def repo_lock(repo: str) -> Path:
    """Returns the file that whoever downloads or removes a model locks."""
    return cache_folder() / ".locks" / _repo_folder(repo).name / "llmserve.lock"


def cached_snapshot(repo: str, revision: str | None, name: str = "config.json") -> Path | None:
    """Returns the directory in the hub's cache that has a file of this name, and may be incomplete; None
    without one. Uses no network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # it comes with vLLM
        return None
    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def expected_sha256(file: Path) -> str | None:
    """Returns the SHA-256 that the hub names for a file of a snapshot; None: the file is a small one, or not
    of the hub's cache."""
    name = file.resolve().name
    return name if file.is_symlink() and _SHA256.fullmatch(name) else None


# -- why it is not to be had


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
