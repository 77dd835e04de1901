"""The calls of one engine's scheduler to one KV manager. None of them blocks it.

A KV manager that is away costs hits, never requests: whatever fails opens the link's breaker, and from then
on prompts are answered at once with nothing, until an AttachStore has gone through. That call waits for the
KV manager in the background. Leases and reservations end by themselves.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc

from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1.kvmanager_pb2_grpc import KVManagerStub
from llmserve.rpc.wires.channel import BlockingChannel
from llmserve.transfer.shm.identity import ProcessNamespace

_log = logging.getLogger(__name__)
_SETTLE_SECONDS = 10.0
_ATTACH_SECONDS = 60.0
# Of a lease or reservation, for what is asked of it late: the copy begins when the engine's step has ended.
_USABLE_SHARE = 0.8
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))


@dataclass(frozen=True, slots=True)
class StoreQuery:
    """A question about a prompt or a shard of one. block_hashes: its full blocks. have_blocks: number of the
    first ones that are not asked for. load: whether stored blocks are to be loaded. compute_seconds: time to
    compute a block; 0 when unknown. timeout_seconds: time after which the answer is worth nothing."""

    request_id: str
    tenant: str
    block_hashes: Sequence[bytes]
    have_blocks: int
    load: bool
    compute_seconds: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """ask: the very object of the question. arena: description of the memory that the slots are in; empty
    when the KV manager is away. usable_until: time on the monotonic clock; lease and reservations end a
    little later."""

    ask: StoreQuery
    arena: str = ""
    prepared: pb.PreparePromptResponse = field(default_factory=pb.PreparePromptResponse)
    usable_until: float = float("inf")


@dataclass(frozen=True, slots=True)
class _Attached:
    """arena_id: named in each call, since the next KV manager may get what was meant for this one."""

    arena: str
    arena_id: str
    lease_seconds: float


class StoreLink:
    """One thread, the scheduler's. `close` is idempotent."""

    def __init__(
        self,
        endpoint: str,
        worker_id: str,
        epoch: int,
        part_bytes: Sequence[int],
        part_shapes: Sequence[str] = (),
        block_tokens: int = 0,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """part_shapes, block_tokens: see AttachStoreRequest. notify: called, on any thread, when there is an
        answer to take."""
        credentials = Credentials.read(CallerRole.WORKER, worker_id)
        self._shown = credentials.metadata()
        self._channel = BlockingChannel(endpoint, credentials, CallerRole.KVMANAGER, _CHANNEL)
        self._stub: Any = None  # from the latest attempt to attach on
        self._me: dict[str, Any] = {"worker_id": worker_id, "epoch": epoch}
        self._parts: dict[str, Any] = {"part_bytes": list(part_bytes), "part_shapes": list(part_shapes)}
        self._parts["block_tokens"] = block_tokens
        self._notify = notify
        self._place = ProcessNamespace.here().text
        self._attached: _Attached | None = None
        self._attaching: Any = None
        self._calls: set[Any] = set()  # under way; gRPC cancels a call that nobody holds
        self._ended: SimpleQueue[StoreAnswer | None] = SimpleQueue()  # None: a call has failed
        self._attach()

    def prepare(self, ask: StoreQuery) -> None:
        """The answer comes with `take_answers`."""
        attached = self._look()
        if attached is None:
            self._put(StoreAnswer(ask))
            return
        usable_until = time.monotonic() + attached.lease_seconds * _USABLE_SHARE
        request = self._request(ask, attached.arena_id)
        call = self._stub.PreparePrompt.future(request, timeout=ask.timeout_seconds, metadata=self._shown)
        empty = StoreAnswer(ask, attached.arena, usable_until=usable_until)
        self._hold(call, partial(self._prepared, empty))

    def take_answers(self) -> list[StoreAnswer]:
        answers: list[StoreAnswer] = []
        while not self._ended.empty():
            ended = self._ended.get_nowait()
            if ended is None:
                self._lose()
            else:
                answers.append(ended)
        return answers

    def settle(self, arena: str, **changes: Any) -> None:
        """arena: memory that the changes are about. When it is gone, so is all that was in it. changes: the
        fields of SettleStoreRequest. What does not arrive ends by itself."""
        if self._attached and self._attached.arena == arena:
            request = pb.SettleStoreRequest(**self._me, arena_id=self._attached.arena_id, **changes)
            call = self._stub.SettleStore.future(request, timeout=_SETTLE_SECONDS, metadata=self._shown)
            self._hold(call, self._settled)

    def close(self) -> None:
        self._channel.close()

    # -- the breaker

    def _look(self) -> _Attached | None:
        """The attached KV manager, if there is one."""
        if self._attached is None and self._attaching.done():
            try:
                response = self._attaching.result()
                self._attached = _Attached(response.arena, response.arena_id, response.lease_seconds)
                _log.info("attached to the KV store")
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                _log.warning("the KV store cannot be reached: %s", _reason(error))
                self._attach()
        return self._attached

    def _attach(self) -> None:
        self._stub = KVManagerStub(self._channel.latest())  # type: ignore[no-untyped-call]
        request = pb.AttachStoreRequest(**self._me, **self._parts, place=self._place)
        self._attaching = self._stub.AttachStore.future(
            request, timeout=_ATTACH_SECONDS, wait_for_ready=True, metadata=self._shown
        )

    def _lose(self) -> None:
        if self._attached:
            self._attached = None
            self._attach()

    # -- calls

    def _request(self, ask: StoreQuery, arena_id: str) -> pb.PreparePromptRequest:
        return pb.PreparePromptRequest(
            **self._me,
            tenant=ask.tenant,
            block_hashes=ask.block_hashes,
            have_blocks=ask.have_blocks,
            compute_seconds=ask.compute_seconds,
            load=ask.load,
            store=True,
            arena_id=arena_id,
        )

    def _hold(self, call: Any, ended: Any) -> None:
        self._calls.add(call)
        call.add_done_callback(ended)

    def _prepared(self, empty: StoreAnswer, call: Any) -> None:
        """Runs on a thread of gRPC, as the next one."""
        self._calls.discard(call)
        try:
            answer = StoreAnswer(empty.ask, empty.arena, call.result(), empty.usable_until)
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            _log.warning("the KV store does not answer: %s", _reason(error))
            self._ended.put(None)
            answer = StoreAnswer(empty.ask)
        self._put(answer)

    def _put(self, answer: StoreAnswer) -> None:
        self._ended.put(answer)
        self._notify()

    def _settled(self, call: Any) -> None:
        self._calls.discard(call)
        if call.code() is not grpc.StatusCode.OK:
            self._ended.put(None)


def _reason(error: Exception) -> str:
    return str(error.details()) if isinstance(error, grpc.Call) else str(error)
