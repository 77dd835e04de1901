"""`engine.options` against the arguments of the vLLM that is installed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from vllm.config import CompilationConfig
from vllm.engine.arg_utils import EngineArgs

from llmserve.apiserver.http.app import serving_args
from llmserve.apiserver.options import ModelDirectory
from llmserve.config.conflict import Conflict
from llmserve.config.engine_options import FOR_TEXT, KEY_OF, REFUSED
from llmserve.config.schema import Api, EngineConfig
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.spec import EngineSpec, computation_words
from llmserve.engines.vllm.args import engine_args
from llmserve.engines.vllm.options import option_refusals
from llmserve.engines.vllm.sources import arguments_here
from tests.integration.engines.tiny_spec import tiny_spec, write_config

KNOWN = {field.name for field in dataclasses.fields(EngineArgs)}


def engine_with(**keys: Any) -> EngineConfig:
    return EngineConfig.model_validate(keys)


def spec_of(folder: Path, engine: EngineConfig) -> EngineSpec:
    return tiny_spec(write_config(folder, {"model_type": "llama"}), engine)


def test_the_tables_name_arguments_of_this_vllm() -> None:
    assert set(KEY_OF) | set(REFUSED) | FOR_TEXT <= KNOWN
    assert not set(KEY_OF) & set(REFUSED)
    assert not FOR_TEXT & (set(KEY_OF) | set(REFUSED))
    assert arguments_here() == KNOWN, "what `llmserve up` reads without an import"


def test_what_llmserve_sets_cannot_be_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_by_us: dict[str, Any] = {}
    monkeypatch.setattr("llmserve.engines.vllm.args.AsyncEngineArgs", lambda **keys: set_by_us.update(keys))
    everything = engine_with(max_model_len=8, max_batched_tokens=99, prefill_long_prompt_tokens=5)
    engine_args(spec_of(tmp_path, everything), "ipc:///x", "card.json")
    assert len(set_by_us) > 15
    assert set(set_by_us) <= set(KEY_OF) | set(REFUSED)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("seed", "8", "Input should be a valid integer"),
        ("async_scheduling", 1, "Input should be a valid boolean"),
        ("performance_mode", "fast", "Input should be 'balanced', 'interactivity' or 'throughput'"),
        ("cudagraph_capture_sizes", [1, "2"], "1: Input should be a valid integer"),
        ("compilation_config", {"mod": 3}, "mod: Unexpected keyword argument"),
        ("attention_backend", "FLASH_ATN", "there is no 'FLASH_ATN'; did you mean 'FLASH_ATTN'?"),
        ("mamba_backend", "x", "there is no 'x'; it has TRITON, FLASHINFER"),
        ("attention_backend", 1, "Input should be "),
    ],
)
def test_a_value_that_vllm_does_not_take(name: str, value: Any, why: str) -> None:
    (found,) = option_refusals(engine_with(options={name: value}))
    assert found.paths == (("engine", "options", name),)
    assert found.message.startswith(f"vLLM does not take this value: {why}")


def test_every_argument_that_may_be_set_has_a_type_that_can_be_checked() -> None:
    options = dict.fromkeys(KNOWN - set(KEY_OF) - set(REFUSED), "no argument takes this at all times")
    refused = {found.paths[0][-1] for found in option_refusals(engine_with(options=options))}
    assert len(refused) > 80
    assert refused < set(options)


def test_an_argument_that_vllm_lacks() -> None:
    (found,) = option_refusals(engine_with(options={"async_schedulin": True}))
    assert found == Conflict.at(
        "vLLM has no argument 'async_schedulin'; did you mean 'async_scheduling'?",
        "engine.options.async_schedulin",
    )


def test_options_reach_the_engine_with_their_types(tmp_path: Path) -> None:
    options = {
        "seed": 7,
        "compilation_config": {"mode": 3, "cudagraph_capture_sizes": [1, 8]},
        "cpu_offload_params": ["mlp"],
        "attention_backend": "FLASH_ATTN",
        "quantization_config": None,
    }
    engine = engine_with(options=options, quantization="fp8", optimization_level=1)
    assert list(option_refusals(engine)) == []
    made = engine_args(spec_of(tmp_path, engine), "ipc:///x", "card.json")
    assert made.seed == 7
    assert isinstance(made.compilation_config, CompilationConfig)
    assert made.compilation_config.cudagraph_capture_sizes == [1, 8]
    assert made.cpu_offload_params == {"mlp"}
    assert made.attention_backend is not None
    assert made.attention_backend.name == "FLASH_ATTN"
    assert made.quantization == "fp8"
    assert made.optimization_level == 1


def test_the_apiserver_gets_those_on_which_text_depends(tmp_path: Path) -> None:
    engine = engine_with(options={"hf_overrides": {"vocab_size": 9}, "seed": 5, "trust_remote_code": False})
    args = serving_args(ModelDirectory("tiny", tmp_path), engine, Api())
    assert args.hf_overrides == {"vocab_size": 9}
    assert args.seed != 5


def test_the_identity_of_an_engines_kv_names_its_options(tmp_path: Path) -> None:
    """Engines with different ones hand no KV to each other: the router compares `computation`."""

    def words(**keys: Any) -> str:
        made = engine_args(spec_of(tmp_path, engine_with(**keys)), "ipc:///x", "card.json")
        assert made.kv_transfer_config is not None
        extra = made.kv_transfer_config.kv_connector_extra_config
        return computation_words("bfloat16", 512, ConnectorSettings.from_extra_config(extra).options)

    assert words() == "bfloat16 up to 512 tokens"
    assert words(quantization="fp8").startswith("bfloat16 up to 512 tokens, options ")
    assert words(quantization="fp8") != words(options={"seed": 1})
