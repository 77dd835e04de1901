"""Slots of adapters in front of a fake EngineCore."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from llmserve.core.adapters import BASE_MODEL, engine_path
from llmserve.core.errors import AdapterUnavailable, InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.engines.vllm.adapters import VllmAdapters

RED, BLUE, GREEN = (AdapterDigest(digit * 64) for digit in "abc")


class FakeCore:
    """calls: what reached it, in order. wrong: paths that it cannot load."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.wrong: dict[str, Exception] = {}

    async def add_lora_async(self, request: LoRARequest) -> None:
        self.calls.append((request.lora_name, request.lora_int_id, request.lora_path, request.load_inplace))
        await asyncio.sleep(0)
        if request.lora_path in self.wrong:
            raise self.wrong[request.lora_path]

    async def remove_lora_async(self, number: int) -> None:
        self.calls.append(number)

    async def call_utility_async(self, name: str, digest: str) -> None:
        self.calls.append((name, digest))


@pytest.fixture
def core() -> Any:
    return FakeCore()


async def test_it_is_loaded_from_its_files_and_named_by_the_path_that_is_hashed(core: Any) -> None:
    adapters = VllmAdapters(2)
    assert adapters.named_by(BASE_MODEL) is None
    with pytest.raises(AdapterUnavailable, match="not loaded"):
        adapters.named_by(RED)
    await adapters.load(core, RED, Path("/cache/red"))
    named = adapters.named_by(RED)
    assert named is not None
    assert (named.lora_name, named.lora_int_id, named.lora_path) == (RED, 1, engine_path(RED))
    assert not named.load_inplace, "each step would read the file"
    assert core.calls == [(RED, 1, "/cache/red", False)]


async def test_slots_are_never_exceeded_even_at_once(core: Any) -> None:
    adapters = VllmAdapters(2)
    asked = (adapters.load(core, digest, Path("/x")) for digest in (RED, BLUE, RED, GREEN))
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert results[:3] == [None, None, None]
    assert isinstance(results[3], InvalidRequest)
    assert [name for name, *_ in core.calls] == [RED, BLUE]


async def test_a_number_is_never_used_again(core: Any) -> None:
    adapters = VllmAdapters(1)
    for digest in (RED, BLUE, RED):
        await adapters.load(core, digest, Path("/x"))
        await adapters.unload(core, digest, forget_blocks=False)
    assert [call if isinstance(call, int) else call[1] for call in core.calls] == [1, 1, 2, 2, 3, 3]


async def test_what_fails_leaves_nothing_behind(core: Any) -> None:
    adapters = VllmAdapters(1)
    core.wrong["/wrong"] = Exception("Call to add_lora method failed: no such file")
    with pytest.raises(InvalidRequest, match=f"adapter {RED} cannot be loaded: .* no such file"):
        await adapters.load(core, RED, Path("/wrong"))
    assert core.calls == [(RED, 1, "/wrong", False), 1]
    await adapters.load(core, BLUE, Path("/x"))


async def test_a_dead_engine_is_not_the_adapters_fault(core: Any) -> None:
    core.wrong["/x"] = EngineDeadError()
    with pytest.raises(EngineDeadError):
        await VllmAdapters(1).load(core, RED, Path("/x"))


async def test_blocks_are_forgotten_also_of_one_without_a_slot(core: Any) -> None:
    adapters = VllmAdapters(1)
    await adapters.load(core, RED, Path("/x"))
    await adapters.unload(core, RED, forget_blocks=True)
    await adapters.unload(core, RED, forget_blocks=True)
    await adapters.unload(core, RED, forget_blocks=False)
    assert core.calls[1:] == [1, ("forget_adapter", RED), ("forget_adapter", RED)]
