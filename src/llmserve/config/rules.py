"""Combinations of right values that are refused. Pure; called by load.py.

Only the rules of adapters and of speculation read `models`, so that all others are checked even while the
model is missing.
"""

from collections.abc import Iterator, Sequence

from llmserve.config.conflict import Conflict, Path
from llmserve.config.engine_options import option_rules
from llmserve.config.lora import adapter_memory, adapter_rules
from llmserve.config.messages import number
from llmserve.config.refusals import wire_refusals
from llmserve.config.schema import ApiKey, Manifest, Security
from llmserve.config.schema.section import path_text
from llmserve.config.several_models import conflict_in_file, distinct_names, keys_for_all
from llmserve.config.speculation import speculation_rules
from llmserve.config.storage_rules import needs_storage, quotas, storage_classes
from llmserve.core.ids import BACKGROUND_SUFFIX

_LAST_PORT = 65535
_BUCKET_URLS = ("s3://", "gs://", "az://")
_RESERVED_VARIABLES = {
    "VLLM_API_KEY": "would lock all clients out: their keys are security.api_keys",
    "CUDA_VISIBLE_DEVICES": "is set for each engine: the GPUs are divided between them",
    "PYTHONHASHSEED": "would change the identity of KV blocks",
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "is set by LLMServe: the hashes are the identity of KV blocks",
    "VLLM_WORKER_MULTIPROC_METHOD": "is set by LLMServe",
    "VLLM_RPC_BASE_PATH": "is set by LLMServe",
}


def conflicts(manifest: Manifest) -> Iterator[Conflict]:
    """Yields the conflicts of all rules, those of several models once for each of them."""
    yield from distinct_names(manifest)
    yield from keys_for_all(manifest)
    for model in manifest.served:
        alone = manifest.alone(model)
        for rule in _RULES:
            yield from (conflict_in_file(manifest, model, found) for found in rule(alone))


def _roles(manifest: Manifest) -> Iterator[Conflict]:
    deployment, replicas = manifest.deployment, manifest.deployment.replicas
    keys = ("deployment.replicas.prefill", "deployment.disaggregated")
    if deployment.disaggregated and replicas.prefill == 0:
        message = (
            "a disaggregated deployment needs a prefill engine; "
            "set at least 1, or deployment.disaggregated: false"
        )
        yield Conflict.at(message, *keys)
    if not deployment.disaggregated and replicas.prefill > 0 and "prefill" in replicas.model_fields_set:
        message = (
            "a deployment that is not disaggregated has no prefill engines; "
            "set 0 or leave it out (replicas.decode counts its engines)"
        )
        yield Conflict.at(message, *keys)


def _single_process(manifest: Manifest) -> Iterator[Conflict]:
    deployment, key = manifest.deployment, "deployment.local.single_process"
    for role in ("apiserver", "kvmanager", "router"):
        if deployment.local.single_process and getattr(deployment.replicas, role) > 1:
            yield Conflict.at(f"{key} has exactly one {role}", f"deployment.replicas.{role}", key)


def _http_ports(manifest: Manifest) -> Iterator[Conflict]:
    local, count = manifest.deployment.local, manifest.deployment.replicas.apiserver
    last = local.port + count - 1
    if local.separate_ports and local.port and last > _LAST_PORT:
        message = f"{count} apiservers need ports up to {last}, and {_LAST_PORT} is the last"
        yield Conflict.at(message, "deployment.local.port", "deployment.replicas.apiserver")


def _metrics_page(manifest: Manifest) -> Iterator[Conflict]:
    """In Kubernetes every pod has an address of its own, so nothing collides there."""
    local, page = manifest.deployment.local, manifest.observability
    apiservers = manifest.deployment.replicas.apiserver if local.separate_ports else 1
    is_served = manifest.deployment.mode == "local" and page.metrics and page.port
    if is_served and local.port and page.port in range(local.port, local.port + apiservers):
        http, metrics = "deployment.local.port", "observability.port"
        here, other = (metrics, http) if "port" in page.model_fields_set else (http, metrics)
        message = f"{page.port} is taken by {other}, too; set another one of them, or 0 for a free one"
        yield Conflict.at(message, here, other)


def _transports(manifest: Manifest) -> Iterator[Conflict]:
    yield from _twice(("transfer", "engine_order"), manifest.transfer.engine_order, "{}")


def _twice(path: Path, names: Sequence[str], words: str) -> Iterator[Conflict]:
    """Yields the items of a list that repeat an earlier one. words: how messages write an item."""
    for index, name in enumerate(names):
        first = names.index(name)
        if first < index:
            yield Conflict(((*path, index), (*path, first)), f"names {words.format(name)} twice")


def _shared_state(manifest: Manifest) -> Iterator[Conflict]:
    state, count = manifest.state, manifest.deployment.replicas.router
    if count > 1 and state.backend != "redis":
        message = "several routers need state.backend: redis"
        yield Conflict.at(message, "deployment.replicas.router", "state.backend")
    if state.backend == "redis" and state.redis is None:
        yield Conflict.at("needs state.redis.url", "state.backend", "state")
    if state.redis is not None and state.backend != "redis":
        yield Conflict.at("has no effect without backend: redis", "state.redis", "state.backend")
    if state.redis is not None and ":" in _user_of(state.redis.url):
        yield Conflict.at("has a password in it; set state.redis.password_env instead", "state.redis.url")


