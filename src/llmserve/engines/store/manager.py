"""The scheduler's half: which blocks of a prompt the store has, and where the others go.

Everything about a prompt is asked at once, when its first block is looked up: vLLM comes back to it in a
later step. Blocks to load are under a lease until they are loaded or the request ends; blocks to store have
a reserved slot until they are stored or the request ends. A request whose KV another worker hands over
loads and stores nothing of its prompt: that worker has done so.
"""

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

from llmserve.engines.store.link import Answer, Ask, StoreLink
from llmserve.engines.store.words import StoreSlots
from llmserve.kvstore.pool.slot import Slot
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

Slots = tuple[Slot, ...]


@dataclass(slots=True)
class _Request:
    is_handed_over: bool
    tenant: str
    keys: list[OffloadKey] = field(default_factory=list)  # as they were asked for
    first_wanted: OffloadKey | None = None
    is_asked: bool = False
    is_answered: bool = False
    arena: str = ""
    lease_id: str = ""
    loads: dict[OffloadKey, Slots] = field(default_factory=dict)
    stores: dict[OffloadKey, Slots] = field(default_factory=dict)  # reserved, not yet being written


class StoreManager(OffloadingManager):
    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._requests: dict[str, _Request] = {}
        self._asking: dict[str, ReqContext] = {}  # looked up in this step for the first time
        self._writing: dict[OffloadKey, Slots] = {}

    # -- requests

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        params = req_context.kv_transfer_params or {}
        handed_over = bool(params.get("do_remote_prefill"))
        self._requests[req_context.req_id] = _Request(handed_over, str(params.get("tenant", "")))
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._asking.pop(req_context.req_id, None)
        if request := self._requests.pop(req_context.req_id, None):
            self._give_back(request)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for request_id, ask in self._asking.items():
            self._ask(self._requests[request_id], ask)
        self._asking.clear()
        self._take_answers()

    def shutdown(self) -> None:
        self._link.close()

    # -- loads

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        request = self._requests[req_context.req_id]
        if request.is_handed_over:
            return LookupResult.MISS
        self._take_answers()
        if request.is_answered:
            return LookupResult.HIT if key in request.loads else LookupResult.MISS
        if not request.is_asked and req_context.req_id not in self._asking:
            request.first_wanted = key
            self._asking[req_context.req_id] = req_context
        return LookupResult.RETRY

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        request = self._requests[req_context.req_id]
        return StoreSlots(request.arena, [request.loads[key] for key in keys])

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        if request := self._requests.get(req_context.req_id):
            self._release(request)

    # -- stores

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        request = self._requests[req_context.req_id]
        if not all(key in request.stores for key in keys):
            self._reserve_more(request, req_context, list(keys))
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

    # -- inside

    def _ask(self, request: _Request, context: ReqContext) -> None:
        request.is_asked = True
        request.keys = _in_order(context)
        assert request.first_wanted is not None
        have = request.keys.index(request.first_wanted)
        self._link.prepare(self._asked(request, context.req_id, have, load=True))

    def _asked(self, request: _Request, request_id: str, have: int, *, load: bool) -> Ask:
        hashes = list(map(get_offload_block_hash, request.keys))
        return Ask(request_id, request.tenant, hashes, have, load=load, store=True)

    def _take_answers(self) -> None:
        for answer in self._link.take_answers():
            request = self._requests.get(answer.request_id)
            if request is None:
                self._give_back_answer(answer)
                continue
            request.is_answered = True
            self._note(request, answer)

    def _note(self, request: _Request, answer: Answer) -> None:
        request.arena = answer.arena
        request.lease_id = answer.prepared.lease_id or request.lease_id
        request.loads |= {request.keys[block.index]: _slots(block) for block in answer.prepared.loads}
        request.stores |= {request.keys[block.index]: _slots(block) for block in answer.prepared.stores}

    def _reserve_more(self, request: _Request, context: ReqContext, keys: Sequence[OffloadKey]) -> None:
        """For blocks that were generated, or that the device had when the prompt was asked about."""
        known = len(request.keys)
        request.keys = _in_order(context)
        if len(request.keys) == known and request.is_asked:
            return  # asked about, and not to be stored: others have, or there is no room
        ask = self._asked(request, context.req_id, request.keys.index(keys[0]), load=False)
        request.is_asked = True
        self._note(request, self._link.prepare_now(ask))

    def _release(self, request: _Request) -> None:
        if request.lease_id:
            self._link.settle(releases=[request.lease_id])
            request.lease_id = ""

    def _give_back(self, request: _Request) -> None:
        self._release(request)
        if request.stores:
            self._link.settle(aborts=list(map(get_offload_block_hash, request.stores)))

    def _give_back_answer(self, answer: Answer) -> None:
        """Of a request that has ended meanwhile. Its reservations end by themselves."""
        if answer.prepared.lease_id:
            self._link.settle(releases=[answer.prepared.lease_id])


def _in_order(context: ReqContext) -> list[OffloadKey]:
    """All full blocks of a request so far. vLLM notes each with the place of its end."""
    positions = context._offload_key_positions
    return sorted(positions, key=positions.__getitem__)


def _slots(block: pb.StoreBlock) -> Slots:
    return tuple(Slot(s.offset, s.length_bytes, s.generation, s.checksum) for s in block.slots)
