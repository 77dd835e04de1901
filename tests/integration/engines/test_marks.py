"""KV of a device is handed over only when its kernels have written it, and written into only when they have
ended: the worker sides of two engines whose steps stay in flight as long as a test wants.

Each wait was taken out alone, by hand, and these tests failed then:

| what does not wait any more | what fails |
|---|---|
| BlockLeases.begin for `written` | test_a_grant_is_read_when_its_blocks_are_written |
| Pull for `free` | test_a_pull_writes_when_its_blocks_are_free |
| PushReceive for `free` | test_a_push_writes_when_its_blocks_are_free |
| PushSender.begin_step for `mark` | test_the_blocks_of_earlier_steps_are_pushed_when_they_are_written |
| PushSender.computed for `mark` | test_a_layer_is_pushed_when_it_is_written |
| PushSender.finish for `mark` | test_the_rest_of_a_prompt_is_pushed_when_it_is_written |
| MarkQueue.act for the actions before | test_rank.py of the unit tests |
| StreamOrder.before_step (a mark that is reached) | the three of blocks and grants, and the two of steps |
| StreamOrder.after_layer (a mark that is reached) | test_a_layer_is_pushed_when_it_is_written |
"""

from collections.abc import Callable, Iterator

import pytest

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId
from llmserve.engines.connector.orders import PushOrders, StepOrders
from tests.integration.engines.engine_ranks import (
    BLANK,
    ID,
    JUNK,
    NEW,
    OLD,
    SOURCE,
    TARGET,
    EngineRank,
    eventually,
    finish,
    reserve,
    step,
)

EARLY = LeaseId("early")  # granted on blocks 6 and 7 before any test begins


@pytest.fixture
def prefill() -> Iterator[EngineRank]:
    rank = EngineRank("prefill-0", OLD)
    rank.grant(EARLY, (6, 7))
    yield rank
    rank.close()


@pytest.fixture
def decode(prefill: EngineRank) -> Iterator[EngineRank]:
    """It is connected to prefill."""
    rank = EngineRank("decode-0", BLANK)
    prefill.grant("warm", (4,))
    rank.pull(prefill.params("warm", (4,)), (7,))
    eventually(lambda: rank.ended("warm"))
    yield rank
    rank.close()


@pytest.fixture
def let_happen(prefill: EngineRank) -> Iterator[Callable[[], None]]:
    """Returns after a third engine has connected and pulled: what the other two do not wait for has happened
    by then."""
    rank = EngineRank("decode-1", BLANK)

    def wait() -> None:
        rank.pull(prefill.params(EARLY, (6, 7)))
        eventually(lambda: rank.ended(EARLY))
        assert rank.received[EARLY]

    yield wait
    rank.close()


def test_a_grant_is_read_when_its_blocks_are_written(
    prefill: EngineRank, decode: EngineRank, let_happen: Callable[[], None]
) -> None:
    prefill.hold(prefill.fill(NEW, SOURCE))
    prefill.grant("p")
    decode.pull(prefill.params("p"))
    let_happen()
    assert not decode.ended("p")
    prefill.release()
    eventually(lambda: decode.ended("p"))
    assert decode.has(NEW, TARGET)


def test_a_pull_writes_when_its_blocks_are_free(
    prefill: EngineRank, decode: EngineRank, let_happen: Callable[[], None]
) -> None:
    prefill.grant("p")
    decode.hold(decode.fill(JUNK, TARGET))
    decode.pull(prefill.params("p"))
    let_happen()
    assert not decode.ended("p")
    assert decode.has(BLANK, TARGET)
    decode.release()
    eventually(lambda: decode.ended("p"))
    assert decode.has(OLD, TARGET)


# -- pushes


def test_a_push_writes_when_its_blocks_are_free(
    prefill: EngineRank, decode: EngineRank, let_happen: Callable[[], None]
) -> None:
    step(prefill, 0, 2)
    finish(prefill)
    decode.hold(decode.fill(JUNK, TARGET))
    reserve(decode, prefill)
    let_happen()
    assert decode.has(BLANK, TARGET)
    decode.release()
    eventually(lambda: decode.ended(ID))
    assert decode.received[ID]
    assert decode.has(OLD, TARGET)


