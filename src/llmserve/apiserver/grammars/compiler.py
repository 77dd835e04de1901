"""vLLM's own validation and compilers of grammars, as its engines use them."""

from typing import NamedTuple

from torch import Tensor
from vllm.config import VllmConfig
from vllm.exceptions import VLLMError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_types import StructuredOutputBackend, StructuredOutputGrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import get_structured_output_key

from llmserve.apiserver.grammars.forks import Task

_BACKENDS = {"xgrammar": XgrammarBackend, "guidance": GuidanceBackend}


class CompiledGrammar(NamedTuple):
    """mask: bits of the tokens that may come first."""

    grammar: StructuredOutputGrammar
    mask: Tensor


class GrammarCompiler:
    """Made once, before the forks: what it holds of the tokenizer is made for all of them."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._tokenizer = cached_tokenizer_from_config(model_config=config.model_config)
        chosen = config.structured_outputs_config.backend
        names = list(_BACKENDS) if chosen == "auto" else [chosen]
        self._backends = {name: self._backend(name) for name in names if name in _BACKENDS}

    def _backend(self, name: str) -> StructuredOutputBackend:
        vocab_size = self._config.model_config.get_vocab_size()
        return _BACKENDS[name](self._config, tokenizer=self._tokenizer, vocab_size=vocab_size)

    def problem_of(self, task: Task) -> str:
        """Returns why no engine could serve a task; empty when all can. task: `constraint`, the fields of
        vLLM's StructuredOutputsParams, and `stop_token_ids`."""
        try:
            found = self.compiled(task)
        except VLLMError as error:
            return str(error)
        return "" if found is None or bool(found.mask.any()) else "no output satisfies it"

    def compiled(self, task: Task) -> CompiledGrammar | None:
        """Returns None for a backend that vLLM only validates for, and that compiles as it goes. Errors:
        VLLMError, and whatever the compilers raise."""
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**task["constraint"]))
        params.verify(
            self._config.model_config, None, self._config.structured_outputs_config, self._tokenizer
        )
        backend = self._backends.get(params.structured_outputs._backend)
        if backend is None:
            return None
        kind, text = get_structured_output_key(params.structured_outputs)
        grammar = backend.compile_grammar(kind, text, stop_token_ids=set(task["stop_token_ids"]))
        mask = backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        return CompiledGrammar(grammar, mask)
