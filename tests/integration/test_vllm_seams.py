"""What we take for granted about vLLM's internals, checked against the installed one."""

import inspect
import json
import random
from pathlib import Path

import pytest

from llmserve.core.adapters import BASE_MODEL, engine_path
from llmserve.core.blocks import chain_hashes
from llmserve.core.ids import AdapterDigest
from llmserve.engines.vllm.environment import WHOLE_MODELS

TOKENS = [random.Random(7).choice([3, 200, 40_000, 90_000]) + i for i in range(70)]


RED, BLUE = (AdapterDigest(digit * 64) for digit in "ab")


@pytest.mark.parametrize("salt", ["", "0123456789abcdef0123456789abcdef"])
@pytest.mark.parametrize("adapter", [BASE_MODEL, RED])
def test_block_identity_is_the_prefix_hash_of_vllm(salt: str, adapter: AdapterDigest) -> None:
    assert chain_hashes(TOKENS, 16, salt, adapter) == _vllm_hashes(salt, adapter)


def test_two_adapters_have_no_block_in_common_even_in_one_namespace() -> None:
    """vLLM puts the adapter's name and path into every block; its name is the digest of ours."""
    plain, red, blue = (set(_vllm_hashes("salt", adapter)) for adapter in (BASE_MODEL, RED, BLUE))
    assert not plain & red
    assert not red & blue
    assert not plain & blue


def _vllm_hashes(salt: str, adapter: AdapterDigest) -> list[bytes]:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256_cbor
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256_cbor)
    request = Request(
        request_id="r",
        prompt_token_ids=TOKENS,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        lora_request=LoRARequest(adapter, 1, engine_path(adapter)) if adapter else None,
        cache_salt=salt or None,
        block_hasher=get_request_block_hasher(16, sha256_cbor),
    )
    return list(request.block_hashes)


def test_the_names_of_parsers_are_those_that_vllm_registers() -> None:
    """Read from its sources, for a check that must not import it."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    from llmserve.engines.vllm.sources import parsers_here

    found = parsers_here()
    assert found is not None
    assert found.tool == set(ToolParserManager.list_registered())
    assert found.reasoning == set(ReasoningParserManager.list_registered())


def test_its_own_logging_can_also_tell_why_an_engine_did_not_start(tmp_path: Path) -> None:
    from vllm.config.logging import LoggingConfig
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    from llmserve.engines.vllm.failures import write_logging

    file = write_logging(tmp_path, DEFAULT_LOGGING_CONFIG)
    assert LoggingConfig(pylogging_config_file=str(file)).pylogging_config_file == str(file)
    made = json.loads(file.read_text())
    assert made["loggers"]["vllm"]["handlers"] == ["vllm", "llmserve-cause"]
    assert made["handlers"]["vllm"] == DEFAULT_LOGGING_CONFIG["handlers"]["vllm"]


def test_vllm_keeps_what_it_knows_of_a_model_where_we_look_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """engines/vllm/environment.py: processes that start together wait until one of them has that file."""
    from vllm.model_executor.models.registry import _LazyRegisteredModel

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    model = _LazyRegisteredModel("vllm.model_executor.models.llama", "LlamaForCausalLM")
    assert model._get_cache_dir() == tmp_path / "modelinfos"
    assert Path(model._get_cache_filename()).match("*-LlamaForCausalLM.json")


@pytest.mark.parametrize("value", ["0", "1"])
def test_vllm_can_be_kept_from_saving_whole_compiled_models(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """engines/vllm/environment.py: on a CPU, vLLM cannot load them again."""
    from vllm import envs

    monkeypatch.setenv(WHOLE_MODELS, value)
    assert envs.environment_variables[WHOLE_MODELS]() is (value == "1")


def test_draws_of_a_request_with_a_seed_are_taken_back_as_we_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from vllm.v1.worker import gpu_model_runner

    from llmserve.engines.connector.rewinding import RewindingGenerator, install

    monkeypatch.setattr(torch, "Generator", torch.Generator)
    install("cpu", inspect.getsource(gpu_model_runner))
    assert torch.Generator is RewindingGenerator
