"""The calls of operators: from messages to `store.admin` and back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

from llmserve.core.clock import Clock
from llmserve.core.errors import FormatUnknown, InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest, BlockHash, TenantId
from llmserve.core.stats import StoreStats, TierStats
from llmserve.kvstore.blocks import StoredBlock
from llmserve.kvstore.formats import BlockShape, Quantize
from llmserve.kvstore.store.admin import BlockFilter, BlockListing, StoreAdmin
from llmserve.kvstore.store.build import BuiltStore
from llmserve.kvstore.store.export_import import Export, ExportedBlock, Import
from llmserve.kvstore.store.verify import verify
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

_log = logging.getLogger(__name__)
PIECE_BYTES = 1 << 20
_MAX_BLOCK_BYTES = 1 << 31
_PROGRESS_SECONDS = 5.0  # at least so often, while all that came is written


class StoreAdminCalls:
    """One loop. Errors of every call but `stats` and `drop_adapter`: NotFound where there is no store."""

    def __init__(self, built: BuiltStore | None, clock: Clock) -> None:
        self._built, self._clock = built, clock

    def stats(self) -> StoreStats:
        """Statistics of no tiers without a store."""
        return self._built.store.stats() if self._built else StoreStats()

    async def list_blocks(self, request: pb.ListBlocksRequest) -> pb.ListBlocksResponse:
        admin, _ = self._store()
        blocks, total = await admin.list_blocks(_filter(request.filter), request.limit)
        return pb.ListBlocksResponse(blocks=list(map(_listed, blocks)), total_blocks=total)

    async def pin(self, request: pb.PinBlocksRequest) -> pb.PinBlocksResponse:
        admin, _ = self._store()
        done = await admin.pin(_filter(request.filter), unpin=request.unpin)
        return pb.PinBlocksResponse(changed_blocks=done.changed_blocks, pinned_blocks=done.pinned_blocks)

    async def evict(self, request: pb.EvictBlocksRequest) -> pb.EvictBlocksResponse:
        admin, _ = self._store()
        done = await admin.evict(_filter(request.filter))
        return pb.EvictBlocksResponse(
            evicted_blocks=done.blocks,
            evicted_bytes=done.size_bytes,
            pinned_blocks=done.pinned_blocks,
            busy_blocks=done.busy_blocks,
        )

    async def drop_adapter(self, request: pb.DropAdapterRequest) -> pb.DropAdapterResponse:
        """Without a store there is nothing to drop."""
        if self._built is None:
            return pb.DropAdapterResponse()
        admin, _ = self._store()
        done = await admin.drop_adapter(AdapterDigest(request.digest))
        if done.blocks:
            left = done.left_blocks
            _log.info("adapter %.12s is gone: %d blocks evicted, %d left", request.digest, done.blocks, left)
        return pb.DropAdapterResponse(
            evicted_blocks=done.blocks, evicted_bytes=done.size_bytes, left_blocks=done.left_blocks
        )

    async def verify(self, request: pb.VerifyBlocksRequest) -> AsyncIterator[pb.VerifyBlocksResponse]:
        admin, built = self._store()
        async for one in verify(admin, built.arena.view, _filter(request.filter), request.share):
            yield pb.VerifyBlocksResponse(
                tier=one.tier,
                checked_blocks=one.blocks,
                all_blocks=one.all_blocks,
                bytes=one.size_bytes,
                missing_blocks=one.missing_blocks,
                unreadable_blocks=one.unreadable_blocks,
                corrupt=one.corrupt,
                reason=one.reason,
            )

    async def export(self, request: pb.ExportBlocksRequest) -> AsyncIterator[pb.BlockPiece]:
        admin, built = self._store()
        export = Export(admin, built.arena.view, built.quantize)
        yield pb.BlockPiece(all_blocks=await export.select(_filter(request.filter)))
        async for block in export.blocks():
            for piece in _pieces(block):
                yield piece

    async def import_blocks(self, pieces: AsyncIterator[pb.ImportPiece]) -> AsyncIterator[pb.ImportProgress]:
        """Errors: InvalidRequest for bytes that differ from their record, and for another format than DRAM's;
        the blocks before it are stored."""
        admin, built = self._store()
        wanted = (await anext(pieces, pb.ImportPiece())).tier
        into = Import(admin, built.arena.view, wanted, built.quantize)
        received = 0
        async for block in _assembled(pieces):
            await into.add(block)
            received += 1
            yield pb.ImportProgress(received_blocks=received)
        finishing = asyncio.create_task(into.finish(), name="kvmanager.import")
        try:
            while not (await asyncio.wait((finishing,), timeout=_PROGRESS_SECONDS))[0]:
                yield pb.ImportProgress(received_blocks=received)
        finally:
            finishing.cancel()
        done = finishing.result()
        yield pb.ImportProgress(
            received_blocks=received,
            done=True,
            stored_blocks=done.stored_blocks,
            present_blocks=done.present_blocks,
            refused_blocks=done.refused_blocks,
            tier=into.tier.name,
        )

    def _store(self) -> tuple[StoreAdmin, BuiltStore]:
        if self._built is None:
            raise NotFound("this cluster has no KV store: its manifest has no storageClasses")
        return StoreAdmin(self._built.store, self._clock), self._built


def _filter(message: pb.BlockFilter) -> BlockFilter:
    tenant = TenantId(message.tenant) if message.HasField("tenant") else None
    return BlockFilter(message.tier, tenant, message.hash_prefix.lower(), pinned=message.pinned)


def _listed(block: BlockListing) -> pb.ListedBlock:
    places = [
        pb.BlockPlace(
            tier=place.tier,
            bytes=place.size_bytes,
            idle_seconds=place.idle_seconds,
            pinned=place.pinned,
            in_use=place.in_use,
        )
        for place in block.places
    ]
    return pb.ListedBlock(
        block_hash=block.key, parent_hash=block.parent or b"", tenant=block.tenant, places=places
    )


def encode_tier(tier: TierStats) -> pb.TierStatus:
    totals = tier.totals
    return pb.TierStatus(
        name=tier.name,
        kind=tier.kind,
        blocks=tier.blocks,
        used_bytes=tier.used_bytes,
        capacity_bytes=tier.capacity_bytes,
        pinned_blocks=tier.pinned_blocks,
        queued_bytes=tier.queued_bytes,
        hit_blocks=totals.hit_blocks,
        hit_tokens=totals.hit_tokens,
        load_bytes=totals.load_bytes,
        load_seconds=totals.load_seconds,
        store_bytes=totals.store_bytes,
        store_seconds=totals.store_seconds,
        evictions={reason.value: blocks for reason, blocks in tier.evictions.items()},
        trouble=tier.trouble,
        outcomes=[
            pb.TierOutcome(operation=operation, result=result, count=count)
            for (operation, result), count in tier.outcomes.items()
        ],
    )


# -- blocks in pieces


def _pieces(carried: ExportedBlock) -> Iterator[pb.BlockPiece]:
    block = carried.block
    parts = [
        pb.BlockPart(length_bytes=size, checksum=carried.checksums[part], shape=block.shape(part))
        for part, size in enumerate(block.part_bytes)
    ]
    record = pb.BlockRecord(
        block_hash=block.key,
        parent_hash=block.parent or b"",
        tenant=block.tenant,
        parts=parts,
        quantize=carried.quantize,
    )
    yield pb.BlockPiece(block=record)
    for part in carried.parts:
        for start in range(0, len(part), PIECE_BYTES):
            yield pb.BlockPiece(data=bytes(part[start : start + PIECE_BYTES]))


async def _assembled(pieces: AsyncIterator[pb.ImportPiece]) -> AsyncIterator[ExportedBlock]:
    """The blocks that the pieces make up. Errors: InvalidRequest."""
    record, data = pb.BlockRecord(), bytearray()
    async for piece in pieces:
        if piece.HasField("block"):
            _refuse_rest(record, data)
            record, data = piece.block, bytearray()
            _check(record)
        data += piece.data
        if data and len(data) >= _size(record):
            yield _block(record, memoryview(data))
            record, data = pb.BlockRecord(), bytearray()
    _refuse_rest(record, data)


def _refuse_rest(record: pb.BlockRecord, data: bytearray) -> None:
    """Refuses a block whose bytes are incomplete."""
    if record.parts or data:
        raise InvalidRequest(f"block {record.block_hash.hex()}: {len(data)} of {_size(record)} bytes came")


def _size(record: pb.BlockRecord) -> int:
    return sum(part.length_bytes for part in record.parts)


def _check(record: pb.BlockRecord) -> None:
    """Errors: InvalidRequest."""
    name, size = record.block_hash.hex(), _size(record)
    if not name or record.block_hash == record.parent_hash:
        raise InvalidRequest(f"a block without a name of its own: '{name}'")
    if size > _MAX_BLOCK_BYTES or not record.parts or not all(part.length_bytes for part in record.parts):
        raise InvalidRequest(f"block {name}: {len(record.parts)} parts, {size} bytes in all")
    for part in record.parts:
        _check_shape(name, part)
    if record.quantize not in ("", *Quantize):
        raise InvalidRequest(f"block {name}: quantized as '{record.quantize}', unknown to this release")


def _check_shape(name: str, part: pb.BlockPart) -> None:
    try:
        size = BlockShape.parse(part.shape).size_bytes if part.shape else part.length_bytes
    except FormatUnknown as error:
        raise InvalidRequest(f"block {name}: {error.message}") from error
    if size != part.length_bytes:
        raise InvalidRequest(f"block {name}: a part of {part.length_bytes} bytes with a shape of {size}")


def _block(record: pb.BlockRecord, data: memoryview) -> ExportedBlock:
    """Errors: InvalidRequest."""
    parts, start = [], 0
    for part in record.parts:
        parts.append(data[start : start + part.length_bytes])
        start += part.length_bytes
    block = StoredBlock(
        BlockHash(record.block_hash),
        BlockHash(record.parent_hash) if record.parent_hash else None,
        TenantId(record.tenant),
        tuple(map(len, parts)),
        tuple(part.shape for part in record.parts),
    )
    quantize = Quantize(record.quantize or Quantize.NONE)
    carried = ExportedBlock(block, tuple(parts), tuple(part.checksum for part in record.parts), quantize)
    if len(data) != start or not carried.is_whole:
        raise InvalidRequest(f"block {record.block_hash.hex()}: its bytes are not what its record says")
    return carried
