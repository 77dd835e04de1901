"""The baseline: one plain vLLM server with the same adapters and as many slots."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.adapters.ask import MODEL
from bench.ports import free_port
from bench.server_process import is_serving, stop

_START_SECONDS = 600.0


@contextmanager
def plain_vllm(
    model: Path, adapters: Mapping[str, Path], slots: int, max_rank: int, log: Path
) -> Iterator[str]:
    """Yields its address. It has all cores, as the cluster's engines have together, and keeps every adapter
    in the memory of its process. Errors: RuntimeError when it does not start."""
    port = free_port()
    # `vllm serve` asks for the version of a package `vllm`, which is not the name of the one for CPUs.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model)]
    command += ["--port", str(port)]
    command += [
        "--served-model-name",
        MODEL,
        "--max-model-len",
        "2048",
        "--enforce-eager",
        "--host",
        "127.0.0.1",
    ]
    command += ["--enable-lora", "--max-loras", str(slots), "--max-lora-rank", str(max_rank)]
    command += ["--max-cpu-loras", str(max(slots, len(adapters)))]
    command += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        if not is_serving(process, f"{url}/health", _START_SECONDS):
            raise RuntimeError(f"vLLM does not answer:\n{log.read_text(errors='replace')[-4000:]}")
        yield url
    finally:
        stop(process)
