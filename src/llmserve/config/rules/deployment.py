"""Refuses deployments that cannot run, and places where several processes would not meet. Pure."""

from collections.abc import Iterator

from llmserve.config.conflict import Conflict
from llmserve.config.messages import number
from llmserve.config.schema import Manifest

_LAST_PORT = 65535
_BUCKET_URLS = ("s3://", "gs://", "az://")


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


def _managed_models(manifest: Manifest) -> Iterator[Conflict]:
    k8s, key = manifest.deployment.k8s, "deployment.k8s.manage_models"
    if k8s.manage_models and k8s.model_cache_claim is None:
        message = "all pods need the files of a model that is loaded: set deployment.k8s.model_cache_claim"
        yield Conflict.at(message, key, "deployment.k8s.model_cache_claim")


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


RULES = (
    _roles,
    _single_process,
    _managed_models,
    _http_ports,
    _metrics_page,
    _shared_state,
    _response_store,
    _batches,
    _cores,
    _heartbeat,
)
