"""The blocks that operators have pinned in the KV store, and the end of a pin (docs/kv-operations.md)."""

from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

import grpc.aio

from llmserve.apiserver.console.look import ClusterLook
from llmserve.core.errors import NotFound
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.status import from_grpc

_ASK_SECONDS = 10.0
_SHOWN = 200
_Answer = TypeVar("_Answer")


async def pins(look: ClusterLook) -> dict[str, Any]:
    """The pinned blocks, used last first. Errors: NotFound without a store; Unavailable."""
    request = pb.ListBlocksRequest(filter=pb.BlockFilter(pinned=True), limit=_SHOWN)
    answers: list[pb.ListBlocksResponse] = [
        await _answer(manager.ListBlocks(request, timeout=_ASK_SECONDS))
        for manager in await look.kv_managers()
    ]
    rows = sorted(
        (_row(block) for one in answers for block in one.blocks), key=lambda row: row["idle_seconds"]
    )
    return {"pinned_blocks": sum(one.total_blocks for one in answers), "pins": rows[:_SHOWN]}


async def unpin(look: ClusterLook, block_hash: str) -> dict[str, Any]:
    """Ends the pin of one block in all its tiers. Errors: NotFound when no KV manager has it; Unavailable."""
    request = pb.PinBlocksRequest(filter=pb.BlockFilter(hash_prefix=block_hash), unpin=True)
    changed: list[int] = []
    for manager in await look.kv_managers():
        with suppress(NotFound):  # another one owns it
            done: pb.PinBlocksResponse = await _answer(manager.PinBlocks(request, timeout=_ASK_SECONDS))
            changed.append(done.changed_blocks)
    if not changed:
        raise NotFound(f"no block is stored whose hash begins with {block_hash}")
    return {"block_hash": block_hash, "changed_blocks": sum(changed)}


async def _answer(call: Awaitable[_Answer]) -> _Answer:
    """Errors: those that a KV manager answers with."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_grpc(error) from error


def _row(block: pb.ListedBlock) -> dict[str, Any]:
    return {
        "block_hash": block.block_hash.hex(),
        "tenant": block.tenant,
        "tiers": [place.tier for place in block.places],
        "bytes": sum(place.bytes for place in block.places),
        "idle_seconds": min((place.idle_seconds for place in block.places), default=0.0),
    }
