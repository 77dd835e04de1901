"""Which models on this machine are in use: by a manifest, by a cluster that runs here, by any process."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmserve.cli.cluster import DEFAULT_MANIFEST, running_here
from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest, ModelSpec
from llmserve.config.speculation import loaded_draft
from llmserve.core.errors import ManifestError, ModelNotFound
from llmserve.models.local import LocalModel
from llmserve.models.resolve import PreparationStage, survey

_PROC = Path("/proc")


def users_of(model: LocalModel, file: str | None, *, strict: bool) -> Iterator[str]:
    """Yields who uses a model. file: the manifest in force; None: llmserve.yaml, if there is one. strict: a
    manifest that cannot be read is an error, so that nobody takes it for one that uses nothing; otherwise it
    is left out. Errors: ManifestError."""
    for path in _manifests(file):
        with suppress(*() if strict else (ManifestError,)):
            if any(_is(model, spec) for spec in _specs(load_manifest(path))):
                yield str(path)
    yield from (f"process {number}" for number in _processes_with(model.folder))


def _manifests(file: str | None) -> list[Path]:
    chosen = [Path(file)] if file else [path for path in [Path(DEFAULT_MANIFEST)] if path.is_file()]
    of_clusters = (Path(one.state.manifest) for one in running_here())
    return list({path.resolve(): path for path in (*chosen, *of_clusters)}.values())


def _specs(manifest: Manifest) -> Iterator[ModelSpec]:
    for model in manifest.served:
        yield model
        if draft := loaded_draft(manifest.alone(model)):
            yield draft


def _is(model: LocalModel, spec: ModelSpec) -> bool:
    try:
        seen = survey(spec)
    except ModelNotFound:
        return False
    if seen.stage is PreparationStage.READY and Path(seen.place).is_relative_to(model.folder):
        return True
    return bool(model.source) and seen.place == model.source


def _processes_with(folder: Path) -> Iterator[int]:
    """Yields the processes that were started with a path in a folder, as workers and apiservers are."""
    wanted = os.fsencode(folder)
    for path in _PROC.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted in path.read_bytes() and int(path.parent.name) != os.getpid():
                yield int(path.parent.name)
