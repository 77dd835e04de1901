"""The cache of converted GGUF files: one directory for each (contents of the source, converter version).

A directory appears under its name by one rename, after everything in it is written and its record
with it. Makers of the same directory exclude each other with a lock; a damaged one is made again.
"""

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from llmserve.core.errors import LLMServeError
from llmserve.models.digests import DigestCache
from llmserve.models.lock import file_lock
from llmserve.models.prepared import Progress
from llmserve.models.record import first_damage, make_record, read_record

Convert = Callable[[Path, Path, Progress], None]
"""Fills an empty directory from a GGUF file: (source, out, progress)."""

LOCK_TIMEOUT_SECONDS = 3600.0
_KEY_LENGTH = 16


def converted_before(folder: Path, source: Path, version: int) -> Path | None:
    """A whole directory made from a file of this name: a guess, for the contents are not compared."""
    made = folder.glob(f"{glob.escape(source.stem)}-*-v{version}")
    return next((path for path in sorted(made) if read_record(path) is not None), None)


class ConvertedModels:
    def __init__(self, folder: Path, digests: DigestCache, convert: Convert, version: int) -> None:
        self._folder = folder
        self._digests = digests
        self._convert = convert
        self._version = version

    def get(self, source: Path, progress: Progress) -> Path:
        """The converted directory, made now if need be. Errors: LLMServeError, DeadlineExceeded, OSError."""
        digest = self._digests.sha256(source)
        target = self._folder / f"{source.stem}-{digest[:_KEY_LENGTH]}-v{self._version}"
        if self._is_whole(target, progress):
            return target
        with file_lock(
            self._folder / f"{target.name}.lock", progress, f"converts {source.name}", LOCK_TIMEOUT_SECONDS
        ):
            if not self._is_whole(target, progress):  # another process may have made it meanwhile
                self._make(source, digest, target, progress)
        return target

    def _is_whole(self, target: Path, progress: Progress) -> bool:
        if not target.is_dir():
            return False
        record = read_record(target)
        damage = "its record" if record is None else first_damage(target, record, self._digests)
        if damage is not None:
            progress(f"the converted model is damaged ({damage}), converting it again")
        return damage is None

    def _make(self, source: Path, digest: str, target: Path, progress: Progress) -> None:
        """With the lock held."""
        self._remove_half_made(target)
        scratch = self._folder / f"{target.name}.making-{os.getpid()}"
        scratch.mkdir()
        try:
            progress(f"converting {source.name}")
            self._convert(source, scratch, progress)
            make_record(scratch, digest, self._version, self._digests).write(scratch)
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        except OSError as error:
            raise LLMServeError(f"cannot convert {source.name} into {self._folder}: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _remove_half_made(self, target: Path) -> None:
        """What makers that died left behind."""
        for leftover in self._folder.glob(f"{glob.escape(target.name)}.making-*"):
            shutil.rmtree(leftover, ignore_errors=True)
