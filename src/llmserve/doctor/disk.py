"""Room for models."""

import os
import shutil
from pathlib import Path

from llmserve.doctor.finding import Finding, ok, problem, warning
from llmserve.doctor.host import GIB, size

_LITTLE_BYTES = 10 * GIB
_FULL_BYTES = 1 * GIB


def cache(name: str, folder: Path, variable: str) -> Finding:
    """folder need not be there yet. variable: moves it elsewhere."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        advice = f"This user may not write there: set {variable} to a folder of yours."
        return problem(name, str(folder), advice, free_bytes=0)
    return room(name, folder, shutil.disk_usage(there).free, variable)


def room(name: str, folder: Path, free_bytes: int, variable: str) -> Finding:
    value = f"{size(free_bytes)} free at {folder}"
    advice = f"Free some, or set {variable} to a folder on a larger disk."
    if free_bytes < _FULL_BYTES:
        return problem(name, value, f"No model fits. {advice}", free_bytes=free_bytes)
    if free_bytes < _LITTLE_BYTES:
        return warning(name, value, f"Larger models will not fit. {advice}", free_bytes=free_bytes)
    return ok(name, value, free_bytes=free_bytes)
