"""Resolves the source of a model to a prepared directory, or says what is still to be done for that."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import LLMServeError, ModelNotFound
from llmserve.models.convert import CONVERTER_VERSION
from llmserve.models.converted import ConvertedModels, convert_in_process, converted_before
from llmserve.models.directory import (
    check_directory,
    identity_files,
    model_identity,
    weight_files,
    without_tokenizer,
)
from llmserve.models.files import DigestCache, Progress, silent
from llmserve.models.hub import cached_snapshot, download, expected_sha256
from llmserve.models.sources import ModelSource, SourceKind, packaged_file, parse_source

CACHE_VARIABLE = "LLMSERVE_CACHE_DIR"
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """path: a directory with config.json, weights and, unless it only proposes, a tokenizer, in which nobody
    may write. identity: the digest of all files from which an engine computes (models/directory.py)."""

    path: Path
    name: str
    identity: str
    source: str


def default_cache_dir() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "llmserve" / "models"


def digest_cache(cache_dir: Path | None = None) -> DigestCache:
    """Returns the cache of digests that all processes with this cache directory share."""
    return DigestCache((cache_dir or default_cache_dir()) / "digests.json")


def resolve(spec: ModelSpec, cache_dir: Path | None = None, progress: Progress = silent) -> PreparedModel:
    """Finds a model, and downloads or converts it if necessary. Blocks as long as that takes the first time,
    and for milliseconds afterwards. Several processes may call it at once. Errors: ModelNotFound;
    LLMServeError when a conversion fails."""
    source = source_of(spec)
    return _Resolver(spec, source, cache_dir or default_cache_dir(), progress).prepared()


def source_of(spec: ModelSpec) -> ModelSource:
    """Errors: ModelNotFound."""
    source = parse_source(spec.source)
    if spec.revision is not None and source.kind is not SourceKind.HUB:
        raise ModelNotFound(f"model '{spec.source}': only a hub model has a revision; remove its revision")
    return source


def check_gguf(file: Path, source: str) -> None:
    """Errors: ModelNotFound."""
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise ModelNotFound(f"model '{source}': {file}: {error.strerror}") from error
    if magic != _GGUF_MAGIC:
        raise ModelNotFound(f"model '{source}': {file} is not a GGUF file")


class _Resolver:
    """Resolves one source."""

    def __init__(self, spec: ModelSpec, source: ModelSource, cache_dir: Path, progress: Progress) -> None:
        self._spec = spec
        self._source = source
        self._cache_dir = cache_dir
        self._progress = progress
        self._digests = digest_cache(cache_dir)

    def prepared(self) -> PreparedModel:
        path = self._path()
        check_directory(path, self._spec.source)
        self._progress("computing the digest of the model")
        identity = model_identity(path, self._digests, self._progress)
        self._check_downloaded(path)
        return PreparedModel(path, self._spec.served_name, identity, self._spec.source)

    def _check_downloaded(self, path: Path) -> None:
        """Compares large files of the hub with its digests of them. Errors: LLMServeError for the first that
        differs."""
        for file in identity_files(path):
            wanted = expected_sha256(file)
            if wanted is not None and (found := self._digests.sha256(file)) != wanted:
                raise LLMServeError(
                    f"model '{self._spec.source}': {file} is damaged: its SHA-256 is {found}, but the hub "
                    f"says {wanted}. Remove {file.resolve()}, and the next try downloads this file again"
                )

    def _path(self) -> Path:
        place = self._source.place
        match self._source.kind:
            case SourceKind.HUB:
                return download(place, self._spec.revision, self._progress)
            case SourceKind.DIRECTORY:
                return Path(place).expanduser().absolute()
            case SourceKind.PACKAGE:
                return self._converted(packaged_file(place))
            case SourceKind.GGUF:
                return self._converted(Path(place).expanduser().absolute())

    def _converted(self, file: Path) -> Path:
        check_gguf(file, self._spec.source)
        self._progress(f"checking {file.name}")
        converted = ConvertedModels(self._cache_dir, self._digests, convert_in_process, CONVERTER_VERSION)
        try:
            return converted.get(file, self._progress)
        except OSError as error:
            raise LLMServeError(
                f"model '{self._spec.source}': cannot be prepared in the cache {self._cache_dir}: {error}"
            ) from error


_EXPANSION = 4  # from a GGUF file with 4 bits a weight to bfloat16


class PreparationStage(StrEnum):
    """What `llmserve up` still has to do before engines can load the model."""

    READY = "ready"
    TO_CONVERT = "to be converted"
    TO_DOWNLOAD = "to be downloaded"


@dataclass(frozen=True, slots=True)
class Survey:
    """place: the path of the model, or its place on the hub. weight_bytes: the size that engines load; an
    estimate before a conversion, and 0 before a download."""

    stage: PreparationStage
    place: str
    weight_bytes: int


def survey(spec: ModelSpec, cache_dir: Path | None = None, *, proposes: bool = False) -> Survey:
    """Looks at a source without preparing it, within milliseconds. proposes: the model only proposes tokens
    to another one, so that it is whole without a tokenizer. Errors: ModelNotFound, as resolve."""
    source = source_of(spec)
    match source.kind:
        case SourceKind.HUB:
            return _of_hub(source, spec, proposes)
        case SourceKind.DIRECTORY:
            path = Path(source.place).expanduser()
            check_directory(path, spec.source)
            return Survey(PreparationStage.READY, str(path), _weights(path))
        case SourceKind.PACKAGE:
            return _of_gguf(packaged_file(source.place), spec, cache_dir)
        case SourceKind.GGUF:
            return _of_gguf(Path(source.place).expanduser(), spec, cache_dir)


def _of_hub(source: ModelSource, spec: ModelSpec, proposes: bool) -> Survey:
    path = cached_snapshot(source.place, spec.revision)
    if path is None or not _is_whole(path, spec, proposes):
        return Survey(PreparationStage.TO_DOWNLOAD, f"hub:{source.place}", 0)
    return Survey(PreparationStage.READY, str(path), _weights(path))


def _is_whole(path: Path, spec: ModelSpec, proposes: bool) -> bool:
    """A download that was interrupted may lack the tokenizer alone."""
    try:
        check_directory(path, spec.source)
    except ModelNotFound:
        return False
    return proposes or without_tokenizer(path) is None


def _of_gguf(file: Path, spec: ModelSpec, cache_dir: Path | None) -> Survey:
    check_gguf(file, spec.source)
    folder = converted_before(cache_dir or default_cache_dir(), file, CONVERTER_VERSION)
    if folder is None:
        return Survey(PreparationStage.TO_CONVERT, str(file), _EXPANSION * file.stat().st_size)
    return Survey(PreparationStage.READY, str(folder), _weights(folder))


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))
