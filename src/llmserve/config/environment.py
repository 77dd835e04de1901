"""Selects the environment variables that a process of the cluster inherits. Pure.

The manifest is the only source of settings, but vLLM, torch and their libraries read hundreds of variables:
an exported VLLM_API_KEY would lock all clients out. So a process inherits the variables that describe this
machine, its network and its credentials, and otherwise only variables that the manifest names.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from llmserve.config.schema import Manifest


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The machine and the user; places of programs, libraries and caches; how Python runs.
_PLACES = _names(
    """
    PATH HOME USER LOGNAME HOSTNAME SHELL LANG LANGUAGE TZ TMPDIR TMP TEMP VIRTUAL_ENV CONDA_PREFIX
    LD_LIBRARY_PATH LD_PRELOAD LIBRARY_PATH CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH CC CXX
    PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONNOUSERSITE PYTHONSAFEPATH PYTHONPYCACHEPREFIX PYTHONUTF8
    PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED PYTHONIOENCODING PYTHONWARNINGS PYTHONFAULTHANDLER
    PYTHONTRACEMALLOC PYTHONASYNCIODEBUG PYTHONMALLOC
    VLLM_CACHE_ROOT TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR NUMBA_CACHE_DIR
    """
)
# The network and its certificates. Proxies are also written in lower case.
_NETWORK = _names("HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY REQUESTS_CA_BUNDLE CURL_CA_BUNDLE")
# Prefixes: locale, XDG folders, our own, pods; transports and devices of this machine; hubs, object stores
# and trace collectors with their credentials.
_FAMILIES = (
    *("LC_", "XDG_", "LLMSERVE_", "SSL_CERT_", "MALLOC_", "TCMALLOC_", "POD_", "KUBERNETES_"),
    *("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "NCCL_", "UCX_", "UCXX_", "NIXL_", "GLOO_", "FI_"),
    *("HF_", "AWS_", "OTEL_"),
)
# Variables that `llmserve up` and pods set: config/plan.py, runner/environment.py.
GIVEN = _names(
    """
    VLLM_NO_USAGE_STATS VLLM_LOGGING_STREAM VLLM_LOGGING_CONFIG_PATH VLLM_RPC_BASE_PATH
    VLLM_CPU_OMP_THREADS_BIND VLLM_CPU_KVCACHE_SPACE OMP_NUM_THREADS GOMP_CPU_AFFINITY TOKENIZERS_PARALLELISM
    THP_MEM_ALLOC_ENABLE
    """
)
# Prefixes of settings. A user who exported one of these gets a note that it has no effect.
_SETTINGS = (
    *("VLLM_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "KMP_", "GOMP_", "MKL_", "NUMBA_"),
    *("TOKENIZERS_", "TRANSFORMERS_", "SAGEMAKER_", "RAY_", "PYTHONHASHSEED"),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """kept: variables that the process inherits. ignored: sorted names of settings that it does not
    inherit."""

    kept: Mapping[str, str]
    ignored: tuple[str, ...] = ()


def inherited(base: Mapping[str, str], manifest: Manifest, given: Collection[str] = ()) -> Environment:
    """Selects from `base`, the environment of the starting process. given: further names to inherit."""
    names = {*_secrets(manifest), *engine_variables(manifest), *given}
    kept = {name: value for name, value in base.items() if name in names or _is_passed_on(name)}
    ignored = (name for name in base.keys() - kept.keys() if name.startswith(_SETTINGS))
    return Environment(kept, tuple(sorted(ignored)))


def engine_variables(manifest: Manifest) -> dict[str, str]:
    """Returns the variables of `engine.env`, for all processes in which vLLM runs."""
    return {one.name: one.value for one in manifest.engine.env}


def _is_passed_on(name: str) -> bool:
    return name in _PLACES or name.upper() in _NETWORK or name.startswith(_FAMILIES)


def _secrets(manifest: Manifest) -> Iterable[str]:
    """Yields the variables that the manifest names as holders of secrets."""
    keys = (one.key_env for one in manifest.security.api_keys)
    redis = manifest.state.redis.password_env if manifest.state.redis else None
    stored = (key.env for one in manifest.storageClasses for key in one.format.encrypt)
    return filter(None, (*keys, redis, *stored))


def note(ignored: Collection[str]) -> str:
    """Returns the note on ignored variables for the user."""
    return (
        f"{', '.join(ignored)} in the environment: ignored. Settings come from the manifest alone; "
        "`engine.env` is for variables of vLLM."
    )
