"""The scheduler's half: which blocks of a prompt the store has, and where the others go.

Everything about a prompt is asked at once, when its first block is looked up: vLLM comes back to it in a
later step. What was not asked about then (blocks that are generated, or that the device had) is asked about
when vLLM wants to store it, and stored in the step after the answer. So no step waits for the store.

Blocks to load are under a lease until they are loaded or the request ends; blocks to store have a reserved
slot until they are stored or the request ends. A preempted request is asked about again.

A request without a tenant has no part in the store. Of one whose KV another worker hands over, only what
comes after its prompt is stored, and nothing is loaded: that worker has done so.

The store knows the blocks of a request with an adapter by its label, too (kvstore/blocks.py).

A model with several groups of layers has a block in each for the same tokens. The store knows them by
different hashes, and each group is asked about by itself, as if it were a prompt of its own. A group with a
window stores only the last blocks of a prompt. It is asked about when the store has said how much there is to
load in a group that sees all, and about the blocks that the window sees from there.
"""

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    LookupResult,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_block_hash,
    get_offload_group_idx,
)

from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.core.kv_params import arriving_tokens
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.store.block_cost import BlockCost
from llmserve.engines.store.link import StoreQuery
from llmserve.engines.store.links import LocatedBlock, PromptAnswer, StoreLease, StoreLinks
from llmserve.engines.store.request import StoreRequest
from llmserve.engines.store.worker import StoreSlots
from llmserve.kvstore.blocks import adapter_label, store_key
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

# How long a prompt waits for an answer: no longer than it takes to compute, within these bounds.
_LEAST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.25, 5.0
_IDLE_WAIT_SECONDS = 0.005


@dataclass(slots=True)
class _Load:
    """Under way; it may outlive its request. has_failed: not all of it was what it should be."""

    leases: Sequence[StoreLease]
    blocks: Mapping[bytes, LocatedBlock]
    has_failed: bool = False


