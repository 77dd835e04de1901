"""What is due when."""

from llmserve.core.deadlines import Deadlines


def test_each_name_is_due_once_at_its_latest_time() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.put("a", 1)
    deadlines.put("b", 2)
    deadlines.put("a", 3)
    assert deadlines.next() == 2
    assert deadlines.take_due(2.5) == ["b"]
    assert deadlines.take_due(2.9) == []
    assert deadlines.next() == 3
    assert deadlines.take_due(3) == ["a"]
    assert deadlines.next() is None


def test_a_dropped_name_is_never_due() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.put(1, 1)
    deadlines.drop(1)
    deadlines.drop(7)
    assert deadlines.take_due(10) == []
    assert len(deadlines) == 0


def test_renewals_without_end_take_no_memory() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for when in range(10_000):
        deadlines.put(1, when)
    assert len(deadlines._heap) < 100
    assert deadlines.take_due(9998) == []
    assert deadlines.take_due(9999) == [1]
