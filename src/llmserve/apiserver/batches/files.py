"""The files of tenants: uploaded ones, and the results of batches."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from dataclasses import dataclass

from openai.types import FileObject

from llmserve.apiserver.batches.names import (
    CONTENTS,
    FILES,
    check_id,
    contents_path,
    file_path,
    folder_of,
    made_at,
    new_file_id,
)
from llmserve.apiserver.batches.storage import PIECE_BYTES, BatchStorage
from llmserve.core.errors import InvalidRequest, NotFound, RequestTooLarge, StorageFull
from llmserve.core.ids import TenantId

# Contents of which nothing is said after so long belong to a process that died.
_ORPHAN_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class FileLimits:
    """file_bytes: size of an upload. tenant_bytes: size of all files of a tenant. keep_seconds: how long a
    file is kept that says nothing else."""

    file_bytes: int
    tenant_bytes: int
    keep_seconds: float


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be made. keep_seconds: None for the default."""

    tenant: TenantId
    filename: str
    purpose: str
    keep_seconds: float | None = None


class FileStore:
    """now: Unix time. Errors of all calls, besides their own: those of the storage."""

    def __init__(
        self, storage: BatchStorage, limits: FileLimits, now: Callable[[], float] = time.time
    ) -> None:
        self._storage, self._limits, self._now = storage, limits, now

    async def upload(self, new: NewFile, pieces: AsyncIterable[bytes]) -> FileObject:
        """Keeps a file within the limits. Errors: StorageFull, RequestTooLarge, InvalidRequest."""
        room = await self._room_bytes(new.tenant)
        made = await self._write(new, pieces, min(room, self._limits.file_bytes))
        if made is None:
            raise InvalidRequest("the file is empty", field="file")
        return made

    async def keep(self, new: NewFile, pieces: AsyncIterable[bytes]) -> str | None:
        """Keeps results, however many there are. Returns the id of their file; None when there are none."""
        made = await self._write(new, pieces, None)
        return None if made is None else made.id

    async def check_room(self, tenant: TenantId) -> None:
        """Errors: StorageFull, when the tenant's files take all that they may."""
        await self._room_bytes(tenant)

    async def get(self, tenant: TenantId, file_id: str) -> FileObject:
        """Errors: NotFound."""
        data = await self._storage.get(file_path(folder_of(tenant), check_id(file_id, "file")))
        found = None if data is None else FileObject.model_validate_json(data)
        if found is None or self._is_over(found):
            raise NotFound(f"there is no file {file_id!r}")
        return found

    async def of_tenant(self, tenant: TenantId) -> list[FileObject]:
        """Returns all of a tenant's files, the oldest first."""
        return [one for one in await self._said(folder_of(tenant)) if not self._is_over(one)]

    def contents(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """Yields the contents of a file that was found."""
        return self._storage.read(contents_path(file_id))

    async def delete(self, tenant: TenantId, file_id: str) -> None:
        """Errors: NotFound."""
        await self.get(tenant, file_id)
        await self._drop(folder_of(tenant), file_id)

    async def sweep(self) -> None:
        """Deletes what is over, of all tenants, and contents that were never finished."""
        known = set()
        for folder in await self._storage.names(FILES):
            for one in await self._said(folder):
                known.add(one.id)
                if self._is_over(one):
                    await self._drop(folder, one.id)
        for file_id in await self._storage.names(CONTENTS):
            if file_id not in known and self._now() - made_at(file_id) > _ORPHAN_SECONDS:
                await self._storage.delete(contents_path(file_id))

    # -- parts

    async def _write(
        self, new: NewFile, pieces: AsyncIterable[bytes], most_bytes: int | None
    ) -> FileObject | None:
        """Returns None, and keeps nothing, when there are no bytes. most_bytes: None for results, which need
        no room."""
        now = self._now()
        file_id, keep = new_file_id(now), new.keep_seconds or self._limits.keep_seconds
        try:
            size = await self._append_all(file_id, pieces, most_bytes)
            if not size:
                return None
            made = FileObject(
                id=file_id,
                bytes=size,
                created_at=int(now),
                filename=new.filename,
                object="file",
                purpose=new.purpose,  # type: ignore[arg-type]
                status="processed",
                expires_at=int(now + keep),
            )
            text = made.model_dump_json().encode()
            await self._storage.put(file_path(folder_of(new.tenant), file_id), text)
            if most_bytes is not None and await self._left_bytes(new.tenant) < 0:
                raise self._full()  # others have come at the same time
        except BaseException:
            await self._drop(folder_of(new.tenant), file_id)
            raise
        return made

    async def _append_all(self, file_id: str, pieces: AsyncIterable[bytes], most_bytes: int | None) -> int:
        size, waiting = 0, bytearray()
        async for piece in pieces:
            size += len(piece)
            if most_bytes is not None and size > most_bytes:
                raise self._too_large(size)
            waiting += piece
            if len(waiting) >= PIECE_BYTES:
                await self._storage.append(contents_path(file_id), bytes(waiting))
                waiting.clear()
        if waiting:
            await self._storage.append(contents_path(file_id), bytes(waiting))
        return size

    def _too_large(self, size: int) -> RequestTooLarge | StorageFull:
        if size > self._limits.file_bytes:
            return RequestTooLarge(f"a file may have {self._limits.file_bytes} bytes")
        return self._full()

    async def _room_bytes(self, tenant: TenantId) -> int:
        room = await self._left_bytes(tenant)
        if room <= 0:
            raise self._full()
        return room

    async def _left_bytes(self, tenant: TenantId) -> int:
        return self._limits.tenant_bytes - sum(one.bytes for one in await self.of_tenant(tenant))

    def _full(self) -> StorageFull:
        most = self._limits.tenant_bytes
        return StorageFull(f"your files may take {most} bytes together (batches.tenant_gb): delete some")

    async def _said(self, folder: str) -> Sequence[FileObject]:
        paths = [f"{FILES}/{folder}/{name}" for name in await self._storage.names(f"{FILES}/{folder}")]
        found = [data for data in await asyncio.gather(*map(self._storage.get, paths)) if data is not None]
        return [FileObject.model_validate_json(data) for data in found]

    def _is_over(self, one: FileObject) -> bool:
        return one.expires_at is not None and one.expires_at <= self._now()

    async def _drop(self, folder: str, file_id: str) -> None:
        """Nobody finds a file any more before its contents go."""
        await self._storage.delete(file_path(folder, file_id))
        await self._storage.delete(contents_path(file_id))
