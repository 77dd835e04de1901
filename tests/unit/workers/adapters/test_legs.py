"""The engine gets a leg when its adapter is loaded, and the adapter stays until the engine has ended it."""

import asyncio

import pytest

from llmserve.core.adapters import AdapterLoad, AdapterTier
from llmserve.core.errors import AdapterUnavailable, InvalidRequest, LLMServeError
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.request import EngineOutput, FinishReason
from tests.support.adapter_pool import request
from tests.unit.workers.adapters.conftest import Rig

pytestmark = pytest.mark.virtual_time

A = AdapterDigest("a")


@pytest.fixture
def errors() -> list[LLMServeError]:
    return []


def outputs(rig: Rig, *some: EngineOutput) -> list[EngineOutput]:
    return list(rig.legs.outputs(some))


def token(name: str, finish: FinishReason | None = None) -> EngineOutput:
    return EngineOutput(RequestId(name), (1,), finish)


async def test_requests_without_an_adapter_wait_for_nothing(rig: Rig, errors: list[LLMServeError]) -> None:
    await rig.legs.add(request("r"), errors.append)
    assert "r" in rig.engine.requests
    assert len(rig.tasks) == 0
    await rig.legs.add(request("bad"), errors.append)
    assert [str(error) for error in errors] == ["the request is bad"]
    some = [token("r"), token("r", FinishReason.STOP)]
    assert outputs(rig, *some) == some
    await rig.legs.abort([RequestId("r")])
    assert not rig.engine.requests


async def test_its_first_output_tells_how_the_adapter_came(rig: Rig, errors: list[LLMServeError]) -> None:
    rig.serve("a")
    await rig.legs.add(request("r", "a"), errors.append)
    assert not rig.engine.requests, "although the call has returned"
    await rig.legs.add(request("base"), errors.append)
    assert "base" in rig.engine.requests
    await asyncio.sleep(1.5)
    assert rig.engine.requests[RequestId("r")] == A
    first = outputs(rig, token("base"), token("r"))
    assert [output.adapter_load for output in first] == [None, AdapterLoad(AdapterTier.SOURCE, 1.0)]
    assert outputs(rig, token("r")) == [token("r")]
    assert rig.pool.legs() == {A: 1}
    del rig.engine.requests[RequestId("r")]
    outputs(rig, token("r", FinishReason.LENGTH))
    await asyncio.sleep(0)
    assert rig.pool.legs() == {}
    assert errors == []


async def test_what_cannot_be_loaded_or_added_is_said(rig: Rig, errors: list[LLMServeError]) -> None:
    rig.serve("a")
    await rig.legs.add(request("r", "unknown"), errors.append)
    await rig.legs.add(request("bad", "a"), errors.append)
    await asyncio.sleep(2)
    assert [type(error) for error in errors] == [AdapterUnavailable, InvalidRequest]
    assert rig.pool.legs() == {}
    assert len(rig.tasks) == 1, "that of the slot"


@pytest.mark.parametrize("adapter", ["", "a"])
async def test_an_error_that_nobody_foresaw_ends_its_request_alone(
    rig: Rig, errors: list[LLMServeError], caplog: pytest.LogCaptureFixture, adapter: str
) -> None:
    """The reader of the apiserver's stream calls this, and has to read on."""
    rig.serve("a")
    await rig.legs.add(request("unforeseen", adapter), errors.append)
    await asyncio.sleep(2)
    assert [type(error) for error in errors] == [LLMServeError]
    assert rig.pool.legs() == {}
    assert not rig.legs.open_legs
    assert "the engine has a bug" in caplog.text


@pytest.mark.parametrize("after_seconds", [0.0, 0.5, 1.5])
async def test_an_abort_ends_it_whatever_it_does(
    rig: Rig, errors: list[LLMServeError], after_seconds: float
) -> None:
    rig.serve("a")
    await rig.legs.add(request("r", "a"), errors.append)
    await asyncio.sleep(after_seconds)
    await rig.legs.abort([RequestId("r"), RequestId("unknown")])
    await asyncio.sleep(0)
    assert rig.pool.legs() == {}
    await asyncio.sleep(2)
    assert not rig.engine.requests
    assert errors == []


async def test_an_abort_while_the_engine_takes_it_comes_after_that(
    rig: Rig, errors: list[LLMServeError]
) -> None:
    rig.serve("a")
    rig.engine.add_gate = asyncio.Event()
    await rig.legs.add(request("r", "a"), errors.append)
    await asyncio.sleep(2)
    abort = asyncio.create_task(rig.legs.abort([RequestId("r")]))
    await asyncio.sleep(1)
    assert not abort.done()
    rig.engine.add_gate.set()
    await abort
    assert not rig.engine.requests
    await asyncio.sleep(0)
    assert rig.pool.legs() == {}


async def test_an_abort_while_the_engine_refuses_it_says_nothing(
    rig: Rig, errors: list[LLMServeError]
) -> None:
    rig.serve("a")
    rig.engine.add_gate = asyncio.Event()
    await rig.legs.add(request("bad", "a"), errors.append)
    await asyncio.sleep(2)
    abort = asyncio.create_task(rig.legs.abort([RequestId("bad")]))
    await asyncio.sleep(0)
    rig.engine.add_gate.set()
    await abort
    assert errors == []


async def test_a_new_leg_of_the_same_name_is_another(rig: Rig, errors: list[LLMServeError]) -> None:
    rig.serve("a")
    await rig.legs.add(request("r", "unknown"), errors.append)
    await rig.legs.abort([RequestId("r")])
    await rig.legs.add(request("r", "a"), errors.append)
    await asyncio.sleep(2)
    assert errors == []
    assert "r" in rig.engine.requests
    assert len(outputs(rig, token("r", FinishReason.STOP))) == 1


async def test_an_old_leg_of_the_same_name_ends_without_it(rig: Rig, errors: list[LLMServeError]) -> None:
    rig.serve("a")
    rig.engine.add_gate = asyncio.Event()
    await rig.legs.add(request("bad", "a"), errors.append)
    await asyncio.sleep(2)
    abort = asyncio.create_task(rig.legs.abort([RequestId("bad")]))
    await asyncio.sleep(0)
    await rig.legs.add(request("bad", "unknown"), errors.append)
    rig.engine.add_gate.set()
    await abort
    await asyncio.sleep(0.1)
    assert [type(error) for error in errors] == [AdapterUnavailable]


async def test_when_the_engine_is_lost_nothing_waits(rig: Rig, errors: list[LLMServeError]) -> None:
    rig.serve("a", "b")
    await rig.legs.add(request("r", "a"), errors.append)
    await asyncio.sleep(1.5)
    await rig.legs.add(request("s", "b"), errors.append)
    await asyncio.sleep(0.1)
    rig.engine.requests.clear()
    rig.legs.lost()
    await asyncio.sleep(0.1)
    assert rig.pool.legs() == {}
    assert errors == []
