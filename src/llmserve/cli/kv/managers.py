"""The KV managers of a running cluster, as if there were one. Each wait has a deadline."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import grpc.aio

from llmserve.cli.cluster import FoundCluster
from llmserve.cli.kv.archive import owners_of
from llmserve.core.errors import InvalidRequest, NotFound, Unavailable
from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.formats import Quantize
from llmserve.kvstore.store.archive import ArchiveRecord, ArchiveWriter, read
from llmserve.overview.kv import add_fields, summed
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2_grpc
from llmserve.rpc.status import from_grpc

_DEADLINE_SECONDS = 60.0  # for an answer, and between two of a stream
_EVICT_SECONDS = 600.0  # enough for a bucket with a million blocks
_EVICT_SUMS = ("evicted_blocks", "evicted_bytes", "pinned_blocks", "busy_blocks")
_IMPORT_SUMS = ("received_blocks", "stored_blocks", "present_blocks", "refused_blocks")

_Answer = TypeVar("_Answer")


class KvManagers:
    """Calls all KV managers, as if there were one. Errors of all calls: those that a KV manager answers with;
    Unavailable when one does not answer."""

    def __init__(self, managers: Sequence["_Manager"]) -> None:
        self._managers = tuple(managers)

    async def status(self) -> pb.GetKvStatusResponse:
        """Errors: NotFound when the cluster has no store."""
        answers = await self._all("GetKvStatus", pb.GetKvStatusRequest())
        names = [one.name for one in self._managers]
        status = summed(dict(zip(names, answers, strict=True)))
        if not status.tiers:
            raise NotFound("this cluster has no KV store: its manifest has no storageClasses")
        return status

    async def list_blocks(self, wanted: pb.BlockFilter, limit: int) -> pb.ListBlocksResponse:
        request = pb.ListBlocksRequest(filter=wanted, limit=limit)
        return listed(await self._all("ListBlocks", request), limit)

    async def pin(self, wanted: pb.BlockFilter, *, unpin: bool) -> pb.PinBlocksResponse:
        request = pb.PinBlocksRequest(filter=wanted, unpin=unpin)
        done = [await one.call("PinBlocks", request) for one in await self._having(wanted)]
        tiers = (await self.status()).tiers
        return pb.PinBlocksResponse(
            changed_blocks=sum(one.changed_blocks for one in done),
            pinned_blocks=sum(tier.pinned_blocks for tier in tiers if wanted.tier in ("", tier.name)),
        )

    async def evict(self, wanted: pb.BlockFilter) -> pb.EvictBlocksResponse:
        request, whole = pb.EvictBlocksRequest(filter=wanted), pb.EvictBlocksResponse()
        for manager in await self._having(wanted):
            add_fields(whole, await manager.call("EvictBlocks", request, _EVICT_SECONDS), _EVICT_SUMS)
        return whole

    async def verify(self, wanted: pb.BlockFilter, share: float) -> AsyncIterator[pb.VerifyBlocksResponse]:
        """Asks one KV manager after the other. The answer's tier names the manager when there are several."""
        request = pb.VerifyBlocksRequest(filter=wanted, share=share)
        for manager in self._managers:
            async for answer in manager.stream("VerifyBlocks", request):
                if len(self._managers) > 1:
                    answer.tier = f"{answer.tier} of {manager.name}"
                yield answer

    async def export(self, wanted: pb.BlockFilter, into: ArchiveWriter) -> AsyncIterator[int]:
        """Yields after each piece how many blocks there will be, as far as that is known."""
        all_blocks = 0
        for manager in self._managers:
            async for piece in manager.stream("ExportBlocks", pb.ExportBlocksRequest(filter=wanted)):
                all_blocks += piece.all_blocks
                if piece.HasField("block"):
                    into.begin(_record(piece.block))
                into.write(piece.data)
                yield all_blocks

    async def import_blocks(self, file: BinaryIO, tier: str) -> AsyncIterator[pb.ImportProgress]:
        """Sends each block to the KV manager that owns it. file: checked."""
        owners = owners_of(file, [one.name for one in self._managers])
        before = pb.ImportProgress()
        for manager in self._managers:
            whole = before
            async for now in manager.stream("ImportBlocks", _pieces(file, tier, owners, manager.name)):
                whole = imported(before, now)
                yield whole
            before = whole

    async def _all(self, name: str, request: Any) -> list[Any]:
        return await asyncio.gather(*(one.call(name, request) for one in self._managers))

    async def _having(self, wanted: pb.BlockFilter) -> Sequence["_Manager"]:
        """Returns the managers that are asked to change something: all, or those that have the one block with
        the hash. Errors: InvalidRequest when several blocks begin with it."""
        if len(self._managers) == 1 or not wanted.hash_prefix:
            return self._managers
        answers = await self._all("ListBlocks", pb.ListBlocksRequest(filter=wanted, limit=2))
        if len({block.block_hash for answer in answers for block in answer.blocks}) > 1:
            raise InvalidRequest(
                f"several blocks have a hash that begins with {wanted.hash_prefix}: give more of it"
            )
        having = [one for one, answer in zip(self._managers, answers, strict=True) if answer.total_blocks]
        return having or self._managers[:1]  # which says that it is not there


