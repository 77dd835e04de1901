"""The deciding half of pushes: part of the scheduler side, in the EngineCore.

At prefill it follows the steps of a request that is to be pushed, and says which blocks each step
makes final. At decode it lets vLLM park a request that carries a PushParams, with blocks for its whole
prompt, and when prefill is done lets it go on from the token that prefill drew.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

from llmserve.core.errors import TransferError
from llmserve.core.ids import RequestId, TransferId
from llmserve.core.kv_params import PullParams, PushParams, is_pushed, transfer_of
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.connector.orders import PushOrders
from llmserve.engines.kv_transfer import Finish, PromptFollower, ReceiveJob

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.request import Request


class PushSide:
    """Every method ignores requests that are not pushed."""

    def __init__(self, groups: KvGroups) -> None:
        self._groups = groups
        self._block_size = groups.block_size_tokens
        self._orders = PushOrders()
        self._prefills: dict[str, tuple[Request, PromptFollower]] = {}
        self._waiting: dict[str, PushParams] = {}  # at decode, without blocks
        self._parked: dict[str, Request] = {}  # at decode, with blocks

    @property
    def is_receiving(self) -> bool:
        """Whether some request has blocks and waits for what prefill writes into them."""
        return bool(self._parked)

    def on_new_request(self, request: "Request") -> None:
        """Malformed parameters were refused by the engine's `add` already; never fatal here."""
        params = request.kv_transfer_params
        if not params or not is_pushed(params):
            return
        try:
            if params.get("do_remote_prefill"):
                self._expect(request, PushParams.from_params(params))
            elif params.get("do_remote_decode"):
                self._announce(request, transfer_of(params))
        except TransferError:
            return

    def take_orders(
        self, scheduled_tokens: Mapping[str, int], block_ids_of: Callable[[str], Sequence[Sequence[int]]]
    ) -> PushOrders:
        """scheduled_tokens: how many of each request the step computes, on top of num_computed_tokens."""
        for request_id in self._prefills.keys() & scheduled_tokens.keys():
            request, follower = self._prefills[request_id]
            tokens = scheduled_tokens[request_id]
            blocks = self._groups.table(block_ids_of(request_id))
            self._orders.chunks.append(follower.step(request.num_computed_tokens, tokens, blocks))
        orders, self._orders = self._orders, PushOrders()
        return orders

    # -- at prefill

    def _announce(self, request: "Request", transfer_id: TransferId) -> None:
        follower = PromptFollower(transfer_id, request.num_prompt_tokens, self._block_size)
        self._prefills[request.request_id] = request, follower
        self._orders.announced.append(transfer_id)

    def prefill_ended(self, request: "Request", pull_params: PullParams | None) -> None:
        """pull_params: of what it hands over, if it does."""
        _, follower = self._prefills.pop(request.request_id, (None, None))
        if follower is None:
            return
        if pull_params is None:
            self._orders.dropped.append(follower.transfer_id)
            return
        tokens = tuple(request.output_token_ids)
        finish = Finish(RequestId(request.request_id), pull_params, tokens)
        self._orders.ends.append((follower.transfer_id, finish))

    # -- at decode

    def _expect(self, request: "Request", push_params: PushParams) -> None:
        self._waiting[request.request_id] = push_params
        self._orders.expected.append(push_params)

    def matched_tokens(self, request: "Request", computed_tokens: int) -> int:
        """Prompt tokens that prefill will bring beyond those in the local cache; 0 for all but requests that
        wait to be pushed. No side effects."""
        push_params = self._waiting.get(request.request_id)
        if push_params is None:
            return 0
        if not push_params.continues and not self._groups.keep_the_last(push_params.num_tokens):
            return 0  # vLLM computes the last token again, and would see the null block
        return max(0, push_params.num_tokens - computed_tokens)

    def after_alloc(self, request: "Request", blocks: "KVCacheBlocks", external_tokens: int) -> None:
        push_params = self._waiting.pop(request.request_id, None)
        if push_params is None:
            return
        if external_tokens == 0:  # vLLM wants to compute all of it
            self._orders.forgotten.append(push_params)
            return
        first = (push_params.num_tokens - external_tokens) // self._block_size
        end = -(-push_params.num_tokens // self._block_size)
        local = self._groups.table(blocks.get_block_ids(), first, end)
        self._parked[request.request_id] = request
        self._orders.receives.append(ReceiveJob(RequestId(request.request_id), push_params, local))

    def loads_ended(self, request_ids: Iterable[str], tokens: Mapping[str, Sequence[int]]) -> None:
        """tokens: what prefill drew, of requests that are to go on from it."""
        for request_id in request_ids:
            request = self._parked.pop(request_id, None)
            if request is not None and request_id in tokens:
                continue_from(request, tokens[request_id])

    def request_finished(self, request: "Request") -> None:
        if push_params := self._waiting.pop(request.request_id, None):  # aborted before it had blocks
            self._orders.forgotten.append(push_params)
        if self._parked.pop(request.request_id, None):  # aborted while they are filled
            self._orders.cancels.append(RequestId(request.request_id))


def continue_from(request: "Request", tokens: Sequence[int]) -> None:
    """Lets a parked request go on from tokens that another engine drew, before it is scheduled for the first
    time. One that ended meanwhile stays as it is.

    The tokens become the end of its prompt, as when the request had been sent with them: what decode samples
    then is what it samples in pull mode, bit for bit. As the beginning of its output they would be lost: the
    model runner learns of a request from its prompt alone. vLLM's own streaming sessions change the same
    fields in the same way (Scheduler._update_request_as_session)."""
    if request.status != RequestStatus.WAITING_FOR_REMOTE_KVS:
        return
    request.prompt_token_ids.extend(tokens)
    request._all_token_ids.extend(tokens)
    request.num_prompt_tokens = len(request.prompt_token_ids)
    request.update_block_hashes()
    if request.prefill_stats is not None:
        request.prefill_stats.num_prompt_tokens += len(tokens)
        request.prefill_stats.num_computed_tokens += len(tokens)
