import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.ids import BlockHash, WorkerId
from llmserve.kvstore.directory.directory import Holder, KvTier
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.prefix.index import STRIDE, HashedPrompt, PrefixIndex, Stretch
from llmserve.router.prefix.match import NO_MATCH, PrefixMatch, TierRun

X, Y = WorkerId("x"), WorkerId("y")
DRAM, NVME, OBJECT = (Holder(f"m/{tier}", tier) for tier in (KvTier.DRAM, KvTier.NVME, KvTier.OBJECT))
HASHES = [BlockHash(number.to_bytes(32, "big")) for number in range(10 * STRIDE)]


def _index(held: dict[Holder, int], manager: str = "m") -> PrefixIndex:
    """Each holder has so many leading blocks."""
    index = PrefixIndex()
    _follow(index, manager, held)
    return index


def _follow(index: PrefixIndex, manager: str, held: dict[Holder, int], first: int = 0) -> None:
    index.begin(manager)
    for holder, blocks in held.items():
        assert index.apply(
            manager, DirectoryUpdate(holder, 1, is_snapshot=True, stored=tuple(HASHES[first:blocks]))
        )


def _match(index: PrefixIndex, blocks: int = len(HASHES)) -> PrefixMatch:
    return index.match(HashedPrompt(HASHES[:blocks], 16))


def test_what_each_device_has_and_what_the_tiers_have() -> None:
    match = _match(_index({Holder(X): 200, Holder(Y): 3, DRAM: 70, NVME: 150, OBJECT: 150}))
    assert match.device == {X: 200, Y: 3}
    assert match.tiers == (TierRun(KvTier.DRAM, 70), TierRun(KvTier.NVME, 80), TierRun(None, 50))
    assert match.block_tokens == 16


def test_a_match_ends_with_the_prompt_and_where_nobody_has_the_next_block() -> None:
    index = _index({Holder(X): 200})
    assert _match(index, 130).device == {X: 130}
    assert _match(index, 1).tiers == (TierRun(None, 1),)
    assert _match(index, 0) == PrefixMatch()
    assert index.match(HashedPrompt([BlockHash(b"unknown")] * 300, 16)) == NO_MATCH
    assert PrefixIndex().match(HashedPrompt(HASHES, 16)) == PrefixMatch()


def test_a_match_ends_right_after_the_last_block_that_is_held() -> None:
    index = _index({Holder(X): 1, Holder(Y): 129})
    assert _match(index).device == {X: 1, Y: 129}
    assert _match(index, 130).device == {X: 1, Y: 129}


def test_a_single_block_that_is_missing_at_the_end_of_a_stride_is_noticed() -> None:
    index = _index({Holder(X): 200})
    assert index.apply("m", DirectoryUpdate(Holder(X), 2, removed=(HASHES[STRIDE - 1],)))
    assert _match(index).device == {X: STRIDE - 1}


def test_changes_and_dropped_holders() -> None:
    index = _index({Holder(X): 10, DRAM: 10})
    assert index.apply("m", DirectoryUpdate(Holder(X), 2, removed=tuple(HASHES[4:])))
    assert _match(index).device == {X: 4}
    assert index.apply("m", DirectoryUpdate(DRAM, 2, dropped=True))
    assert _match(index).tiers == (TierRun(None, 4),)
    assert index.blocks == 4


def test_what_was_not_told_is_noticed() -> None:
    assert not _index({Holder(X): 10}).apply("m", DirectoryUpdate(Holder(X), 3, stored=tuple(HASHES[:1])))


def test_several_kv_managers_each_with_its_runs() -> None:
    index = _index({Holder(X): 80, Holder("m/fast", KvTier.DRAM): 64}, "m")
    _follow(index, "n", {Holder(X): 80, Holder("n/disk", KvTier.NVME): 128}, first=64)
    match = _match(index)
    assert match.device == {X: 80}
    assert match.tiers == (TierRun(KvTier.DRAM, 64), TierRun(KvTier.NVME, 64))
    assert _match(index, 64).device == {X: 64}, "n knows none of these blocks"
    index.drop("n")  # it is away: its part is not known, the rest is used
    assert _match(index).tiers == (TierRun(KvTier.DRAM, 64), TierRun(None, 16))
    index.drop("n")
    index.drop("m")
    assert (_match(index), index.blocks, index.followed) == (PrefixMatch(), 0, [])


def test_a_kv_manager_that_has_just_started_does_not_hide_what_others_know() -> None:
    index = _index({Holder(X): 100}, "m")
    index.begin("n")
    assert _match(index).device == {X: 100}
    assert index.device_blocks(X) == 100
    assert index.has_on_device(X, HASHES[99])


def test_of_two_kv_managers_the_one_that_knows_more_of_a_device_counts() -> None:
    for known in ((100, 60), (60, 100)):
        index = _index({Holder(X): known[0]}, "m")
        _follow(index, "n", {Holder(X): known[1]})
        assert _match(index).device == {X: 100}


def test_the_stretches_with_something_below_dram() -> None:
    index = _index({Holder(X): 200, DRAM: 70, NVME: 150}, "m")
    assert index.below_dram(HASHES) == [Stretch("m", 0, 150)]
    assert index.below_dram(HASHES[:70]) == []  # all in DRAM
    assert _index({Holder(X): 200, DRAM: 70}).below_dram(HASHES) == []
    assert PrefixIndex().below_dram(HASHES) == []
    assert index.below_dram([]) == []
    _follow(index, "n", {Holder("n/disk", KvTier.NVME): 192}, first=150)
    assert index.below_dram(HASHES) == [Stretch("m", 0, 150), Stretch("n", 150, 192)]


def test_what_a_worker_has_reported() -> None:
    index = _index({Holder(X): 10})
    assert (index.device_blocks(X), index.device_blocks(Y)) == (10, 0)
    assert index.has_on_device(X, HASHES[9])
    assert not index.has_on_device(X, HASHES[10])
    assert not index.has_on_device(Y, HASHES[0])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_as_exact_as_looking_at_every_block(seed: int) -> None:
    """Where a holder has the first blocks of a prompt, which is what engines and tiers do."""
    rng = random.Random(seed)
    count = rng.randrange(1, len(HASHES))
    lengths = {Holder(f"w{number}"): rng.randrange(len(HASHES)) for number in range(rng.randrange(6))}
    tiers = {holder: rng.randrange(len(HASHES)) for holder in (DRAM, NVME, OBJECT) if rng.random() < 0.6}
    match = _match(_index({**lengths, **tiers}), count)
    assert match.device == {WorkerId(h.node): min(n, count) for h, n in lengths.items() if n}
    told = [run.tier for run in match.tiers for _ in range(run.blocks)]
    longest = max([*lengths.values(), *tiers.values()], default=0)
    assert len(told) == min(count, longest)
    for at, tier in enumerate(told):
        assert tier == next((h.tier for h in (DRAM, NVME, OBJECT) if at < tiers.get(h, 0)), None)
