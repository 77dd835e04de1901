from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory.directory import KvTier
from llmserve.router.prefix.match import PrefixMatch, TierRun

A, B = WorkerId("a"), WorkerId("b")
DRAM, NVME, NOWHERE = TierRun(KvTier.DRAM, 4), TierRun(KvTier.NVME, 3), TierRun(None, 2)


def test_nothing_is_held() -> None:
    assert PrefixMatch().device_blocks(A) == 0
    assert PrefixMatch().loadable(A) == []


def test_a_worker_loads_what_comes_after_its_own_blocks() -> None:
    match = PrefixMatch({A: 5}, (DRAM, NVME))
    assert match.loadable(A) == [TierRun(KvTier.NVME, 2)]
    assert match.loadable(B) == [DRAM, NVME]


def test_loading_ends_at_a_block_that_no_tier_holds() -> None:
    match = PrefixMatch({A: 6}, (DRAM, NOWHERE, NVME))
    assert match.loadable(A) == [NVME]
    assert match.loadable(B) == [DRAM]


def test_a_gap_that_the_worker_has_itself_only_in_part_ends_loading() -> None:
    assert PrefixMatch({A: 5}, (DRAM, NOWHERE, NVME)).loadable(A) == []


def test_a_worker_that_has_all_loads_nothing() -> None:
    assert PrefixMatch({A: 9}, (DRAM, NVME)).loadable(A) == []
