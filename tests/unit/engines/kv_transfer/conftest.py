"""Hand-over nodes over numpy memory, and a transport whose reads a test holds in the air."""

import ctypes
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from llmserve.core.clock import Clock, VirtualClock
from llmserve.core.errors import PeerGone, TransferError
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer import (
    HandoverNode,
    KvGeometry,
    KvLayout,
    PullJob,
    PullLimits,
    PullResult,
    PushLimits,
    ReceiveLimits,
)
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import (
    Batch,
    Memory,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
)
from llmserve.transfer.base import Transport as TransportContract
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.tcp import TcpTransport

EPOCH = 5
LAYERS = 3
BLOCKS = 16
BLOCK_BYTES = (4096, 8192, 100)
BLOCK_TOKENS = 4
_PATIENT = TransferPolicy(slow_share=1e-6)  # a busy machine makes no transfer too slow
PROBE_REGION = LAYERS  # it is registered after the layers


class Kv:
    """KV memory of one process: three layers of 16 blocks of different sizes."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.layers = [random.integers(0, 256, BLOCKS * size, np.uint8) for size in BLOCK_BYTES]
        regions = tuple(Region(layer.ctypes.data, layer.nbytes) for layer in self.layers)
        geometry = KvGeometry(BLOCK_BYTES, BLOCK_TOKENS, "bfloat16", "LBHNC", "model")
        self.layout = KvLayout(regions, geometry)

    def blocks(self, ids: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        """A copy of all layers of some blocks."""
        rows = zip(self.layers, BLOCK_BYTES, strict=True)
        return [layer.reshape(BLOCKS, size)[list(ids)] for layer, size in rows]

    def holds(self, ids: Sequence[int], other: "Kv", others: Sequence[int]) -> bool:
        mine, theirs = self.blocks(ids), other.blocks(others)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@dataclass(eq=False)
class GatedTransfer:
    """copies: to, from, size. generation: of the far side's memory, as it was described."""

    copies: list[tuple[int, int, int]]
    far: "GatedTransport"
    generation: int
    is_probe: bool = False

    @property
    def valid(self) -> bool:
        return self.generation == self.far.generation

    def land(self) -> None:
        for to, source, size in self.copies:
            ctypes.memmove(to, source, size)


@dataclass(eq=False)
class GatedTransport:
    """Copies within this process, in `poll`, once `gate` is set. `mode`: "work", "refuse" (transfers
    fail when submitted), "fail" (in poll). stubborn: how often cancel says "not yet". Probes always work,
    and are not counted. writes: those that were started. late: those that were given up; a test may let them
    `land` all the same, as the network does, unless the far side has registered its memory anew."""

    network: dict[str, "GatedTransport"]
    name: str = "gated"
    needs_progress: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    mode: str = "work"
    stubborn: int = 0
    progressed: int = 0
    cancelled: int = 0
    connected: int = 0
    generation: int = 0
    closed: bool = False
    writes: int = 0
    late: list[GatedTransfer] = field(default_factory=list)
    regions: Sequence[Region] = ()

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host

    def register(self, regions: Sequence[Region]) -> None:
        self.regions = regions
        self.generation += 1
        self.network[str(id(self))] = self

    def describe(self) -> bytes:
        return json.dumps([str(id(self)), self.generation]).encode()

    def connect(self, description: bytes) -> PeerName:
        self.connected += 1
        return PeerName(description.decode())

    def disconnect(self, peer: PeerName) -> None:
        self.connected -= 1

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        far, generation = self._far(peer)
        pieces = zip(_pieces(self.regions, batch.local), _pieces(far.regions, batch.remote), strict=True)
        is_probe = batch.remote.regions[0] == PROBE_REGION
        copies = [(a, b, n) for (a, n), (b, _) in pieces]
        return self._start(GatedTransfer(copies, far, generation, is_probe))

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        far, generation = self._far(peer)
        pieces = zip(_pieces(self.regions, batch.local), _pieces(far.regions, batch.remote), strict=True)
        self.writes += 1
        return self._start(GatedTransfer([(b, a, n) for (a, n), (b, _) in pieces], far, generation))

    def _far(self, peer: PeerName) -> tuple["GatedTransport", int]:
        identity, generation = json.loads(peer)
        if identity not in self.network:  # closed, while a probe of it was on its way
            raise PeerGone("the peer of the test is gone")
        return self.network[identity], generation

    def _start(self, transfer: GatedTransfer) -> GatedTransfer:
        if not transfer.is_probe:
            self.started.set()
            if self.mode == "refuse":
                raise TransferError("refused by the test")
        return transfer

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, GatedTransfer)
        if not transfer.valid:
            return TransferStatus(TransferState.FAILED, "the memory was registered anew")
        if self.mode == "fail" and not transfer.is_probe:
            self.late.append(transfer)
            return TransferStatus(TransferState.FAILED, "failed by the test")
        if not self.gate.is_set() and not transfer.is_probe:
            return TransferStatus(TransferState.RUNNING)
        transfer.land()
        return TransferStatus(TransferState.DONE)

    def watch(self, on_end: Callable[[], object]) -> bool:
        return False

    def progress(self) -> None:
        self.progressed += 1

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, GatedTransfer)
        if self.stubborn:
            self.stubborn -= 1
            raise TransferError("not yet")
        self.cancelled += 1
        self.late.append(transfer)

    def land(self) -> int:
        """What was given up arrives. Returns how many transfers did."""
        landing = [late for late in self.late if late.valid and not late.far.closed]
        for transfer in landing:
            transfer.land()
        return len(landing)

    def close(self) -> None:
        self.closed = True
        self.network.pop(str(id(self)), None)


