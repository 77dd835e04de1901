"""Answers reads: finds the packs, reads their records, and takes out of the catalog what is not there."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.kvstore.tiers.base import ReadResult, ReadTarget, TierOutcome
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack, PackedPlace
from llmserve.kvstore.tiers.object.records import Fault, PackedRecord, RecordDamage, RecordReader

_log = logging.getLogger(__name__)

# A pack may be rewritten, and its blobs move, between the look-up and the read; seldom twice.
_LOOKUPS = 3


class BlobReader:
    """changed: called after blobs were found to be gone or damaged."""

    def __init__(self, catalog: Catalog, records: RecordReader, changed: Callable[[], None]) -> None:
        self._catalog, self._records, self._changed = catalog, records, changed

    async def read(self, targets: Sequence[ReadTarget]) -> list[ReadResult]:
        results: dict[int, ReadResult] = {}
        for _ in range(_LOOKUPS):
            open_ = [number for number in range(len(targets)) if number not in results]
            await self._round(targets, open_, results)
        return [
            results.get(number, ReadResult(TierOutcome.MISSING, "its packs went while they were read"))
            for number in range(len(targets))
        ]

    async def _round(
        self, targets: Sequence[ReadTarget], numbers: Sequence[int], results: dict[int, ReadResult]
    ) -> None:
        """Leaves out of results what is to be looked up again."""
        by_pack: dict[Pack, dict[int, PackedPlace]] = defaultdict(dict)
        for number in numbers:
            place = self._catalog.find(targets[number].key)
            if place is None:
                results[number] = ReadResult(TierOutcome.MISSING, "not there")
            elif targets[number].buffer.nbytes < place.entry.data_bytes:
                results[number] = _too_short(place.entry.data_bytes, targets[number].buffer.nbytes)
            else:
                by_pack[place.pack][number] = place
        async with asyncio.TaskGroup() as group:
            for pack, places in by_pack.items():
                group.create_task(self._read_pack(pack, places, targets, results), name="object.read")

    async def _read_pack(
        self,
        pack: Pack,
        places: Mapping[int, PackedPlace],
        targets: Sequence[ReadTarget],
        results: dict[int, ReadResult],
    ) -> None:
        records = [_record(place, targets[number]) for number, place in places.items()]
        faults = await self._records.read(pack.path, records)
        if any(isinstance(fault, RequestFailed) and fault.kind is FailureKind.GONE for fault in faults):
            self._vanished(pack)
        for number, record, fault in zip(places, records, faults, strict=True):
            if (result := self._result(pack, record, fault)) is not None:
                results[number] = result

    def _result(self, pack: Pack, record: PackedRecord, fault: Fault) -> ReadResult | None:
        """None: look again, it may be in another pack."""
        if fault is None:
            return ReadResult(TierOutcome.DONE, "", bytes(record.header), record.entry.data_bytes)
        if isinstance(fault, RecordDamage):
            self._damaged(pack, record)
            return ReadResult(TierOutcome.CORRUPT, "its checksum is wrong")
        return None if fault.kind is FailureKind.GONE else ReadResult(TierOutcome.FAILED, fault.message)

    def _vanished(self, pack: Pack) -> None:
        """Somebody deleted it: its owner, or a lifecycle rule, or a person."""
        if lost := self._catalog.drop(pack):
            _log.warning("object tier: %s is gone, and %d blobs with it", pack.path, lost)
            self._changed()

    def _damaged(self, pack: Pack, record: PackedRecord) -> None:
        place = self._catalog.find(record.entry.key)
        if place is not None and place.pack is pack:
            self._catalog.forget(record.entry.key)
            _log.warning(
                "object tier: %s: the blob at %d is damaged (%d bytes)",
                pack.path,
                record.entry.offset,
                record.entry.data_bytes,
            )
            self._changed()


def _record(place: PackedPlace, target: ReadTarget) -> PackedRecord:
    entry = place.entry
    data = target.buffer.cast("B")[: entry.data_bytes]
    return PackedRecord(entry, memoryview(bytearray(entry.header_bytes)), data)


def _too_short(size: int, room: int) -> ReadResult:
    return ReadResult(TierOutcome.FAILED, f"{size} bytes do not fit a buffer of {room}")
