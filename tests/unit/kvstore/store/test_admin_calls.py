"""Blocks in pieces: what an importer sends is checked before it is stored."""

from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import xxhash

from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.kvstore.formats import Quantize
from llmserve.kvstore.store.build import BuiltStore
from llmserve.kvstore.store_admin_calls import StoreAdminCalls
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from tests.unit.kvstore.store.conftest import PART_BYTES, MakeWorld, World, chain, content

KEY, PARENT = chain("a", 2)[1], chain("a", 2)[0]


def _calls(world: World, quantize: Quantize = Quantize.NONE) -> StoreAdminCalls:
    arena = SimpleNamespace(view=world.view_at)
    return StoreAdminCalls(BuiltStore(cast("Any", arena), world.store, quantize), world.clock)


def _record(length: int = PART_BYTES, **more: Any) -> pb.BlockRecord:
    part = pb.BlockPart(length_bytes=length, checksum=xxhash.xxh3_64_intdigest(content(KEY)))
    return pb.BlockRecord(**{"block_hash": KEY, "parent_hash": PARENT, "parts": [part], **more})


async def _import(
    world: World, pieces: Sequence[pb.ImportPiece], quantize: Quantize = Quantize.NONE
) -> pb.ImportProgress:
    async def sent() -> AsyncIterator[pb.ImportPiece]:
        yield pb.ImportPiece()
        for piece in pieces:
            yield piece

    answers = [answer async for answer in _calls(world, quantize).import_blocks(sent())]
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    return answers[-1]


async def test_a_block_in_pieces_of_any_size(make_world: MakeWorld) -> None:
    world, data = make_world(), content(KEY)
    pieces = [pb.ImportPiece(block=_record(), data=data[:10])]
    pieces += [pb.ImportPiece(data=data[10:50_000]), pb.ImportPiece(data=data[50_000:])]
    done = await _import(world, pieces)
    assert (done.tier, done.received_blocks, done.stored_blocks) == ("dram", 1, 1)
    (found,) = (await _calls(world).list_blocks(pb.ListBlocksRequest(limit=5))).blocks
    assert (found.block_hash, found.parent_hash) == (KEY, PARENT)


async def test_nothing_is_imported_of_nothing(make_world: MakeWorld) -> None:
    assert (await _import(make_world(), [])).received_blocks == 0


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([pb.ImportPiece(block=_record(), data=bytes(PART_BYTES))], "not what its record says"),
        ([pb.ImportPiece(block=_record(), data=content(KEY) + b"x")], "not what its record says"),
        ([pb.ImportPiece(block=_record(), data=b"few")], "3 of 65536 bytes came"),
        ([pb.ImportPiece(block=_record()), pb.ImportPiece(block=_record())], "0 of 65536 bytes"),
        ([pb.ImportPiece(data=b"of no block")], "0 parts|not what its record says"),
        ([pb.ImportPiece(block=_record(block_hash=b""))], "without a name"),
        ([pb.ImportPiece(block=_record(parent_hash=KEY))], "without a name of its own"),
        ([pb.ImportPiece(block=_record(parts=[]))], "0 parts"),
        ([pb.ImportPiece(block=_record(0))], "0 bytes in all"),
        ([pb.ImportPiece(block=_record(1 << 32))], "4294967296 bytes"),
        ([pb.ImportPiece(block=_record(quantize="int9"))], "quantized as 'int9', unknown to this"),
        ([pb.ImportPiece(block=_record(quantize="int8"), data=content(KEY))], "DRAM of this cluster has"),
    ],
)
async def test_what_is_not_a_block_is_refused(
    make_world: MakeWorld, pieces: Sequence[pb.ImportPiece], message: str
) -> None:
    world = make_world()
    with pytest.raises(InvalidRequest, match=message):
        await _import(world, pieces)
    assert len(world.store.dram.index) == 0


async def test_a_large_block_comes_out_in_pieces(make_world: MakeWorld) -> None:
    world = make_world()
    await world.seen(chain("a", 2))
    pieces = [piece async for piece in _calls(world).export(pb.ExportBlocksRequest())]
    assert pieces[0].all_blocks == 2
    assert [piece.block.block_hash for piece in pieces if piece.HasField("block")] == chain("a", 2)
    assert b"".join(piece.data for piece in pieces) == b"".join(map(content, chain("a", 2)))


async def test_the_format_of_dram_goes_out_and_comes_back(make_world: MakeWorld) -> None:
    world, shapes = make_world(), (f"opaque {PART_BYTES // 64}(t64)",)
    await world.seen(chain("a", 2), shapes=shapes)
    pieces = [piece async for piece in _calls(world, Quantize.INT8).export(pb.ExportBlocksRequest())]
    assert {piece.block.quantize for piece in pieces if piece.HasField("block")} == {"int8"}
    sent = [
        pb.ImportPiece(block=piece.block if piece.HasField("block") else None, data=piece.data)
        for piece in pieces
    ]
    with pytest.raises(InvalidRequest, match="has `quantize: none`"):
        await _import(make_world(), sent)
    assert (await _import(make_world(), sent, Quantize.INT8)).stored_blocks == 2


async def test_without_a_store_there_are_no_tiers(make_world: MakeWorld) -> None:
    calls = StoreAdminCalls(None, make_world().clock)
    assert calls.stats().tiers == ()
    with pytest.raises(NotFound, match="storageClasses"):
        await calls.pin(pb.PinBlocksRequest())
    with pytest.raises(NotFound, match="storageClasses"):
        await anext(calls.verify(pb.VerifyBlocksRequest()))