def _pieces(regions: Sequence[Region], spans: Spans) -> list[tuple[int, int]]:
    rows = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
    return [(regions[region].address + offset, length) for region, offset, length in rows]


class Side:
    """One process: its memory and its node."""

    def __init__(self, node: HandoverNode, kv: Kv, lease_seconds: float) -> None:
        self.node = node
        self.kv = kv
        self.lease_seconds = lease_seconds

    def grant(self, request_id: str, block_ids: Sequence[int], epoch: int = EPOCH) -> PullParams:
        lease_id = self.node.server.grant(RequestId(request_id), block_ids)
        return PullParams(
            worker_id=WorkerId("prefill-0"),
            epoch=epoch,
            lease_id=lease_id,
            endpoints=(self.node.endpoint,),
            blocks=BlockTable(tuple(block_ids)),
            num_tokens=len(block_ids) * BLOCK_TOKENS,
            block_size_tokens=BLOCK_TOKENS,
            lease_seconds=self.lease_seconds,
        )

    def pull(self, pull_params: PullParams, local: Sequence[int], request_id: str = "d1") -> None:
        job = PullJob(
            RequestId(request_id), pull_params, range(pull_params.num_tokens), BlockTable(tuple(local))
        )
        self.node.client.pull(job)

    def probed(self, *others: "Side") -> None:
        """Waits until every transport to these sides has been measured."""
        names = {other.node.endpoint for other in others}
        assert names
        eventually(lambda: len(self.rows) >= len(names) and all(row.bytes_per_second for row in self.rows))

    @property
    def rows(self) -> list[PairStatus]:
        """The matrix of this side."""
        return self.node.client.pairs()

    def result(self) -> PullResult:
        """The next result; there is exactly one."""
        (result,) = self.results(1)
        return result

    def results(self, count: int) -> list[PullResult]:
        found: list[PullResult] = []

        def complete() -> bool:
            found.extend(self.node.client.take_finished())
            return len(found) >= count

        eventually(complete)
        return found


def eventually(condition: Callable[[], bool]) -> None:
    """For what the hand-over thread does in its own time."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.001)


class SideMaker(Protocol):
    def __call__(
        self,
        seed: int,
        *transports: TransportContract,
        epoch: int = ...,
        lease_seconds: float = ...,
        clock: Clock | None = ...,
        limits: PullLimits | None = ...,
        layout: KvLayout | None = ...,
        policy: TransferPolicy | None = ...,
        push_limits: PushLimits | None = ...,
        receive_limits: ReceiveLimits | None = ...,
    ) -> Side: ...


@pytest.fixture
def make_side() -> Iterator[SideMaker]:
    """Sides that are closed in the end; nothing of them may be left running."""
    before = set(threading.enumerate())
    sides: list[Side] = []

    def make(
        seed: int,
        *transports: TransportContract,
        epoch: int = EPOCH,
        lease_seconds: float = 30.0,
        clock: Clock | None = None,
        limits: PullLimits | None = None,
        layout: KvLayout | None = None,
        policy: TransferPolicy | None = None,
        push_limits: PushLimits | None = None,
        receive_limits: ReceiveLimits | None = None,
        shared: SharedTransfers | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> Side:
        kv = Kv(seed)
        node = HandoverNode(
            worker_id=WorkerId(f"worker-{seed}"),
            epoch=epoch,
            transports=transports or (TcpTransport(credentials=credentials),),
            layout=layout or kv.layout,
            lease_seconds=lease_seconds,
            clock=clock,
            limits=limits,
            policy=policy or _PATIENT,
            push_limits=push_limits,
            receive_limits=receive_limits,
            shared=shared,
            credentials=credentials,
        )
        sides.append(Side(node, kv, lease_seconds))
        return sides[-1]

    yield make
    for side in sides:
        side.node.close()
        side.node.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def network() -> dict[str, GatedTransport]:
    return {}


@pytest.fixture
def gated(network: dict[str, GatedTransport]) -> Callable[..., GatedTransport]:
    """Makes transports of one network."""
    return lambda **options: GatedTransport(network, **options)


@pytest.fixture
def answers_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Side, str], list[LeaseAnswer]]:
    """What a side's table of leases answers to one kind of message from now on, in a list that grows."""

    def note(side: Side, message: str) -> list[LeaseAnswer]:
        answers: list[LeaseAnswer] = []
        table = side.node.server._table
        answer = getattr(table, message)

        def noting(*arguments: Any) -> LeaseAnswer:
            answers.append(answer(*arguments))
            return answers[-1]

        monkeypatch.setattr(table, message, noting)
        return answers

    return note


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    return eventually


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()
