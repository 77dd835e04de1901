"""What several KV managers say, as one."""

from typing import Any

from llmserve.cli.kv.managers import KvManagers, _Manager, imported, listed
from llmserve.overview.kv import summed
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb


def tier(name: str, **fields: Any) -> pb.TierStatus:
    return pb.TierStatus(name=name, kind="dram", **fields)


def workers(connected: int) -> list[pb.WorkerKvStatus]:
    return [pb.WorkerKvStatus(worker_id=f"w{at}", connected=True) for at in range(connected)]


def test_leases_are_counted_once_and_stores_added_up() -> None:
    write = pb.TierOutcome(operation="write", result="done", count=2)
    full = pb.TierOutcome(operation="write", result="full", count=1)
    a = pb.GetKvStatusResponse(
        open_leases=3,
        orphan_blocks=1,
        workers=workers(2),
        tiers=[tier("fast", blocks=5, hit_tokens=10, evictions={"room": 1}, outcomes=[write])],
        saved_prefill_seconds=1.5,
    )
    b = pb.GetKvStatusResponse(
        open_leases=3,
        orphan_blocks=1,
        workers=workers(2),
        tiers=[tier("fast", blocks=7, evictions={"room": 2, "quota": 1}, outcomes=[write, full])],
        saved_prefill_seconds=2.0,
    )
    whole = summed({"kvmanager-0": a, "kvmanager-1": b})
    assert (whole.open_leases, whole.orphan_blocks, len(whole.workers)) == (3, 1, 2)
    assert whole.saved_prefill_seconds == 3.5
    (fast,) = whole.tiers
    assert (fast.blocks, fast.hit_tokens, dict(fast.evictions)) == (12, 10, {"room": 3, "quota": 1})
    assert {(one.result, one.count) for one in fast.outcomes} == {("done", 4), ("full", 1)}


def test_who_hears_most_workers_is_believed() -> None:
    started = pb.GetKvStatusResponse(workers=workers(1), directory_blocks=1)
    knows = pb.GetKvStatusResponse(workers=workers(3), directory_blocks=9)
    assert summed({"kvmanager-0": started, "kvmanager-1": knows}).directory_blocks == 9


def test_trouble_says_whose_it_is_where_there_are_several() -> None:
    well, ill = tier("disk"), tier("disk", trouble="no room")
    one = pb.GetKvStatusResponse(tiers=[ill])
    assert summed({"kvmanager-0": one}).tiers[0].trouble == "no room"
    both = summed({"kvmanager-0": pb.GetKvStatusResponse(tiers=[well]), "kvmanager-1": one})
    assert both.tiers[0].trouble == "kvmanager-1: no room"


def test_without_an_answer_nothing_is_known() -> None:
    assert summed({}) == pb.GetKvStatusResponse()


def test_blocks_are_listed_used_last_first() -> None:
    def block(name: bytes, idle: float) -> pb.ListedBlock:
        return pb.ListedBlock(block_hash=name, places=[pb.BlockPlace(idle_seconds=idle)])

    answers = [
        pb.ListBlocksResponse(blocks=[block(b"a", 1.0), block(b"c", 9.0)], total_blocks=5),
        pb.ListBlocksResponse(blocks=[block(b"b", 2.0)], total_blocks=1),
    ]
    listing = listed(answers, 2)
    assert ([one.block_hash for one in listing.blocks], listing.total_blocks) == ([b"a", b"b"], 6)


def test_imports_add_up() -> None:
    before = pb.ImportProgress(received_blocks=3, stored_blocks=2, refused_blocks=1, tier="disk")
    now = pb.ImportProgress(received_blocks=4, stored_blocks=3, present_blocks=1, tier="disk", done=True)
    whole = imported(before, now)
    assert (whole.received_blocks, whole.stored_blocks, whole.present_blocks) == (7, 5, 1)
    assert (whole.refused_blocks, whole.tier, whole.done) == (1, "disk", True)


FIGURES = {
    "blocks": 1,
    "used_bytes": 2,
    "capacity_bytes": 3,
    "pinned_blocks": 4,
    "queued_bytes": 5,
    "hit_blocks": 6,
    "hit_tokens": 7,
    "load_bytes": 8,
    "load_seconds": 9.5,
    "store_bytes": 10,
    "store_seconds": 11.5,
}


def test_every_figure_of_a_tier_is_added_up() -> None:
    """And those of a tier that only one has."""
    answer = pb.GetKvStatusResponse(tiers=[tier("disk", **FIGURES)])
    other = pb.GetKvStatusResponse(tiers=[tier("disk", **FIGURES), tier("ram", blocks=3)])
    disk, ram = summed({"kvmanager-0": answer, "kvmanager-1": other}).tiers
    assert {name: getattr(disk, name) for name in FIGURES} == {name: 2 * one for name, one in FIGURES.items()}
    assert (disk.name, disk.kind, ram.name, ram.blocks) == ("disk", "dram", "ram", 3)


def test_errors_of_several_are_all_named() -> None:
    answers = {name: pb.GetKvStatusResponse(tiers=[tier("disk", trouble=f"{name} is full")]) for name in "ab"}
    assert summed(answers).tiers[0].trouble == "a: a is full; b: b is full"


def test_a_block_is_as_idle_as_where_it_was_used_last() -> None:
    places = [pb.BlockPlace(idle_seconds=9.0), pb.BlockPlace(idle_seconds=1.0)]
    often = pb.ListedBlock(block_hash=b"often", places=places)
    other = pb.ListedBlock(block_hash=b"other", places=[pb.BlockPlace(idle_seconds=5.0)])
    listing = listed([pb.ListBlocksResponse(blocks=[other, often], total_blocks=2)], 5)
    assert [one.block_hash for one in listing.blocks] == [b"often", b"other"]


def test_a_worker_that_is_not_connected_is_not_heard() -> None:
    silent = [pb.WorkerKvStatus(worker_id=f"w{at}", connected=False) for at in range(5)]
    started = pb.GetKvStatusResponse(workers=silent, directory_blocks=1)
    knows = pb.GetKvStatusResponse(workers=workers(1), directory_blocks=9)
    assert summed({"kvmanager-0": started, "kvmanager-1": knows}).directory_blocks == 9


class Stub:
    """A KV manager that evicts the same at each call."""

    def __init__(self) -> None:
        self.asked: list[tuple[pb.EvictBlocksRequest, float]] = []

    async def EvictBlocks(self, request: pb.EvictBlocksRequest, timeout: float) -> pb.EvictBlocksResponse:  # noqa: N802
        self.asked.append((request, timeout))
        return pb.EvictBlocksResponse(evicted_blocks=1, evicted_bytes=20, pinned_blocks=3, busy_blocks=4)


async def test_evicted_blocks_of_all_managers_are_added_up() -> None:
    stubs = [Stub(), Stub()]
    managers = KvManagers([_Manager(f"kvmanager-{at}", "h:1", stub) for at, stub in enumerate(stubs)])
    wanted = pb.BlockFilter(tier="disk")
    done = await managers.evict(wanted)
    assert done == pb.EvictBlocksResponse(evicted_blocks=2, evicted_bytes=40, pinned_blocks=6, busy_blocks=8)
    assert all(stub.asked == [(pb.EvictBlocksRequest(filter=wanted), 600.0)] for stub in stubs)
