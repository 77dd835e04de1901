"""The process that an engine runs in, made before its worker has threads (engines/vllm/early_process.py).
That real engines run in it is watched by the tests of tests/e2e."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vllm.utils.system_utils import set_process_title
from vllm.v1.engine import utils as vllm_processes

from llmserve.engines.vllm.early_process import EarlyProcess, made_early, starting_in


def _tell(path: Path, word: str) -> None:
    """Runs in the process, names it as vLLM does, and writes what it finds there."""
    set_process_title("EngineCore")
    found = {
        "word": word,
        "title": Path("/proc/self/comm").read_text().strip(),
        "pid": os.getpid(),
        "variable": os.environ.get("LLMSERVE_TEST"),
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    path.write_text(json.dumps(found))


def test_it_runs_what_vllm_gives_it_with_the_environment_of_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = min(os.sched_getaffinity(0))
    with made_early() as early:
        assert early is not None
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
        monkeypatch.setenv("LLMSERVE_TEST", "set later")
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.setenv("OMP_PLACES", f"{{{core}}}")
        with starting_in(early):
            context = vllm_processes.get_mp_context()
            arguments = {"path": tmp_path / "found", "word": "first"}
            process = context.Process(target=_tell, name="EngineCore", kwargs=arguments)
        assert process is early
        process.start()
        process.join(30)
    found = json.loads((tmp_path / "found").read_text())
    assert found == {
        "word": "first",
        "title": "VLLM::EngineCor",  # the kernel keeps 15 characters
        "pid": process.pid,
        "variable": "set later",
        "threads": 3,
        "cores": [core],
    }
    assert process.exitcode == 0


def test_it_compiles_none_of_the_small_functions_of_vllm() -> None:
    """In a Python of its own: torch decides as the module is imported, and other tests import it too."""
    program = (
        "from llmserve.engines.vllm.early_process import made_early\n"
        "with made_early():\n"
        "    from vllm.v1.sample.ops.logprobs import batched_count_greater_than as function\n"
        "    assert not hasattr(function, '_torchdynamo_orig_callable')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def test_the_first_process_alone_is_the_early_one() -> None:
    with made_early() as early, starting_in(early):
        context = vllm_processes.get_mp_context()
        first, second = (context.Process(target=_tell, name="EngineCore", kwargs={}) for _ in range(2))
    assert first is early
    assert not isinstance(second, EarlyProcess)
    assert vllm_processes.get_mp_context() is not context


def test_without_one_vllm_makes_its_own() -> None:
    stock = vllm_processes.get_mp_context
    with starting_in(None):
        assert vllm_processes.get_mp_context is stock


def test_one_that_is_given_nothing_ends() -> None:
    with made_early() as early:
        assert early is not None
        assert early.is_alive()
    early.join(30)
    assert early.exitcode == 0


def test_it_fails_as_processes_of_multiprocessing_do(tmp_path: Path) -> None:
    with made_early() as early, starting_in(early):
        arguments = {"path": tmp_path / "no" / "such", "word": ""}
        process = vllm_processes.get_mp_context().Process(target=_tell, name="EngineCore", kwargs=arguments)
        process.start()
        process.join(30)
    assert process.exitcode == 1
