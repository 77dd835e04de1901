from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.core.ids import ReservationId, WorkerId
from llmserve.core.kv_params import BlockTable, PeerAddress
from llmserve.engines.kv_transfer.protocol import Reservation
from llmserve.engines.kv_transfer.push.progress import LayerPiece, PushProgress

SIZES = (10, 20, 30)
MANY = 1 << 30


def reservation(first: int, *block_ids: int) -> Reservation:
    home = PeerAddress(WorkerId("d"), 1, "127.0.0.1:1")
    return Reservation(ReservationId("r"), home, BlockTable(block_ids, (first,)))


def test_nothing_is_ready_without_a_reservation() -> None:
    progress = PushProgress(SIZES)
    progress.computed(0, 3, BlockTable((7, 8, 9)))
    assert not progress.ready
    assert progress.take(MANY) == []


def test_what_was_computed_before_the_reservation_is_written_when_it_comes() -> None:
    progress = PushProgress(SIZES)
    progress.computed(0, 2, BlockTable((7, 8)))
    progress.want(reservation(0, 1, 2, 3))
    assert progress.take(MANY) == [LayerPiece(0, (7, 8), (1, 2))]
    progress.computed(1, 1, BlockTable((7, 8)))
    assert progress.take(MANY) == [LayerPiece(1, (7,), (1,))]
    assert not progress.ready


def test_what_decode_has_already_is_not_wanted() -> None:
    progress = PushProgress(SIZES[:1])
    progress.want(reservation(2, 30, 31))
    progress.computed(0, 2, BlockTable((7, 8)))
    assert not progress.ready
    progress.computed(0, 4, BlockTable((7, 8, 9, 6)))
    assert progress.take(MANY) == [LayerPiece(0, (9, 6), (30, 31))]
    assert progress.taken_bytes == 20


def test_no_more_is_taken_at_once_than_asked_for_but_one_block_always() -> None:
    progress = PushProgress(SIZES)
    progress.want(reservation(0, 1, 2, 3))
    progress.finish(BlockTable((7, 8, 9)))
    assert progress.take(25) == [LayerPiece(0, (7, 8), (1, 2))]
    assert progress.take(1) == [LayerPiece(0, (9,), (3,))]
    assert progress.take(1) == [LayerPiece(1, (7,), (1,))]
    assert progress.take(55) == [LayerPiece(1, (8, 9), (2, 3))]
    assert [progress.complete] == [False]
    assert progress.take(MANY) == [LayerPiece(2, (7, 8, 9), (1, 2, 3))]
    assert progress.complete
    assert progress.taken_bytes == 3 * sum(SIZES)


def test_it_is_complete_only_when_prefill_has_finished() -> None:
    progress = PushProgress(SIZES[:1])
    progress.want(reservation(0, 1))
    progress.computed(0, 1, BlockTable((7,)))
    assert progress.take(MANY)
    assert [progress.complete] == [False]
    progress.finish(BlockTable((7,)))
    assert progress.complete


def test_after_a_restart_all_is_written_again_from_the_new_blocks() -> None:
    progress = PushProgress(SIZES[:1])
    progress.want(reservation(1, 5, 6))
    progress.computed(0, 2, BlockTable((7, 8)))
    progress.take(MANY)
    progress.restart()
    assert not progress.ready
    progress.computed(0, 3, BlockTable((1, 2, 3)))
    assert progress.take(MANY) == [LayerPiece(0, (2, 3), (5, 6))]
    assert progress.taken_bytes == 20


@pytest.mark.parametrize("reserved", [1, 3])
def test_another_length_of_prompt_does_not_fit(reserved: int) -> None:
    progress = PushProgress(SIZES)
    progress.want(reservation(0, *range(reserved)))
    progress.check_fits()
    progress.finish(BlockTable((7, 8)))
    with pytest.raises(TransferError, match=f"reserved {reserved} blocks for a prompt of 2"):
        progress.check_fits()


def test_of_a_group_with_a_window_only_what_the_prompts_end_sees_is_written() -> None:
    """Two groups of two layers. Blocks 0 and 1 are behind the window of the first when the prompt ends."""
    progress = PushProgress(SIZES[:2], groups=2)
    home = reservation(0, 1).address
    wanted = BlockTable((32, 33, 40, 41, 42, 43), (2, 0))
    progress.want(Reservation(ReservationId("r"), home, wanted))
    begun = BlockTable((10, 11, 20, 21), (0, 0))
    progress.computed(0, 2, begun)
    assert not progress.ready, "a block of the window's group that is behind it at the end"
    progress.computed(3, 2, begun)
    assert progress.take(MANY) == [LayerPiece(1, (20, 21), (40, 41))]
    ended = BlockTable((12, 13, 20, 21, 22, 23), (2, 0))
    progress.computed(1, 4, ended)
    assert progress.take(MANY) == [LayerPiece(1, (12, 13), (32, 33))]
    progress.finish(ended)
    rest = [LayerPiece(0, (12, 13), (32, 33)), LayerPiece(0, (20, 21, 22, 23), (40, 41, 42, 43))]
    assert progress.take(MANY) == [*rest, LayerPiece(1, (22, 23), (42, 43))]
    assert progress.complete


def test_a_block_that_prefills_window_has_left_behind_is_not_written() -> None:
    progress = PushProgress(SIZES[:1])
    progress.want(reservation(1, 31, 32))
    progress.computed(0, 3, BlockTable((12,), (2,)))
    with pytest.raises(TransferError, match="blocks 1 to 3 of the prompt are needed, 2 to 3 are there"):
        progress.take(MANY)


def test_a_reservation_of_other_groups_is_refused() -> None:
    progress = PushProgress(SIZES, groups=2)
    with pytest.raises(TransferError, match="blocks of 1 groups, prefill has 2"):
        progress.want(reservation(0, 1))


@given(data=st.data(), blocks=st.integers(1, 12), first=st.integers(0, 11))
def test_each_block_of_each_layer_is_taken_once_whatever_the_order(
    data: st.DataObject, blocks: int, first: int
) -> None:
    first = min(first, blocks - 1)
    source, target = tuple(range(100, 100 + blocks)), tuple(range(200 + first, 200 + blocks))
    progress = PushProgress(SIZES)
    taken: Counter[tuple[int, int, int]] = Counter()
    reserved = False
    for _ in range(data.draw(st.integers(0, 20))):
        match data.draw(st.sampled_from(["computed", "want", "take", "restart"])):
            case "computed":
                progress.computed(
                    data.draw(st.integers(0, 2)), data.draw(st.integers(0, blocks)), BlockTable(source)
                )
            case "want" if not reserved:
                progress.want(reservation(first, *target))
                reserved = True
            case "take":
                taken.update(_copies(progress.take(data.draw(st.integers(1, 100)))))
            case "restart":
                progress.restart()
                taken.clear()
    if not reserved:
        progress.want(reservation(first, *target))
    progress.finish(BlockTable(source))
    while not progress.complete:
        taken.update(_copies(progress.take(data.draw(st.integers(1, 1000)))))
    pairs = zip(source[first:], target, strict=True)
    assert taken == Counter((layer, a, b) for a, b in pairs for layer in range(3))
    assert progress.taken_bytes == (blocks - first) * sum(SIZES)


def _copies(pieces: list[LayerPiece]) -> list[tuple[int, int, int]]:
    return [
        (piece.layer, a, b)
        for piece in pieces
        for a, b in zip(piece.source_ids, piece.target_ids, strict=True)
    ]