class StoreManager(OffloadingManager):
    def __init__(self, links: StoreLinks, pace: BlockCost) -> None:
        """groups: set before the first request."""
        self._links, self.pace = links, pace
        self.groups = KvGroups(1)
        self._requests: dict[str, StoreRequest] = {}
        # Looked up in this step for the first time, by the first of their blocks.
        self._asking: dict[str, tuple[ReqContext, OffloadKey]] = {}
        self._loading: dict[str, _Load] = {}  # by request
        self._writing: dict[bytes, LocatedBlock] = {}

    # -- requests

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        params = req_context.kv_transfer_params or {}
        given = arriving_tokens(params)  # the engine's `add` has checked them
        self._requests[req_context.req_id] = StoreRequest(str(params.get("tenant", "")), given)
        return RequestOffloadingContext()

    def note_length(self, request_id: str, tokens: int) -> None:
        """Called for each new request."""
        self._requests[request_id].most_loads = (tokens - 1) // self.groups.block_size_tokens

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._asking.pop(req_context.req_id, None)
        if request := self._requests.pop(req_context.req_id, None):
            self._give_back(request)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for request_id in context.preempted_req_ids:
            if request := self._requests.get(request_id):
                self._release_loads(request)
                request.may_load = True
        for request_id, (ask, first) in self._asking.items():
            request = self._requests[request_id]
            request.may_load = False
            self._ask(request, ask, [first], load=True)
        self._asking.clear()
        self._take_answers()

    def wait_for_answer(self) -> None:
        """Waits a little for an answer, in an engine that has nothing else to do."""
        if any(request.open_questions for request in self._requests.values()):
            self._take_answers(_IDLE_WAIT_SECONDS)

    def shutdown(self) -> None:
        self._links.close()

    # -- loads

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        request = self._requests[req_context.req_id]
        if not request.tenant or request.given_tokens:
            return LookupResult.MISS
        self._take_answers()
        self._drop_overdue(request)
        if request.open_questions or req_context.req_id in self._asking:
            return LookupResult.RETRY
        if request.may_load:
            self._asking[req_context.req_id] = req_context, key
            return LookupResult.RETRY
        return LookupResult.HIT if self._name(key, req_context) in request.loads else LookupResult.MISS

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        request = self._requests[req_context.req_id]
        leases, loads = request.take_loads()
        blocks = {name: loads[name] for name in self._names(keys, req_context)}
        self._loading[req_context.req_id] = _Load(leases, blocks)
        return StoreSlots(blocks.values())

    def loads_failed(self, request_ids: Collection[str] | None = None) -> None:
        """Some block of these requests' loads was not what it should be. None: of all loads under way."""
        for request_id, load in self._loading.items():
            load.has_failed |= request_ids is None or request_id in request_ids

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        load = self._loading.pop(req_context.req_id)
        self._release(load.leases)
        if load.has_failed:  # whichever block it was: the others are computed with it, and stored again
            for (manager, arena), corrupt in _by_memory(load.blocks).items():
                self._links.settle(manager, arena, corrupt=corrupt)

    # -- stores

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        """None: vLLM asks again in its next step, and once more when the request has finished."""
        request = self._requests[req_context.req_id]
        ends = req_context._offload_key_positions
        keys = [key for key in keys if ends[key] > request.given_tokens]
        if not request.tenant or not keys:
            return PrepareStoreOutput([], StoreSlots(), [])
        self._take_answers()
        self._drop_overdue(request)
        if request.open_questions or self._ask_for_more(request, req_context, keys):
            return None
        chosen = [key for key in keys if self._name(key, req_context) in request.stores]
        names = self._names(chosen, req_context)
        blocks = request.take_stores(names)
        self._writing.update(zip(names, blocks, strict=True))
        return PrepareStoreOutput(chosen, StoreSlots(blocks), [])

    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        """The checksums stand beside the slots: without one the block was not written."""
        names = self._names(keys, req_context)
        written = {name: placed for name in names if (placed := self._writing.pop(name, None))}
        for (manager, arena), stored in _by_memory(written).items():
            commits = [fill for name in stored for fill in _fills(name, written[name])]
            self._links.settle(manager, arena, commits=commits)

    # -- asking

    def _ask_for_more(self, request: StoreRequest, context: ReqContext, keys: Sequence[OffloadKey]) -> bool:
        """Asks about these blocks unless that was done; returns whether it asked."""
        ends = context._offload_key_positions
        if max(ends[key] for key in keys) <= request.asked_tokens:
            return False
        self._ask(request, context, keys, load=False)
        return True

    def _ask(
        self, request: StoreRequest, context: ReqContext, keys: Sequence[OffloadKey], *, load: bool
    ) -> None:
        """Asks about the first of these blocks and all after it, in each group."""
        ends = context._offload_key_positions
        request.asked_tokens = max(ends.values())
        first_end = min(ends[key] for key in keys)
        chains = _chains(context)
        for group, chain in chains.items():
            have = sum(ends[key] < first_end for key in chain)
            seconds = self.pace.block_seconds / len(chains)
            worth = self.pace.block_seconds * (len(chain) - have) if seconds else _MOST_WAIT_SECONDS
            timeout = min(max(worth, _LEAST_WAIT_SECONDS), _MOST_WAIT_SECONDS)
            names = self._names(chain, context)
            query = StoreQuery(context.req_id, request.tenant, names, have, load, seconds, timeout)
            request.open_questions += 1
            if load and self.groups.windows[group]:
                request.about_windows.append((group, query))
            else:
                self._links.prepare(query)

    def _names(self, keys: Iterable[OffloadKey], context: ReqContext) -> list[bytes]:
        return [self._name(key, context) for key in keys]

    def _name(self, key: OffloadKey, context: ReqContext) -> bytes:
        """The block's key in the store. The hash in that of the counted group is the one that the router
        knows, too."""
        is_counted = get_offload_group_idx(key) == self.groups.counted
        hashed = bytes(get_offload_block_hash(key)) if is_counted else hashlib.sha256(key).digest()
        return store_key(BlockHash(hashed), _label(context))

    # -- answers

    def _take_answers(self, wait_seconds: float = 0.0) -> None:
        for answer in self._links.take_answers(wait_seconds):
            request = self._requests.get(answer.ask.request_id)
            if request and request.open_questions:
                request.note(answer)
                for query in request.take_window_questions(answer, self.groups.window_blocks):
                    self._links.prepare(query)
            else:
                self._give_back_answer(answer)

    # -- giving back

    def _drop_overdue(self, request: StoreRequest) -> None:
        """A request may be queued, or computed, for longer than the store waits for it. It is asked again."""
        if time.monotonic() < request.usable_until:
            return
        self._release_loads(request)
        request.ask_again()

    def _release_loads(self, request: StoreRequest) -> None:
        leases, _ = request.take_loads()
        self._release(leases)

    def _release(self, leases: Iterable[StoreLease]) -> None:
        for lease in leases:
            self._links.settle(lease.manager, lease.arena, releases=[lease.lease_id])

    def _give_back(self, request: StoreRequest) -> None:
        self._release_loads(request)
        self._abort(request.stores)

    def _give_back_answer(self, answer: PromptAnswer) -> None:
        """Gives back the answer to a request that has ended meanwhile."""
        hashes = answer.ask.block_hashes
        self._release(answer.leases)
        self._abort({hashes[at]: block for at, block in answer.stores.items()})

    def _abort(self, stores: Mapping[bytes, LocatedBlock]) -> None:
        for (manager, arena), aborts in _by_memory(stores).items():
            self._links.settle(manager, arena, aborts=aborts)


def _label(context: ReqContext) -> bytes:
    """The label of the request's adapter."""
    return adapter_label(AdapterDigest((context.kv_transfer_params or {}).get("adapter", "")))


def _chains(context: ReqContext) -> dict[int, list[OffloadKey]]:
    """The full blocks of a request so far, in order, by group. vLLM notes where each of them ends."""
    ends = context._offload_key_positions
    chains: dict[int, list[OffloadKey]] = {}
    for key in sorted(ends, key=ends.__getitem__):
        chains.setdefault(get_offload_group_idx(key), []).append(key)
    return chains


def _by_memory(blocks: Mapping[bytes, LocatedBlock]) -> dict[tuple[str, str], list[bytes]]:
    """Their hashes, by KV manager and its memory."""
    hashes: dict[tuple[str, str], list[bytes]] = {}
    for block_hash, block in blocks.items():
        hashes.setdefault((block.manager, block.arena), []).append(block_hash)
    return hashes


def _fills(block_hash: bytes, block: LocatedBlock) -> Iterator[pb.StoreFill]:
    for part, slot in enumerate(block.slots):
        yield pb.StoreFill(block_hash=block_hash, part=part, generation=slot.generation)