def _user_of(url: str) -> str:
    """Returns the user of a URL, with the password if there is one."""
    return url.partition("://")[2].rpartition("@")[0]


def _response_store(manifest: Manifest) -> Iterator[Conflict]:
    deployment = manifest.deployment
    if not manifest.api.response_store.enabled or manifest.state.backend == "redis":
        return
    counts = {"deployment.replicas.apiserver": deployment.replicas.apiserver}
    if deployment.mode == "k8s":
        counts["deployment.k8s.max_replicas.apiserver"] = deployment.k8s.max_replicas.apiserver or 0
    key, count = next(((key, count) for key, count in counts.items() if count > 1), ("", 0))
    if key:
        message = f"{count} apiservers share what they keep in Redis: set state.backend: redis"
        yield Conflict.at(message, "api.response_store.enabled", key, "state.backend")


def _batches(manifest: Manifest) -> Iterator[Conflict]:
    batches, deployment, key = manifest.batches, manifest.deployment, "batches.location"
    location = batches.location or ""
    if location and "://" not in location and not location.startswith("/"):
        yield Conflict.at("a directory is named by its absolute path", key)
    if "://" in location and not location.startswith(_BUCKET_URLS):
        yield Conflict.at(f"is neither a directory nor a URL of {', '.join(_BUCKET_URLS)}", key)
    for name in ("endpoint", "region"):
        if getattr(batches, name) is not None and not location.startswith("s3://"):
            yield Conflict.at("is of s3:// locations", f"batches.{name}", key)
    if deployment.mode == "k8s" and batches.enabled and location.startswith("/"):
        yield Conflict.at("pods keep no files: name a bucket", key, "deployment.mode")


def _cores(manifest: Manifest) -> Iterator[Conflict]:
    cores, key = manifest.deployment.local.cores, "deployment.local.cores"
    if not cores:
        yield Conflict.at("names no core", key)
    twice = next((core for core in cores if cores.count(core) > 1), None) if cores != "auto" else None
    if twice is not None:
        yield Conflict.at(f"names core {twice} twice", key)


def _block_size(manifest: Manifest) -> Iterator[Conflict]:
    size, page, cache = "kv_cache.block_size_tokens", "kv_cache.page_size_kb", manifest.kv_cache
    values = {size: cache.block_size_tokens, page: cache.page_size_kb}
    if manifest.engine.kind == "sim":
        message = "the simulated engine has its own; set engine.sim.block_size_tokens"
        for key in (key for key, value in values.items() if value is not None):
            yield Conflict.at(message, key, "engine.kind")
    elif None not in values.values():
        yield Conflict.at("kv_cache.page_size_kb already sets the size of a block; keep one", size, page)


def _batch(manifest: Manifest) -> Iterator[Conflict]:
    engine, key = manifest.engine, "engine.max_batched_tokens"
    if engine.max_batched_tokens is None:
        return
    got = f"got {engine.max_batched_tokens}"
    if engine.max_batched_tokens < engine.max_decode_concurrency:
        message = f"must be at least engine.max_decode_concurrency ({engine.max_decode_concurrency}), {got}"
        yield Conflict.at(message, key, "engine.max_decode_concurrency")
    if not engine.chunked_prefill and engine.max_batched_tokens < (engine.max_model_len or 0):
        message = (
            "without chunked_prefill a prompt is computed in one step, so it must be at least "
            f"engine.max_model_len ({engine.max_model_len}), {got}"
        )
        yield Conflict.at(message, key, "engine.chunked_prefill", "engine.max_model_len")


def _task(manifest: Manifest) -> Iterator[Conflict]:
    task = manifest.engine.task
    if task == "generate":
        return
    if manifest.engine.kind == "sim":
        yield Conflict.at("the simulated engine only generates", "engine.task", "engine.kind")
    if manifest.deployment.disaggregated:
        message = f"a model that is to {task} decodes nothing: it needs deployment.disaggregated: false"
        yield Conflict.at(message, "engine.task", "deployment.disaggregated")


def _decode_slots(manifest: Manifest) -> Iterator[Conflict]:
    kept, places = manifest.engine.min_decode_slots, manifest.engine.max_decode_concurrency
    if kept >= places:
        message = (
            f"must leave a place for a prompt: at most {places - 1} "
            f"of engine.max_decode_concurrency ({places}), got {kept}"
        )
        yield Conflict.at(message, "engine.min_decode_slots", "engine.max_decode_concurrency")


def _long_prompts(manifest: Manifest) -> Iterator[Conflict]:
    engine, key = manifest.engine, "engine.prefill_long_prompt_tokens"
    tokens, longest = engine.prefill_long_prompt_tokens, engine.max_model_len
    if tokens is not None and not engine.chunked_prefill:
        message = "needs chunked_prefill: otherwise every prompt is computed in one step"
        yield Conflict.at(message, key, "engine.chunked_prefill")
    if tokens is not None and longest is not None and tokens > longest:
        message = f"must be at most engine.max_model_len ({longest}), got {tokens}"
        yield Conflict.at(message, key, "engine.max_model_len")


