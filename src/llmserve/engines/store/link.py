"""The calls of one engine's scheduler to the KV manager. Nothing but `prepare_now` blocks its caller.

A KV manager that is away costs hits, never requests: what is asked of it meanwhile is answered with nothing,
and leases and reservations end by themselves.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1.kvmanager_pb2_grpc import KVManagerStub

_log = logging.getLogger(__name__)
_PREPARE_SECONDS = 10.0
_NOW_SECONDS = 0.05
_ATTACH_SECONDS = 2.0
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """For a prompt: its full blocks, how many of the first the device has, what is wanted."""

    request_id: str
    tenant: str
    block_hashes: Sequence[bytes]
    have_blocks: int
    load: bool
    store: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """arena: of whose memory the slots are. An empty answer when the KV manager is away."""

    request_id: str
    arena: str = ""
    prepared: pb.PreparePromptResponse = field(default_factory=pb.PreparePromptResponse)


class StoreLink:
    """One thread, the scheduler's. `close` is idempotent."""

    def __init__(
        self,
        endpoint: str,
        worker_id: str,
        epoch: int,
        part_bytes: Sequence[int],
        part_shapes: Sequence[str] = (),
    ) -> None:
        """part_shapes: see AttachStoreRequest."""
        self._channel = grpc.insecure_channel(endpoint)
        self._stub: Any = KVManagerStub(self._channel)  # type: ignore[no-untyped-call]
        self._me: dict[str, Any] = {"worker_id": worker_id, "epoch": epoch}
        self._parts: dict[str, Any] = {"part_bytes": list(part_bytes), "part_shapes": list(part_shapes)}
        self._arena = ""
        self._attach_again_at = 0.0
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._settling: set[Any] = set()

    def prepare(self, ask: Ask) -> None:
        """The answer comes with `take_answers`."""
        if not self._is_attached():
            self._answers.put(Answer(ask.request_id))
            return
        call = self._stub.PreparePrompt.future(self._request(ask), timeout=_PREPARE_SECONDS)
        call.add_done_callback(partial(self._answered, ask.request_id, self._arena))

    def prepare_now(self, ask: Ask) -> Answer:
        """Waits, but not long: for a block that ends while its request runs."""
        if not self._is_attached():
            return Answer(ask.request_id)
        call = self._stub.PreparePrompt.future(self._request(ask), timeout=_NOW_SECONDS)
        return self._answer_of(ask.request_id, self._arena, call)

    def take_answers(self) -> list[Answer]:
        answers = []
        while True:
            try:
                answers.append(self._answers.get_nowait())
            except Empty:
                return answers

    def settle(self, **changes: Any) -> None:
        """The fields of SettleStoreRequest. What does not arrive ends by itself."""
        if self._arena:
            request = pb.SettleStoreRequest(**self._me, **changes)
            call = self._stub.SettleStore.future(request, timeout=_PREPARE_SECONDS)
            self._settling.add(call)  # gRPC cancels a call that nobody holds
            call.add_done_callback(self._settling.discard)

    def close(self) -> None:
        self._channel.close()

    # -- inside

    def _request(self, ask: Ask) -> pb.PreparePromptRequest:
        return pb.PreparePromptRequest(
            **self._me,
            tenant=ask.tenant,
            block_hashes=ask.block_hashes,
            have_blocks=ask.have_blocks,
            load=ask.load,
            store=ask.store,
        )

    def _is_attached(self) -> bool:
        if not self._arena and time.monotonic() >= self._attach_again_at:
            self._attach_again_at = time.monotonic() + _RETRY_SECONDS
            request = pb.AttachStoreRequest(**self._me, **self._parts)
            try:
                self._arena = self._stub.AttachStore(request, timeout=_ATTACH_SECONDS).arena
            except grpc.RpcError as error:
                _log.warning("the KV store cannot be reached: %s", error)
        return bool(self._arena)

    def _answered(self, request_id: str, arena: str, call: Any) -> None:
        """On a thread of gRPC's."""
        self._answers.put(self._answer_of(request_id, arena, call))

    def _answer_of(self, request_id: str, arena: str, call: Any) -> Answer:
        try:
            return Answer(request_id, arena, call.result())
        except (grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError) as error:
            _log.warning("the KV store does not answer: %s", error)
            self._arena = ""  # attach again: it may be another process now
            return Answer(request_id)
