"""What vLLM is told of a request beside its tokens, and what its counts of a prompt become."""

from collections.abc import Mapping
from typing import Any
from unittest.mock import MagicMock

import pytest
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.metrics.stats import PrefillStats as VllmPrefillStats

from llmserve.apiserver.engine.output import OutputSink
from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.core.request import EngineRequest, SamplingLimits
from llmserve.engines.vllm.convert import to_core_request, to_engine_output
from llmserve.rpc.codec import decode_output, encode_outputs

RED = TenantId("red")
HAND_OVER = {"do_remote_decode": True}


def told(salt: str, tenant: TenantId, kv: Mapping[str, Any] | None) -> Any:
    request = EngineRequest(
        RequestId("r"), [1, 2], SamplingLimits(4), cache_salt=salt, tenant=tenant, kv_transfer_params=kv
    )
    params = to_core_request(request).sampling_params
    assert params is not None
    return (params.extra_args or {}).get("kv_transfer_params")


@pytest.mark.parametrize("kv", [None, HAND_OVER])
def test_each_leg_says_whose_blocks_they_are(kv: Mapping[str, Any] | None) -> None:
    assert told("salt", RED, kv) == {**(kv or {}), "tenant": "red"}


@pytest.mark.parametrize(("salt", "tenant"), [("", RED), ("salt", TenantId(""))])
def test_what_has_no_namespace_or_no_tenant_stays_out_of_the_store(salt: str, tenant: TenantId) -> None:
    assert told(salt, tenant, HAND_OVER) == HAND_OVER
    assert told(salt, tenant, None) is None


@pytest.mark.parametrize(("salt", "expected"), [("salt", {"tenant": "red", "adapter": "a1"}), ("", None)])
def test_the_store_is_told_of_the_adapter(salt: str, expected: Mapping[str, Any] | None) -> None:
    request = EngineRequest(
        RequestId("r"), [1, 2], SamplingLimits(4), cache_salt=salt, tenant=RED, adapter=AdapterDigest("a1")
    )
    params = to_core_request(request).sampling_params
    assert params is not None
    assert (params.extra_args or {}).get("kv_transfer_params") == expected


def test_vllm_s_counts_of_a_prompt_reach_its_own_output_processor_unchanged() -> None:
    counted = VllmPrefillStats()
    counted.set(num_prompt_tokens=100, num_local_cached_tokens=16, num_external_cached_tokens=32)
    counted.finalize(96)
    output = to_engine_output(EngineCoreOutput("r", [7], prefill_stats=counted))
    request, processor, queue = MagicMock(), MagicMock(), MagicMock()
    OutputSink(request, processor, queue, []).push(decode_output(encode_outputs([output]).deltas[0]))
    ((arrived,),) = processor.process_outputs.call_args.args
    assert arrived.prefill_stats == counted
    assert counted.num_cache_creation_tokens == 96 - 48
