"""A request that is pushed between two sides, driven by hand: what the engines would do, step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from llmserve.core.ids import LeaseId, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams, PushParams
from llmserve.engines.kv_transfer import Finish, PullResult, PushChunk, ReceiveJob

EPOCH = 5
LAYERS = 3
BLOCK_TOKENS = 4


@dataclass
class PushedRequest:
    """source: blocks of prefill in prompt order; target: those of decode, from block `first` on."""

    prefill: Any
    decode: Any
    source: tuple[int, ...] = (4, 5, 9)
    target: tuple[int, ...] = (1, 2, 0)
    first: int = 0
    continues: bool = True
    name: str = "t1"
    host: str = "127.0.0.1"  # under which prefill is reached

    @property
    def transfer_id(self) -> TransferId:
        return TransferId(self.name)

    @property
    def request_id(self) -> RequestId:
        """The same on both sides, as the apiserver names them."""
        return RequestId(self.name)

    @property
    def push_params(self) -> PushParams:
        tokens = len(self.source) * BLOCK_TOKENS
        endpoints = (f"{self.host}:{self.prefill.node.endpoint.rpartition(':')[2]}",)
        return PushParams(
            self.transfer_id, WorkerId("worker-1"), EPOCH, endpoints, tokens, continues=self.continues
        )

    # -- decode

    def reserve(self) -> None:
        job = ReceiveJob(self.request_id, self.push_params, BlockTable(self.target, (self.first,)))
        self.decode.node.receiver.receive(job)

    def cancel(self) -> None:
        self.decode.node.receiver.cancel(self.request_id)

    def results(self) -> list[PullResult]:
        results: list[PullResult] = self.decode.node.receiver.take_finished()
        return results

    # -- prefill

    def announce(self) -> None:
        self.prefill.node.sender.announce(self.transfer_id)

    def chunk(self, start: int, end: int, *, restarted: bool = False) -> PushChunk:
        return PushChunk(self.transfer_id, start, end, BlockTable(self.source[:end]), restarted)

    def compute(self, start: int, end: int, layers: Sequence[int] = range(LAYERS), **more: Any) -> None:
        chunks = [self.chunk(start, end, **more)]
        self.prefill.node.sender.begin_step(chunks)
        for layer in layers:
            self.prefill.node.sender.computed(layer, chunks)

    def finish(self, tokens: tuple[int, ...] = (77,)) -> PullParams:
        lease_id = self.prefill.node.server.grant(
            self.request_id, self.source, LeaseId(f"{EPOCH}.{self.name}")
        )
        pull_params = PullParams(
            worker_id=WorkerId("worker-1"),
            epoch=EPOCH,
            lease_id=lease_id,
            endpoints=(self.prefill.node.endpoint,),
            blocks=BlockTable(self.source),
            num_tokens=len(self.source) * BLOCK_TOKENS,
            block_size_tokens=BLOCK_TOKENS,
            lease_seconds=30.0,
        )
        self.prefill.node.sender.finish(self.transfer_id, Finish(self.request_id, pull_params, tokens))
        return pull_params

    def drop(self) -> None:
        self.prefill.node.sender.drop(self.transfer_id)

    # -- what came of it

    @property
    def arrived(self) -> bool:
        arrived: bool = self.decode.kv.holds(self.target, self.prefill.kv, self.source[self.first :])
        return arrived

    @property
    def is_freed(self) -> bool:
        """Prefill's blocks are given back."""
        return self.request_id in self.prefill.node.server.take_ended()


@pytest.fixture
def result_of(
    wait_until: Callable[[Callable[[], bool]], None],
) -> Callable[[PushedRequest], PullResult]:
    """Waits for the one result of a request."""

    def wait(request: PushedRequest) -> PullResult:
        found: list[PullResult] = []

        def came() -> bool:
            found.extend(request.results())
            return bool(found)

        wait_until(came)
        (result,) = found
        return result

    return wait


@pytest.fixture
def push() -> type[PushedRequest]:
    return PushedRequest
