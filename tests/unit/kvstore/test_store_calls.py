"""What a worker tells of its blocks when it attaches."""

from collections.abc import Sequence

import pytest

from llmserve.config.load import parse_manifest
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest
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
