"""How much host memory engines on GPUs pin, from the manifest alone."""

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.transfer.pinned import PinnedMemory

MIB, GIB = 1 << 20, 1 << 30
DRAM = """\
storageClasses:
  - {name: a, tier: dram, capacity_gb: 2.5}
  - {name: c, tier: nvme, capacity_gb: 100, location: /kv}
"""


def manifest(text: str = "") -> Manifest:
    return parse_manifest(f'kind: LLMServe\nmodels: {{primary: {{source: "hub:a/b"}}}}\n{text}', "m.yaml")


@pytest.mark.parametrize(
    ("text", "rank_mib"),
    [
        ("", 96),
        ("transfer: {engine_order: [ucx, nixl]}", 96),
        ("transfer: {engine_order: [nixl]}", 32),
        ("transfer: {engine_order: []}", 32),
        ("deployment: {disaggregated: false}", 0),
        ("deployment: {disaggregated: false}\nstorageClasses: [{name: a, tier: dram, capacity_gb: 1}]", 96),
    ],
)
def test_a_rank_has_the_slots_of_each_transport_that_stages(text: str, rank_mib: int) -> None:
    assert PinnedMemory.of_pod(manifest(text)) == PinnedMemory(rank_mib * MIB, 1, 0)


def test_each_rank_pins_the_dram_of_the_store_and_the_host_has_it_once() -> None:
    pinned = PinnedMemory.of_host(manifest(f"engine: {{tensor_parallel: 2}}\n{DRAM}"), ["b"] * 3)
    assert pinned == PinnedMemory(96 * MIB, 6, 5 * GIB // 2)
    assert pinned.process_bytes == 96 * MIB + 5 * GIB // 2
    assert pinned.host_bytes == 6 * 96 * MIB + 5 * GIB // 2


def test_engines_of_several_models_pin_for_their_own_ranks() -> None:
    split = "{source: hub:a/large, engine: {tensor_parallel: 2}}"
    whole = "{source: hub:a/small, disaggregated: false}"
    text = f"kind: LLMServe\nmodels: [{split}, {whole}]\n"
    made = parse_manifest(text, "m.yaml")
    assert PinnedMemory.of_host(made, ["large", "large", "small"]) == PinnedMemory(96 * MIB, 5, 0)
    assert PinnedMemory.of_host(made, ["small"]) == PinnedMemory(0, 1, 0)
    assert PinnedMemory.of_host(made, []) == PinnedMemory(0, 0, 0)


def test_a_pod_pins_no_memory_of_the_kv_managers_pod() -> None:
    pinned = PinnedMemory.of_pod(manifest(f"engine: {{tensor_parallel: 4}}\n{DRAM}"))
    assert pinned == PinnedMemory(96 * MIB, 4, 0)
