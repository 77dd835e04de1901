"""Combinations of right values that cannot be. Pure; called by load.py.

No rule looks at `models`, so that they can be checked while the model is missing.
"""

from collections.abc import Iterator, Sequence

from llmserve.config.conflict import Conflict, Path
from llmserve.config.messages import number
from llmserve.config.schema import ApiKey, Manifest
from llmserve.config.schema.section import path_text
from llmserve.config.storage_rules import needs_storage, quotas, storage_classes


def conflicts(manifest: Manifest) -> Iterator[Conflict]:
    """All combinations of this manifest that cannot be."""
    for rule in _RULES:
        yield from rule(manifest)


def _roles(manifest: Manifest) -> Iterator[Conflict]:
    deployment = manifest.deployment
    prefill: Path = ("deployment", "replicas", "prefill")
    paths: tuple[Path, ...] = (prefill, ("deployment", "disaggregated"))
    replicas = deployment.replicas
    if deployment.disaggregated and replicas.prefill == 0:
        message = (
            "a disaggregated deployment needs a prefill engine; "
            "set at least 1, or deployment.disaggregated: false"
        )
        yield Conflict(paths, message)
    if not deployment.disaggregated and replicas.prefill > 0 and "prefill" in replicas.model_fields_set:
        message = (
            "a deployment that is not disaggregated has no prefill engines; "
            "set 0 or leave it out (replicas.decode counts its engines)"
        )
        yield Conflict(paths, message)


def _apiservers(manifest: Manifest) -> Iterator[Conflict]:
    local, count = manifest.deployment.local, manifest.deployment.replicas.apiserver
    replicas: Path = ("deployment", "replicas", "apiserver")
    if local.single_process and count > 1:
        message = "deployment.local.single_process has exactly one apiserver"
        yield Conflict((replicas, ("deployment", "local", "single_process")), message)
    last = local.port + count - 1
    if local.separate_ports and local.port and last > 65535:
        message = f"{count} apiservers need ports up to {last}, and 65535 is the last"
        yield Conflict((("deployment", "local", "port"), replicas), message)


def _metrics_page(manifest: Manifest) -> Iterator[Conflict]:
    """In Kubernetes every pod has an address of its own."""
    local, page = manifest.deployment.local, manifest.observability
    apiservers = manifest.deployment.replicas.apiserver if local.separate_ports else 1
    is_served = manifest.deployment.mode == "local" and page.metrics and page.port
    if is_served and local.port and page.port in range(local.port, local.port + apiservers):
        port: Path = ("deployment", "local", "port")
        named: Path = ("observability", "port")
        here, other = (named, port) if "port" in page.model_fields_set else (port, named)
        message = (
            f"{page.port} is taken by {path_text(other)}, too; set another one of them, or 0 for a free one"
        )
        yield Conflict((here, other), message)


def _transports(manifest: Manifest) -> Iterator[Conflict]:
    order = manifest.transfer.engine_order
    for index, name in enumerate(order):
        if order.index(name) < index:
            path: Path = ("transfer", "engine_order")
            yield Conflict(((*path, index), path), f"names {name} twice")


def _kvmanagers(manifest: Manifest) -> Iterator[Conflict]:
    deployment = manifest.deployment
    if deployment.local.single_process and deployment.replicas.kvmanager > 1:
        paths: tuple[Path, ...] = (
            ("deployment", "replicas", "kvmanager"),
            ("deployment", "local", "single_process"),
        )
        yield Conflict(paths, "deployment.local.single_process has exactly one kvmanager")


