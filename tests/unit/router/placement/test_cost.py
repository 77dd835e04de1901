from collections.abc import Callable

import pytest

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory.directory import KvTier
from llmserve.router.placement.cost import CachedPrompt, PrefixOverlap
from llmserve.router.prefix.match import PrefixMatch, TierRun
from llmserve.router.workers.worker import KvShape, WorkerSpec

A, B = WorkerId("a"), WorkerId("b")
MakeSpec = Callable[..., WorkerSpec]


@pytest.fixture
def shape(make_spec: MakeSpec) -> KvShape:
    """A block has 16 tokens and 16,000 bytes."""
    return make_spec("prefill-0", block_bytes=16_000).kv_shape


def test_nothing_held_is_empty(shape: KvShape) -> None:
    overlap = PrefixOverlap(PrefixMatch(), 100, shape)
    assert overlap.at(A) == CachedPrompt(0, [])


def test_tokens_of_whole_blocks_and_never_the_last_token(shape: KvShape) -> None:
    match = PrefixMatch({A: 2})
    assert PrefixOverlap(match, 100, shape).at(A).device_tokens == 32
    assert PrefixOverlap(match, 32, shape).at(A).device_tokens == 16
    assert PrefixOverlap(match, 0, shape).at(A).device_tokens == 0


def test_what_can_be_loaded_after_what_is_there(shape: KvShape) -> None:
    match = PrefixMatch({A: 3}, (TierRun(KvTier.DRAM, 5), TierRun(KvTier.NVME, 100)))
    (dram, nvme) = PrefixOverlap(match, 161, shape).at(A).loads
    assert (dram.tokens, nvme.tokens) == (32, 80)
    assert dram.seconds == pytest.approx(0.001 + 32_000 / 5e9)
    assert nvme.seconds == pytest.approx(0.003 + 80_000 / 1.5e9)
    assert [load.tokens for load in PrefixOverlap(match, 161, shape).at(B).loads] == [80, 80]


def test_a_block_that_no_tier_holds_ends_loading(shape: KvShape) -> None:
    match = PrefixMatch({A: 3}, (TierRun(None, 3), TierRun(KvTier.DRAM, 2)))
    overlap = PrefixOverlap(match, 1000, shape)
    assert [load.tokens for load in overlap.at(A).loads] == [32]
    assert overlap.at(B).loads == []


def test_a_worker_that_has_not_told_its_block_size(make_spec: MakeSpec) -> None:
    shape = make_spec("prefill-0", block_size_tokens=0).kv_shape
    overlap = PrefixOverlap(PrefixMatch({A: 3}, (TierRun(KvTier.DRAM, 5),)), 100, shape)
    assert overlap.at(A) == CachedPrompt(0, [])
