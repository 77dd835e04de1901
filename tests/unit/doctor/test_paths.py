"""Paths between GPUs and pinned memory, as findings."""

from llmserve.doctor import Status
from llmserve.doctor.paths import gpu_paths, pinned_memory
from llmserve.runner.gpus import KvPath
from llmserve.transfer.pinned import PinnedMemory

NVLINK, FAR = "CUDA IPC over NVLink (NV18)", "through host memory (peer access: CNS)"


def path(between: str, by_nixl: str) -> KvPath:
    return KvPath(between, (("nixl", by_nixl), ("tcp", "pinned host memory, then a socket")))


def test_a_pair_without_peer_access_is_slower() -> None:
    found = gpu_paths([path("prefill-0 > decode-0", NVLINK), path("prefill-0 > decode-1", FAR)])
    assert found.status is Status.NOTE
    assert found.value == f"prefill-0 > decode-0 {NVLINK}; prefill-0 > decode-1 {FAR}"
    assert "slower" in found.advice
    assert found.figures == {"pairs": 2}


def test_pairs_with_peer_access_are_to_be_measured() -> None:
    found = gpu_paths([path("prefill-0 > decode-0", f"{NVLINK}, CUDA IPC over PCIe (PHB)")])
    assert "bench gpu" in found.advice
    one_is_far = gpu_paths([path("prefill-0 > decode-0", f"{NVLINK}, {FAR}")])
    assert "slower" in one_is_far.advice


def test_without_nixl_everything_is_staged() -> None:
    found = gpu_paths([KvPath("prefill-0 > decode-0", (("ucx", "x"), ("tcp", "x")))])
    assert found.value == "between all engines through pinned host memory and a socket"


def test_engines_without_disaggregation_move_no_kv() -> None:
    assert gpu_paths([]).status is Status.OK


def test_many_pairs_are_not_all_shown() -> None:
    assert gpu_paths([path(f"prefill-0 > decode-{n}", NVLINK) for n in range(10)]).value.endswith(
        "; and 2 more"
    )


def test_pinned_memory_is_counted_against_what_is_available() -> None:
    pinned = PinnedMemory(96 << 20, 2)
    assert pinned_memory(pinned, 192 << 20).status is Status.OK
    short = pinned_memory(pinned, (192 << 20) - 1)
    assert short.status is Status.WARNING
    assert "Only 192 MiB are available" in short.advice
    assert short.figures == {"pinned_bytes": 192 << 20, "available_bytes": (192 << 20) - 1}