def _routers(manifest: Manifest) -> Iterator[Conflict]:
    state, deployment = manifest.state, manifest.deployment
    count: Path = ("deployment", "replicas", "router")
    if deployment.replicas.router > 1 and state.backend != "redis":
        yield Conflict((count, ("state", "backend")), "several routers need state.backend: redis")
    if deployment.replicas.router > 1 and deployment.local.single_process:
        paths: tuple[Path, ...] = (count, ("deployment", "local", "single_process"))
        yield Conflict(paths, "deployment.local.single_process has exactly one router")
    if state.backend == "redis" and state.redis is None:
        yield Conflict((("state", "backend"), ("state",)), "needs state.redis.url")
    if state.redis is not None and state.backend != "redis":
        yield Conflict((("state", "redis"), ("state", "backend")), "has no effect without backend: redis")
    if state.redis is not None and ":" in _user_of(state.redis.url):
        message = "has a password in it; set state.redis.password_env instead"
        yield Conflict((("state", "redis", "url"),), message)


def _user_of(url: str) -> str:
    """With the password, if there is one."""
    return url.partition("://")[2].rpartition("@")[0]


def _response_store(manifest: Manifest) -> Iterator[Conflict]:
    deployment = manifest.deployment
    if not manifest.api.response_store.enabled or manifest.state.backend == "redis":
        return
    enabled: Path = ("api", "response_store", "enabled")
    counts: list[tuple[int, Path]] = [
        (deployment.replicas.apiserver, ("deployment", "replicas", "apiserver")),
    ]
    if deployment.mode == "k8s":
        most = deployment.k8s.max_replicas.apiserver or 0
        counts.append((most, ("deployment", "k8s", "max_replicas", "apiserver")))
    for count, path in counts:
        if count > 1:
            message = f"{count} apiservers share what they keep in Redis: set state.backend: redis"
            yield Conflict((enabled, path, ("state", "backend")), message)
            return


def _cores(manifest: Manifest) -> Iterator[Conflict]:
    cores, paths = manifest.deployment.local.cores, (("deployment", "local", "cores"),)
    if not cores:
        yield Conflict(paths, "names no core")
    twice = next((core for core in cores if cores.count(core) > 1), None) if cores != "auto" else None
    if twice is not None:
        yield Conflict(paths, f"names core {twice} twice")


def _block_size(manifest: Manifest) -> Iterator[Conflict]:
    size: Path = ("kv_cache", "block_size_tokens")
    page: Path = ("kv_cache", "page_size_kb")
    cache = manifest.kv_cache
    values = {size: cache.block_size_tokens, page: cache.page_size_kb}
    if manifest.engine.kind == "sim":
        message = "the simulated engine has its own; set engine.sim.block_size_tokens"
        for path in (path for path, value in values.items() if value is not None):
            yield Conflict((path, ("engine", "kind")), message)
    elif None not in values.values():
        yield Conflict((size, page), "kv_cache.page_size_kb already sets the size of a block; keep one")


def _batch(manifest: Manifest) -> Iterator[Conflict]:
    engine, path = manifest.engine, ("engine", "max_batched_tokens")
    if engine.max_batched_tokens is None:
        return
    got = f"got {engine.max_batched_tokens}"
    if engine.max_batched_tokens < engine.max_decode_concurrency:
        message = f"must be at least engine.max_decode_concurrency ({engine.max_decode_concurrency}), {got}"
        yield Conflict((path, ("engine", "max_decode_concurrency")), message)
    if not engine.chunked_prefill and engine.max_batched_tokens < (engine.max_model_len or 0):
        message = (
            "without chunked_prefill a prompt is computed in one step, so it must be at least "
            f"engine.max_model_len ({engine.max_model_len}), {got}"
        )
        yield Conflict((path, ("engine", "chunked_prefill"), ("engine", "max_model_len")), message)


def _long_prompts(manifest: Manifest) -> Iterator[Conflict]:
    engine, path = manifest.engine, ("engine", "prefill_long_prompt_tokens")
    if engine.prefill_long_prompt_tokens is None:
        return
    if not engine.chunked_prefill:
        message = "needs chunked_prefill: otherwise every prompt is computed in one step"
        yield Conflict((path, ("engine", "chunked_prefill")), message)
    if engine.max_model_len is not None and engine.prefill_long_prompt_tokens > engine.max_model_len:
        got = f"got {engine.prefill_long_prompt_tokens}"
        message = f"must be at most engine.max_model_len ({engine.max_model_len}), {got}"
        yield Conflict((path, ("engine", "max_model_len")), message)


