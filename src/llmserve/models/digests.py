"""SHA-256 of files, read once: a digest is kept for as long as the file's size, times and inode stay."""

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

_READ_BYTES = 4 << 20


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


class DigestCache:
    """`store` is a JSON file, read at each use and written best effort: losing it costs only time, and
    of two processes that write at once one wins. ctime is compared, so that no change of contents by
    way of the file system goes unseen."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def sha256(self, path: Path) -> str:
        """Errors: OSError of a file that cannot be read."""
        key, seen = str(path.resolve()), _signature(path)
        known = self._load().get(key)
        if isinstance(known, dict) and known.get("seen") == seen:
            return str(known.get("sha256"))
        digest = file_sha256(path)
        self._save({key: {"seen": seen, "sha256": digest}})
        return digest

    def _load(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            loaded = json.loads(self._store.read_text())
            if isinstance(loaded, dict):
                return loaded
        return {}

    def _save(self, entries: dict[str, object]) -> None:
        kept = {key: value for key, value in self._load().items() if os.path.exists(key)}
        with suppress(OSError):
            write_atomically(self._store, json.dumps(kept | entries, indent=1))


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.write_text(text)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
