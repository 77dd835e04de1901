"""Pinned blocks of several KV managers, as one list."""

from typing import Any, cast

import grpc
import grpc.aio
import pytest

from llmserve.apiserver.console.look import ClusterLook
from llmserve.apiserver.console.pins import pins, unpin
from llmserve.core.errors import NotFound, Unavailable
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb


class FakeManager:
    """pinned: how long ago each pinned block was used."""

    def __init__(self, **pinned: float) -> None:
        self.pinned = {name.encode(): idle for name, idle in pinned.items()}
        self.code = grpc.StatusCode.NOT_FOUND

    async def ListBlocks(self, request: pb.ListBlocksRequest, timeout: float) -> pb.ListBlocksResponse:  # noqa: N802
        assert request.filter.pinned
        blocks = [
            pb.ListedBlock(
                block_hash=key,
                tenant="red",
                places=[
                    pb.BlockPlace(tier="memory", bytes=2, idle_seconds=idle),
                    pb.BlockPlace(tier="disk", bytes=3, idle_seconds=idle + 1),
                ],
            )
            for key, idle in self.pinned.items()
        ]
        return pb.ListBlocksResponse(blocks=blocks, total_blocks=len(blocks))

    async def PinBlocks(self, request: pb.PinBlocksRequest, timeout: float) -> pb.PinBlocksResponse:  # noqa: N802
        assert request.unpin
        if self.pinned.pop(bytes.fromhex(request.filter.hash_prefix), None) is None:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(self.code, nothing, nothing, "not here", "")
        return pb.PinBlocksResponse(changed_blocks=2)


def _look(*managers: FakeManager) -> ClusterLook:
    class Look:
        async def kv_managers(self) -> list[Any]:
            return [*managers]

    return cast("ClusterLook", Look())


async def test_pins_of_all_kv_managers_are_listed_used_last_first() -> None:
    listed = await pins(_look(FakeManager(a=5.0, b=1.0), FakeManager(c=3.0)))
    assert listed["pinned_blocks"] == 3
    assert [row["block_hash"] for row in listed["pins"]] == [b"b".hex(), b"c".hex(), b"a".hex()]
    assert listed["pins"][0] == {
        "block_hash": b"b".hex(),
        "tenant": "red",
        "tiers": ["memory", "disk"],
        "bytes": 5,
        "idle_seconds": 1.0,
    }


async def test_a_pin_ends_where_its_block_is() -> None:
    managers = FakeManager(a=1.0), FakeManager(b=1.0)
    assert (await unpin(_look(*managers), b"b".hex()))["changed_blocks"] == 2
    assert [set(one.pinned) for one in managers] == [{b"a"}, set()]


@pytest.mark.parametrize(
    ("code", "error"), [(grpc.StatusCode.NOT_FOUND, NotFound), (grpc.StatusCode.UNAVAILABLE, Unavailable)]
)
async def test_a_pin_that_is_nowhere_and_a_manager_that_does_not_answer_are_said(
    code: grpc.StatusCode, error: type[Exception]
) -> None:
    away = FakeManager()
    away.code = code
    with pytest.raises(error):
        await unpin(_look(FakeManager(), away), b"z".hex())
