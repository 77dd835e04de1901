"""How long a transfer may take, and which pieces are compared."""

from itertools import pairwise

import pytest

from llmserve.transfer.engine.choice import Sample, TransferPolicy, Verify


@pytest.mark.parametrize(
    ("expected", "limit"), [(None, 10.0), (0.01, 0.5), (0.05, 0.5), (0.06, 0.6), (0.9, 9.0), (2.0, 10.0)]
)
def test_a_transfer_has_ten_times_its_expected_time(expected: float | None, limit: float) -> None:
    assert TransferPolicy().limit_seconds(expected) == pytest.approx(limit)
    assert TransferPolicy(slow_share=0.5, attempt_seconds=3.0).limit_seconds(expected) == pytest.approx(
        min(3.0, max(0.5, (3.0 if expected is None else expected / 0.5)))
    )


@pytest.mark.parametrize("pieces", [0, 1, 15, 16, 17, 100])
def test_all_pieces_or_none(pieces: int) -> None:
    everything = list(range(pieces))
    assert everything[TransferPolicy(verify="always").sample(pieces).take(pieces)] == everything
    assert everything[TransferPolicy(verify="off").sample(pieces).take(pieces)] == []


@pytest.mark.parametrize("pieces", [1, 2, 15, 16, 17, 100])
def test_a_sample_has_one_piece_of_sixteen_and_at_least_one(pieces: int) -> None:
    firsts = set()
    for _ in range(400):
        chosen = list(range(pieces))[TransferPolicy().sample(pieces).take(pieces)]
        assert len(chosen) in (pieces // 16 or 1, -(-pieces // 16))
        assert all(b - a == 16 for a, b in pairwise(chosen))
        firsts.add(chosen[0])
    assert firsts == set(range(min(pieces, 16))), "each may be the first"


@pytest.mark.parametrize("first", range(16))
def test_batches_are_sampled_as_one(first: int) -> None:
    sample, chosen, start = Sample("sampled", first), [], 0
    for pieces in (3, 40, 0, 1, 16, 7, 33):
        chosen += list(range(start, start + pieces))[sample.take(pieces)]
        start += pieces
    assert chosen == list(range(first, 100, 16))


@pytest.mark.parametrize(("verify", "count"), [("off", 0), ("always", 5)])
def test_a_sample_of_all_or_none(verify: Verify, count: int) -> None:
    sample = Sample(verify, 3)
    assert [len(list(range(5))[sample.take(5)]) for _ in range(2)] == [count, count]