def test_a_layer_is_pushed_when_it_is_written(
    prefill: EngineRank, decode: EngineRank, let_happen: Callable[[], None]
) -> None:
    reserve(decode, prefill)
    orders = step(prefill, 0, 2)
    prefill.side.computed(1, orders)
    eventually(lambda: decode.has(OLD, TARGET, slice(1, 2)))
    prefill.hold(prefill.fill(NEW, SOURCE, slice(0, 1)))
    prefill.side.computed(0, orders)
    let_happen()
    assert decode.has(BLANK, TARGET, slice(0, 1))
    prefill.release()
    eventually(lambda: decode.has(NEW, TARGET, slice(0, 1)))


def test_the_blocks_of_earlier_steps_are_pushed_when_they_are_written(
    prefill: EngineRank, decode: EngineRank, let_happen: Callable[[], None]
) -> None:
    """As after a step whose layers were not announced."""
    reserve(decode, prefill)
    prefill.hold(prefill.fill(NEW, SOURCE[:1]))
    step(prefill, 1, 2)
    let_happen()
    assert decode.has(BLANK, TARGET[:1])
    prefill.release()
    eventually(lambda: decode.has(NEW, TARGET[:1]))
    assert decode.has(BLANK, TARGET[1:])


def test_the_rest_of_a_prompt_is_pushed_when_it_is_written(
    prefill: EngineRank, decode: EngineRank, let_happen: Callable[[], None]
) -> None:
    reserve(decode, prefill)
    step(prefill, 0, 2)
    prefill.hold(prefill.fill(NEW, SOURCE))
    finish(prefill)
    let_happen()
    assert decode.has(BLANK, TARGET)
    prefill.release()
    eventually(lambda: decode.ended(ID))
    assert decode.received[ID]
    assert decode.has(NEW, TARGET)


# -- kernels that fail


def fail() -> None:
    raise TransferError("an illegal memory access")


def test_blocks_that_were_not_written_are_not_read(prefill: EngineRank, decode: EngineRank) -> None:
    prefill.device.launch(fail)
    prefill.grant("p")
    decode.pull(prefill.params("p"))
    eventually(lambda: decode.ended("p"))
    assert not decode.received["p"]
    eventually(lambda: "p" in prefill.side.take_sent())


def test_blocks_that_may_be_in_use_for_ever_are_not_pulled_into(
    prefill: EngineRank, decode: EngineRank
) -> None:
    prefill.grant("p")
    decode.device.launch(fail)
    decode.pull(prefill.params("p"))
    eventually(lambda: decode.ended("p"))
    assert not decode.received["p"]
    assert decode.has(BLANK, TARGET)


def test_blocks_that_may_be_in_use_for_ever_are_not_pushed_into(
    prefill: EngineRank, decode: EngineRank
) -> None:
    decode.device.launch(fail)
    reserve(decode, prefill)
    eventually(lambda: decode.ended(ID))
    assert not decode.received[ID]


@pytest.mark.parametrize("way", ["before", "layer", "end"])
def test_a_push_of_blocks_that_were_not_written_fails(
    prefill: EngineRank, decode: EngineRank, way: str
) -> None:
    """way: which mark is behind the kernel that fails."""
    reserve(decode, prefill)
    if way == "before":
        prefill.device.launch(fail)
    orders = step(prefill, 0, 2)
    prefill.device.launch(fail)
    if way == "layer":
        prefill.side.computed(0, orders)
    elif way == "end":
        finish(prefill)
    eventually(lambda: decode.ended(ID))
    assert not decode.received[ID]
    assert decode.has(BLANK, TARGET)


def test_nothing_is_marked_in_a_step_without_blocks(
    prefill: EngineRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark costs the engine some microseconds."""

    def mark() -> None:
        raise AssertionError("a mark for nothing")

    monkeypatch.setattr(prefill.device, "mark", mark)
    prefill.side.execute(StepOrders(releases=[prefill.params(EARLY)]))
    prefill.side.computed(0, PushOrders())
