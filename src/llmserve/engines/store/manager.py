"""The scheduler's half: which blocks of a prompt the store has, and where the others go.

Everything about a prompt is asked at once, when its first block is looked up: vLLM comes back to it in a
later step. What was not asked about then (blocks that are generated, or that the device had) is asked about
when vLLM wants to store it, and stored in the step after the answer. So no step waits for the store.

Blocks to load are under a lease until they are loaded or the request ends; blocks to store have a reserved
slot until they are stored or the request ends. A preempted request is asked about again.

A request without a tenant has no part in the store. Of one whose KV another worker hands over, only what
comes after its prompt is stored, and nothing is loaded: that worker has done so.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

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
)

from llmserve.engines.handover import arriving_tokens
from llmserve.engines.store.link import Answer, Ask, StoreLink
from llmserve.engines.store.pace import Pace
from llmserve.engines.store.words import StoreSlots
from llmserve.kvstore.pool.slot import Slot
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

Slots = tuple[Slot, ...]

# How long a prompt waits for an answer: no longer than it takes to compute, within these bounds.
_LEAST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.25, 5.0
_IDLE_WAIT_SECONDS = 0.005


@dataclass(slots=True)
class _Request:
    """given_tokens: of its prompt, another worker hands over so many. loads, stores: reserved or leased, and
    not yet being copied."""

    tenant: str
    given_tokens: int
    keys: list[OffloadKey] = field(default_factory=list)  # its full blocks so far
    first_wanted: OffloadKey | None = None
    asked_blocks: int = 0  # of keys: whether they are to be stored is known, or will be
    is_waiting: bool = False
    may_load: bool = True  # it has not been asked what there is to load
    arena: str = ""
    lease_id: str = ""
    usable_until: float = float("inf")
    loads: dict[OffloadKey, Slots] = field(default_factory=dict)
    stores: dict[OffloadKey, Slots] = field(default_factory=dict)


@dataclass(slots=True)
class _Load:
    """Under way; it may outlive its request. has_failed: not all of it was what it should be."""

    lease_id: str
    has_failed: bool = False


class StoreManager(OffloadingManager):
    def __init__(self, link: StoreLink, pace: Pace) -> None:
        self._link, self.pace = link, pace
        self._requests: dict[str, _Request] = {}
        self._asking: dict[str, ReqContext] = {}  # looked up in this step for the first time
        self._loading: dict[str, _Load] = {}  # by request
        self._writing: dict[OffloadKey, Slots] = {}

    # -- requests

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        params = req_context.kv_transfer_params or {}
        given = arriving_tokens(params)  # the engine's `add` has checked them
        self._requests[req_context.req_id] = _Request(str(params.get("tenant", "")), given)
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._asking.pop(req_context.req_id, None)
        if request := self._requests.pop(req_context.req_id, None):
            self._give_back(request)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for request_id in context.preempted_req_ids:
            if request := self._requests.get(request_id):
                self._release(request)
                request.may_load = True
        for request_id, ask in self._asking.items():
            self._ask_for_prompt(self._requests[request_id], ask)
        self._asking.clear()
        self._take_answers()

    def wait_for_answer(self) -> None:
        """For an engine that has nothing else to do; not long."""
        if any(request.is_waiting for request in self._requests.values()):
            self._take_answers(_IDLE_WAIT_SECONDS)

    def shutdown(self) -> None:
        self._link.close()

    # -- loads

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        request = self._requests[req_context.req_id]
        if not request.tenant or request.given_tokens:
            return LookupResult.MISS
        self._take_answers()
        self._drop_overdue(request)
        if request.is_waiting or req_context.req_id in self._asking:
            return LookupResult.RETRY
        if request.may_load:
            request.first_wanted = key
            self._asking[req_context.req_id] = req_context
            return LookupResult.RETRY
        return LookupResult.HIT if key in request.loads else LookupResult.MISS

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        request = self._requests[req_context.req_id]
        slots = [request.loads[key] for key in keys]
        self._loading[req_context.req_id] = _Load(request.lease_id)
        request.loads, request.lease_id = {}, ""
        return StoreSlots(request.arena, slots)

    def loads_failed(self) -> None:
        """Some block of a load that is under way was not what it should be."""
        for load in self._loading.values():
            load.has_failed = True

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        load = self._loading.pop(req_context.req_id)
        # Whichever block it was: the others are computed with it, and stored again.
        corrupt = list(map(get_offload_block_hash, keys)) if load.has_failed else []
        self._link.settle(releases=[load.lease_id], corrupt=corrupt)

    # -- stores

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        """None: vLLM asks again in its next step, and once more when the request has finished."""
        request = self._requests[req_context.req_id]
        ends = req_context._offload_key_positions
        keys = [key for key in keys if ends[key] > request.given_tokens]
        if not request.tenant or not keys:
            return PrepareStoreOutput([], StoreSlots("", ()), [])
        self._take_answers()
        self._drop_overdue(request)
        if request.is_waiting or self._ask_for_more(request, req_context, keys):
            return None
        chosen = [key for key in keys if key in request.stores]
        slots = [request.stores.pop(key) for key in chosen]
        self._writing.update(zip(chosen, slots, strict=True))
        return PrepareStoreOutput(chosen, StoreSlots(request.arena, slots), [])

    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        """The checksums stand beside the slots: without one the block was not written."""
        fills = []
        for key in keys:
            for part, slot in enumerate(self._writing.pop(key, ())):
                block = get_offload_block_hash(key)
                fills.append(pb.StoreFill(block_hash=block, part=part, generation=slot.generation))
        self._link.settle(commits=fills)

    # -- asking

    def _ask_for_prompt(self, request: _Request, context: ReqContext) -> None:
        request.keys = _in_order(context)
        assert request.first_wanted is not None
        request.may_load = False
        self._ask(request, context.req_id, request.keys.index(request.first_wanted), load=True)

    def _ask_for_more(self, request: _Request, context: ReqContext, keys: Sequence[OffloadKey]) -> bool:
        """Whether there was anything to ask about these blocks."""
        request.keys = _in_order(context)
        if request.keys.index(keys[-1]) < request.asked_blocks:
            return False
        self._ask(request, context.req_id, request.keys.index(keys[0]), load=False)
        return True

    def _ask(self, request: _Request, request_id: str, have: int, *, load: bool) -> None:
        hashes = list(map(get_offload_block_hash, request.keys))
        seconds = self.pace.block_seconds
        worth = seconds * (len(hashes) - have) if seconds else _MOST_WAIT_SECONDS
        timeout = min(max(worth, _LEAST_WAIT_SECONDS), _MOST_WAIT_SECONDS)
        request.is_waiting, request.asked_blocks = True, len(hashes)
        self._link.prepare(Ask(request_id, request.tenant, hashes, have, load, seconds, timeout))

    # -- answers

    def _take_answers(self, wait_seconds: float = 0.0) -> None:
        for answer in self._link.take_answers(wait_seconds):
            request = self._requests.get(answer.ask.request_id)
            if request and request.is_waiting:
                self._note(request, answer)
            else:
                self._give_back_answer(answer)

    def _note(self, request: _Request, answer: Answer) -> None:
        prepared = answer.prepared
        if answer.arena != request.arena:  # another process: what there was is gone with the earlier one
            request.stores, request.loads, request.lease_id = {}, {}, ""
            request.usable_until = float("inf")
        request.is_waiting = False
        request.arena, request.lease_id = answer.arena, prepared.lease_id or request.lease_id
        request.usable_until = min(answer.usable_until, request.usable_until)
        request.loads |= {request.keys[block.index]: _slots(block) for block in prepared.loads}
        request.stores |= {request.keys[block.index]: _slots(block) for block in prepared.stores}

    # -- giving back

    def _drop_overdue(self, request: _Request) -> None:
        """A request may be queued, or computed, for longer than the store waits for it. It is asked again."""
        if time.monotonic() < request.usable_until:
            return
        self._release(request)
        request.stores = {}
        request.may_load, request.asked_blocks = True, 0
        request.usable_until = float("inf")

    def _release(self, request: _Request) -> None:
        request.loads = {}
        if request.lease_id:
            self._link.settle(releases=[request.lease_id])
            request.lease_id = ""

    def _give_back(self, request: _Request) -> None:
        self._release(request)
        if request.stores:
            self._link.settle(aborts=list(map(get_offload_block_hash, request.stores)))

    def _give_back_answer(self, answer: Answer) -> None:
        """Of a request that has ended meanwhile."""
        prepared, hashes = answer.prepared, answer.ask.block_hashes
        if prepared.lease_id or prepared.stores:
            releases = [prepared.lease_id] if prepared.lease_id else []
            self._link.settle(releases=releases, aborts=[hashes[block.index] for block in prepared.stores])


def _in_order(context: ReqContext) -> list[OffloadKey]:
    """All full blocks of a request so far. vLLM notes each with the place of its end."""
    positions = context._offload_key_positions
    return sorted(positions, key=positions.__getitem__)


def _slots(block: pb.StoreBlock) -> Slots:
    return tuple(Slot(s.offset, s.length_bytes, s.generation, s.checksum) for s in block.slots)
