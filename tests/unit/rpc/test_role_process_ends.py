"""What a role's process leaves of its environment, and how it ends."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmserve.config.schema import Manifest
from llmserve.rpc.role import own_environment


def test_a_role_that_is_started_by_hand_sorts_its_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shell = {
        "PATH": "/bin",
        "TEAM_KEY": "secret",
        "VLLM_API_KEY": "locks clients out",
        "VLLM_PORT": "tcp://10.0.0.1:80",  # of a Service that is called vllm
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # of a pod
        "EDITOR": "vi",
    }
    monkeypatch.setattr(os, "environ", shell)
    manifest = Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": {"primary": {"source": "hub:a/b"}},
            "engine": {"env": [{"name": "VLLM_USE_X", "value": "1"}]},
            "security": {"api_keys": [{"tenant": "a", "key_env": "TEAM_KEY"}]},
        }
    )
    with caplog.at_level(logging.WARNING):
        own_environment(manifest)
    assert shell == {
        "PATH": "/bin",
        "TEAM_KEY": "secret",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_USE_X": "1",
    }
    assert "VLLM_API_KEY, VLLM_PORT in the environment: ignored" in caplog.text


_ENDING = """
import atexit, sys
from llmserve.core.process import exit_process

class Slow:
    def __del__(self):
        print("torn down", flush=True)

kept = Slow()
atexit.register(print, "cleaned up")
print("said before")
exit_process(3)
"""


def test_a_process_ends_with_its_clean_up_and_without_being_torn_down() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ENDING], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (3, "said before\ncleaned up\n")


_CHILD = """
import atexit, multiprocessing, sys
from llmserve.core.process import exit_so_when_done

class Slow:
    def __del__(self):
        print("torn down", flush=True)

def child(code):
    global kept
    kept = Slow()
    atexit.register(print, "cleaned up")
    try:
        sys.exit(code)
    finally:
        exit_so_when_done()

if __name__ == "__main__":
    exit_so_when_done()  # does nothing here
    process = multiprocessing.get_context("spawn").Process(target=child, args=(0,))
    process.start()
    process.join()
    print("child", process.exitcode)
    sys.exit(5)
"""


def test_an_engine_s_process_ends_without_being_torn_down(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_CHILD)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (5, "cleaned up\nchild 0\n"), done.stderr
