"""Actions that wait for what a device has still to do."""

from collections.abc import Callable, Iterator

import pytest

from llmserve.engines.kv_transfer import KvGeometry, KvLayout
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.transfer.base import Region
from llmserve.transfer.devices import REACHED
from llmserve.transfer.devices.fake import LateMark
from llmserve.transfer.engine.engine import TransferEngine

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def engine() -> Iterator[RankEngine]:
    made = RankEngine([], KvLayout((Region(0, 0),), KvGeometry((1,), 1)))
    yield made
    made.close()


def test_it_replaces_nothing_of_the_engine_that_it_is() -> None:
    """A private name would, unnoticed."""
    both = vars(RankEngine).keys() & vars(TransferEngine).keys()
    assert {name for name in both if not name.startswith("__")} == set()


def test_actions_wait_for_their_marks_in_order(engine: RankEngine, wait_until: Wait) -> None:
    done: list[str] = []
    first, second = LateMark(), LateMark()

    def act(name: str, mark: LateMark) -> None:
        engine.marks.act(mark, lambda: done.append(name), lambda reason: done.append(f"{name}: {reason}"))

    act("a", first)
    act("b", second)
    engine.marks.act(REACHED, lambda: done.append("c"), done.append)
    second.ended.set()
    engine.act(lambda: done.append("at once"))
    wait_until(lambda: bool(done))
    first.ended.set()
    wait_until(lambda: len(done) == 4)
    assert done == ["at once", "a", "b", "c"]


def test_an_action_behind_work_that_failed_is_told_so(engine: RankEngine, wait_until: Wait) -> None:
    done: list[str] = []
    engine.marks.act(LateMark("broken"), lambda: done.append("a"), done.append)
    engine.marks.act(REACHED, lambda: done.append("b"), done.append)
    wait_until(lambda: len(done) == 2)
    assert done == ["broken", "b"]


def test_on_the_host_an_action_takes_one_turn_of_the_loop(
    engine: RankEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Callable[[], object]] = []
    monkeypatch.setattr(engine, "act", turns.append)
    action = turns.clear
    engine.marks.act(REACHED, action, print)
    assert turns == [action]
