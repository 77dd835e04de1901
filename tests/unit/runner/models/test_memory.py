"""The sum of the memory of a model, and what it is compared with."""

from collections import Counter
from collections.abc import Sequence

import pytest

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.runner.host import GIB, MIB
from llmserve.runner.models.memory import ENGINE_BYTES, NOTHING, FreeMemory, NeededMemory, check_room
from llmserve.transfer.pinned import PinnedMemory


def manifest(**engine: object) -> Manifest:
    return Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": {"primary": {"source": "hub:o/a"}},
            "engine": engine,
            "kv_cache": {"memory_gb": 2},
        }
    )


def workers(*gpus: tuple[int, ...]) -> list[ProcessSpec]:
    return [ProcessSpec(ProcessRole.DECODE, f"decode-{at}", "m", gpus=one) for at, one in enumerate(gpus)]


def test_engines_on_the_cpu_take_processes_weights_and_kv() -> None:
    needed = NeededMemory.of(manifest(tensor_parallel=2), 1 * GIB, workers((), ()))
    assert needed.host_bytes == 2 * (ENGINE_BYTES + 1 * GIB + 2 * 2 * GIB)
    assert needed.text == "2 x (2.2 GiB of processes, 1.0 GiB of weights, 4.0 GiB of KV)"
    assert not needed.gpu_bytes


def test_engines_on_gpus_take_these_and_pin_memory() -> None:
    settings = manifest(tensor_parallel=2)
    needed = NeededMemory.of(settings, 8 * GIB, workers((0, 1), (1, 2)))
    assert needed.gpu_bytes == {0: 6 * GIB, 1: 12 * GIB, 2: 6 * GIB}
    assert needed.host_bytes == PinnedMemory.of_host(settings, ["a", "a"]).host_bytes > 0
    assert "6.0 GiB of weights and KV on each GPU" in needed.text


def test_an_engine_on_one_gpu_has_all_of_its_weights_there() -> None:
    needed = NeededMemory.of(manifest(), 8 * GIB, workers((0,), (1,)))
    assert needed.gpu_bytes == {0: 10 * GIB, 1: 10 * GIB}


def test_simulated_engines_take_next_to_nothing() -> None:
    assert NeededMemory.of(manifest(kind="sim"), 8 * GIB, workers(())) == NOTHING
    assert NOTHING.host_bytes == 0


NEEDED = NeededMemory(5.0 * GIB, text="the sum")


@pytest.mark.parametrize(
    ("free", "leaving", "coming", "fits"),
    [
        (5.0, 0.0, 0.0, True),
        (4.9, 0.0, 0.0, False),
        (2.0, 3.0, 0.0, True),
        (2.0, 2.9, 0.0, False),
        (6.0, 0.0, 1.0, True),
        (6.0, 0.0, 1.1, False),
    ],
)
def test_what_leaves_is_free_and_what_comes_is_taken(
    free: float, leaving: float, coming: float, *, fits: bool
) -> None:
    def check() -> None:
        check_room(
            "b",
            NEEDED,
            FreeMemory(free * GIB),
            leaving=NeededMemory(leaving * GIB),
            coming=[NeededMemory(coming * GIB)],
        )

    if fits:
        check()
        return
    with pytest.raises(StartFailed, match=r"model b needs about 5.0 GiB on this host \(the sum\), and"):
        check()


def test_each_gpu_has_to_have_room() -> None:
    needed = NeededMemory(gpu_bytes=Counter({0: 4 * GIB, 1: 4 * GIB, 2: 4 * GIB}))
    free = FreeMemory(gpu_bytes=Counter({0: 4 * GIB, 1: 3 * GIB}))  # nobody knows of the third one
    leaving = NeededMemory(gpu_bytes=Counter({1: 2 * GIB}))
    check_room("b", needed, free, leaving=leaving, coming=())
    taken = NeededMemory(gpu_bytes=Counter({1: 2 * GIB}))
    with pytest.raises(StartFailed, match=r"4.0 GiB on GPU 1 .* 3.0 GiB are available when the other model"):
        check_room("b", needed, free, leaving=leaving, coming=[taken])


def test_the_memory_of_gpus_is_asked_for() -> None:
    def tool(command: Sequence[str]) -> str:
        assert command[0] == "nvidia-smi"
        return "0, 100\n1, 200\n"

    assert FreeMemory.here(tool).gpu_bytes == {0: 100 * MIB, 1: 200 * MIB}


@pytest.mark.parametrize("said", ["[N/A], x", ""])
def test_gpus_that_do_not_tell_are_not_counted(said: str) -> None:
    def tool(command: Sequence[str]) -> str:
        if not said:
            raise LLMServeError("nvidia-smi is not installed")
        return said

    found = FreeMemory.here(tool)
    assert not found.gpu_bytes
    assert found.host_bytes > 0
