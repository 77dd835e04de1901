"""The calls of workers: from messages to `store` and back."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmserve.core.errors import FormatUnknown, InvalidRequest, NotFound, TransferError
from llmserve.core.ids import BlockHash, LeaseId, TenantId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.kvstore.blocks import BlockSlots, PartFill, PoolUser, Prompt, Slot
from llmserve.kvstore.dram.serving import PoolServer
from llmserve.kvstore.formats import BlockShape
from llmserve.kvstore.store.build import BuiltStore
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.transfer.shm.identity import ProcessNamespace

_log = logging.getLogger(__name__)
_MOST_PREFETCHES = 4


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a worker's blocks: bytes and shape of each."""

    sizes: tuple[int, ...]
    shapes: tuple[str, ...]
    block_tokens: int


class StoreCalls:
    """One loop. Keeps the workers that have attached; a newer incarnation ends what an older one held."""

    def __init__(
        self, built: BuiltStore | None, lease_seconds: float, server: PoolServer | None = None
    ) -> None:
        """server: opens the arena to workers elsewhere; without one they have no part in the store."""
        self._built, self._lease_seconds, self._server = built, lease_seconds, server
        self._parts: dict[PoolUser, _Parts] = {}
        self._remote_users: set[PoolUser] = set()
        self._prefetching: set[asyncio.Task[None]] = set()
        self.prefetched_blocks = 0

    async def attach(self, request: pb.AttachStoreRequest) -> pb.AttachStoreResponse:
        if self._built is None:
            return pb.AttachStoreResponse(enabled=False)
        user = _user(request.worker_id, request.epoch)
        parts = _parts(request)
        self._forget_earlier(request.worker_id, user)
        self._parts[user] = parts
        for size in request.part_bytes:
            self._built.store.dram.slots.slabs.expect(size)
        _log.info("worker %s attaches, %s bytes a block", user, sum(request.part_bytes))
        transports = await self._transports(user) if _is_remote(request.place) else {}
        description = self._built.arena.description(transports)
        return pb.AttachStoreResponse(
            enabled=True,
            arena=description,
            lease_seconds=self._lease_seconds,
            arena_id=self._built.arena.arena_id,
        )

    async def prepare(self, request: pb.PreparePromptRequest) -> pb.PreparePromptResponse:
        built, user = self._attached(request)
        if request.have_blocks > len(request.block_hashes):
            raise InvalidRequest("have_blocks: more than there are")
        prepared = await built.store.prepare(
            Prompt(
                user=user,
                tenant=TenantId(request.tenant),
                keys=list(map(BlockHash, request.block_hashes)),
                part_bytes=self._parts[user].sizes,
                shapes=self._parts[user].shapes,
                have_blocks=request.have_blocks,
                compute_seconds=request.compute_seconds or float("inf"),
                load=request.load,
                store=request.store,
                block_tokens=self._parts[user].block_tokens,
            )
        )
        if self._server and user in self._remote_users:
            self._server.expect()
        return pb.PreparePromptResponse(
            lease_id=prepared.lease_id, loads=_blocks(prepared.loads), stores=_blocks(prepared.stores)
        )

    def settle(self, request: pb.SettleStoreRequest) -> pb.SettleStoreResponse:
        built, user = self._attached(request)
        store = built.store
        store.commit(
            [PartFill(BlockHash(f.block_hash), f.part, f.generation, f.checksum) for f in request.commits]
        )
        store.abort(user, list(map(BlockHash, request.aborts)))
        for key in request.corrupt:
            store.corrupt(BlockHash(key))
        answers = [(name, store.release(LeaseId(name))) for name in request.releases]
        answers += [(name, store.renew(LeaseId(name))) for name in request.renewals]
        return pb.SettleStoreResponse(
            ended=[name for name, answer in answers if answer is not LeaseAnswer.VALID]
        )

    def prefetch(self, request: pb.PrefetchRequest) -> pb.PrefetchResponse:
        """Begins to bring up blocks. taken=False: there is no store, the worker has not attached, or so many
        prefetches run that one more would only slow them."""
        user = next((user for user in self._parts if _worker_of(user) == request.worker_id), None)
        if self._built is None or user is None or len(self._prefetching) >= _MOST_PREFETCHES:
            return pb.PrefetchResponse(taken=False)
        prompt = Prompt(
            user=user,
            tenant=TenantId(request.tenant),
            keys=list(map(BlockHash, request.block_hashes)),
            part_bytes=self._parts[user].sizes,
            shapes=self._parts[user].shapes,
        )
        work = self._prefetch(self._built, prompt, request.wait_seconds)
        task = asyncio.create_task(work, name="kvmanager.prefetch")
        self._prefetching.add(task)
        task.add_done_callback(self._prefetching.discard)
        return pb.PrefetchResponse(taken=True)

    async def aclose(self) -> None:
        """Idempotent. Ends the prefetches."""
        for task in self._prefetching:
            task.cancel()
        await asyncio.gather(*self._prefetching, return_exceptions=True)

    def tick(self) -> None:
        """Ends what is overdue; call it every second or so."""
        if self._built:
            self._built.store.dram.settle()
            if self._server and not self._built.store.dram.is_used_by(self._remote_users):
                self._server.rest()

    # -- parts

    async def _prefetch(self, built: BuiltStore, prompt: Prompt, wait_seconds: float) -> None:
        try:
            prefetched = await built.store.prefetch(prompt, wait_seconds)
        except Exception:  # a bug of ours; the prompt runs all the same
            _log.exception("a prefetch of %d blocks failed", len(prompt.keys))
        else:
            self.prefetched_blocks += prefetched

    def _attached(
        self, request: pb.PreparePromptRequest | pb.SettleStoreRequest
    ) -> tuple[BuiltStore, PoolUser]:
        """Refuses what is meant for the memory of an earlier KV manager: a worker that has attached anew may
        have calls on their way that do not know of it yet."""
        user = _user(request.worker_id, request.epoch)
        if self._built is None or user not in self._parts:
            raise NotFound(f"worker {user} has not attached to the store")
        if request.arena_id not in ("", self._built.arena.arena_id):
            raise NotFound(f"worker {user} means the memory of an earlier store: it must attach again")
        return self._built, user

    async def _transports(self, user: PoolUser) -> Mapping[str, str]:
        """Transports by which this worker reaches the arena. The first call waits until they are ready."""
        if self._server is None:
            return {}
        self._remote_users.add(user)
        try:
            return await asyncio.to_thread(self._server.open)
        except TransferError as error:
            _log.error("worker %s has no part in the store: %s", user, error.message)
            return {}

    def _forget_earlier(self, worker_id: str, user: PoolUser) -> None:
        assert self._built
        for earlier in [one for one in self._parts if _worker_of(one) == worker_id and one != user]:
            self._built.store.forget(earlier)
            del self._parts[earlier]
            self._remote_users.discard(earlier)


