"""What vLLM is told of a request beside its tokens."""

from collections.abc import Mapping
from typing import Any

import pytest

from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import EngineRequest, SamplingLimits
from llmserve.engines.vllm.convert import to_core_request

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
