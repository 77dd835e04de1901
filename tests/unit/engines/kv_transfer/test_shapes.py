"""Pulls between workers of different shapes: every rank of one from the ranks of the other."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from llmserve.core.clock import Clock, VirtualClock
from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import HandoverNode, HeadShard, KvGeometry, KvPart, PullJob, PullResult
from llmserve.engines.kv_transfer.channel import Channel
from llmserve.engines.kv_transfer.protocol import AskDigest
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.tcp import TcpTransport
from tests.unit.engines.kv_transfer.shaped_memory import ShapedMemory, prompt_content

LAYERS, BLOCKS, TOKENS, CELL = 3, 12, 21, 24
PARTS = (KvPart(4, 1, 2), KvPart(1, 1, 16))

Wait = Callable[[Callable[[], bool]], None]
Make = Callable[..., Any]
ResultOf = Callable[[HandoverNode], PullResult]


def geometry(kv_heads: int, size: int, rank: int, block: int, layout: str = "LBHNC/vec") -> KvGeometry:
    shard = HeadShard(kv_heads, size, rank)
    return KvGeometry(
        (block * len(shard.heads) * CELL,) * LAYERS, block, "bfloat16", layout, "m", shard, PARTS
    )


@dataclass
class Worker:
    """Its ranks in one process."""

    nodes: list[HandoverNode]
    memories: list[ShapedMemory]

    def grant(self, request: str, block_ids: Sequence[int], tokens: int = TOKENS) -> PullParams:
        lease = LeaseId(f"lease of {request}")
        for node in self.nodes:
            node.server.grant(RequestId(request), block_ids, lease)
        return PullParams(
            worker_id=WorkerId("prefill-0"),
            epoch=1,
            lease_id=lease,
            endpoints=tuple(node.endpoint for node in self.nodes),
            blocks=BlockTable(tuple(block_ids)),
            num_tokens=tokens,
            block_size_tokens=self.memories[0].geometry.block_size_tokens,
            lease_seconds=0.1,
        )

    def store(self, content: "np.ndarray[Any, np.dtype[np.uint8]]", block_ids: Sequence[int]) -> None:
        for memory in self.memories:
            memory.store(content, block_ids)

    @property
    def open_leases(self) -> int:
        return sum(node.server.status().open_leases for node in self.nodes)


@pytest.fixture
def make_worker() -> Iterator[Callable[..., Worker]]:
    before = set(threading.enumerate())
    nodes: list[HandoverNode] = []

    def make(
        geometries: Sequence[KvGeometry],
        *transports: Any,
        clock: Clock | None = None,
        policy: TransferPolicy | None = None,
    ) -> Worker:
        rng = np.random.default_rng(len(nodes))
        memories = [ShapedMemory(geometry, BLOCKS, rng) for geometry in geometries]
        made = [
            HandoverNode(
                worker_id=WorkerId("w"),
                epoch=1,
                transports=[transports[rank] if transports else TcpTransport()],
                layout=memory.layout,
                lease_seconds=30.0,
                clock=clock,
                policy=policy,
            )
            for rank, memory in enumerate(memories)
        ]
        nodes.extend(made)
        return Worker(made, memories)

    yield make
    for node in nodes:
        node.close()
    assert set(threading.enumerate()) <= before


def shapes(kv_heads: int, size: int, block: int, **more: Any) -> list[KvGeometry]:
    return [geometry(kv_heads, size, rank, block, **more) for rank in range(size)]


@pytest.fixture
def result_of(wait_until: Wait) -> ResultOf:
    def next_result(node: HandoverNode) -> PullResult:
        found: list[PullResult] = []

        def complete() -> bool:
            found.extend(node.client.take_finished())
            return bool(found)

        wait_until(complete)
        return found[0]

    return next_result


@pytest.fixture
def pull(result_of: ResultOf) -> Callable[..., PullResult]:
    def run(
        node: HandoverNode,
        pull_params: PullParams,
        local: Sequence[int],
        first: int = 0,
        first_block: int = 0,
    ) -> PullResult:
        tokens = range(first, pull_params.num_tokens)
        node.client.pull(
            PullJob(RequestId(f"d{first}"), pull_params, tokens, BlockTable(tuple(local), (first_block,)))
        )
        return result_of(node)

    return run


@pytest.mark.parametrize(
    ("kv_heads", "there", "here", "block_there", "block_here"),
    [(2, 1, 1, 4, 8), (2, 2, 1, 8, 8), (2, 1, 2, 8, 4), (4, 2, 4, 6, 8), (4, 4, 2, 4, 4), (1, 3, 2, 4, 12)],
)
def test_every_rank_gets_its_heads_and_every_lease_ends(
    make_worker: Callable[..., Worker],
    pull: Callable[..., PullResult],
    kv_heads: int,
    there: int,
    here: int,
    block_there: int,
    block_here: int,
) -> None:
    owner = make_worker(shapes(kv_heads, there, block_there))
    reader = make_worker(shapes(kv_heads, here, block_here))
    content = prompt_content(np.random.default_rng(9), LAYERS, TOKENS, kv_heads, CELL)
    remote = [7, 2, 3, 11, 0, 5][: -(-TOKENS // block_there)]
    local = [1, 2, 9, 4, 10, 0][: -(-TOKENS // block_here)]
    owner.store(content, remote)
    pull_params = owner.grant("p", remote)
    for node, memory in zip(reader.nodes, reader.memories, strict=True):
        assert owner.open_leases, "somebody has still to read"
        result = pull(node, pull_params, local)
        assert (result.ok, result.reason) == (True, "")
        heads = memory.geometry.shard.heads
        assert np.array_equal(memory.load(local)[:, :TOKENS], content[:, :, heads.start : heads.stop])
    assert owner.open_leases == 0
    assert [node.server.take_ended() for node in owner.nodes] == [{"p"}] * there


def test_what_the_reader_has_is_not_fetched(
    make_worker: Callable[..., Worker], pull: Callable[..., PullResult]
) -> None:
    owner, reader = make_worker(shapes(2, 2, 4)), make_worker(shapes(2, 1, 8))
    content = prompt_content(np.random.default_rng(9), LAYERS, TOKENS, 2, CELL)
    owner.store(content, [7, 2, 3, 11, 0, 5])
    before = reader.memories[0].layers.copy()
    result = pull(reader.nodes[0], owner.grant("p", [7, 2, 3, 11, 0, 5]), [9, 4], first=8, first_block=1)
    assert result.bytes == (TOKENS - 8) * 2 * CELL * LAYERS
    memory = reader.memories[0]
    assert np.array_equal(memory.load([9, 4])[:, : TOKENS - 8], content[:, 8:])
    untouched = [block for block in range(BLOCKS) if block not in (9, 4)]
    assert np.array_equal(before[:, untouched], memory.layers[:, untouched])


def test_many_pieces_are_verified_in_several_messages(
    make_worker: Callable[..., Worker], pull: Callable[..., PullResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    send = Channel.send

    def noted(channel: Channel, message: Any) -> None:
        if isinstance(message, AskDigest):
            asked.append(len(message.spans().lengths))
        send(channel, message)

    monkeypatch.setattr(Channel, "send", noted)
    monkeypatch.setattr("llmserve.engines.kv_transfer.peers._DIGEST_PIECES", 20)
    owner = make_worker(shapes(2, 1, 4))
    reader = make_worker(shapes(2, 1, 8), policy=TransferPolicy(verify="always"))
    result = pull(reader.nodes[0], owner.grant("p", [7, 2, 3, 11, 0, 5]), [9, 4, 1])
    assert result.ok
    pieces = LAYERS * 2 * 5 * 6  # layers, heads, rows of the parts, blocks
    assert asked == [20] * (pieces // 20)


def test_a_lease_that_has_ended_on_one_rank_spoils_it_all(
    make_worker: Callable[..., Worker], pull: Callable[..., PullResult], wait_until: Wait
) -> None:
    owner, reader = make_worker(shapes(2, 2, 4)), make_worker(shapes(2, 1, 4))
    pull_params = owner.grant("p", [0, 1, 2, 3, 4, 5])
    assert owner.nodes[1].server.withdraw(RequestId("p"))
    result = pull(reader.nodes[0], pull_params, [0, 1, 2, 3, 4, 5])
    assert not result.ok
    assert result.bytes == 0
    assert "begin: ended" in result.reason
    wait_until(lambda: owner.nodes[0].server.take_ended() == {"p"})  # given back


def test_a_rank_that_fails_ends_the_reads_of_the_others(
    make_worker: Callable[..., Worker], pull: Callable[..., PullResult], gated: Make
) -> None:
    """The gate of rank 0 never opens; the lease of rank 1 is gone once the reads run."""
    owner = make_worker(shapes(2, 2, 4), gated(), gated())
    near = gated()
    reader = make_worker(shapes(2, 1, 4), near)
    pull_params = owner.grant("p", [0, 1, 2, 3, 4, 5])
    owner.nodes[1].server.withdraw(RequestId("p"))
    result = pull(reader.nodes[0], pull_params, [0, 1, 2, 3, 4, 5])
    assert "begin: ended" in result.reason
    assert near.cancelled == near.started.is_set()


def test_an_owner_that_dies_during_the_reads_ends_them(
    make_worker: Callable[..., Worker], gated: Make, wait_until: Wait, result_of: ResultOf
) -> None:
    owner = make_worker(shapes(2, 2, 4), gated(), gated())
    near = gated()
    reader = make_worker(shapes(2, 1, 4), near)
    pull_params = owner.grant("p", [0, 1, 2, 3, 4, 5])
    client = reader.nodes[0].client
    client.pull(PullJob(RequestId("d"), pull_params, range(TOKENS), BlockTable((0, 1, 2, 3, 4, 5))))
    wait_until(lambda: len(reader.nodes[0]._engine._flights) == 2)
    owner.nodes[1].close()
    assert not result_of(reader.nodes[0]).ok
    assert near.cancelled == 2, "neither read touches memory any more"


def test_a_cancelled_pull_ends_all_reads(
    make_worker: Callable[..., Worker], gated: Make, wait_until: Wait, result_of: ResultOf
) -> None:
    owner = make_worker(shapes(2, 2, 4), gated(), gated())
    near = gated()
    reader = make_worker(shapes(2, 1, 4), near)
    client = reader.nodes[0].client
    pull_params = owner.grant("p", [0, 1, 2, 3, 4, 5])
    client.pull(PullJob(RequestId("d"), pull_params, range(TOKENS), BlockTable((0, 1, 2, 3, 4, 5))))
    wait_until(lambda: len(reader.nodes[0]._engine._flights) == 2)
    client.cancel(RequestId("d"))
    assert result_of(reader.nodes[0]).reason == "cancelled"
    assert near.cancelled == 2
    wait_until(lambda: owner.open_leases == 0)


def test_a_watch_renews_the_leases_of_all_ranks(
    make_worker: Callable[..., Worker], wait_until: Wait, clock: VirtualClock
) -> None:
    owner = make_worker(shapes(2, 2, 4), clock=clock)
    reader = make_worker(shapes(2, 1, 8))
    pull_params = owner.grant("p", [0, 1, 2, 3, 4, 5])
    client = reader.nodes[0].client
    client.watch(pull_params)
    wait_until(lambda: all(node.server._table.counters.renewed > 2 for node in owner.nodes))
    client.release(pull_params)
    wait_until(lambda: not client._watches)
    wait_until(lambda: owner.open_leases == 0)


def test_a_release_reaches_also_the_ranks_that_nobody_reads(
    make_worker: Callable[..., Worker], wait_until: Wait
) -> None:
    owner, reader = make_worker(shapes(1, 3, 4)), make_worker(shapes(1, 1, 4))
    reader.nodes[0].client.release(owner.grant("p", [0, 1, 2, 3, 4, 5]))
    wait_until(lambda: owner.open_leases == 0)


def test_a_peer_that_does_not_fit_is_refused_in_words(
    make_worker: Callable[..., Worker], pull: Callable[..., PullResult]
) -> None:
    owner = make_worker(shapes(2, 1, 4, layout="LBHNC/amx"))
    reader = make_worker(shapes(2, 1, 8))
    result = pull(reader.nodes[0], owner.grant("p", [0, 1, 2, 3, 4, 5]), [0, 1, 2])
    assert "the KV caches do not fit: layout differs: 'LBHNC/vec' there, 'LBHNC/amx' here" in result.reason
    odd = make_worker([replace(shape, shard=HeadShard(2)) for shape in shapes(2, 1, 4)])
    pull_params = odd.grant("q", [0, 1, 2, 3, 4, 5])
    three = replace(pull_params, endpoints=pull_params.endpoints * 3)
    assert "2 KV heads cannot be cut into 3 ranks" in pull(reader.nodes[0], three, [0, 1, 2]).reason
