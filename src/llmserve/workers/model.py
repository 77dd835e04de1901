"""Which weights a worker serves, and the digest that names them in the identity of KV."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llmserve.config.schema import Manifest
from llmserve.models import resolve

_WHOLE_FILE_BYTES = 4 << 20
_SAMPLE_BYTES = 64 << 10
_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class ServedWeights:
    """path None: a simulated engine without a model."""

    path: Path | None
    revision: str


def prepare_model(manifest: Manifest, model_dir: Path | None) -> ServedWeights:
    """Errors: ModelNotFound."""
    model = manifest.models.primary
    if model_dir is None and manifest.engine.kind == "sim":
        return ServedWeights(None, hashlib.sha256(model.served_name.encode()).hexdigest())
    path = model_dir or Path(resolve(model).path)
    return ServedWeights(path, weights_digest(path))


def weights_digest(model_dir: Path) -> str:
    """Of contents, never of names alone. Of a file over 4 MiB, 32 samples spread over it: two sets of
    weights that agree in all of them are the same set, and a hundred gigabytes need not be read."""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in model_dir.iterdir() if path.is_file() and not path.name.startswith(".")
    ):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            for index in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
