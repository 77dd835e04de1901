"""The process of an engine that its worker forks (engines/vllm/early_process.py). Engines of a cluster run in
one: tests/e2e/test_a_fresh_cluster.py."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.utils.system_utils import set_process_title
from vllm.v1.engine import utils as vllm_processes

from llmserve.engines.vllm import early_process
from llmserve.engines.vllm.early_process import EarlyProcess, made_early, starting_in

# What a worker has imported when it comes to what imports vLLM, which is not imported here.
_PROGRAM = """
import contextlib, os, sys, types
from llmserve.config.plan_types import BINDING_VARIABLE
from llmserve.config.schema import EngineConfig
from llmserve.engines.vllm.environment import PRELOAD_VARIABLE, preloaded
from llmserve.workers.build import early_process
os.environ.update({BINDING_VARIABLE: "0", PRELOAD_VARIABLE: preloaded()})
early = sys.modules["llmserve.engines.vllm.early_process"] = types.ModuleType("early_process")
early.made_early = contextlib.nullcontext
before = "transformers" in sys.modules
with early_process(EngineConfig()):
    print(before, "transformers.models" in sys.modules, "vllm" in sys.modules)
"""


def test_a_worker_imports_transformers_before_vllm() -> None:
    """Only so transformers looks through its models once (transformers_import.py)."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def _tell(path: Path, word: str) -> None:
    """Runs in the process, names it as vLLM does, and writes what it finds there."""
    set_process_title("EngineCore")
    found = {
        "word": word,
        "title": Path("/proc/self/comm").read_text().strip(),
        "pid": os.getpid(),
        "variable": os.environ.get("LLMSERVE_TEST"),
        "logging": [len(logging.getLogger().handlers), logging.getLogger().level],
    }
    path.write_text(json.dumps(found))


@contextmanager
def _forked() -> Iterator[EarlyProcess]:
    """The threads of other tests do not matter to what runs in it here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_process, "_is_single_threaded", lambda: True)
        with made_early() as early:
            assert early is not None
            yield early


def _process(early: EarlyProcess | None, **arguments: Any) -> Any:
    with starting_in(early):
        return vllm_processes.get_mp_context().Process(target=_tell, name="EngineCore", kwargs=arguments)


def test_it_runs_what_vllm_gives_it_with_the_environment_of_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _forked() as early:
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
        monkeypatch.setenv("LLMSERVE_TEST", "set later")
        process = _process(early, path=tmp_path / "found", word="first")
        assert process is early
        process.start()
        process.join(30)
    assert json.loads((tmp_path / "found").read_text()) == {
        "word": "first",
        "title": "VLLM::EngineCor",  # the kernel keeps 15 characters
        "pid": process.pid,
        "variable": "set later",
        "logging": [0, logging.WARNING],  # as a process begins, not as its worker's is
    }
    assert process.exitcode == 0


@pytest.mark.parametrize("name", ["LD_PRELOAD", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
@pytest.mark.parametrize("value", ["another", None])
def test_one_that_began_with_other_settings_is_not_used_and_ends(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    monkeypatch.setenv(name, "1")
    early = EarlyProcess()
    assert early.fits()
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert not isinstance(_process(early), EarlyProcess)
    early.join(30)
    assert early.exitcode == 0


def test_the_worker_runs_where_its_parent_does_and_computes_in_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core, cores, threads = min(os.sched_getaffinity(0)), os.sched_getaffinity(0), torch.get_num_threads()
    monkeypatch.setenv("GOMP_CPU_AFFINITY", str(core))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    try:
        os.sched_setaffinity(0, {core})  # as OpenMP does
        torch.set_num_threads(2)
        with _forked() as early:
            assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid())
            assert os.sched_getaffinity(early.pid or 0) == {core}
            assert torch.get_num_threads() == 1
            assert os.environ["OMP_NUM_THREADS"] == "1"
            assert "GOMP_CPU_AFFINITY" not in os.environ
            monkeypatch.setenv("GOMP_CPU_AFFINITY", str(core))  # vLLM gives both to the process it starts
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
            assert early.fits()
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def test_the_first_process_alone_is_the_early_one() -> None:
    with _forked() as early, starting_in(early):
        context = vllm_processes.get_mp_context()
        first, second = (context.Process(target=_tell, name="EngineCore", kwargs={}) for _ in range(2))
    assert first is early
    assert not isinstance(second, EarlyProcess)
    assert vllm_processes.get_mp_context() is not context


def test_without_one_vllm_makes_its_own() -> None:
    stock = vllm_processes.get_mp_context
    with starting_in(None):
        assert vllm_processes.get_mp_context is stock


def test_with_threads_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_process, "_is_single_threaded", lambda: False)
    with made_early() as early:
        assert early is None


def test_one_that_is_given_nothing_ends() -> None:
    with _forked() as early:
        assert early.is_alive()
    early.join(30)
    assert early.exitcode == 0


def test_it_fails_as_processes_of_multiprocessing_do(tmp_path: Path) -> None:
    with _forked() as early:
        process = _process(early, path=tmp_path / "no" / "such", word="")
        process.start()
        process.join(30)
    assert process.exitcode == 1
