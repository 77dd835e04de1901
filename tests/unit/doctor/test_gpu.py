"""GPUs, by what nvidia-smi prints."""

import sys
from collections.abc import Sequence

import pytest

from llmserve.core.errors import LLMServeError
from llmserve.doctor.finding import Status
from llmserve.doctor.gpu import Gpus, find_gpus, gpu_peers, gpus, run_tool
from tests.unit.doctor.conftest import MakeHost

_LISTED = "0, NVIDIA L4, 23034 MiB, 550.54\n1, NVIDIA L4, 23034 MiB, 550.54\n"
_TABLE = """ \t\x1b[4mGPU0\tGPU1\x1b[0m
 GPU0\tX\t{state}
 GPU1\t{state}\tX

Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
"""


def _failing(command: Sequence[str]) -> str:
    raise LLMServeError("nvidia-smi failed: no driver")


def test_gpus_are_listed(make_host: MakeHost) -> None:
    found = gpus(make_host({}), (0, 1), find_gpus((0, 1), lambda command: _LISTED))
    assert found.status is Status.OK
    assert found.value == "0, NVIDIA L4, 23034 MiB, 550.54; 1, NVIDIA L4, 23034 MiB, 550.54"
    assert found.figures == {"gpus": 2}


def test_a_driver_that_does_not_answer(make_host: MakeHost) -> None:
    found = gpus(make_host({}), (0,), find_gpus((0,), _failing))
    assert found.status is Status.PROBLEM
    assert "no driver" in found.advice


def test_no_gpu_is_not_asked_about(make_host: MakeHost) -> None:
    assert find_gpus((), _failing) == Gpus()
    assert gpus(make_host({}), (), Gpus()).status is Status.OK


def test_a_driver_without_a_visible_gpu(make_host: MakeHost) -> None:
    found = gpus(make_host({"proc/driver/nvidia/version": "NVRM version: 550"}), (), Gpus())
    assert found.status is Status.WARNING


@pytest.mark.parametrize(("state", "status"), [("OK", Status.OK), ("CNS", Status.NOTE)])
def test_peer_access(state: str, status: Status) -> None:
    found = gpu_peers(lambda command: _TABLE.format(state=state))
    assert found.status is status
    assert ("CNS" in found.value) == (state == "CNS")


def test_peer_access_that_cannot_be_asked_for() -> None:
    assert "no driver" in gpu_peers(_failing).advice
    assert gpu_peers(lambda command: "").value == "unknown"


def test_a_tool_that_is_not_there() -> None:
    with pytest.raises(LLMServeError, match="is not installed"):
        run_tool(["llmserve-no-such-tool"])


def test_a_tool_that_fails_says_why() -> None:
    with pytest.raises(LLMServeError, match="failed: first"):
        run_tool([sys.executable, "-S", "-c", "raise SystemExit('first\\nsecond')"])


def test_a_tool_that_fails_silently() -> None:
    with pytest.raises(LLMServeError, match="exit code 3"):
        run_tool([sys.executable, "-S", "-c", "raise SystemExit(3)"])
