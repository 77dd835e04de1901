"""KV of a device is handed over only when its kernels have written it, and written into only when they have
ended: the worker sides of two engines whose steps stay in flight as long as a test wants.

Each wait was taken out alone, by hand, and these tests failed then:

| what does not wait any more | what fails |
|---|---|
| BlockLeases.begin for `written` | test_a_grant_is_read_when_its_blocks_are_written |
| Pull for `free` | test_a_pull_writes_when_its_blocks_are_free |
| PushReceive for `free` | test_a_push_writes_when_its_blocks_are_free |
| PushSender.begin_step for `mark` | test_the_blocks_of_earlier_steps_are_pushed_when_they_are_written |
| PushSender.computed for `mark` | test_a_layer_is_pushed_when_it_is_written |
| PushSender.finish for `mark` | test_the_rest_of_a_prompt_is_pushed_when_it_is_written |
| RankEngine.act_behind for the actions before | test_rank.py of the unit tests |
| StreamOrder.before_step (a mark that is reached) | the three of blocks and grants, and the two of steps |
| StreamOrder.after_layer (a mark that is reached) | test_a_layer_is_pushed_when_it_is_written |
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams, PushParams
from llmserve.engines.connector.orders import Grant, PushOrders, StepOrders
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.connector.worker_side import WorkerSide
from llmserve.engines.kv_transfer import Finish, KvGeometry, KvLayout, PullJob, PushChunk, ReceiveJob
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers

LAYERS, BLOCKS, BLOCK_BYTES, BLOCK_TOKENS, EPOCH = 2, 8, 8192, 16, 4
SOURCE, TARGET = (5, 2), (1, 3)
EARLY = LeaseId("early")  # granted on blocks 6 and 7 before any test begins
OLD, NEW, JUNK, BLANK = 1, 2, 3, 0


class Rank:
    """A worker side whose KV is in the memory of a device. Its steps are in flight from `hold` to
    `release`."""

    def __init__(self, name: str, fill: int) -> None:
        self.device = FakeDevice()
        region = self.device.allocate(LAYERS * BLOCKS * BLOCK_BYTES)
        self.kv = self.device.view(region).reshape(LAYERS, BLOCKS, BLOCK_BYTES)
        self.kv[:] = fill
        size = BLOCKS * BLOCK_BYTES
        layers = [
            replace(region, address=region.address + at * size, length_bytes=size) for at in range(LAYERS)
        ]
        self.side = WorkerSide(
            ConnectorSettings(
                worker_id=WorkerId(name),
                epoch=EPOCH,
                host="127.0.0.1",
                model="m",
                engine_order=("tcp",),
                lease_seconds=30.0,
                card_path="",
                policy=TransferPolicy(verify="always"),
                layerwise=True,
            ),
            KvLayout(tuple(layers), KvGeometry((BLOCK_BYTES,) * LAYERS, BLOCK_TOKENS)),
            SharedTransfers(staging=Staging(self.device)),
        )
        self._gates: list[threading.Event] = []
        self.received: dict[str, bool] = {}

    def hold(self, kernel: Callable[[], None]) -> None:
        """Launches a kernel that ends after `release`."""
        gate = threading.Event()
        self._gates.append(gate)

        def held() -> None:
            gate.wait()
            kernel()

        self.device.launch(held)

    def fill(self, value: int, blocks: tuple[int, ...], layers: slice = slice(None)) -> Callable[[], None]:
        def kernel() -> None:
            self.kv[layers, list(blocks)] = value

        return kernel

    def release(self) -> None:
        for gate in self._gates:
            gate.set()

    def has(self, value: int, blocks: tuple[int, ...], layers: slice = slice(None)) -> bool:
        return bool((self.kv[layers, list(blocks)] == value).all())

    def ended(self, name: str) -> bool:
        """Whether the load of a request has ended."""
        received, failed = self.side.take_received()
        self.received.update({request_id: request_id not in failed for request_id in received})
        return name in self.received

    def params(self, lease: str, blocks: tuple[int, ...] = SOURCE) -> PullParams:
        tokens = len(blocks) * BLOCK_TOKENS
        endpoint = self.side.endpoint().endpoint
        return PullParams(
            WorkerId("p"), EPOCH, LeaseId(lease), (endpoint,), BlockTable(blocks), tokens, BLOCK_TOKENS, 30.0
        )

    def grant(self, lease: str, blocks: tuple[int, ...] = SOURCE, push: PushOrders | None = None) -> None:
        grants = [Grant(RequestId(lease), LeaseId(lease), blocks)]
        self.side.execute(StepOrders(grants=grants, push=push or PushOrders()))

    def pull(self, params: PullParams, local: tuple[int, ...] = TARGET) -> None:
        job = PullJob(RequestId(params.lease_id), params, range(params.num_tokens), BlockTable(local))
        self.side.execute(StepOrders(pulls=[job]))

    def close(self) -> None:
        self.release()
        self.side.close()
        self.device.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.001)


@pytest.fixture
def prefill() -> Iterator[Rank]:
    rank = Rank("prefill-0", OLD)
    rank.grant(EARLY, (6, 7))
    yield rank
    rank.close()


@pytest.fixture
def decode(prefill: Rank) -> Iterator[Rank]:
    """It is connected to prefill."""
    rank = Rank("decode-0", BLANK)
    prefill.grant("warm", (4,))
    rank.pull(prefill.params("warm", (4,)), (7,))
    eventually(lambda: rank.ended("warm"))
    yield rank
    rank.close()


@pytest.fixture
def let_happen(prefill: Rank) -> Iterator[Callable[[], None]]:
    """Returns after a third engine has connected and pulled: what the other two do not wait for has happened
    by then."""
    rank = Rank("decode-1", BLANK)

    def wait() -> None:
        rank.pull(prefill.params(EARLY, (6, 7)))
        eventually(lambda: rank.ended(EARLY))
        assert rank.received[EARLY]

    yield wait
    rank.close()


def test_a_grant_is_read_when_its_blocks_are_written(
    prefill: Rank, decode: Rank, let_happen: Callable[[], None]
) -> None:
    prefill.hold(prefill.fill(NEW, SOURCE))
    prefill.grant("p")
    decode.pull(prefill.params("p"))
    let_happen()
    assert not decode.ended("p")
    prefill.release()
    eventually(lambda: decode.ended("p"))
    assert decode.has(NEW, TARGET)


def test_a_pull_writes_when_its_blocks_are_free(
    prefill: Rank, decode: Rank, let_happen: Callable[[], None]
) -> None:
    prefill.grant("p")
    decode.hold(decode.fill(JUNK, TARGET))
    decode.pull(prefill.params("p"))
    let_happen()
    assert not decode.ended("p")
    assert decode.has(BLANK, TARGET)
    decode.release()
    eventually(lambda: decode.ended("p"))
    assert decode.has(OLD, TARGET)


# -- pushes

ID = TransferId("t")


def reserve(decode: Rank, prefill: Rank) -> None:
    endpoint = prefill.side.endpoint().endpoint
    params = PushParams(ID, WorkerId("p"), EPOCH, (endpoint,), 2 * BLOCK_TOKENS, continues=True)
    job = ReceiveJob(RequestId(ID), params, BlockTable(TARGET))
    decode.side.execute(StepOrders(push=PushOrders(receives=[job])))


def step(prefill: Rank, first: int, end: int) -> PushOrders:
    """Orders a step that makes some blocks final. Returns its orders."""
    orders = PushOrders(announced=[ID], chunks=[PushChunk(ID, first, end, BlockTable(SOURCE[:end]))])
    prefill.side.execute(StepOrders(push=orders))
    return orders


def finish(prefill: Rank) -> None:
    ends = [(ID, Finish(RequestId(ID), prefill.params(ID), (77,)))]
    prefill.grant(ID, push=PushOrders(ends=ends))


def test_a_push_writes_when_its_blocks_are_free(
    prefill: Rank, decode: Rank, let_happen: Callable[[], None]
) -> None:
    step(prefill, 0, 2)
    finish(prefill)
    decode.hold(decode.fill(JUNK, TARGET))
    reserve(decode, prefill)
    let_happen()
    assert decode.has(BLANK, TARGET)
    decode.release()
    eventually(lambda: decode.ended(ID))
    assert decode.received[ID]
    assert decode.has(OLD, TARGET)


def test_a_layer_is_pushed_when_it_is_written(
    prefill: Rank, decode: Rank, let_happen: Callable[[], None]
) -> None:
    reserve(decode, prefill)
    orders = step(prefill, 0, 2)
    prefill.side.computed(1, orders)
    eventually(lambda: decode.has(OLD, TARGET, slice(1, 2)))
    prefill.hold(prefill.fill(NEW, SOURCE, slice(0, 1)))
    prefill.side.computed(0, orders)
    let_happen()
    assert decode.has(BLANK, TARGET, slice(0, 1))
    prefill.release()
    eventually(lambda: decode.has(NEW, TARGET, slice(0, 1)))


def test_the_blocks_of_earlier_steps_are_pushed_when_they_are_written(
    prefill: Rank, decode: Rank, let_happen: Callable[[], None]
) -> None:
    """As after a step whose layers were not announced."""
    reserve(decode, prefill)
    prefill.hold(prefill.fill(NEW, SOURCE[:1]))
    step(prefill, 1, 2)
    let_happen()
    assert decode.has(BLANK, TARGET[:1])
    prefill.release()
    eventually(lambda: decode.has(NEW, TARGET[:1]))
    assert decode.has(BLANK, TARGET[1:])


def test_the_rest_of_a_prompt_is_pushed_when_it_is_written(
    prefill: Rank, decode: Rank, let_happen: Callable[[], None]
) -> None:
    reserve(decode, prefill)
    step(prefill, 0, 2)
    prefill.hold(prefill.fill(NEW, SOURCE))
    finish(prefill)
    let_happen()
    assert decode.has(BLANK, TARGET)
    prefill.release()
    eventually(lambda: decode.ended(ID))
    assert decode.received[ID]
    assert decode.has(NEW, TARGET)


# -- kernels that fail


def fail() -> None:
    raise TransferError("an illegal memory access")


def test_blocks_that_were_not_written_are_not_read(prefill: Rank, decode: Rank) -> None:
    prefill.device.launch(fail)
    prefill.grant("p")
    decode.pull(prefill.params("p"))
    eventually(lambda: decode.ended("p"))
    assert not decode.received["p"]
    eventually(lambda: "p" in prefill.side.take_sent())


def test_blocks_that_may_be_in_use_for_ever_are_not_pulled_into(prefill: Rank, decode: Rank) -> None:
    prefill.grant("p")
    decode.device.launch(fail)
    decode.pull(prefill.params("p"))
    eventually(lambda: decode.ended("p"))
    assert not decode.received["p"]
    assert decode.has(BLANK, TARGET)


def test_blocks_that_may_be_in_use_for_ever_are_not_pushed_into(prefill: Rank, decode: Rank) -> None:
    decode.device.launch(fail)
    reserve(decode, prefill)
    eventually(lambda: decode.ended(ID))
    assert not decode.received[ID]


@pytest.mark.parametrize("way", ["before", "layer", "end"])
def test_a_push_of_blocks_that_were_not_written_fails(prefill: Rank, decode: Rank, way: str) -> None:
    """way: which mark is behind the kernel that fails."""
    reserve(decode, prefill)
    if way == "before":
        prefill.device.launch(fail)
    orders = step(prefill, 0, 2)
    prefill.device.launch(fail)
    if way == "layer":
        prefill.side.computed(0, orders)
    elif way == "end":
        finish(prefill)
    eventually(lambda: decode.ended(ID))
    assert not decode.received[ID]
    assert decode.has(BLANK, TARGET)


def test_nothing_is_marked_in_a_step_without_blocks(prefill: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark costs the engine some microseconds."""

    def mark() -> None:
        raise AssertionError("a mark for nothing")

    monkeypatch.setattr(prefill.device, "mark", mark)
    prefill.side.execute(StepOrders(releases=[prefill.params(EARLY)]))
    prefill.side.computed(0, PushOrders())
