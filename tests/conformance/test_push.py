"""Pushes between two real processes, on every transport: what arrives, and that nothing does afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llmserve.core.ids import RequestId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PushParams
from llmserve.engines.kv_transfer import (
    HandoverNode,
    PullResult,
    ReceiveJob,
    ReceiveLimits,
)
from llmserve.engines.kv_transfer.push.fence import StopLimits
from tests.conformance.push_peer import BLOCK_BYTES, BLOCK_TOKENS, LAYERS, ON_DEVICES, push_end
from tests.support.transports import need_transport

LENGTH = 6  # of the prompt, in blocks
TARGET = (1, 2, 3, 8, 6, 15)
KINDS = ["tcp", f"tcp{ON_DEVICES}", "nixl", "shm", "ucx", "nccl"]


class Prefill:
    """The far process."""

    def __init__(self, kind: str) -> None:
        script = Path(__file__).with_name("push_peer.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint = self._line()

    def do(self, *words: object) -> str:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it has ended"
        return line.strip()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.process.kill()
        with self.process:
            self.process.wait()


class Decode:
    """This process."""

    def __init__(self, kind: str) -> None:
        need_transport(kind.partition(ON_DEVICES)[0])
        self.memory, layout, transport, shared = push_end(kind, 200)
        self.node = HandoverNode(
            worker_id=WorkerId("decode-0"),
            epoch=8,
            transports=[transport],
            layout=layout,
            lease_seconds=30,
            receive_limits=ReceiveLimits(poll_seconds=0.1, stop=StopLimits(remote_seconds=1.0)),
            shared=shared,
        )

    def reserve(self, prefill: Prefill, name: str) -> None:
        push_params = PushParams(
            TransferId(name), WorkerId("prefill-0"), 3, (prefill.endpoint,), LENGTH * BLOCK_TOKENS, True
        )
        self.node.receiver.receive(ReceiveJob(RequestId(name), push_params, BlockTable(TARGET)))

    def result(self, seconds: float = 30.0) -> PullResult:
        found: list[PullResult] = []

        def came() -> bool:
            found.extend(self.node.receiver.take_finished())
            return bool(found)

        eventually(came, seconds)
        (result,) = found
        return result

    def has(self, layers: range) -> bool:
        """These layers have arrived, and nothing else was touched."""
        expected = np.full_like(self.memory, 200)
        for layer in layers:
            for index, block in enumerate(TARGET):
                expected[layer, block] = 16 * layer + index
        return np.array_equal(self.memory, expected)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.002)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def decode(kind: str) -> Iterator[Decode]:
    made = Decode(kind)
    yield made
    made.node.close()


@pytest.fixture
def prefill(kind: str, decode: Decode) -> Iterator[Prefill]:
    """After decode, which skips what this machine has not."""
    made = Prefill(kind)
    yield made
    made.close()


def test_layers_arrive_as_they_are_computed(decode: Decode, prefill: Prefill, kind: str) -> None:
    for turn in range(2):
        decode.memory[:] = 200
        name = f"t{turn}"
        decode.reserve(prefill, name)
        prefill.do("announce", name)
        prefill.do("layers", name, 0, 5)
        eventually(lambda: decode.has(range(5)))
        prefill.do("layers", name, 5, 11)
        eventually(lambda: decode.has(range(11)))
        assert decode.node.receiver.take_finished() == []
        prefill.do("finish", name)
        result = decode.result()
        assert (result.ok, result.pushed, result.tokens) == (True, True, (77,)), result
        assert result.transport == ("gloo" if kind == "nccl" else kind.removesuffix(ON_DEVICES))
        assert result.bytes == LAYERS * LENGTH * BLOCK_BYTES
        assert decode.has(range(LAYERS))
        eventually(lambda name=name: prefill.do("ended") == f'["{name}"]')  # type: ignore[misc]


def test_a_cancelled_push_leaves_memory_alone(decode: Decode, prefill: Prefill) -> None:
    decode.reserve(prefill, "t")
    prefill.do("announce", "t")
    prefill.do("layers", "t", 0, 3)
    eventually(lambda: decode.has(range(3)))
    prefill.do("layers", "t", 3, 9)  # is being written
    decode.node.receiver.cancel(RequestId("t"))
    assert decode.result().reason == "cancelled"
    decode.memory[:] = 200  # they have another owner now
    prefill.do("layers", "t", 9, 12)
    prefill.do("finish", "t")
    eventually(lambda: prefill.do("ended") == '["t"]')
    assert decode.has(range(0))


def test_a_prefill_that_is_killed(decode: Decode, prefill: Prefill) -> None:
    decode.reserve(prefill, "t")
    prefill.do("announce", "t")
    prefill.do("layers", "t", 0, 3)
    eventually(lambda: decode.has(range(3)))
    prefill.do("layers", "t", 3, 12)
    prefill.signal(signal.SIGKILL)
    assert not decode.result().ok
    decode.memory[:] = 200
    time.sleep(0.3)  # nothing may come in this time
    assert decode.has(range(0))


def test_a_prefill_that_is_suspended_is_waited_for(decode: Decode, prefill: Prefill) -> None:
    """On one host it may write as soon as it goes on."""
    decode.reserve(prefill, "t")
    prefill.do("announce", "t")
    prefill.do("layers", "t", 0, 3)
    eventually(lambda: decode.has(range(3)))
    prefill.do("layers", "t", 3, 12)
    prefill.signal(signal.SIGSTOP)
    decode.node.receiver.cancel(RequestId("t"))
    time.sleep(1.3)  # longer than stop_seconds
    results = decode.node.receiver.take_finished()
    prefill.signal(signal.SIGCONT)
    if not results:
        assert decode.result().reason == "cancelled"
    decode.memory[:] = 200
    prefill.do("finish", "t")
    eventually(lambda: prefill.do("ended") == '["t"]')
    assert decode.has(range(0))


@pytest.mark.parametrize("kind", ["tcp", "ucx", "nccl"], indirect=True)
def test_a_suspended_prefill_on_another_host_is_fenced(decode: Decode, prefill: Prefill) -> None:
    """What it had begun is kept out, and later pushes take new connections."""
    prefill.endpoint = prefill.endpoint.replace("127.0.0.1", "localhost")  # as another host
    decode.reserve(prefill, "t")
    prefill.do("announce", "t")
    prefill.do("layers", "t", 0, 3)
    eventually(lambda: decode.has(range(3)))
    prefill.do("layers", "t", 3, 12)
    prefill.signal(signal.SIGSTOP)
    decode.node.receiver.cancel(RequestId("t"))
    assert decode.result().reason == "cancelled"
    decode.memory[:] = 200
    prefill.signal(signal.SIGCONT)
    prefill.do("finish", "t")
    time.sleep(0.3)  # nothing may come in this time
    assert decode.has(range(0))
    decode.reserve(prefill, "again")
    prefill.do("announce", "again")
    prefill.do("finish", "again")
    assert decode.result().ok
    assert decode.has(range(LAYERS))
