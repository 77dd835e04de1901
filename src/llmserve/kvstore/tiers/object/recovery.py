"""What is in the bucket: lists it, reads the index of each pack that is not known yet, many at a time."""

import asyncio
import logging
from collections.abc import Iterator, Sequence

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.kvstore.tiers.object.bucket import Bucket, ListedObject
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.layout import (
    FOOTER_BYTES,
    PackDamaged,
    PackEntry,
    decode_footer,
    decode_index,
    is_of,
    is_pack,
    owner_of,
    removals_path,
)
from llmserve.kvstore.tiers.object.removals import Removed, decode_removals

_log = logging.getLogger(__name__)

# Holds the index of hundreds of blobs: most packs need one request.
_TAIL_BYTES = 64 << 10

_Found = tuple[ListedObject, list[PackEntry]]


class Recovery:
    """workers: how many packs are looked at together."""

    def __init__(self, owner: str, bucket: Bucket, catalog: Catalog, workers: int) -> None:
        self._owner, self._bucket, self._catalog = owner, bucket, catalog
        self._workers = workers
        self.is_done = False  # once, at least

    async def run(self) -> None:
        """Errors: RequestFailed when the bucket cannot be listed, or denies its objects. A pack whose index
        cannot be read for another reason is left for the next time."""
        listed = await self._bucket.list()
        removed = await self._removed(listed)
        # The own ones first: where two hold a blob, the own copy is read.
        packs = sorted(listed, key=lambda object_: (not is_of(self._owner, object_.path), object_.path))
        todo = iter([one for one in packs if is_pack(one.path) and not self._catalog.has_pack(one.path)])
        found: list[_Found] = []
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work(todo, found)) for _ in range(self._workers)]
        for worker in workers:
            if (denied := worker.result()) is not None:
                raise denied
        self._take(packs, found, removed)
        self.is_done = True

    def _take(self, packs: Sequence[ListedObject], found: Sequence[_Found], removed: Removed) -> None:
        """Into the catalog, in the order of packs."""
        order = {one.path: number for number, one in enumerate(packs)}
        for one, entries in sorted(found, key=lambda pair: order[pair[0].path]):
            if not self._catalog.has_pack(one.path):
                pack = Pack(one.path, one.size_bytes, entries, mine=is_of(self._owner, one.path))
                self._catalog.add(pack, garbage=removed.get(one.path, ()))

    async def _work(self, todo: Iterator[ListedObject], found: list[_Found]) -> RequestFailed | None:
        """Until there is none left to do, or it is not let in: then the answer says so."""
        for one in todo:
            try:
                found.append((one, await self._entries(one)))
            except PackDamaged as damage:
                _log.warning("object tier: %s is left out: %s", one.path, damage)
            except RequestFailed as failed:
                if failed.kind is FailureKind.DENIED:
                    return failed
                _log.warning("object tier: %s could not be looked at: %s", one.path, failed.message)
        return None

    async def _entries(self, one: ListedObject) -> list[PackEntry]:
        start = max(0, one.size_bytes - _TAIL_BYTES)
        if one.size_bytes < FOOTER_BYTES:
            raise PackDamaged("shorter than a footer")
        tail = await self._bucket.get(one.path, start, one.size_bytes)
        footer = decode_footer(tail, one.size_bytes)
        index_start = one.size_bytes - FOOTER_BYTES - footer.index_bytes
        if index_start < start:
            tail = await self._bucket.get(one.path, index_start, one.size_bytes)
        return decode_index(tail[-FOOTER_BYTES - footer.index_bytes : -FOOTER_BYTES], footer)

    async def _removed(self, listed: Sequence[ListedObject]) -> Removed:
        """Reads the removals of all owners. One that cannot be read only costs room."""
        removed: dict[str, Sequence[int]] = {}
        for one in listed:
            if one.path != removals_path(owner_of(one.path)) or not one.size_bytes:
                continue
            try:
                removed |= decode_removals(bytes(await self._bucket.get(one.path, 0, one.size_bytes)))
            except (PackDamaged, RequestFailed) as error:
                _log.warning("object tier: %s is left out: %s", one.path, error)
        return removed
