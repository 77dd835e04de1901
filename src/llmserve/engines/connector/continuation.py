"""A parked vLLM request goes on from tokens that another engine drew.

They become the end of its prompt, as when the request had been sent with them: what decode samples then
is what it samples in pull mode, bit for bit. (As the beginning of its output they would be lost: the
model runner learns of a request from its prompt alone.) vLLM's own streaming sessions change the same fields
in the same way (Scheduler._update_request_as_session).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.request import Request


def continue_from(request: "Request", tokens: Sequence[int]) -> None:
    """Before the request is scheduled for the first time. One that ended meanwhile stays as it is."""
    if request.status != RequestStatus.WAITING_FOR_REMOTE_KVS:
        return
    request.prompt_token_ids.extend(tokens)
    request._all_token_ids.extend(tokens)
    request.num_prompt_tokens = len(request.prompt_token_ids)
    request.update_block_hashes()
    if request.prefill_stats is not None:
        request.prefill_stats.num_prompt_tokens += len(tokens)
        request.prefill_stats.num_computed_tokens += len(tokens)