def _user(worker_id: str, epoch: int) -> PoolUser:
    return PoolUser(f"{worker_id}/{epoch}")


def _worker_of(user: PoolUser) -> str:
    return user.rpartition("/")[0]


def _is_remote(place: str) -> bool:
    """Whether process numbers mean something else there."""
    return bool(place) and place != ProcessNamespace.here().text


def _parts(request: pb.AttachStoreRequest) -> _Parts:
    """Errors: InvalidRequest."""
    sizes, shapes = tuple(request.part_bytes), tuple(request.part_shapes)
    if not sizes:
        raise InvalidRequest("part_bytes: one for each rank")
    try:
        said = [BlockShape.parse(text).size_bytes for text in shapes]
    except FormatUnknown as error:
        raise InvalidRequest(f"part_shapes: {error.message}") from None
    if said and tuple(said) != sizes:
        raise InvalidRequest(f"part_shapes: of {said} bytes, and part_bytes says {list(sizes)}")
    return _Parts(sizes, shapes, request.block_tokens)


def _blocks(blocks: Sequence[BlockSlots]) -> list[pb.StoreBlock]:
    return [pb.StoreBlock(index=block.index, slots=list(map(_slot, block.slots))) for block in blocks]


def _slot(slot: Slot) -> pb.StoreSlot:
    return pb.StoreSlot(
        offset=slot.offset,
        length_bytes=slot.length_bytes,
        generation=slot.generation,
        checksum=slot.checksum,
    )
