"""Which path KV takes between GPUs, from what nvidia-smi says, and how much host memory is pinned for it."""

import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError
from llmserve.runner.gpus import (
    GpuTopology,
    PinLimits,
    kv_path_of_pods,
    kv_paths,
    pinned_refusals,
    pinned_text,
    run_tool,
)
from llmserve.transfer.pinned import PinnedMemory
from tests.unit.conftest import MakeHost

MIB, GIB = 1 << 20, 1 << 30
LINKS = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-31\t0
GPU1\tNV18\t X \tPHB\tPIX\t0-31\t0
GPU2\tSYS\tPHB\t X \tSYS\t32-63\t1

Legend:

  X    = Self
"""
PEERS = """ \tGPU0\tGPU1\tGPU2
 GPU0\tX\tOK\tCNS
 GPU1\tOK\tX\tOK
 GPU2\tCNS\tOK\tX
"""
STAGED = "pinned host memory, then a socket"


def tool(command: Sequence[str]) -> str:
    return LINKS if command[-1] == "-m" else PEERS


def failing(command: Sequence[str]) -> str:
    raise LLMServeError("nvidia-smi is not installed")


def manifest(text: str = "") -> Manifest:
    return parse_manifest(f'kind: LLMServe\nmodels: {{primary: {{source: "hub:a/b"}}}}\n{text}', "m.yaml")


def worker(role: ProcessRole, *gpus: int) -> ProcessSpec:
    return ProcessSpec(role=role, name=f"{role}-{gpus[0]}", module="llmserve.workers", gpus=gpus)


def test_kv_goes_between_the_engines_of_one_model() -> None:
    workers = [
        replace(worker(role, gpu), name=f"{model}-{role}", model=model)
        for gpu, (model, role) in enumerate(
            (model, role) for model in "ab" for role in (ProcessRole.PREFILL, ProcessRole.DECODE)
        )
    ]
    assert set(by_nixl(*workers)) == {"a-prefill > a-decode", "b-prefill > b-decode"}


def by_nixl(*workers: ProcessSpec) -> dict[str, str]:
    paths = kv_paths(manifest(), workers, GpuTopology.seen_by(tool))
    return {path.between: dict(path.ways)["nixl"] for path in paths}


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        (0, 0, "CUDA IPC within one GPU"),
        (0, 1, "CUDA IPC over NVLink (NV18)"),
        (1, 2, "CUDA IPC over PCIe (PHB)"),
        (0, 2, "through host memory (peer access: CNS)"),
        (0, 7, "unknown (nvidia-smi does not tell)"),
    ],
)
def test_the_path_between_two_gpus(one: int, other: int, path: str) -> None:
    assert GpuTopology.seen_by(tool).path(one, other) == path


def test_without_nvidia_smi_the_path_is_unknown() -> None:
    assert GpuTopology.seen_by(failing).path(0, 1) == "unknown (nvidia-smi does not tell)"


def test_each_pair_of_prefill_and_decode_has_a_path() -> None:
    workers = (
        worker(ProcessRole.PREFILL, 0),
        worker(ProcessRole.DECODE, 1),
        worker(ProcessRole.DECODE, 2),
    )
    assert by_nixl(*workers) == {
        "prefill-0 > decode-1": "CUDA IPC over NVLink (NV18)",
        "prefill-0 > decode-2": "through host memory (peer access: CNS)",
    }


def test_between_engines_of_other_sizes_each_rank_meets_each() -> None:
    paths = by_nixl(worker(ProcessRole.PREFILL, 0, 2), worker(ProcessRole.DECODE, 1))
    assert paths == {"prefill-0 > decode-1": "CUDA IPC over NVLink (NV18), CUDA IPC over PCIe (PHB)"}


def test_ranks_of_engines_alike_meet_their_like() -> None:
    paths = by_nixl(worker(ProcessRole.PREFILL, 0, 1), worker(ProcessRole.DECODE, 1, 2))
    assert paths == {"prefill-0 > decode-1": "CUDA IPC over NVLink (NV18), CUDA IPC over PCIe (PHB)"}


def test_no_path_leads_from_engines_that_do_all_or_run_on_cpus() -> None:
    on_cpu = ProcessSpec(role=ProcessRole.PREFILL, name="prefill-0", module="llmserve.workers")
    assert by_nixl(on_cpu, worker(ProcessRole.DECODE, 0), worker(ProcessRole.AGGREGATED, 1)) == {}


@pytest.mark.parametrize(
    ("order", "ways"),
    [
        ("", "nixl: CUDA IPC over NVLink (NV18); ucx, tcp: " + STAGED),
        ("[ucx, nixl]", f"ucx: {STAGED}; nixl: CUDA IPC over NVLink (NV18); tcp: {STAGED}"),
        ("[nccl]", "nccl: from GPU to GPU, as NCCL chooses; tcp: " + STAGED),
        ("[]", "tcp: " + STAGED),
    ],
)
def test_each_transport_has_its_way(order: str, ways: str) -> None:
    """nccl is used only where it is named, and shm reaches no GPU."""
    settings = manifest(f"transfer: {{engine_order: {order}}}" if order else "")
    workers = (worker(ProcessRole.PREFILL, 0), worker(ProcessRole.DECODE, 1))
    (path,) = kv_paths(settings, workers, GpuTopology.seen_by(tool))
    assert str(path) == f"prefill-0 > decode-1: {ways}"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ""),
        ("transfer: {engine_order: [nixl, ucx]}", "nixl: TCP, since pods share neither GPUs nor PIDs; "),
        ("deployment: {k8s: {rdma_resource: rdma/hca}}", "nixl: RDMA between the GPUs, else TCP; "),
    ],
)
def test_no_pod_reaches_another_one_by_cuda_ipc(text: str, path: str) -> None:
    assert str(kv_path_of_pods(manifest(text))) == f"prefill > decode: {path}ucx, tcp: {STAGED}"


@pytest.mark.parametrize(
    ("pinned", "text"),
    [
        (PinnedMemory(32 * MIB, 2), "up to 64 MiB: 2 x 32 MiB for the slots of each rank"),
        (
            PinnedMemory(96 * MIB, 2, 8 * GIB),
            "up to 8.2 GiB: 2 x 96 MiB for the slots of each rank, 8.0 GiB for the KV store's DRAM",
        ),
    ],
)
def test_what_is_pinned_in_words(pinned: PinnedMemory, text: str) -> None:
    assert pinned_text(pinned) == text


STORE = "storageClasses: [{name: a, tier: dram, capacity_gb: 8}]"
PINNED = PinnedMemory(96 * MIB, 2, 8 * GIB)


@pytest.mark.parametrize(
    ("text", "limits", "said"),
    [
        (STORE, PinLimits(PINNED.host_bytes, PINNED.process_bytes), None),
        (STORE, PinLimits(PINNED.host_bytes - 1, inf), "the engines pin up to 8.2 GiB: 2 x 96 MiB"),
        (
            STORE,
            PinLimits(inf, PINNED.process_bytes - 1),
            "a process pins up to 8.1 GiB: 96 MiB of slots and",
        ),
        (f"{STORE}\ntransfer: {{engine_order: [ucx]}}", PinLimits(inf, 0), None),
    ],
)
def test_more_than_there_is_is_refused_with_the_sum(text: str, limits: PinLimits, said: str | None) -> None:
    """Without nixl no network card locks anything."""
    found = list(pinned_refusals(manifest(text), PINNED, limits))
    assert [one.message.startswith(said or "?") for one in found] == ([True] if said else [])
    assert all(one.paths[0] == ("storageClasses", 0, "capacity_gb") for one in found)


def test_without_a_store_the_transports_are_what_pins() -> None:
    (found,) = pinned_refusals(manifest(), PinnedMemory(96 * MIB, 4), PinLimits(100 * MIB, 1))
    assert found.paths == (("transfer", "engine_order"),)
    (locked,) = pinned_refusals(manifest(), PinnedMemory(96 * MIB, 4), PinLimits(inf, 1))
    assert locked.message.startswith("a process pins up to 96 MiB: 96 MiB of slots; network cards")


_MEMORY = {"proc/meminfo": f"MemTotal: {4 << 20} kB\n"}
_PORT = {"sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE"}
_MAY_LOCK = {"proc/self/status": "CapEff:\t0000000000004000\n"}


@pytest.mark.parametrize(
    ("files", "soft", "locked"),
    [
        (_MEMORY, 8 * MIB, inf),
        (_MEMORY | _PORT, 8 * MIB, 8 * MIB),
        (_MEMORY | _PORT, resource.RLIM_INFINITY, inf),
        (_MEMORY | _PORT | _MAY_LOCK, 8 * MIB, inf),
    ],
)
def test_locked_memory_is_limited_where_network_cards_lock_it(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], soft: int, locked: float
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert PinLimits.of(make_host(files)) == PinLimits(4 * GIB, locked)


def test_memory_that_cannot_be_seen_has_no_limit(make_host: MakeHost) -> None:
    assert PinLimits.of(make_host({})).memory_bytes == inf


def test_the_memory_of_a_container_is_its_limit(make_host: MakeHost) -> None:
    group = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(GIB)}
    assert PinLimits.of(make_host(_MEMORY | group)).memory_bytes == GIB


def test_a_tool_that_is_not_there() -> None:
    with pytest.raises(LLMServeError, match="is not installed"):
        run_tool(["llmserve-no-such-tool"])


def test_a_tool_that_fails_says_why() -> None:
    with pytest.raises(LLMServeError, match="failed: first"):
        run_tool([sys.executable, "-S", "-c", "raise SystemExit('first\\nsecond')"])


def test_a_tool_that_fails_silently() -> None:
    with pytest.raises(LLMServeError, match="exit code 3"):
        run_tool([sys.executable, "-S", "-c", "raise SystemExit(3)"])