_TAKEN = {
    "VLLM_API_KEY": "would lock all clients out: their keys are security.api_keys",
    "CUDA_VISIBLE_DEVICES": "is set for each engine: the GPUs are divided between them",
    "PYTHONHASHSEED": "would change the identity of KV blocks",
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "is set by LLMServe: the hashes are the identity of KV blocks",
    "VLLM_WORKER_MULTIPROC_METHOD": "is set by LLMServe",
    "VLLM_RPC_BASE_PATH": "is set by LLMServe",
}


def _engine_env(manifest: Manifest) -> Iterator[Conflict]:
    names = [one.name for one in manifest.engine.env]
    for index, name in enumerate(names):
        path: Path = ("engine", "env", index)
        if name in _TAKEN:
            yield Conflict((path,), f"{name} {_TAKEN[name]}")
        elif name.startswith("LLMSERVE_"):
            yield Conflict((path,), f"{name} is for LLMServe itself, which the manifest configures")
        elif names.index(name) < index:
            yield Conflict((path, ("engine", "env", names.index(name))), f"names {name} twice")


def _heartbeat(manifest: Manifest) -> Iterator[Conflict]:
    scheduling = manifest.scheduling
    beat, expiry = scheduling.worker_heartbeat_seconds, scheduling.worker_expiry_seconds
    paths: tuple[Path, Path] = (
        ("scheduling", "worker_expiry_seconds"),
        ("scheduling", "worker_heartbeat_seconds"),
    )
    if expiry > beat:
        return
    if "worker_expiry_seconds" in scheduling.model_fields_set:
        message = f"must be more than worker_heartbeat_seconds ({number(beat)}), got {number(expiry)}"
        yield Conflict(paths, message)
    else:
        message = f"must be less than worker_expiry_seconds ({number(expiry)}), got {number(beat)}"
        yield Conflict(paths[::-1], message)


def _api_keys(manifest: Manifest) -> Iterator[Conflict]:
    first: dict[tuple[str, str], int] = {}
    keys = manifest.security.api_keys
    for index, api_key in enumerate(keys):
        path: Path = ("security", "api_keys", index)
        secret = _secret(api_key)
        if secret is None:
            both = api_key.key is not None
            yield Conflict((path,), _BOTH_KEYS if both else _NO_KEY)
        elif secret in first:
            same = first[secret]
            message = f"is the same key as security.api_keys[{same}], of tenant '{keys[same].tenant}'"
            yield Conflict((path, ("security", "api_keys", same)), message)
        else:
            first[secret] = index


_BOTH_KEYS = "has both key and key_env; keep one"
_NO_KEY = "has no key; set key or key_env"


def _tenants(manifest: Manifest) -> Iterator[Conflict]:
    named: tuple[tuple[Path, Sequence[str]], ...] = (
        (("budgets", "tenants"), [one.tenant for one in manifest.budgets.tenants]),
        (("scheduling", "weights"), [one.tenant for one in manifest.scheduling.weights]),
    )
    for path, tenants in named:
        for index, tenant in enumerate(tenants):
            first = tenants.index(tenant)
            if first < index:
                yield Conflict(((*path, index), (*path, first)), f"names tenant '{tenant}' twice")


def _secret(api_key: ApiKey) -> tuple[str, str] | None:
    """What the key is, and in which sense; None when it is not said in exactly one way."""
    ways = [(way, value) for way in ("key", "key_env") if (value := getattr(api_key, way)) is not None]
    return ways[0] if len(ways) == 1 else None


_RULES = (
    _roles,
    _apiservers,
    _metrics_page,
    _transports,
    _kvmanagers,
    _routers,
    _response_store,
    _cores,
    _block_size,
    _batch,
    _long_prompts,
    _engine_env,
    _heartbeat,
    _api_keys,
    _tenants,
    storage_classes,
    needs_storage,
    quotas,
)
