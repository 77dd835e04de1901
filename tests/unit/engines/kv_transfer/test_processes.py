"""Pulls from another process, and its death."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import HandoverNode, KvGeometry, KvLayout, PullJob, PullResult
from llmserve.transfer.base import Region
from llmserve.transfer.tcp import TcpTransport

LAYERS, BLOCKS, BLOCK_BYTES = 4, 8, 65_536


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("owner_process.py")
    process = subprocess.Popen(
        [sys.executable, str(script), "tcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


@pytest.fixture
def pull_params(owner: subprocess.Popen[str]) -> PullParams:
    assert owner.stdout
    return PullParams.from_params(json.loads(owner.stdout.readline()))


@pytest.fixture
def memory() -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.full((LAYERS, BLOCKS, BLOCK_BYTES), 255, np.uint8)


@pytest.fixture
def node(memory: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Iterator[HandoverNode]:
    regions = tuple(Region(layer.ctypes.data, layer.nbytes) for layer in memory)
    layout = KvLayout(regions, KvGeometry((BLOCK_BYTES,) * LAYERS, 16))
    node = HandoverNode(
        worker_id=WorkerId("decode-0"), epoch=9, transports=[TcpTransport()], layout=layout, lease_seconds=30
    )
    yield node
    node.close()


def pull(node: HandoverNode, pull_params: PullParams, request_id: str) -> PullResult:
    node.client.pull(
        PullJob(RequestId(request_id), pull_params, range(pull_params.num_tokens), BlockTable((0, 7)))
    )
    deadline = time.monotonic() + 30
    while not (results := node.client.take_finished()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return results[0]


def test_a_pull_from_another_process_and_its_death(
    owner: subprocess.Popen[str],
    pull_params: PullParams,
    node: HandoverNode,
    memory: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]",
) -> None:
    assert pull(node, pull_params, "d1").ok
    expected = np.full_like(memory, 255)
    for layer in range(LAYERS):
        expected[layer, 0], expected[layer, 7] = 16 * layer + 5, 16 * layer + 2
    assert np.array_equal(memory, expected)
    again = pull(node, pull_params, "d2")
    assert "begin: ended" in again.reason
    owner.kill()
    owner.wait()
    dead = pull(node, pull_params, "d3")
    assert "cannot connect" in dead.reason
    assert np.array_equal(memory, expected)
