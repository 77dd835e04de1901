"""A decode rank pulls from two prefill ranks in processes of their own, with other blocks, over tcp."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import PullJob, PullResult
from tests.unit.engines.kv_transfer.rank_process import LEASE, TOKENS, block_ids, content, memory, node

SIZE, BLOCK_THERE, BLOCK_HERE = 2, 16, 32
LOCAL = (4, 0, 9, 10, 2)


@pytest.fixture
def owners() -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "tests.unit.engines.kv_transfer.rank_process",
                        *map(str, (rank, SIZE, BLOCK_THERE)),
                    ],
                    cwd=Path(__file__).parents[4],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(SIZE)
        ]
        yield processes
        for process in processes:
            process.kill()


def endpoint_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_prompt_from_two_processes_and_the_death_of_one(owners: list[subprocess.Popen[str]]) -> None:
    pull_params = PullParams(
        worker_id=WorkerId("prefill-0"),
        epoch=1,
        lease_id=LEASE,
        endpoints=tuple(map(endpoint_of, owners)),
        blocks=BlockTable(tuple(block_ids(BLOCK_THERE))),
        num_tokens=TOKENS,
        block_size_tokens=BLOCK_THERE,
        lease_seconds=30.0,
    )
    held = memory(1, 0, BLOCK_HERE)
    reader = node("decode-0", 9, held)

    def pull(request_id: str) -> PullResult:
        reader.client.pull(PullJob(RequestId(request_id), pull_params, range(TOKENS), BlockTable(LOCAL)))
        deadline = time.monotonic() + 30
        while not (results := reader.client.take_finished()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return results[0]

    try:
        first = pull("d1")
        assert (first.ok, first.reason) == (True, "")
        assert np.array_equal(held.load(LOCAL)[:, :TOKENS], content())
        assert "begin: ended" in pull("d2").reason
        owners[1].kill()
        owners[1].wait()
        assert not pull("d3").ok
        assert np.array_equal(held.load(LOCAL)[:, :TOKENS], content())
    finally:
        reader.close()
