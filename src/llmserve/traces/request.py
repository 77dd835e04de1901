"""A request of a trace."""

from dataclasses import dataclass

from llmserve.core.ids import DEFAULT_TENANT, TenantId


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """arrived_at: seconds from the start. max_output_tokens: as the client says; 0: it does not say.

    prefix_names: of each run of run_tokens tokens of the prompt, a name of it and all before it: equal
    names are equal prefixes. Tokens beyond the names are no other request's."""

    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    tenant: TenantId = DEFAULT_TENANT
    max_output_tokens: int = 0
    prefix_names: tuple[int, ...] = ()
    run_tokens: int = 512
