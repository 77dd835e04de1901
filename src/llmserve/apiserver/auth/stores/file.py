"""Keys in a file, for the apiservers of one machine. It is replaced as a whole, under a lock of its
directory, so that whoever reads it finds all of one state."""

import asyncio
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llmserve.apiserver.auth.stores.stored_key import StoredKey
from llmserve.core.errors import InvalidRequest, Unavailable

_T = TypeVar("_T")
_Keys = dict[str, StoredKey]


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[StoredKey] = []


class FileKeys:
    """A file that is not there has no keys; `add` makes it, readable for its owner alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None  # by which a change of the file is noticed
        self._keys: _Keys = {}

    def __repr__(self) -> str:
        return f"<FileKeys {self._path}>"

    async def read(self) -> Sequence[StoredKey]:
        return await self._run(lambda: tuple(self._current().values()))

    async def add(self, key: StoredKey) -> None:
        await self._run(lambda: self._change(lambda keys: {**keys, key.id: key}))

    async def remove(self, key_id: str) -> bool:
        def without(keys: _Keys) -> _Keys:
            return {name: key for name, key in keys.items() if name != key_id}

        return await self._run(lambda: self._change(without))

    async def note_uses(self, used_at: Mapping[str, int]) -> None:
        def noted(keys: _Keys) -> _Keys:
            later = {name: key for name, key in keys.items() if used_at.get(name, 0) > (key.used_at or 0)}
            return keys | {name: _used(key, used_at[name]) for name, key in later.items()}

        await self._run(lambda: self._change(noted))

    async def aclose(self) -> None:
        """Nothing is open between calls."""

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise Unavailable(f"{self._path}: the keys cannot be used: {error.strerror}") from error

    def _current(self) -> _Keys:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if seen != self._seen:
                    self._keys, self._seen = self._parsed(file.read()), seen
        except FileNotFoundError:
            self._keys, self._seen = {}, None
        return self._keys

    def _parsed(self, data: bytes) -> _Keys:
        try:
            return {key.id: key for key in _KeyFile.model_validate_json(data).keys}
        except ValidationError as error:
            wrong = error.errors(include_input=False)[0]
            where = ".".join(map(str, wrong["loc"]))
            raise InvalidRequest(f"{self._path} is no file of keys: {where}: {wrong['msg']}") from None

    def _change(self, change: Callable[[_Keys], _Keys]) -> bool:
        """Returns whether there was anything to change."""
        with _locked(self._path.parent):
            before = self._current()
            after = change(before)
            if after == before:
                return False
            self._replace(_KeyFile(keys=list(after.values())).model_dump_json(indent=1, exclude_none=True))
            return True

    def _replace(self, text: str) -> None:
        fd, name = tempfile.mkstemp(prefix=".keys-", dir=self._path.parent)  # 0600
        try:
            with os.fdopen(fd, "w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(fd)
            with suppress(FileNotFoundError):  # whoever could read the old file can read the new one
                old = self._path.stat()
                os.chmod(name, old.st_mode & 0o777)
                if os.geteuid() == 0:
                    os.chown(name, old.st_uid, old.st_gid)
            os.replace(name, self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _used(key: StoredKey, at: int) -> StoredKey:
    return key.model_copy(update={"used_at": at})
