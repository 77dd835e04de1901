"""The cache of converted GGUF files: one directory for each (contents of the source, converter version).

A directory gets its name by one rename, after all its files and its record are written. Processes that make
the same directory exclude each other with a lock; a damaged directory is made again. The conversion runs in a
process of its own, so that torch stays out of the caller and its memory is returned. That process ends with
its stdin, which the kernel closes when the caller dies (`end_with_stdin`).
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.models.files import DigestCache, Progress, file_lock, write_atomically

RECORD_NAME = ".llmserve-model.json"


@dataclass(frozen=True, slots=True)
class ConversionRecord:
    """What a directory was made from, and the checksums of its files. It is written last: a directory without
    it is not complete."""

    source_sha256: str
    converter_version: int
    files: dict[str, str]  # SHA-256 by name

    def write(self, folder: Path) -> None:
        write_atomically(folder / RECORD_NAME, json.dumps(asdict(self), indent=1, sort_keys=True))


def make_record(folder: Path, source_sha256: str, version: int, digests: DigestCache) -> ConversionRecord:
    files = {file.name: digests.sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return ConversionRecord(source_sha256, version, files)


def read_record(folder: Path) -> ConversionRecord | None:
    """Returns None when there is no record or it cannot be read."""
    try:
        record = ConversionRecord(**json.loads((folder / RECORD_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if isinstance(record.files, dict) else None


def first_damage(folder: Path, record: ConversionRecord, digests: DigestCache) -> str | None:
    """Returns the name of a file that differs from what was written; None when none does."""
    for name, wanted in record.files.items():
        try:
            if digests.sha256(folder / name) != wanted:
                return name
        except OSError:
            return name
    return None


PROGRESS_WORD = "LLMSERVE_PROGRESS"
END_WITH_STDIN = "--end-with-stdin"
_TIMEOUT_SECONDS = 3600.0
_LAST_LINES = 5


def convert_in_process(source: Path, out: Path, progress: Progress) -> None:
    """Converts in a new process. Errors: LLMServeError with the last lines that the process wrote."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "llmserve.models",
        "convert",
        END_WITH_STDIN,
        str(source),
        str(out),
    ]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        deadline = threading.Timer(_TIMEOUT_SECONDS, process.kill)
        deadline.start()
        try:
            assert process.stdout is not None, "stdout is a pipe"
            _relay(process.stdout, progress)
            code = process.wait()
        finally:
            deadline.cancel()
            process.kill()
            process.communicate()
        if code != 0:
            raise LLMServeError(f"cannot convert {source.name} ({_how(code)}): {_tail(errors)}")


def end_with_stdin() -> None:
    """Ends this process when the process that started it is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end-with-stdin", daemon=True).start()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}; is there enough memory?"


def _relay(lines: IO[str], progress: Progress) -> None:
    for line in lines:
        word, _, text = line.strip().partition(" ")
        if word == PROGRESS_WORD:
            progress(text)


def _tail(errors: IO[str]) -> str:
    errors.seek(0)
    return "\n".join(errors.read().strip().splitlines()[-_LAST_LINES:])


Convert = Callable[[Path, Path, Progress], None]
"""Fills an empty directory from a GGUF file or a directory of pickles. Arguments: source, out, progress."""


def convert_to(source: Path, out: Path, progress: Progress, convert: Convert = convert_in_process) -> None:
    """Makes the directory `out`, whole or not at all. Errors: InvalidRequest when there is one already;
    LLMServeError, OSError."""
    if out.exists():
        raise InvalidRequest(f"{out} is there already: name a directory that is to be made")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.making-{os.getpid()}")
    scratch.mkdir()
    try:
        convert(source, scratch, progress)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


LOCK_TIMEOUT_SECONDS = 3600.0
_KEY_LENGTH = 16


def converted_before(folder: Path, source: Path, version: int) -> Path | None:
    """Guesses the complete directory that was made from a file of this name: contents are not compared."""
    made = folder.glob(f"{glob.escape(source.stem)}-*-v{version}")
    return next((path for path in sorted(made) if read_record(path) is not None), None)


class ConvertedModels:
    def __init__(self, folder: Path, digests: DigestCache, convert: Convert, version: int) -> None:
        self._folder = folder
        self._digests = digests
        self._convert = convert
        self._version = version

    def get(self, source: Path, progress: Progress) -> Path:
        """Returns the converted directory and makes it if necessary. Errors: LLMServeError, DeadlineExceeded,
        OSError."""
        digest = self._digests.sha256(source)
        target = self._folder / f"{source.stem}-{digest[:_KEY_LENGTH]}-v{self._version}"
        if self._is_whole(target, progress):
            return target
        with file_lock(
            self._folder / f"{target.name}.lock", progress, f"converts {source.name}", LOCK_TIMEOUT_SECONDS
        ):
            if not self._is_whole(target, progress):  # another process may have made it in the meantime
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
        """The caller holds the lock."""
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
        """Removes what dead processes left behind."""
        for leftover in self._folder.glob(f"{glob.escape(target.name)}.making-*"):
            shutil.rmtree(leftover, ignore_errors=True)