@dataclass(frozen=True, slots=True)
class _Manager:
    name: str
    address: str
    stub: Any

    async def call(self, name: str, request: Any, timeout_seconds: float = _DEADLINE_SECONDS) -> Any:
        with self._errors():
            return await getattr(self.stub, name)(request, timeout=timeout_seconds)

    async def stream(self, name: str, request: Any) -> AsyncIterator[Any]:
        """request: a message, or an iterator of messages. Errors: Unavailable when an answer is late."""
        with self._errors():
            async for answer in _in_time(getattr(self.stub, name)(request), self.name):
                yield answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            ours = from_grpc(error)
            if isinstance(ours, Unavailable):
                ours = Unavailable(f"{self.name} at {self.address} does not answer: {ours.message}")
            raise ours from error


@asynccontextmanager
async def kv_managers(cluster: FoundCluster) -> AsyncIterator[KvManagers]:
    addresses = cluster.kvmanagers
    if not addresses:
        raise Unavailable(f"the cluster {cluster.state.name} has no kvmanager yet")
    async with AsyncExitStack() as channels:
        managers = []
        for name, address in addresses.items():
            channel = await channels.enter_async_context(
                open_channel(address, cluster.credentials, CallerRole.KVMANAGER)
            )
            stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]  # generated
            managers.append(_Manager(name, address, stub))
        yield KvManagers(managers)


async def _in_time(answers: AsyncIterator[_Answer], name: str) -> AsyncIterator[_Answer]:
    """Errors: Unavailable when the next answer is late."""
    reader = aiter(answers)
    while True:
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                answer = await anext(reader)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(f"{name} has not answered for {_DEADLINE_SECONDS:.0f} s") from None
        yield answer


def _record(block: pb.BlockRecord) -> ArchiveRecord:
    return ArchiveRecord(
        BlockHash(block.block_hash),
        BlockHash(block.parent_hash) if block.parent_hash else None,
        TenantId(block.tenant),
        tuple((part.length_bytes, part.checksum, part.shape) for part in block.parts),
        Quantize(block.quantize or Quantize.NONE),
    )


def _pieces(
    file: BinaryIO, tier: str, owners: Mapping[BlockHash, str], owner: str
) -> Iterator[pb.ImportPiece]:
    """Yields what the file has of one owner's blocks."""
    yield pb.ImportPiece(tier=tier)
    wanted = False
    for item in read(file):
        if not isinstance(item, bytes):
            wanted = owners[item.key] == owner
        if wanted:
            yield _piece(item)


def _piece(item: ArchiveRecord | bytes) -> pb.ImportPiece:
    if isinstance(item, bytes):
        return pb.ImportPiece(data=item)
    parts = [
        pb.BlockPart(length_bytes=length, checksum=checksum, shape=shape)
        for length, checksum, shape in item.parts
    ]
    return pb.ImportPiece(
        block=pb.BlockRecord(
            block_hash=item.key,
            parent_hash=item.parent or b"",
            tenant=item.tenant,
            parts=parts,
            quantize=item.quantize,
        )
    )


# -- sums of what each of them did


def listed(answers: Iterable[pb.ListBlocksResponse], limit: int) -> pb.ListBlocksResponse:
    """Returns at most `limit` blocks, those used last first."""
    every = list(answers)
    blocks = sorted((block for one in every for block in one.blocks), key=_idle_seconds)
    return pb.ListBlocksResponse(blocks=blocks[:limit], total_blocks=sum(one.total_blocks for one in every))


def imported(before: pb.ImportProgress, now: pb.ImportProgress) -> pb.ImportProgress:
    """before: the sum of the KV managers that are done."""
    whole = pb.ImportProgress()
    whole.CopyFrom(now)
    add_fields(whole, before, _IMPORT_SUMS)
    return whole


def _idle_seconds(block: pb.ListedBlock) -> float:
    return min(place.idle_seconds for place in block.places)
