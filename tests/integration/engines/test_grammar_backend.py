"""The apiserver and the engines compile grammars with one backend, whatever a request asks for."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from vllm.config import StructuredOutputsConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.renderers import renderer_from_config
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.input_processor import InputProcessor

from llmserve.apiserver.http.app import serving_args, vllm_config
from llmserve.apiserver.options import ModelDirectory
from llmserve.config.schema import Api, EngineConfig
from llmserve.engines.vllm.args import engine_args
from tests.integration.engines.tiny_spec import tiny_spec, write_config

# What vLLM's own choice ("auto") would send to another backend than its first choice.
NOT_FOR_XGRAMMAR = {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 5}}}


def apiserver_config(engine: EngineConfig, model: Path) -> StructuredOutputsConfig:
    found: StructuredOutputsConfig = vllm_config(
        serving_args(ModelDirectory("tiny", model), engine, Api())
    ).structured_outputs_config
    return found


def engine_config(engine: EngineConfig, model: Path) -> StructuredOutputsConfig:
    spec = tiny_spec(model, engine)
    found: StructuredOutputsConfig = (
        engine_args(spec, "ipc:///nowhere", "card.json").create_engine_config().structured_outputs_config
    )
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_config(tmp_path)
    words = {"<unk>": 0, "<think>": 1, "</think>": 2, "</s>": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), unk_token="<unk>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "settings", [{}, {"grammar_backend": "guidance"}, {"reasoning_parser": "qwen3", "dtype": "float32"}]
)
def test_the_apiserver_and_the_engines_have_the_same(settings: dict[str, str], model: Path) -> None:
    engine = EngineConfig.model_validate({"max_model_len": 256, **settings})
    in_apiserver, in_engine = apiserver_config(engine, model), engine_config(engine, model)
    assert in_apiserver == in_engine
    assert in_engine.backend == engine.grammar_backend
    assert in_engine.reasoning_parser == (engine.reasoning_parser or "")


def test_a_schema_that_the_backend_does_not_know_is_refused_not_moved_to_another(model: Path) -> None:
    config = vllm_config(serving_args(ModelDirectory("tiny", model), EngineConfig(max_model_len=256), Api()))
    request = InputProcessor(config, renderer_from_config(config))
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json=NOT_FOR_XGRAMMAR))
    with pytest.raises(VLLMValidationError, match="not supported by xgrammar"):
        request.process_inputs("r", tokens_input([1, 2]), params, supported_tasks=("generate",))
