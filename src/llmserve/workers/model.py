"""Which model a worker serves, and the digest that names it in the identity of KV."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llmserve.config.schema import Manifest
from llmserve.core.errors import StartFailed
from llmserve.models import Progress, resolve
from llmserve.models.directory import model_identity
from llmserve.models.resolve import digest_cache


@dataclass(frozen=True, slots=True)
class ServedModel:
    """path None: a simulated engine without a model. identity: see models/directory.py."""

    path: Path | None
    identity: str

    def check_unchanged(self) -> None:
        """Called once the engine has loaded the files: are they still what they were named by? Reads those
        that were touched since. Errors: StartFailed, LLMServeError."""
        if self.path is not None and model_identity(self.path, digest_cache()) != self.identity:
            raise StartFailed(f"the model in {self.path} was changed while it was loaded; start again")


def prepare_model(manifest: Manifest, model_dir: Path | None, progress: Progress) -> ServedModel:
    """Errors: ModelNotFound, LLMServeError."""
    model = manifest.models.primary
    if model_dir is not None:
        return ServedModel(model_dir, model_identity(model_dir, digest_cache(), progress))
    if manifest.engine.kind == "sim":
        return ServedModel(None, hashlib.sha256(model.served_name.encode()).hexdigest())
    prepared = resolve(model, progress=progress)
    return ServedModel(prepared.path, prepared.identity)
