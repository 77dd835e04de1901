"""Whether a model's source is there, and what is still to be done with it. Prepares nothing."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmserve.config.schema import ModelSpec
from llmserve.core.errors import ModelNotFound
from llmserve.models.convert import CONVERTER_VERSION
from llmserve.models.converted import converted_before
from llmserve.models.directory import check_directory, weight_files
from llmserve.models.hub import cached_snapshot
from llmserve.models.package import packaged_file
from llmserve.models.resolve import check_gguf, default_cache_dir, source_of
from llmserve.models.source import Source, SourceKind

_EXPANSION = 4  # of a GGUF file with 4 bits a weight, to bfloat16


class Stage(StrEnum):
    """What `llmserve up` still has to do before the engines can load it."""

    READY = "ready"
    TO_CONVERT = "to be converted"
    TO_DOWNLOAD = "to be downloaded"


@dataclass(frozen=True, slots=True)
class Survey:
    """place: where it was found, or on the hub. weight_bytes: as the engines load it; an estimate while it is
    to be converted, 0 while it is to be downloaded."""

    stage: Stage
    place: str
    weight_bytes: int


def survey(spec: ModelSpec, cache_dir: Path | None = None) -> Survey:
    """Takes milliseconds. Errors: ModelNotFound, as resolve would raise."""
    source = source_of(spec)
    match source.kind:
        case SourceKind.HUB:
            return _of_hub(source, spec)
        case SourceKind.DIRECTORY:
            path = Path(source.place).expanduser()
            check_directory(path, spec.source)
            return Survey(Stage.READY, str(path), _weights(path))
        case SourceKind.PACKAGE:
            return _of_gguf(packaged_file(source.place), spec, cache_dir)
        case SourceKind.GGUF:
            return _of_gguf(Path(source.place).expanduser(), spec, cache_dir)


def _of_hub(source: Source, spec: ModelSpec) -> Survey:
    path = cached_snapshot(source.place, spec.revision)
    if path is None:
        return Survey(Stage.TO_DOWNLOAD, f"hub:{source.place}", 0)
    try:
        check_directory(path, spec.source)
    except ModelNotFound:  # half a download
        return Survey(Stage.TO_DOWNLOAD, f"hub:{source.place}", 0)
    return Survey(Stage.READY, str(path), _weights(path))


def _of_gguf(file: Path, spec: ModelSpec, cache_dir: Path | None) -> Survey:
    check_gguf(file, spec.source)
    folder = converted_before(cache_dir or default_cache_dir(), file, CONVERTER_VERSION)
    if folder is None:
        return Survey(Stage.TO_CONVERT, str(file), _EXPANSION * file.stat().st_size)
    return Survey(Stage.READY, str(folder), _weights(folder))


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))
