"""Loads a Manifest from YAML. Reports all problems of a file at once, each with its line, path and a hint."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmserve.config.conflict import Conflict, ManifestProblem, Path
from llmserve.config.messages import describe, did_you_mean, shown, unknown_key
from llmserve.config.rules import conflicts
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import path_text
from llmserve.config.several_models import conflict_in_file
from llmserve.config.yaml_tree import Document, read_document
from llmserve.core.errors import ManifestError

MAX_FILE_BYTES = 1_000_000

_HEAD = ("apiVersion", "kind", "metadata")
_SECRETS = frozenset({("security", "api_keys"), ("state", "redis"), ("engine", "env")})
_ABSENT = object()
_NO_MODEL = {"models": {"primary": {"source": "stand/in"}}}
_MISSING_HINTS: Mapping[Path, str] = {
    ("kind",): "; write 'kind: LLMServe'",
    ("models",): "; it needs models.primary.source",
}


def load_manifest(path: str | FilePath) -> Manifest:
    """Reads a manifest file. Errors: ManifestError, one line for each problem."""
    return parse_manifest(read_manifest(path), str(path))


def read_manifest(path: str | FilePath) -> str:
    """Returns the text of a manifest file. Errors: ManifestError."""
    return _read(FilePath(path))


def read_again(path: FilePath) -> str:
    """Reads the manifest of a running cluster again, and suggests no other file. Errors: ManifestError."""
    if not path.exists():
        raise ManifestError(
            f"{path}: the manifest of this cluster is gone; put it back there. What runs goes on as it is, "
            "but a process that ends cannot be started again without it"
        )
    return read_manifest(path)


def parse_manifest(text: str, file: str) -> Manifest:
    """Parses the text of a manifest. file: its name in messages. Errors: as load_manifest."""
    document = read_document(text)
    source = _Source(document)
    manifest, found = _validate(source)
    problems = {*document.problems, *found}
    if manifest is None or problems:
        raise ManifestError("\n".join(_lines(file, problems)))
    return manifest


def locate(path: str | FilePath, conflicts: Iterable[Conflict]) -> ManifestError:
    """Returns the error for conflicts that were found after the file was read, each with file and line."""
    source = _Source(read_document(read_manifest(path)))
    found = dict.fromkeys(source.problem(one.paths[0], one.message) for one in conflicts)
    return ManifestError("\n".join(_lines(str(path), found)))


def located(error: ManifestError, path: str | FilePath, model: str = "") -> ManifestError:
    """Adds file and line to an error that has only a key. model: the key is one of the manifest of this model
    alone. Returns it unchanged when the file cannot be read."""
    if not error.key:
        return error
    with suppress(ManifestError):
        found = Conflict.of(error)
        if model:
            manifest = load_manifest(path)
            found = conflict_in_file(manifest, manifest.entry(model), found)
        return locate(path, [found])
    return error


def _lines(file: str, problems: Iterable[ManifestProblem]) -> list[str]:
    ordered = sorted(problems, key=lambda problem: (problem.line, path_text(problem.path)))
    return [_line(file, problem) for problem in ordered]


def _line(file: str, problem: ManifestProblem) -> str:
    where = f"{path_text(problem.path)}: " if problem.path else ""
    return f"{file}:{problem.line}: {where}{problem.message}".replace("\n", "\\n")


def _read(path: FilePath) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is no such file{_similar_file(path)}") from None
    except IsADirectoryError:
        raise ManifestError(f"{path}: is a directory, not a manifest") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ManifestError(f"{path}: is larger than a manifest may be ({MAX_FILE_BYTES} bytes)")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}:{line}: is not UTF-8 text") from None


def _similar_file(path: FilePath) -> str:
    beside = {other.stem: other for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)}
    close = difflib.get_close_matches(path.stem, beside, n=1)
    return f"; did you mean '{beside[close[0]]}'?" if close else ""


@dataclass(frozen=True, slots=True)
class _Source:
    """Finds the sections in the file: under `spec`, or at the top."""

    document: Document

    @property
    def under_spec(self) -> bool:
        return isinstance(self.document.data, dict) and "spec" in self.document.data

    def sections(self) -> tuple[dict[str, Any], list[ManifestProblem]]:
        """Returns the data in the shape of the schema, and the problems of keys at a wrong level."""
        data = self.document.data
        if not self.under_spec:
            return dict(data), []
        spec = data["spec"]
        if not isinstance(spec, dict):
            return _head(data) | _NO_MODEL, [self.problem_at(("spec",), _not_a_mapping(spec))]
        problems = [self._beside_spec(key) for key in data if key not in (*_HEAD, "spec")]
        problems += [self._in_spec(key) for key in spec if key in _HEAD]
        return _head(data) | {key: spec[key] for key in spec if key not in _HEAD}, problems

    def _beside_spec(self, key: str) -> ManifestProblem:
        hint = "; it belongs under 'spec'" if key in Manifest.model_fields else ""
        return self.problem_at((key,), "unknown key" + (hint or did_you_mean(key, (*_HEAD, "spec"))))

    def _in_spec(self, key: str) -> ManifestProblem:
        return self.problem_at(("spec", key), "unknown key; it belongs beside 'spec', at the top")

    def problem(self, path: Path, message: str) -> ManifestProblem:
        """Returns the problem of a path in the schema."""
        written = ("spec", *path) if self.under_spec and path[0] not in _HEAD else path
        return self.problem_at(written, message)

    def problem_at(self, written: Path, message: str) -> ManifestProblem:
        return ManifestProblem(self.document.line(written), written, message)


def _head(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in _HEAD if key in data}


def _not_a_mapping(value: Any) -> str:
    return f"expected a mapping of keys, got {shown(value)}"


def _validate(source: _Source) -> tuple[Manifest | None, list[ManifestProblem]]:
    data = source.document.data
    if data is None:
        empty = "the file is empty; start with 'kind: LLMServe'"
        return None, [] if source.document.problems else [ManifestProblem(1, (), empty)]
    if not isinstance(data, dict):
        return None, [source.problem_at((), _not_a_mapping(data))]
    sections, problems = source.sections()
    try:
        manifest = Manifest.model_validate(sections)
    except ValidationError as error:
        wrong = _wrong_values(error, sections)
        problems += [source.problem(path, message) for path, message in wrong.items()]
        return None, problems + _conflicts_of_the_rest(source, sections, list(wrong))
    return manifest, problems + [source.problem(one.paths[0], one.message) for one in conflicts(manifest)]


def _wrong_values(error: ValidationError, sections: dict[str, Any]) -> dict[Path, str]:
    """Returns what is wrong at each path. Of several errors of a union only the deepest ones count."""
    messages: dict[Path, list[str]] = {}
    for details in error.errors():
        path = _path_in(sections, details)
        messages.setdefault(path, []).append(_message(path, details))
    return {path: "; or ".join(texts) for path, texts in messages.items() if not _is_shallow(path, messages)}


def _is_shallow(path: Path, others: Mapping[Path, Any]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in others)


def _path_in(sections: dict[str, Any], details: ErrorDetails) -> Path:
    """Returns the location of an error without the names that pydantic gives to members of a union."""
    path: list[str | int] = []
    value: Any = sections
    for part in details["loc"]:
        inner = _child(value, part)
        if inner is not _ABSENT:
            path.append(part)
            value = inner
    return (*path, details["loc"][-1]) if details["type"] == "missing" else tuple(path)


def _child(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part, _ABSENT)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return _ABSENT


def _message(path: Path, details: ErrorDetails) -> str:
    if details["type"] == "extra_forbidden":
        return unknown_key(Manifest, path)
    text = describe(details, secret=not _SECRETS.isdisjoint(pairwise(path)))
    return text + _MISSING_HINTS.get(path, "") if details["type"] == "missing" else text


def _conflicts_of_the_rest(
    source: _Source, sections: dict[str, Any], wrong: list[Path]
) -> list[ManifestProblem]:
    """Returns the conflicts between right values only: one that involves a wrong value would mislead."""
    rest = copy.deepcopy(sections)
    for path in wrong:
        _remove(rest, path)
    try:
        manifest = Manifest.model_validate(rest | {"kind": "LLMServe"} | _NO_MODEL)
    except ValidationError:
        return []
    return [
        source.problem(one.paths[0], one.message)
        for one in conflicts(manifest)
        if not any(_overlap(path, bad) for path in one.paths for bad in wrong)
    ]


def _remove(data: dict[str, Any], path: Path) -> None:
    """Removes the key; for an item of a list the whole list, so that other indices keep their meaning."""
    keys = path[: next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))]
    holder: Any = data
    for key in keys[:-1]:
        holder = holder.get(key) if isinstance(holder, dict) else None
    if isinstance(holder, dict):
        holder.pop(keys[-1], None)


def _overlap(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
