"""What a worker tells of its blocks when it attaches, and which memory its later calls mean."""

from collections.abc import Sequence
from typing import Any

import pytest

from llmserve.config.load import parse_manifest
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.kvstore.blocks import PoolUser
from llmserve.kvstore.formats import Element, grouped
from llmserve.kvstore.store.build import StoreParts, build_store
from llmserve.kvstore.store_calls import StoreCalls
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

SIZE = 4096
SHAPE = grouped(Element.FLOAT16, SIZE).text()
MANIFEST = """
kind: LLMServe
models: {primary: {source: hub:org/name}}
storageClasses: [{name: fast, tier: dram, capacity_gb: 0.004}]
"""


@pytest.mark.parametrize(
    ("sizes", "shapes", "words"),
    [
        ([SIZE], [], ""),
        ([SIZE, SIZE], [SHAPE, SHAPE], ""),
        ([], [], "one for each rank"),
        ([SIZE, SIZE], [SHAPE], "part_bytes says"),
        ([2 * SIZE], [SHAPE], "part_bytes says"),
        ([SIZE], ["float16 and so on"], "not the shape of a block"),
        ([SIZE], ["words 1(c2)"], "elements unknown"),
    ],
)
async def test_shapes_fit_their_parts(sizes: Sequence[int], shapes: Sequence[str], words: str) -> None:
    built = build_store(StoreParts.of(parse_manifest(MANIFEST, "m"), "kvmanager-0", {}), VirtualClock())
    assert built
    request = pb.AttachStoreRequest(worker_id="w", epoch=1, part_bytes=sizes, part_shapes=shapes)
    try:
        if words:
            with pytest.raises(InvalidRequest, match=words):
                await StoreCalls(built, 30.0).attach(request)
        else:
            assert (await StoreCalls(built, 30.0).attach(request)).enabled
    finally:
        await built.aclose()


async def test_what_is_meant_for_the_memory_of_an_earlier_store_is_refused() -> None:
    """A call that was sent before the worker attached anew may arrive after it has."""
    built = build_store(StoreParts.of(parse_manifest(MANIFEST, "m"), "kvmanager-0", {}), VirtualClock())
    assert built
    calls, hashes = StoreCalls(built, 30.0), [b"h" * 32]
    me: dict[str, Any] = {"worker_id": "w", "epoch": 1}
    try:
        arena_id = (await calls.attach(pb.AttachStoreRequest(**me, part_bytes=[SIZE]))).arena_id
        assert arena_id == built.arena.arena_id
        for right in (arena_id, ""):
            asked = pb.PreparePromptRequest(**me, block_hashes=hashes, store=True, arena_id=right)
            assert (await calls.prepare(asked)).stores or right == ""
            calls.settle(pb.SettleStoreRequest(**me, arena_id=right))
        with pytest.raises(NotFound, match="an earlier store"):
            await calls.prepare(pb.PreparePromptRequest(**me, block_hashes=hashes, arena_id="another"))
        with pytest.raises(NotFound, match="an earlier store"):
            calls.settle(pb.SettleStoreRequest(**me, aborts=hashes, arena_id="another"))
        assert built.store.dram.is_used_by({PoolUser("w/1")}), "its reservation stands"
    finally:
        await built.aclose()
