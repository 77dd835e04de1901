"""Other gateways before the floor's process, each from its package in an environment of its own.

They pass requests on over HTTP and leave templates, tokens and text to the server behind them. So what a
request costs there is the CPU time of the gateway and of the floor together.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.ports import free_port
from bench.server_process import is_serving, stop
from llmserve.models import default_cache_dir

# Name: package, and the arguments that start it. All that is not said here is its default.
RIVALS: Mapping[str, tuple[str, Sequence[str]]] = {
    "vllm-router": ("vllm-router==0.1.17", ("vllm-router", "--log-level", "error")),
    "smg": ("smg==1.13.0", ("smg", "launch", "--log-level", "error")),
}
_INSTALL_SECONDS, _START_SECONDS = 600.0, 120.0


@contextmanager
def rival(name: str, backend: str) -> Iterator[tuple[str, int]]:
    """Starts it before the server at `backend`; yields its URL and pid. Errors: RuntimeError when it does not
    start, CalledProcessError when it cannot be installed."""
    package, (program, *arguments) = RIVALS[name]
    port, metrics_port = free_port(), free_port()
    command = [
        str(_installed(package) / program),
        *arguments,
        "--worker-urls",
        backend,
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(port), "--prometheus-port", str(metrics_port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        if not is_serving(process, f"{url}/v1/models", _START_SECONDS, _has_a_model):
            raise RuntimeError(f"{name} does not serve; exit code {process.poll()}")
        yield url, process.pid
    finally:
        stop(process)


def _has_a_model(models: bytes) -> bool:
    return b'"data":[{' in models.replace(b" ", b"")


def _installed(package: str) -> Path:
    """The programs of a package. It is installed once, outside the project's environment."""
    folder = default_cache_dir() / "bench" / package
    done = folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=_INSTALL_SECONDS)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", package]
        subprocess.run(pip, check=True, timeout=_INSTALL_SECONDS, stdout=sys.stderr)
        done.touch()
    return folder / "bin"
