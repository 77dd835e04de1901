import pytest

from llmserve.kvstore.eviction import LowerTier, WriteMode, WriteStep, on_evicted, on_stored

FREE = LowerTier(has_room=True, queued_bytes=0, busy_bytes=100)
FULL = LowerTier(has_room=False, queued_bytes=0, busy_bytes=100)
BUSY = LowerTier(has_room=True, queued_bytes=100, busy_bytes=100)


@pytest.mark.parametrize(
    ("mode", "lower", "proven", "step"),
    [
        (WriteMode.BACK, FREE, True, WriteStep.WAIT),
        (WriteMode.THROUGH, FREE, False, WriteStep.WRITE),
        (WriteMode.THROUGH, FULL, False, WriteStep.WAIT),
        (WriteMode.THROUGH, FULL, True, WriteStep.WRITE),
        (WriteMode.THROUGH, BUSY, True, WriteStep.WAIT),
        (WriteMode.AUTO, FREE, False, WriteStep.WAIT),
        (WriteMode.AUTO, FULL, True, WriteStep.WRITE),
        (WriteMode.AUTO, BUSY, True, WriteStep.WAIT),
    ],
)
def test_when_stored(mode: WriteMode, lower: LowerTier, proven: bool, step: WriteStep) -> None:
    assert on_stored(mode, lower, proven=proven) is step


@pytest.mark.parametrize(
    ("lower", "proven", "step"),
    [
        (FREE, False, WriteStep.WRITE),
        (FULL, False, WriteStep.DROP),
        (FULL, True, WriteStep.WRITE),
        (BUSY, False, WriteStep.WRITE),
        (LowerTier(True, 200, 100), False, WriteStep.DROP),
        (LowerTier(True, 200, 100), True, WriteStep.WRITE),
        (LowerTier(True, 400, 100), True, WriteStep.DROP),
    ],
)
def test_when_evicted(lower: LowerTier, proven: bool, step: WriteStep) -> None:
    assert on_evicted(lower, proven=proven, is_below=False) is step


def test_what_is_below_already_is_dropped() -> None:
    assert on_evicted(FREE, proven=True, is_below=True) is WriteStep.DROP