def _engine_env(manifest: Manifest) -> Iterator[Conflict]:
    names = [one.name for one in manifest.engine.env]
    for index, name in enumerate(names):
        path: Path = ("engine", "env", index)
        if name in _RESERVED_VARIABLES:
            yield Conflict((path,), f"{name} {_RESERVED_VARIABLES[name]}")
        elif name.startswith("LLMSERVE_"):
            yield Conflict((path,), f"{name} is for LLMServe itself, which the manifest configures")
        elif names.index(name) < index:
            yield Conflict((path, ("engine", "env", names.index(name))), f"names {name} twice")


def _heartbeat(manifest: Manifest) -> Iterator[Conflict]:
    scheduling = manifest.scheduling
    beat, expiry = scheduling.worker_heartbeat_seconds, scheduling.worker_expiry_seconds
    keys = ("scheduling.worker_expiry_seconds", "scheduling.worker_heartbeat_seconds")
    if expiry > beat:
        return
    if "worker_expiry_seconds" in scheduling.model_fields_set:
        message = f"must be more than worker_heartbeat_seconds ({number(beat)}), got {number(expiry)}"
        yield Conflict.at(message, *keys)
    else:
        message = f"must be less than worker_expiry_seconds ({number(expiry)}), got {number(beat)}"
        yield Conflict.at(message, *reversed(keys))


def _api_keys(manifest: Manifest) -> Iterator[Conflict]:
    first: dict[tuple[str, str], int] = {}
    keys = manifest.security.api_keys
    for index, api_key in enumerate(keys):
        path: Path = ("security", "api_keys", index)
        secrets = _secrets(api_key)
        if len(secrets) != 1:
            how = "has both key and key_env; keep one" if secrets else "has no key; set key or key_env"
            yield Conflict((path,), how)
            continue
        same = first.setdefault(secrets[0], index)
        if same != index:
            other: Path = ("security", "api_keys", same)
            message = f"is the same key as {path_text(other)}, of tenant '{keys[same].tenant}'"
            yield Conflict((path, other), message)


def _key_place(manifest: Manifest) -> Iterator[Conflict]:
    place = manifest.security.keys
    if place is None:
        return
    if (place.file is None) is not place.redis:
        how = "has both file and redis; keep one" if place.redis else "has no place; set file or redis: true"
        yield Conflict.at(how, "security.keys")
    elif place.redis and manifest.state.redis is None:
        yield Conflict.at("needs state.redis.url", "security.keys.redis", "state")


def _oidc(manifest: Manifest) -> Iterator[Conflict]:
    issuers = manifest.security.oidc
    yield from _twice(("security", "oidc"), [one.issuer for one in issuers], "issuer '{}'")
    for index, issuer in enumerate(issuers):
        for at, rule in enumerate(issuer.rules):
            path: Path = ("security", "oidc", index, "rules", at)
            if (rule.tenant is None) is (rule.tenant_claim is None):
                how = "has no tenant; set" if rule.tenant is None else "has both; keep one of"
                yield Conflict((path,), f"{how} tenant or tenant_claim")


def _secrets(api_key: ApiKey) -> list[tuple[str, str]]:
    """Returns the ways in which the key is given, each with its value."""
    return [(way, value) for way in ("key", "key_env") if (value := getattr(api_key, way)) is not None]


def _tenants(manifest: Manifest) -> Iterator[Conflict]:
    for holder, tenant in _named_tenants(manifest.security):
        if tenant.endswith(BACKGROUND_SUFFIX):
            message = f"a name that ends with '{BACKGROUND_SUFFIX}' is that of a tenant's batches"
            yield Conflict(((*holder, "tenant"),), message)
    for path, items in (
        (("budgets", "tenants"), manifest.budgets.tenants),
        (("scheduling", "weights"), manifest.scheduling.weights),
    ):
        yield from _twice(path, [one.tenant for one in items], "tenant '{}'")


def _named_tenants(security: Security) -> Iterator[tuple[Path, str]]:
    """Yields what names a tenant, and its name."""
    for index, api_key in enumerate(security.api_keys):
        yield ("security", "api_keys", index), api_key.tenant
    for index, issuer in enumerate(security.oidc):
        for at, rule in enumerate(issuer.rules):
            yield ("security", "oidc", index, "rules", at), rule.tenant or ""


_RULES = (
    _roles,
    _single_process,
    _http_ports,
    _metrics_page,
    _transports,
    _shared_state,
    _response_store,
    _batches,
    _cores,
    _block_size,
    _batch,
    _task,
    _decode_slots,
    _long_prompts,
    _engine_env,
    option_rules,
    _heartbeat,
    _api_keys,
    _key_place,
    _oidc,
    _tenants,
    storage_classes,
    needs_storage,
    quotas,
    adapter_rules,
    adapter_memory,
    wire_refusals,
    speculation_rules,
)
