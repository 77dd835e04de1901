"""How many tokens a request with an effort may spend on thinking."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams

_EFFORT = "reasoning_effort"


@dataclass(frozen=True, slots=True)
class ThinkingBudgets:
    """tokens: the budget of each effort. Other efforts have none: the model thinks for as long as it does."""

    tokens: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokens: Mapping[Any, int], config: VllmConfig, template: object) -> "ThinkingBudgets":
        """Returns no budgets for a model whose thinking has no marks that vLLM knows, and for one whose chat
        template is told the effort: then the model itself thinks less."""
        marked = config.reasoning_config is not None and config.reasoning_config.enabled
        return cls(tokens) if marked and _EFFORT not in str(template) else cls()

    def limit(self, params: SamplingParams, parser_arguments: Mapping[str, Any] | None) -> None:
        """Sets the budget of a request that names an effort and no budget. parser_arguments: what vLLM's
        layer tells the parser of reasoning, with what it tells the chat template."""
        effort = ((parser_arguments or {}).get("chat_template_kwargs") or {}).get(_EFFORT)
        if isinstance(effort, str) and params.thinking_token_budget is None:
            params.thinking_token_budget = self.tokens.get(effort)
