"""A model source to a prepared directory."""

import os
from pathlib import Path

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import LLMServeError, ModelNotFound
from llmserve.models.convert import CONVERTER_VERSION
from llmserve.models.converted import ConvertedModels
from llmserve.models.digests import DigestCache
from llmserve.models.directory import check_directory
from llmserve.models.hub import download
from llmserve.models.identity import model_identity
from llmserve.models.package import packaged_file
from llmserve.models.prepared import PreparedModel, Progress, silent
from llmserve.models.process import convert_in_process
from llmserve.models.source import Source, SourceKind, parse_source

CACHE_VARIABLE = "LLMSERVE_CACHE_DIR"
_GGUF_MAGIC = b"GGUF"


def default_cache_dir() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "llmserve" / "models"


def digest_cache(cache_dir: Path | None = None) -> DigestCache:
    """What all processes that share a cache directory know of the contents of files."""
    return DigestCache((cache_dir or default_cache_dir()) / "digests.json")


def resolve(spec: ModelSpec, cache_dir: Path | None = None, progress: Progress = silent) -> PreparedModel:
    """Finds, and if need be downloads or converts, a model. Blocks: the first time for as long as that
    takes, afterwards for milliseconds. Safe in several processes at once.
    Errors: ModelNotFound; LLMServeError when a conversion fails."""
    source = source_of(spec)
    return _Resolver(spec, source, cache_dir or default_cache_dir(), progress).prepared()


def source_of(spec: ModelSpec) -> Source:
    """Errors: ModelNotFound."""
    source = parse_source(spec.source)
    if spec.revision is not None and source.kind is not SourceKind.HUB:
        raise ModelNotFound(
            f"model '{spec.source}': only a hub model has a revision; remove models.primary.revision"
        )
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
    """One use."""

    def __init__(self, spec: ModelSpec, source: Source, cache_dir: Path, progress: Progress) -> None:
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
        return PreparedModel(path, self._spec.served_name, identity, self._spec.source)

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
