"""The calls of `llmserve kv` to the KV manager of a running cluster. Each wait has a deadline."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, TypeVar

import grpc.aio

from llmserve.cli.ask import address_of
from llmserve.cli.find import FoundCluster
from llmserve.core.errors import LLMServeError, NotFound, Unavailable
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.archive import ArchiveWriter, Record, read
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2_grpc
from llmserve.rpc.status import from_grpc

_DEADLINE_SECONDS = 60.0  # of an answer, and between two of a stream
_EVICT_SECONDS = 600.0  # of a bucket with a million blocks

_Answer = TypeVar("_Answer")


class KvLink:
    """Errors of all calls: what the KV manager answers; Unavailable when it does not."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def status(self) -> pb.GetKvStatusResponse:
        """Errors: NotFound where the cluster has no store."""
        status: pb.GetKvStatusResponse = await self._call("GetKvStatus", pb.GetKvStatusRequest())
        if not status.tiers:
            raise NotFound("this cluster has no KV store: its manifest has no storageClasses")
        return status

    async def list_blocks(self, wanted: pb.BlockFilter, limit: int) -> pb.ListBlocksResponse:
        answer: pb.ListBlocksResponse = await self._call(
            "ListBlocks", pb.ListBlocksRequest(filter=wanted, limit=limit)
        )
        return answer

    async def pin(self, wanted: pb.BlockFilter, *, unpin: bool) -> pb.PinBlocksResponse:
        answer: pb.PinBlocksResponse = await self._call(
            "PinBlocks", pb.PinBlocksRequest(filter=wanted, unpin=unpin)
        )
        return answer

    async def evict(self, wanted: pb.BlockFilter) -> pb.EvictBlocksResponse:
        answer: pb.EvictBlocksResponse = await self._stub.EvictBlocks(
            pb.EvictBlocksRequest(filter=wanted), timeout=_EVICT_SECONDS
        )
        return answer

    def verify(self, wanted: pb.BlockFilter, share: float) -> AsyncIterator[pb.VerifyBlocksResponse]:
        return _in_time(self._stub.VerifyBlocks(pb.VerifyBlocksRequest(filter=wanted, share=share)))

    async def export(self, wanted: pb.BlockFilter, into: ArchiveWriter) -> AsyncIterator[int]:
        """After each piece: how many blocks there will be."""
        all_blocks = 0
        async for piece in _in_time(self._stub.ExportBlocks(pb.ExportBlocksRequest(filter=wanted))):
            all_blocks = piece.all_blocks or all_blocks
            if piece.HasField("block"):
                into.begin(_record(piece.block))
            into.write(piece.data)
            yield all_blocks

    def import_blocks(self, file: BinaryIO, tier: str) -> AsyncIterator[pb.ImportProgress]:
        """file: checked."""
        return _in_time(self._stub.ImportBlocks(_pieces(file, tier)))

    async def _call(self, name: str, request: Any) -> Any:
        return await getattr(self._stub, name)(request, timeout=_DEADLINE_SECONDS)


@asynccontextmanager
async def kv_link(cluster: FoundCluster) -> AsyncIterator[KvLink]:
    address = address_of(cluster.state.roles, "kvmanager")
    if address is None:
        raise Unavailable(f"the cluster {cluster.state.name} has no kvmanager yet")
    async with open_channel(address) as channel:
        try:
            yield KvLink(kvmanager_pb2_grpc.KVManagerStub(channel))  # type: ignore[no-untyped-call]  # generated
        except grpc.aio.AioRpcError as error:
            raise _told(error, address) from error


def _told(error: grpc.aio.AioRpcError, address: str) -> LLMServeError:
    told = from_grpc(error)
    if isinstance(told, Unavailable):
        return Unavailable(f"the kvmanager at {address} does not answer: {told.message}")
    return told


async def _in_time(answers: AsyncIterator[_Answer]) -> AsyncIterator[_Answer]:
    """Errors: Unavailable when the next one is late."""
    reader = aiter(answers)
    while True:
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                answer = await anext(reader)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(f"the kvmanager has not answered for {_DEADLINE_SECONDS:.0f} s") from None
        yield answer


def _record(block: pb.BlockRecord) -> Record:
    return Record(
        BlockHash(block.block_hash),
        BlockHash(block.parent_hash) if block.parent_hash else None,
        TenantId(block.tenant),
        tuple((part.length_bytes, part.checksum, part.shape) for part in block.parts),
    )


def _pieces(file: BinaryIO, tier: str) -> Iterator[pb.ImportPiece]:
    yield pb.ImportPiece(tier=tier)
    for item in read(file):
        if isinstance(item, bytes):
            yield pb.ImportPiece(data=item)
            continue
        parts = [
            pb.BlockPart(length_bytes=length, checksum=checksum, shape=shape)
            for length, checksum, shape in item.parts
        ]
        yield pb.ImportPiece(
            block=pb.BlockRecord(
                block_hash=item.key, parent_hash=item.parent or b"", tenant=item.tenant, parts=parts
            )
        )
