"""The deciding half of the connector: runs in the EngineCore, once per step, never blocks.

A request that must hand its KV over carries {"do_remote_decode": true}; when it finishes at its
token limit its blocks stay pinned (vLLM frees them when the worker side says so) and its output
carries a PullParams. A request that carries pull parameters loads its prompt from there: vLLM parks
it in WAITING_FOR_REMOTE_KVS, allocates blocks, and schedules it when the worker side reports it.

A request that is pushed carries a PushParams instead, see `push_side`.

A pull_params is used once: after a failed load or a preemption the request computes its own prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.core.kv_params import PullParams, is_pushed
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.connector.orders import Grant, StepOrders
from llmserve.engines.connector.push_side import PushSide
from llmserve.engines.kv_transfer import PullJob

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.request import Request


class SchedulerSide:
    def __init__(self, worker_id: WorkerId, epoch: int, groups: KvGroups, lease_seconds: float) -> None:
        self._worker_id = worker_id
        self._epoch = epoch
        self._groups = groups
        self._block_size = groups.block_size_tokens
        self._lease_seconds = lease_seconds
        self._endpoints: tuple[str, ...] = ()
        self._orders = StepOrders()
        self._waiting: dict[str, PullParams] = {}  # arrived with pull parameters, not yet scheduled
        self._pulling: set[str] = set()
        self._pushes = PushSide(groups)

    def set_endpoints(self, endpoints: Sequence[str]) -> None:
        """The hand-over servers of this engine, in rank order; known before the first request."""
        self._endpoints = tuple(endpoints)

    def on_new_request(self, request: "Request") -> None:
        self._pushes.on_new_request(request)
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_prefill") or is_pushed(params):
            return
        try:
            pull_params = PullParams.from_params(params)
        except TransferError:
            return  # refused by the engine's `add` already; never fatal here
        self._waiting[request.request_id] = pull_params
        self._orders.watches.append(pull_params)

    def matched_tokens(self, request: "Request", computed_tokens: int) -> int:
        """Prompt tokens that the pull covers beyond those in the local cache. No side effects."""
        pull_params = self._waiting.get(request.request_id)
        if pull_params is None:
            return self._pushes.matched_tokens(request, computed_tokens)
        covered = min(pull_params.num_tokens, int(request.num_tokens))
        if covered == request.num_tokens and not self._groups.keep_the_last(covered):
            return 0  # vLLM computes the last token again, and would see the null block
        return max(0, covered - computed_tokens)

    def after_alloc(self, request: "Request", blocks: "KVCacheBlocks", external_tokens: int) -> None:
        self._pushes.after_alloc(request, blocks, external_tokens)
        pull_params = self._waiting.pop(request.request_id, None)
        if pull_params is None:
            return
        if pull_params in self._orders.watches:  # it has not waited for blocks
            self._orders.watches.remove(pull_params)
        if external_tokens == 0:  # all of it was in the local cache
            self._orders.releases.append(pull_params)
            return
        self._orders.pulls.append(self._pull(request, pull_params, blocks, external_tokens))
        self._pulling.add(request.request_id)

    def _pull(
        self, request: "Request", pull_params: PullParams, blocks: "KVCacheBlocks", external_tokens: int
    ) -> PullJob:
        covered = min(pull_params.num_tokens, request.num_tokens)
        tokens = range(covered - external_tokens, covered)
        first, end = tokens.start // self._block_size, -(-tokens.stop // self._block_size)
        return PullJob(
            request_id=RequestId(request.request_id),
            pull_params=pull_params,
            tokens=tokens,
            local=self._groups.table(blocks.get_block_ids(), first, end),
        )

    def take_orders(
        self, scheduled_tokens: Mapping[str, int], block_ids_of: Callable[[str], Sequence[Sequence[int]]]
    ) -> StepOrders:
        """See PushSide."""
        orders, self._orders = self._orders, StepOrders()
        orders.push = self._pushes.take_orders(scheduled_tokens, block_ids_of)
        orders.awaits_kv = not scheduled_tokens and bool(self._pulling or self._pushes.is_receiving)
        return orders

    def loads_ended(self, request_ids: set[str], tokens: Mapping[str, Sequence[int]]) -> None:
        """tokens: see PushSide."""
        self._pulling -= request_ids
        self._pushes.loads_ended(request_ids, tokens)

    def request_finished(
        self, request: "Request", block_ids: Sequence[Sequence[int]]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Returns whether vLLM must keep the blocks, and what goes into the request's last output. block_ids:
        of each group."""
        request_id = request.request_id
        if pull_params := self._waiting.pop(request_id, None):  # aborted before it was scheduled
            self._orders.releases.append(pull_params)
        if request_id in self._pulling:  # aborted while its blocks arrive
            self._pulling.discard(request_id)
            self._orders.cancels.append(RequestId(request_id))
        self._pushes.request_finished(request)
        if not self._hands_over(request.kv_transfer_params, request) or not any(block_ids):
            self._pushes.prefill_ended(request, None)
            return False, None
        granted = self._grant(request, block_ids)
        self._pushes.prefill_ended(request, granted)
        return True, granted.to_params()

    @staticmethod
    def _hands_over(params: Mapping[str, Any] | None, request: "Request") -> bool:
        """Only a prefill that ran to its token limit: one that met a stop token has no decode."""
        asked = bool(params and params.get("do_remote_decode"))
        return asked and request.status == RequestStatus.FINISHED_LENGTH_CAPPED

    def _grant(self, request: "Request", block_ids: Sequence[Sequence[int]]) -> PullParams:
        tokens = request.num_prompt_tokens
        lease_id = LeaseId(f"{self._epoch:x}.{request.request_id}")
        held = self._groups.table(block_ids).block_ids
        self._orders.grants.append(Grant(RequestId(request.request_id), lease_id, held))
        return PullParams(
            worker_id=self._worker_id,
            epoch=self._epoch,
            lease_id=lease_id,
            endpoints=self._endpoints,
            blocks=self._groups.table(block_ids, 0, -(-tokens // self._block_size)),
            num_tokens=tokens,
            block_size_tokens=self._block_size,
            lease_seconds=self._lease_seconds,
            adapter=request.lora_request.name if request.lora_request else BASE_MODEL,
        )
